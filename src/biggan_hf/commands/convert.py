"""`biggan-hf convert`: another program's checkpoint to a model folder, by the scripts of conversion/."""

import argparse
import importlib
import sys
from pathlib import Path


HELP = "convert another program's checkpoint"
DESCRIPTION = "Finds out which program wrote SOURCE, and converts it to a model folder."
EXAMPLES = """\
examples:
  biggan-hf convert weights/my_experiment --output my-biggan
  biggan-hf convert biggan-deep-128 --output biggan-deep-128-hf --stats-interpolation mirrored
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's file or folder")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="--output DIR …", help="the options of that program's converter"
    )


def run(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(conversion_folder()))
    importlib.import_module("convert").main([args.source, *args.rest])


def conversion_folder() -> Path:
    """Where the scripts are: inside an installed package, beside src/ in a clone."""
    package = Path(__file__).parents[1]
    folders = (package / "conversion", package.parents[1] / "conversion")
    return next(folder for folder in folders if (folder / "convert.py").is_file())
