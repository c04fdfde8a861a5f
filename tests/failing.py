"""
Trains as train.py does, until a fault, named by the first word, comes with the second step of the last process; a
fault "first" of the first one.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from biggan_hf.processes import num_processes, process_rank
from biggan_hf.training import loop, program


fault, update_ema, steps = sys.argv.pop(1), loop.update_ema, 0
pictures, output = (Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--dataset_name", "--output_dir"))


def abort() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)


def error() -> None:
    raise RuntimeError("a fault of the test")


def memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


FAULTS = {
    "abort": abort,
    "error": error,
    "memory": memory,
    "first": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "launcher": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "pictures": lambda: shutil.rmtree(pictures),
    "process": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "worker": lambda: os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL),
}


def update_and_fail(*args: Any) -> None:
    global steps
    update_ema(*args)
    steps += 1
    if steps == 2 and process_rank() == (0 if fault == "first" else num_processes() - 1):
        (output / "fault").touch()
        FAULTS[fault]()


vars(loop)["update_ema"] = update_and_fail
program()
