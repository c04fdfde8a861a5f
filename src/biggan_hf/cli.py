"""The command `biggan-hf`: for each sub-command a function that adds its arguments and one that runs it.

Modules that load torch are imported where they are used.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn


if TYPE_CHECKING:
    from PIL import Image

    from .pipeline_biggan import BigGANPipeline


SAMPLE_EXAMPLES = """\
examples:
  biggan-hf sample user/biggan --output samples.png
  biggan-hf sample user/biggan --classes "golden retriever" 985 --truncation 0.4 --output two-classes.png
"""


def main(argv: list[str] | None = None) -> None:
    """Runs `biggan-hf`; what the user can put right ends in one line on stderr and exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"biggan-hf: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="biggan-hf", description="BigGAN on the command line.", epilog=SAMPLE_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    sampling = commands.add_parser(
        "sample",
        help="generate a sheet of images",
        description="Generates images on one sheet, a row a class; a square sheet where the model has no classes.",
        epilog=SAMPLE_EXAMPLES,
        formatter_class=raw,
    )
    add_sample_arguments(sampling)
    sampling.set_defaults(run=run_sample)
    return parser


# biggan-hf sample


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder or a repository on the Hub")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME_OR_ID", help="names or ids of classes (default: the first 10)"
    )
    parser.add_argument(
        "--images_per_class",
        type=_positive_int,
        default=10,
        metavar="N",
        help="images a row; without classes, the side of the square (default: %(default)s)",
    )
    parser.add_argument(
        "--truncation", type=float, metavar="T", help="below 1 more typical and less varied (default: none)"
    )
    parser.add_argument(
        "--truncation_mode",
        choices=["resample", "scale"],
        help="draw entries beyond T again, or scale by T (default: the model's own)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="default: %(default)s")
    parser.add_argument(
        "--batch_size", type=_positive_int, default=16, metavar="N", help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="where the sheet goes")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.png if it exists")


def run_sample(args: argparse.Namespace) -> None:
    import torch

    from .images import image_grid
    from .latents import check_truncation

    check_png_path(args.output, args.overwrite)
    check_truncation(args.truncation)
    pipe = load_pipeline(args.model, args.device)
    per_row = args.images_per_class
    output = pipe(
        _classes_to_sample(pipe, args.classes),
        num_images_per_prompt=per_row if pipe.id2label else per_row**2,
        batch_size=args.batch_size,
        truncation=args.truncation,
        truncation_mode=args.truncation_mode,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="pt",
    )
    labels = [] if output.class_labels is None else output.class_labels[::per_row].tolist()
    names = [pipe.id2label[label].split(",")[0] for label in labels] or None
    save_png(image_grid((output.images * 255).round().to(torch.uint8), per_row, names), args.output)
    print(args.output)
    print(_next_command(pipe, args))
    print(
        f"In Python: from biggan_hf import BigGANPipeline; "
        f"BigGANPipeline.from_pretrained({args.model!r})({labels[0] if labels else ''}).images[0].show()"
    )


def _classes_to_sample(pipe: "BigGANPipeline", classes: list[str] | None) -> Sequence[int | str] | None:
    """A class may be named by a number, as digits are: digits are an id only where they are no name."""
    if classes is None:
        return list(pipe.id2label)[:10] or None
    names = pipe.labels
    return [int(name) if name.isdecimal() and name not in names else name for name in classes]


def _next_command(pipe: "BigGANPipeline", args: argparse.Namespace) -> str:
    """Another truncation, one that the model has statistics for; or another seed where truncation has been tried."""
    if args.truncation is None:
        truncation = min(pipe.model.config.standing_truncations, key=lambda t: abs(t - 0.5), default=0.5)
        intent, option, value = "More typical, less varied", "--truncation", truncation
    else:
        intent, option, value = "Other images", f"--truncation {args.truncation} --seed", args.seed + 1
    output = args.output.with_stem(f"{args.output.stem}-{value}")
    return f"{intent}: biggan-hf sample {shlex.quote(args.model)} {option} {value} --output {shlex.quote(str(output))}"


# What sub-commands share


def load_pipeline(model: str, device: str | None) -> "BigGANPipeline":
    """
    Args:
        model: A folder or a repository on the Hub.
        device: "cpu", "cuda" or `None`, which is "cuda" where there is one.

    Raises:
        ValueError: There is no such device, or no model that can be loaded.
    """
    import torch
    from transformers.utils import logging

    from .pipeline_biggan import BigGANPipeline

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use")
    logging.disable_progress_bar()
    try:
        pipe = BigGANPipeline.from_pretrained(model)
    # A missing repository, a strange config.json and a damaged file raise half a dozen types, some private.
    except Exception as error:
        source = "" if Path(model).is_dir() else ", which is no folder here, from the Hub"
        raise ValueError(f"cannot load {model!r}{source}: {error}") from error
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_png_path(path: Path, overwrite: bool) -> None:
    """Raises unless `path` is a .png file that may be written; to be called before the work."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"the output must be a .png file, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"the output {str(path)!r} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")


def save_png(image: "Image.Image", path: Path) -> None:
    """Writes beside the file and renames, so that an interrupted write leaves what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
