"""Training BigGAN: `python train.py …`, `biggan-hf train …` or `accelerate launch train.py …`."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from ..bars import own_bars_alone
from ..files import locked_folder
from ..processes import is_main_process
from .arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from .ending import Lasting, leave, tell
from .loop import train
from .run import Run
from .set_up import set_up


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """As `main`, in a process of its own: a lost terminal does not end it, and what ends it ends it for sure."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
    try:
        main(argv)
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 0)
    leave(0)


@own_bars_alone()
def main(argv: Sequence[str] | None = None) -> None:
    """
    Trains as the command line says.

    Whatever ends it too early prints one line on standard error. The exit status is 2 for a mistake in the arguments,
    bad files, a full disk or too little memory; 3 for a collapse that ends the run; 130, 143 or 129 after SIGINT,
    SIGTERM or SIGHUP, which leave a checkpoint; 1 for any other failure.
    """
    run: Run | None = None
    with ExitStack() as held:
        try:
            arguments = parse_arguments(argv)
            if is_main_process() and not arguments[2].dry_run:
                held.enter_context(locked_folder(Path(arguments[2].output_dir), arguments[2].force_unlock))
            run = set_up(*arguments)
            folder = train(run)
        except (Exception, KeyboardInterrupt) as error:
            raise SystemExit(tell(error, run)) from error
    if run.collapsed or run.exit_status:
        raise SystemExit(3 if run.collapsed else run.exit_status)
    if run.is_main and folder is not None:
        print(f"model, discriminator and card: {folder}")
        print(f"samples: {folder / 'samples.png'}\nlog: {folder / 'log.jsonl'}")


__all__ = [
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "main",
    "parse_arguments",
    "program",
    "set_up",
    "train",
]
