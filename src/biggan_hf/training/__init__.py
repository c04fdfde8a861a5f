"""Training BigGAN: `accelerate launch train.py …`, or `accelerate launch -m biggan_hf.training …`."""

import os
import sys
import time
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from ..data import UnreadablePictureError
from .arguments import TRAINING_PRESETS, DataArguments, ModelArguments, TrainingArguments, parse_arguments
from .loop import train
from .run import set_up


# Seconds in which a launcher ends the other processes of a machine, once the first has told what can't be.
PATIENCE = 10.0


def main(argv: Sequence[str] | None = None) -> None:
    """
    Trains as the command line says. What can't be is one line on standard error, and exit status 2, and so is a disk
    that is full; of the processes of a machine the first tells. A collapse that ended the run is exit status 3.
    """
    logging.disable_progress_bar()  # one bar is enough: the training's own
    try:
        run = set_up(*parse_arguments(argv))
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            time.sleep(PATIENCE)  # what it alone has met, it tells in the end
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    try:
        folder = train(run)
    except (UnreadablePictureError, OSError, SafetensorError) as error:  # a worker's has its traceback in front
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        raise SystemExit(2) from error
    if run.collapsed:
        raise SystemExit(3)
    if run.is_main and folder is not None:
        print(
            f"model, discriminator and card: {folder}\nsamples: {folder / 'samples.png'}\nlog: {folder / 'log.jsonl'}"
        )


__all__ = [
    "TRAINING_PRESETS",
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "main",
    "parse_arguments",
    "set_up",
    "train",
]
