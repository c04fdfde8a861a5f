"""Generate a sheet of images.

Generates images on one sheet, a row a class. A model without classes fills a square.

examples:
  biggan-hf sample user/biggan --output samples.png
  biggan-hf sample user/biggan --classes "golden retriever" 985 --truncation 0.4 --output two-classes.png
"""

import argparse
import shlex

from ..exploring import class_grid, uint8_images
from ..pipeline_biggan import BigGANPipeline
from . import common


IMAGES_PER_CLASS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, engines=True)
    group = parser.add_argument_group("the images")
    common.add_classes_argument(group, "the first 10")
    common.add_images_per_class_argument(group, IMAGES_PER_CLASS, "images a row; without classes, rows too")
    group.add_argument("--same_latents", action="store_true", help="the same latents for every class, a column each")
    common.add_drawing_arguments(group, mode=True)
    group = common.add_output_arguments(parser, "FILE.png", "where the sheet goes")
    common.add_scale_argument(group)


def run(args: argparse.Namespace) -> None:
    pipe = common.checked_pipeline(args, ".png")
    classes = common.classes_to_sample(pipe, args.classes)
    columns = args.images_per_class
    options = {"progress_bar": True, **common.drawing_options(args)}
    if not args.same_latents:
        number = columns if pipe.id2label else columns**2
        images = uint8_images(pipe, classes, num_images_per_prompt=number, **options)
    elif classes is None:
        raise ValueError("--same_latents is for classes, and this model has none")
    else:
        images = class_grid(pipe, classes, columns, **options).flatten(0, 1)
    common.save_sheet(pipe, args, images, columns, common.class_names(pipe, classes) or None)
    print(args.output)
    print(_next_command(pipe, args))
    keywords = "".join(f", {name}={value!r}" for name in ("engine", "precision") if (value := getattr(args, name)))
    print(
        f"In Python: from biggan_hf import BigGANPipeline; BigGANPipeline.from_pretrained({args.model!r}{keywords})"
        f"({repr(classes[0]) if classes else ''}).images[0].show()"
    )


def _next_command(pipe: BigGANPipeline, args: argparse.Namespace) -> str:
    """
    The same images at a truncation for which the model has statistics; where a truncation was given, other images.
    """
    truncation, seed = args.truncation, args.seed
    if truncation is None:
        intent = "More typical, less varied"
        truncation = min(pipe.model.config.standing_truncations, key=lambda t: abs(t - 0.5), default=0.5)
        output = args.output.with_stem(f"{args.output.stem}-{truncation}")
    else:
        intent, seed = "Other images", (seed + 1) % 2**63
        output = args.output.with_stem(f"{args.output.stem}-{seed}")
    command = [*_kept_arguments(args), "--truncation", truncation, "--seed", seed, "--output", output]
    return f"{intent}: biggan-hf sample {shlex.join(map(str, command))}"


def _kept_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments that the next command repeats: those that were given."""
    kept = [args.model]
    for name in ("revision", "device", "engine", "precision", "truncation_mode"):
        if getattr(args, name):
            kept += [f"--{name}", getattr(args, name)]
    if args.classes:
        kept += ["--classes", *args.classes]
    if args.images_per_class != IMAGES_PER_CLASS:
        kept += ["--images_per_class", str(args.images_per_class)]
    if args.scale:
        kept += ["--scale", str(args.scale)]
    return [*kept, "--same_latents"] if args.same_latents else kept
