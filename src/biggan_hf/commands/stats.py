"""Measure standing statistics for truncations.

Measures batch norm's standing statistics, for each truncation or for plain N(0, 1), and saves the generator with them.
Processes of `accelerate launch` or `torchrun` share the passes.

examples:
  biggan-hf stats user/biggan --truncations 0.04 0.2 0.4 0.6 0.8 1 1.5 2 --output biggan-with-statistics
  biggan-hf stats my-biggan --batch_size 256 --output my-biggan --overwrite
"""

import argparse
import shlex
from pathlib import Path

import torch

from ..devices import device_or_best
from ..directions import FILE, Directions, is_named, read_directions
from ..latents import check_truncation
from ..processes import is_main_process, joined
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    group = parser.add_argument_group("the statistics")
    default = "none; the statistics of plain N(0, 1) replace the running ones"
    text = f"as the model's own mode means them; between two of them statistics are interpolated (default: {default})"
    group.add_argument("--truncations", nargs="+", type=float, metavar="T", help=text)
    common.add_number(group, "--num_batches", 100, "forward passes for each truncation")
    common.add_number(group, "--batch_size", 64, "samples a pass")
    common.add_seed_argument(group)
    common.add_output_arguments(parser, "FOLDER", "where the generator goes; other files in it stay")


def run(args: argparse.Namespace) -> None:
    _check_folder(args.output, args.overwrite)
    for truncation in args.truncations or []:
        check_truncation(truncation)
    from ..standing_stats import collect_standing_statistics  # here: it brings the networks

    with joined(device_or_best(args.device).startswith("cuda")):
        pipe = common.load_pipeline(args)
        _check_directions(args.output, pipe.directions)
        generator = torch.Generator().manual_seed(args.seed)
        numbers = {"num_batches": args.num_batches, "batch_size": args.batch_size}
        collect_standing_statistics(pipe.model, args.truncations, **numbers, generator=generator)
        if not is_main_process():
            return
    pipe.save_pretrained(args.output, global_step=pipe.model.saved_step)
    print(args.output)
    option = f" --truncation {args.truncations[0]}" if args.truncations else ""
    print(f"Use them: biggan-hf sample {shlex.quote(str(args.output))}{option} --output samples.png")


def _check_folder(folder: Path, overwrite: bool) -> None:
    common.check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{str(folder)!r} already holds something; --overwrite replaces the generator in it")


def _check_directions(folder: Path, own: Directions | None) -> None:
    """The directions go with the generator. Names that somebody gave to others are not lost."""
    path = folder / FILE
    if path.exists() and is_named(path) and (own is None or read_directions(path).names != own.names):
        raise FileExistsError(f"{str(path)!r} holds names that somebody gave: move the file away")
