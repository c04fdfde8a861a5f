"""`biggan-hf convert`: converts another program's checkpoint to a model folder."""

import argparse

from . import common


EXAMPLES = """\
examples:
  biggan-hf convert weights/my_experiment --output my-biggan
  biggan-hf convert biggan-deep-128 --output biggan-deep-128-hf --stats-interpolation mirrored
"""


def add_command(commands: common.Commands) -> None:
    parser = common.add_parser(
        commands,
        "convert",
        run,
        help="convert another program's checkpoint",
        description="Finds out which program wrote SOURCE, and converts it to a model folder.",
        examples=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's file or folder")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="--output DIR …", help="the options of that program's converter"
    )


def run(args: argparse.Namespace) -> None:
    from ..conversion import convert  # here, because it imports torch

    convert.main([args.source, *args.rest])
