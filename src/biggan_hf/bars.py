"""Bars of progress, which obey the switches of transformers, of the Hub and of tqdm."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm.auto import tqdm
from transformers.utils import logging


_OURS = "biggan_hf"  # the group of our bars among those of the Hub


def bars_are_on() -> bool:
    """
    Whether bars are to be shown: neither `transformers.utils.logging.disable_progress_bar()`, which is also the Hub's
    switch, nor `HF_HUB_DISABLE_PROGRESS_BARS` has turned them off.
    """
    return not are_progress_bars_disabled(_OURS)


def open_bar(*args: Any, disable: bool | None = False, **kwargs: Any) -> tqdm:
    """tqdm's bar, unless it is disabled or bars are off. `TQDM_DISABLE=1` acts where tqdm is given no `disable`."""
    disable = disable if bars_are_on() else True
    return tqdm(*args, **kwargs, **({} if disable is False else {"disable": disable}))


@dataclass
class _Blocks:
    """The open blocks of `own_bars_alone`, in all threads. The first one to open turns bars off, the last one on."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0
    bars_were_on: bool = False


_blocks = _Blocks()

# A fork copies the lock as it is: held, if another thread opens a block. The child makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_blocks, "lock", threading.Lock()))


@contextmanager
def own_bars_alone() -> Iterator[None]:
    """Inside, transformers and the Hub show no bars of their own, in any thread: their switch is the process's."""
    with _blocks.lock:
        if not _blocks.number:
            ours_are_on, _blocks.bars_were_on = bars_are_on(), not are_progress_bars_disabled()
            logging.disable_progress_bar()
            if ours_are_on:
                enable_progress_bars(_OURS)
        _blocks.number += 1
    try:
        yield
    finally:
        with _blocks.lock:
            _blocks.number -= 1
            if not _blocks.number and _blocks.bars_were_on:
                logging.enable_progress_bar()
