"""The command `biggan-hf`: its sub-commands, and how it reports a mistake."""

import argparse

from .commands import convert, evaluate, interpolate, invert, neighbours, npz, sample, stats, sweep
from .commands.common import CommandParser


COMMANDS = (sample, interpolate, sweep, npz, neighbours, invert, stats, convert, evaluate)


def main(argv: list[str] | None = None) -> None:
    """Runs `biggan-hf`. A mistake that the user can put right ends in one line on stderr and exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ImportError, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        from .pipeline_biggan import is_out_of_memory  # here, since it loads torch

        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split()) if isinstance(error, MemoryError) else ""
        parser.error(message or "out of memory; fewer images, or a smaller --batch_size, may fit")


class _Parser(argparse.ArgumentParser):
    error = CommandParser.error


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    description = "BigGAN on the command line. `biggan-hf COMMAND --help` lists the options of a command."
    parser = _Parser(prog="biggan-hf", description=description, epilog=sample.EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in COMMANDS:
        settings = {"help": command.HELP, "description": command.DESCRIPTION, "epilog": command.EXAMPLES}
        name = command.__name__.rpartition(".")[2]
        sub_parser = commands.add_parser(name, formatter_class=raw, allow_abbrev=False, **settings)
        command.add_arguments(sub_parser)
        sub_parser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    main()
