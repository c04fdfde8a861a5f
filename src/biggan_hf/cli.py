"""The command `biggan-hf`: its sub-commands, and how it tells a mistake."""

import argparse
from typing import NoReturn

from .commands import convert, evaluate, interpolate, invert, neighbours, npz, sample, stats, sweep


def main(argv: list[str] | None = None) -> None:
    """Runs `biggan-hf`; what the user can put right ends in one line on stderr and exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ImportError, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        from .pipeline_biggan import is_out_of_memory  # here, since it takes torch

        if not is_out_of_memory(error):
            raise
        told = " ".join(str(error).split()) if isinstance(error, MemoryError) else ""
        parser.error(told or "out of memory; a smaller --batch_size or fewer images may fit")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"biggan-hf: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="biggan-hf",
        description="BigGAN on the command line.",
        epilog=sample.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (sample, interpolate, sweep, npz, neighbours, invert, stats, convert, evaluate):
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    main()
