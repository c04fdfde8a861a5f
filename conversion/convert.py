"""Finds out which program wrote a checkpoint, here or on the Hub, and runs the converter for it."""

import argparse
import importlib
import re
import sys
from pathlib import Path

from biggan_hf.conversion.reading import load, recognise_source
from biggan_hf.conversion.repositories import HubFolder, Repository, chosen
from biggan_hf.conversion.writing import run
from biggan_hf.options import EitherSpelling


def main(argv: list[str] | None = None) -> None:
    """Passes the arguments after the source to the converter."""
    argv = sys.argv[1:] if argv is None else argv
    is_own_help = argv[:1] in (["-h"], ["--help"])  # after a source, help is the converter's
    arguments = EitherSpelling(
        description=__doc__,
        epilog="Further arguments go to the converter; `SOURCE --help` lists them.",
        add_help=is_own_help,
        allow_abbrev=False,
    )
    text = "a checkpoint's file or folder, or a repository on the Hub"
    arguments.add_argument("source", type=Path, metavar="SOURCE", help=text)
    _add_place(arguments)
    args, rest = arguments.parse_known_args(argv)
    if not args.source.exists():
        convert_repository(args, argv)
        return
    for name in ("subfolder", "revision", "token"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is for a repository on the Hub, and {str(args.source)!r} is here")
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


def _add_place(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("a repository on the Hub")
    group.add_argument("--subfolder", metavar="DIR", help="the folder of the checkpoint, if there are several")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: the main branch)")
    group.add_argument("--token", metavar="TOKEN", help="access token (default: the one stored on this machine)")


def convert_repository(args: argparse.Namespace, argv: list[str]) -> None:
    """Downloads the files of a repository that are needed, and converts them."""
    folder = _found(args)
    print(f"{folder} on the Hub is {folder.kind}: {folder.script}", flush=True)
    arguments = folder.converter.options()
    arguments.allow_abbrev = False
    _add_place(arguments)
    options = arguments.parse_args(argv)
    print("\n".join([*folder.converted(options), str(options.output)]))


def _found(args: argparse.Namespace) -> HubFolder:
    source = args.source.as_posix()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII):
        raise FileNotFoundError(f"there is no file or folder {source!r}")
    folder = chosen(Repository(source, revision=args.revision, token=args.token), args.subfolder)
    if folder is None:
        raise ValueError(
            f"{source!r} on the Hub holds none of the known checkpoints, by the names of its files. `hf download "
            f"{source} FILE` downloads a file of another name, and `biggan-hf convert` finds out what it holds"
        )
    return folder


def folder_and_choice(source: Path, script: str) -> tuple[Path, list[str]]:
    """
    The folder of a file and the options that choose the file in it, for the two programs whose converters take only
    folders; for the other programs the source itself, without options.
    """
    if not source.is_file() or script not in ("convert_studiogan.py", "convert_pretrained_biggan.py"):
        return source, []
    if script == "convert_pretrained_biggan.py":
        if source.name != "pytorch_model.bin":
            raise ValueError(
                f"{str(source)!r} must have the name pytorch_model.bin, beside its config.json; rename it"
            )
        return source.parent, []
    match = re.fullmatch(r"model=(G|G_ema)-(best|current)-weights-step=(\d+)", source.stem)
    if match is None:
        raise ValueError(f"{str(source)!r} is no generator by its name; give the folder that it lies in")
    weights = "ema" if match[1] == "G_ema" else "live"
    return source.parent, ["--step", match[3], "--weights", weights, "--prefer", match[2]]


if __name__ == "__main__":
    run(main)
