"""Blocks that change what the whole process shares, and that threads may be in at the same time."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast


Block = TypeVar("Block", bound=Callable[[], Any])


def shared_by_threads(block: Block) -> Block:
    """
    Makes one block of those that overlap: the first thread enters it, and the last one leaves it. Otherwise the second
    thread would take what the first one has changed for what was there before, and restore it in the end.
    """
    held = ExitStack()
    lock, number = threading.Lock(), 0

    def renew_lock() -> None:
        nonlocal lock
        lock = threading.Lock()

    # A fork copies the lock as it is: held, if another thread enters or leaves. The child makes its own.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew_lock)

    @wraps(block)
    @contextmanager
    def shared() -> Iterator[None]:
        nonlocal number
        with lock:
            if not number:
                held.enter_context(block())
            number += 1
        try:
            yield
        finally:
            with lock:
                number -= 1
                if not number:
                    held.close()

    return cast(Block, shared)
