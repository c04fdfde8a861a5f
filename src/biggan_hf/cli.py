"""The command `biggan-hf`: its sub-commands, and how it reports a mistake."""

import argparse
import sys
from types import ModuleType
from typing import Any

from . import __version__
from .commands import (
    app,
    convert,
    directions,
    env,
    evaluate,
    export,
    interpolate,
    invert,
    neighbours,
    npz,
    polish,
    prepare,
    push,
    sample,
    stats,
    sweep,
)
from .commands.common import CommandParser
from .keywords import did_you_mean
from .memory import is_out_of_memory
from .options import missing_package, unknown_option


COMMANDS = (
    sample,
    interpolate,
    sweep,
    directions,
    npz,
    neighbours,
    invert,
    stats,
    convert,
    export,
    prepare,
    evaluate,
    polish,
    push,
    app,
    env,
)


def main(argv: list[str] | None = None) -> None:
    """
    Runs `biggan-hf`. A mistake that the user can put right ends in one line on stderr and exit status 2. Without a
    command it prints its usage and ends with status 1, as `accelerate` and `transformers` do.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        from .training import program  # here: the other commands do without accelerate

        program(argv[1:])
    parser = build_parser()
    known = ["train", *map(_name, COMMANDS), "--help", "-h", "--version"]
    if argv and argv[0] not in known:
        hint = did_you_mean(argv[0], known) or f"; the commands are {', '.join(known[:-3])}"
        parser.error(unknown_option(argv[:1], known[-3:]) or f"there is no command {argv[0]!r}{hint}")
    args = parser.parse_args(argv)
    if "run" not in args:
        parser.print_help()
        raise SystemExit(1)
    try:
        args.run(args)
    except ImportError as error:
        parser.error(" ".join(missing_package(error).split()))
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split()) if isinstance(error, MemoryError) else ""
        parser.error(message or "out of memory; fewer images, or a smaller --batch_size, may fit")


def _name(command: ModuleType) -> str:
    return command.__name__.rpartition(".")[2]


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    description = "BigGAN on the command line. `biggan-hf COMMAND --help` lists the options of a command."
    parser = CommandParser(prog="biggan-hf", description=description, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"biggan_hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("train", help="Train a model, as train.py does.")  # which parses its options itself
    for command in COMMANDS:
        summary, _, text = (command.__doc__ or "").partition("\n\n")
        description, _, examples = text.partition("\n\n")
        words: Any = {"help": summary, "description": description, "epilog": examples}
        sub_parser = commands.add_parser(_name(command), formatter_class=raw, allow_abbrev=False, **words)
        command.add_arguments(sub_parser)
        sub_parser.set_defaults(run=command.run)
        parser.epilog = parser.epilog or examples  # the first command's
    return parser


if __name__ == "__main__":
    main()
