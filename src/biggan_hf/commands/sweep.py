"""Make the same draws at several truncations.

Generates a sheet with a column a truncation, like the paper's figure 2a. Each row is one draw.

examples:
  biggan-hf sweep user/biggan --output sweep.png
  biggan-hf sweep user/biggan --classes tiger --images_per_class 4 --truncations 1 0.5 0.2 --output tigers.png
"""

import argparse

import torch

from ..exploring import truncation_sweep
from ..latents import check_truncation
from . import common


PAPER = [2.0, 1.0, 0.5, 0.04]  # figure 2a, from left to right


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, engines=True)
    group = parser.add_argument_group("the images")
    common.add_classes_argument(group, "the first 4")
    common.add_images_per_class_argument(group, 2, "rows a class; without classes, rows")
    default = "the paper's 2 1 0.5 0.04; of these, those for which the model has statistics"
    text = f"from left to right (default: {default})"
    group.add_argument("--truncations", nargs="+", type=float, metavar="T", help=text)
    common.add_seed_argument(group)
    group = common.add_output_arguments(parser, "FILE.png", "where the sheet goes")
    common.add_scale_argument(group)


def run(args: argparse.Namespace) -> None:
    common.check_output(args.output, [".png"], args.overwrite)
    for truncation in args.truncations or []:
        check_truncation(truncation)
    pipe = common.load_pipeline(args)
    table = pipe.model.config.standing_truncations
    given = args.truncations or [t for t in PAPER if not table or table[0] <= t <= table[-1]]
    truncations = list(dict.fromkeys(given))
    if not truncations:
        raise ValueError(
            f"this model has statistics for truncations from {table[0]} to {table[-1]}: give --truncations"
        )
    classes, rows = common.classes_to_sample(pipe, args.classes, default=4), args.images_per_class
    generator = torch.Generator().manual_seed(args.seed)
    options = {"num_images_per_prompt": rows, "progress_bar": True}
    images = truncation_sweep(pipe, classes, truncations, generator, **options)
    # A class has its name at the first of its rows.
    labels = [label for name in common.class_names(pipe, classes) for label in [name, *[""] * (rows - 1)]] or None
    titles = [f"{truncation:g}" for truncation in truncations]
    common.save_sheet(pipe, args, images.flatten(0, 1), len(titles), labels, column_labels=titles)
    print(args.output)
