"""Finds out which program wrote a checkpoint, and runs the converter for it."""

import importlib
import re
from pathlib import Path

from biggan_hf.conversion.reading import load, recognise_source
from biggan_hf.conversion.writing import run
from biggan_hf.options import EitherSpelling


def main(argv: list[str] | None = None) -> None:
    """Passes the arguments after the source to the converter."""
    arguments = EitherSpelling(description=__doc__, epilog="Further arguments go to the converter.")
    arguments.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint's file or folder")
    args, rest = arguments.parse_known_args(argv)
    if not args.source.exists():
        raise FileNotFoundError(f"there is no file or folder {str(args.source)!r}")
    kind, script = recognise_source(args.source)
    if script is None and not kind and args.source.is_file():
        try:
            load(args.source)
        except ValueError as error:
            raise ValueError(f"{str(args.source)!r} is none of the known checkpoints: {error}") from error
    if script is None:
        what = f"is {kind}, for which there is no converter" if kind else "is none of the known checkpoints"
        raise ValueError(f"{str(args.source)!r} {what}")
    print(f"{args.source} is {kind}: {script}")
    source, chosen = folder_and_choice(args.source, script)
    importlib.import_module(f"biggan_hf.conversion.{script.removesuffix('.py')}").main([str(source), *chosen, *rest])


def folder_and_choice(source: Path, script: str) -> tuple[Path, list[str]]:
    """
    The folder of a file and the options that choose the file in it, for the two programs whose converters take only
    folders; for the other programs the source itself, without options.
    """
    if not source.is_file() or script not in ("convert_studiogan.py", "convert_pretrained_biggan.py"):
        return source, []
    match = re.fullmatch(r"model=(G|G_ema|D)-\w+-weights-step=(\d+)", source.stem)
    if match is None or match[1] == "D":
        if script == "convert_studiogan.py":
            raise ValueError(f"{str(source)!r} is no generator by its name; give the folder that it lies in")
        return source.parent, []
    return source.parent, ["--step", match[2], "--weights", "ema" if match[1] == "G_ema" else "live"]


if __name__ == "__main__":
    run(main)
