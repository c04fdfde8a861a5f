"""Bars of progress, which obey the switches of transformers and of the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled
from tqdm.auto import tqdm
from transformers.utils import logging


# What the switches said before `own_bars_alone` turned them off.
_switched_on: bool | None = None


def bars_are_on() -> bool:
    """
    Whether bars are to be shown: neither `transformers.utils.logging.disable_progress_bar()`, which is also the Hub's
    switch, nor `HF_HUB_DISABLE_PROGRESS_BARS` has turned them off.
    """
    return not are_progress_bars_disabled() if _switched_on is None else _switched_on


def open_bar(*args: Any, disable: bool = False, **kwargs: Any) -> tqdm:
    """tqdm's bar, unless it is disabled or bars are off."""
    return tqdm(*args, disable=disable or not bars_are_on(), **kwargs)


@contextmanager
def own_bars_alone() -> Iterator[None]:
    """Inside, transformers and the Hub show no bars of their own."""
    global _switched_on
    before, were_on = _switched_on, bars_are_on()
    silent = are_progress_bars_disabled()
    _switched_on = were_on
    logging.disable_progress_bar()
    try:
        yield
    finally:
        _switched_on = before
        if not silent:
            logging.enable_progress_bar()
