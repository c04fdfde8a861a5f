"""Find directions of the latents that change pictures.

Finds directions along which a generator changes most, without labels. A row of the sheet shows one draw as it moves
along a direction. With --names and --save, the directions that you name are kept beside the model: the pipeline and
the page have them from then on, and push uploads them.

examples:
  biggan-hf directions user/biggan --classes tiger --truncation 0.5 --output directions.png
  biggan-hf directions my-biggan --number 4 --names 1=brightness "3=sleeve length" --save --output directions.png
"""

import argparse
from pathlib import Path

import torch

from ..directions import FILE, check_names, is_named, save_directions
from ..exploring import direction_grid, find_directions
from . import common


NUMBER = 8
STRENGTHS = [-3, -2, -1, 0, 1, 2, 3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    group = parser.add_argument_group("the directions")
    text = f"find so many; without it and --method, show those beside the model (default: these, or {NUMBER})"
    common.add_number(group, "--number", None, text)
    text = "ganspace: along which pictures change; sefa: along which the layers change that read latents"
    group.add_argument("--method", choices=["ganspace", "sefa"], help=f"{text} (default: ganspace)")
    text = "keep these directions alone, with these names (default: keep all)"
    group.add_argument("--names", nargs="+", type=_numbered, default=[], metavar="N=NAME", help=text)
    text = f"write {FILE} into the folder of MODEL"
    group.add_argument("--save", action="store_true", help=text)
    group = parser.add_argument_group("the images")
    common.add_classes_argument(group, "the first 2")
    common.add_drawing_arguments(group)
    group = common.add_output_arguments(parser, "FILE.png", "where the sheet goes")
    common.add_scale_argument(group)


def _numbered(text: str) -> tuple[int, str]:
    number, _, name = text.partition("=")
    if not number.isdecimal() or not name:
        raise argparse.ArgumentTypeError(f"must be a number and a name, as in 1=brightness, got {text!r}")
    return int(number), name


def run(args: argparse.Namespace) -> None:
    if args.save:
        _check_folder(Path(args.model), args.overwrite)
    pipe = common.checked_pipeline(args, ".png")
    directions = None if args.number or args.method else pipe.directions
    names = _each_once(args.names)
    # What can be wrong is told before the search, which takes minutes.
    check_names(names, args.number or NUMBER if directions is None else len(directions.names))
    classes = common.classes_to_sample(pipe, args.classes, default=2)
    common.check_draw(pipe, classes, args.truncation)
    if directions is None:
        generator = torch.Generator().manual_seed(args.seed)
        directions = find_directions(pipe.model, args.number or NUMBER, args.method or "ganspace", generator)
    if names:
        directions = directions.named(names)
    options = {"truncation": args.truncation, "progress_bar": True}
    generator = torch.Generator().manual_seed(args.seed)
    images = direction_grid(pipe, directions, classes, STRENGTHS, generator, **options)
    # A direction has its name at the first of its rows.
    labels = [label for name in directions.names for label in [name, *[""] * (images.shape[1] - 1)]]
    titles = [f"{strength:+g}" if strength else "0" for strength in STRENGTHS]
    common.save_sheet(pipe, args, images.flatten(0, 2), len(titles), labels, column_labels=titles)
    print(args.output)
    shares = zip(directions.names, directions.shares, strict=True)
    print("Share of the change that was measured: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    if args.save:
        save_directions(directions, Path(args.model))
        print(Path(args.model) / FILE)


def _each_once(names: list[tuple[int, str]]) -> dict[int, str]:
    """The names by number; raises `ValueError` where a direction has two."""
    numbers = [number for number, _ in names]
    if double := next((number for number in numbers if numbers.count(number) > 1), None):
        both = " and ".join(repr(name) for number, name in names if number == double)
        raise ValueError(f"--names must name each direction once, got {both} for {double}")
    return dict(names)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raises unless directions may be written into the folder of a model; names that somebody gave stay."""
    if not folder.is_dir():
        raise ValueError(f"--save writes into the folder of a model, and {str(folder)!r} is no folder here")
    path = folder / FILE
    if path.exists() and is_named(path):
        raise FileExistsError(f"{str(path)!r} holds names that somebody gave: edit the file, or remove it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
