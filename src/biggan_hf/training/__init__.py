"""Training BigGAN: `accelerate launch train.py …`, or `accelerate launch -m biggan_hf.training …`."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..bars import own_bars_alone
from ..data import UnreadablePictureError
from ..files import locked_folder
from ..processes import is_main_process
from .arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from .loop import train
from .set_up import set_up


# Seconds. When the first process ends with an error, the launcher ends the others within this time.
PATIENCE = 10.0


@own_bars_alone()
def main(argv: Sequence[str] | None = None) -> None:
    """
    Trains as the command line says.

    A mistake in the arguments or a full disk prints one line on standard error and exits with status 2. A collapse
    that ends the run exits with status 3.
    """
    with ExitStack() as held:
        _train(argv, held)


@own_bars_alone()
def _train(argv: Sequence[str] | None, held: ExitStack) -> None:
    try:
        arguments = parse_arguments(argv)
        if is_main_process() and not arguments[2].dry_run:
            held.enter_context(locked_folder(Path(arguments[2].output_dir), arguments[2].force_unlock))
        run = set_up(*arguments)
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            # The first process of the machine prints the error. If only this one has met it, it prints after a while.
            time.sleep(PATIENCE)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    try:
        folder = train(run)
    except (UnreadablePictureError, OSError, SafetensorError) as error:  # a worker's error begins with its traceback
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        raise SystemExit(2) from error
    if run.collapsed:
        raise SystemExit(3)
    if run.is_main and folder is not None:
        print(f"model, discriminator and card: {folder}")
        print(f"samples: {folder / 'samples.png'}\nlog: {folder / 'log.jsonl'}")


__all__ = ["DataArguments", "ModelArguments", "TrainingArguments", "main", "parse_arguments", "set_up", "train"]
