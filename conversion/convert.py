"""Says which program's checkpoint a file or folder is, and runs the converter for it."""

import argparse
import importlib
from pathlib import Path

from reading import recognise_source
from writing import run


def main(argv: list[str] | None = None) -> None:
    """The arguments after the source are the converter's own."""
    arguments = argparse.ArgumentParser(description=__doc__, epilog="Further arguments are those of the converter.")
    arguments.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint's file or folder")
    args, rest = arguments.parse_known_args(argv)
    if not args.source.exists():
        raise FileNotFoundError(f"there is no file or folder {str(args.source)!r}")
    kind, script = recognise_source(args.source)
    if script is None:
        what = f"is {kind}, for which there is no converter" if kind else "is none of the known checkpoints"
        raise ValueError(f"{str(args.source)!r} {what}")
    print(f"{args.source} is {kind}: {script}")
    # These two programs keep what belongs together in a folder.
    whole_folder = script in ("convert_studiogan.py", "convert_pretrained_biggan.py") and args.source.is_file()
    source = args.source.parent if whole_folder else args.source
    importlib.import_module(script.removesuffix(".py")).main([str(source), *rest])


if __name__ == "__main__":
    run(main)
