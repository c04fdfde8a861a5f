"""Bars of progress, which obey the switches of transformers, of the Hub and of tqdm."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm.auto import tqdm
from transformers.utils import logging

from .blocks import shared_by_threads


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


@shared_by_threads
@contextmanager
def own_bars_alone() -> Iterator[None]:
    """Inside, transformers and the Hub show no bars of their own, in any thread: their switch is the process's."""
    ours_are_on, all_are_on = bars_are_on(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if ours_are_on:
        enable_progress_bars(_OURS)
    try:
        yield
    finally:
        if all_are_on:
            logging.enable_progress_bar()
