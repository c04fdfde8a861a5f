"""`biggan-hf sample`: a sheet of images, a row or a block a class."""

import argparse
import re
import shlex
from typing import TYPE_CHECKING, Any

from . import common


if TYPE_CHECKING:
    from ..pipeline_biggan import BigGANPipeline


EXAMPLES = """\
examples:
  biggan-hf sample user/biggan --output samples.png
  biggan-hf sample user/biggan --classes "golden retriever" 985 --truncation 0.4 --output two-classes.png
"""


IMAGES_PER_CLASS = 10


def add_command(commands: common.Commands) -> None:
    parser = common.add_parser(
        commands,
        "sample",
        run,
        help="generate a sheet of images",
        description="Generates images on one sheet, a row a class; a square sheet where the model has no classes.",
        examples=EXAMPLES,
    )
    common.add_model_arguments(parser)
    common.add_classes_argument(parser, "the first 10")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--images_per_class",
        type=common.positive_int,
        default=IMAGES_PER_CLASS,
        metavar="N",
        help="images a row; without classes, the side of the square (default: %(default)s)",
    )
    sizes.add_argument("--grid", type=_grid, metavar="RxC", help="R rows of C images for each class, such as 4x8")
    parser.add_argument(
        "--same_latents", action="store_true", help="draw every class with the same latents, a column each"
    )
    common.add_drawing_arguments(parser)
    common.add_output_arguments(parser, "FILE.png", "where the sheet goes")


def run(args: argparse.Namespace) -> None:
    import torch

    from ..exploring import class_grid
    from ..images import image_grid
    from ..latents import check_truncation
    from ..media import save_png

    common.check_output(args.output, [".png"], args.overwrite)
    check_truncation(args.truncation)
    pipe = common.load_pipeline(args.model, args.device)
    classes = common.classes_to_sample(pipe, args.classes)
    rows, columns = args.grid or (1 if pipe.id2label else args.images_per_class, args.images_per_class)
    number = rows * columns
    options: dict[str, Any] = {
        "batch_size": args.batch_size,
        "truncation": args.truncation,
        "truncation_mode": args.truncation_mode,
        "generator": torch.Generator().manual_seed(args.seed),
        "progress_bar": True,
    }
    if not args.same_latents:
        output = pipe(classes, num_images_per_prompt=number, output_type="uint8", **options)
        images = torch.from_numpy(output.images).permute(0, 3, 1, 2)
    elif classes is None:
        raise ValueError("--same_latents is for classes, and this model has none")
    else:
        images = class_grid(pipe, classes, number, **options).flatten(0, 1)
    names = common.class_names(pipe, classes)
    labels = [label for name in names for label in [name, *[""] * (rows - 1)]] or None
    save_png(image_grid(images, columns, labels), args.output)
    print(args.output)
    print(_next_command(pipe, args))
    print(
        f"In Python: from biggan_hf import BigGANPipeline; "
        f"BigGANPipeline.from_pretrained({args.model!r})({repr(classes[0]) if classes else ''}).images[0].show()"
    )


def _grid(text: str) -> tuple[int, int]:
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if sizes is None:
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNS such as 4x8, got {text!r}")
    return int(sizes[1]), int(sizes[2])


def _next_command(pipe: "BigGANPipeline", args: argparse.Namespace) -> str:
    """Another truncation, one that the model has statistics for; or another seed where truncation has been tried."""
    truncation, seed = args.truncation, args.seed
    if truncation is None:
        intent = "More typical, less varied"
        truncation = min(pipe.model.config.standing_truncations, key=lambda t: abs(t - 0.5), default=0.5)
        output = args.output.with_stem(f"{args.output.stem}-{truncation}")
    else:
        intent, seed = "Other images", (seed + 1) % 2**63
        output = args.output.with_stem(f"{args.output.stem}-{seed}")
    command = [*_what_is_sampled(args), "--truncation", truncation, "--seed", seed, "--output", output]
    return f"{intent}: biggan-hf sample {shlex.join(map(str, command))}"


def _what_is_sampled(args: argparse.Namespace) -> list[str]:
    """The arguments that the next command keeps."""
    kept = [args.model]
    if args.device:
        kept += ["--device", args.device]
    if args.classes:
        kept += ["--classes", *args.classes]
    if args.grid:
        kept += ["--grid", "{}x{}".format(*args.grid)]
    elif args.images_per_class != IMAGES_PER_CLASS:
        kept += ["--images_per_class", str(args.images_per_class)]
    if args.same_latents:
        kept += ["--same_latents"]
    if args.truncation_mode:
        kept += ["--truncation_mode", args.truncation_mode]
    if args.batch_size:
        kept += ["--batch_size", str(args.batch_size)]
    return kept
