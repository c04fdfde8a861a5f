"""The command `biggan-hf`: its sub-commands, and how it reports a mistake."""

import argparse

from .commands import convert, evaluate, interpolate, invert, neighbours, npz, sample, stats, sweep
from .commands.common import CommandParser


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
    parser = _Parser(
        prog="biggan-hf",
        description="BigGAN on the command line. `biggan-hf COMMAND --help` lists the options of a command.",
        epilog=sample.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in (sample, interpolate, sweep, npz, neighbours, invert, stats, convert, evaluate):
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    main()
