"""Convert another program's checkpoint.

Finds out which program wrote SOURCE, and converts it to a model folder. Of a repository on the Hub it downloads the
files that are needed. `biggan-hf convert SOURCE --help` lists the options.

examples:
  biggan-hf convert weights/my_experiment --output my-biggan
  biggan-hf convert biggan-deep-128 --output biggan-deep-128-hf --stats_interpolation mirrored
  biggan-hf convert user/biggan-deep-128 --output biggan-deep-128-hf
  biggan-hf convert user/gans --subfolder cifar10/big --revision v1 --output cifar10-biggan
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's file or folder, or a repository on the Hub")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="--output DIR …", help="the options of that program's converter"
    )


def run(args: argparse.Namespace) -> None:
    from ..conversion import convert  # here: it brings the networks, for which the other commands do not wait

    convert.main([args.source, *args.rest])
