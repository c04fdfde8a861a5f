"""`biggan-hf sweep`: the same draws at several truncations, the paper's figure 2a."""

import argparse

from . import common


EXAMPLES = """\
examples:
  biggan-hf sweep user/biggan --output sweep.png
  biggan-hf sweep user/biggan --classes tiger --images_per_class 4 --truncations 1 0.5 0.2 --output tigers.png
"""

PAPER = [2.0, 1.0, 0.5, 0.04]  # figure 2a, from left to right


def add_command(commands: common.Commands) -> None:
    parser = common.add_parser(
        commands,
        "sweep",
        run,
        help="the same draws at several truncations",
        description="Generates a sheet with a column a truncation, like the paper's figure 2a; each row is one draw.",
        examples=EXAMPLES,
    )
    common.add_model_arguments(parser)
    common.add_classes_argument(parser, "the first 4")
    parser.add_argument(
        "--truncations",
        nargs="+",
        type=float,
        metavar="T",
        help="from left to right (default: 2 1 0.5 0.04, the paper's, or those of them that the model has "
        "statistics for)",
    )
    parser.add_argument(
        "--images_per_class",
        type=common.positive_int,
        default=2,
        metavar="N",
        help="rows a class; without classes, rows (default: %(default)s)",
    )
    common.add_truncation_mode_argument(parser)
    parser.add_argument("--seed", type=common.seed, default=0, help="default: %(default)s")
    common.add_batch_size_argument(parser)
    common.add_output_arguments(parser, "FILE.png", "where the sheet goes")


def run(args: argparse.Namespace) -> None:
    import torch

    from ..exploring import truncation_sweep
    from ..images import image_grid
    from ..latents import check_truncation
    from ..media import save_png

    common.check_output(args.output, [".png"], args.overwrite)
    for truncation in args.truncations or []:
        check_truncation(truncation)
    pipe = common.load_pipeline(args.model, args.device)
    table = pipe.model.config.standing_truncations
    given = args.truncations or [t for t in PAPER if not table or table[0] <= t <= table[-1]]
    truncations = list(dict.fromkeys(given))
    if not truncations:
        raise ValueError(
            f"this model has statistics for truncations from {table[0]} to {table[-1]}: give --truncations"
        )
    classes = common.classes_to_sample(pipe, args.classes, default=4)
    images = truncation_sweep(
        pipe,
        classes,
        truncations,
        torch.Generator().manual_seed(args.seed),
        num_images_per_prompt=args.images_per_class,
        truncation_mode=args.truncation_mode,
        batch_size=args.batch_size,
        progress_bar=True,
    )
    names = common.class_names(pipe, classes)
    rows = [label for name in names for label in [name, *[""] * (args.images_per_class - 1)]] or None
    titles = [f"{truncation:g}" for truncation in truncations]
    save_png(image_grid(images.flatten(0, 1), len(titles), rows, column_labels=titles), args.output)
    print(args.output)
