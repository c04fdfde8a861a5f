"""Convert another program's checkpoint.

Finds out which program wrote SOURCE, and converts it to a model folder.

examples:
  biggan-hf convert weights/my_experiment --output my-biggan
  biggan-hf convert biggan-deep-128 --output biggan-deep-128-hf --stats_interpolation mirrored
"""

import argparse

from ..conversion import convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's file or folder")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="--output DIR …", help="the options of that program's converter"
    )


def run(args: argparse.Namespace) -> None:
    convert.main([args.source, *args.rest])
