"""When a run stops: its steps are done, its time is up, or a signal came; every process stops at the same step."""

import enum
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Stop(enum.IntEnum):
    """Why a run stops; of what processes name, the larger takes precedence."""

    NOT = 0
    STEPS_ARE_DONE = 1
    TIME_IS_UP = 2
    INTERRUPTED = 3
    COLLAPSED = 4


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while a run goes on; a second SIGINT interrupts as usual."""
    event = threading.Event()

    def set_event(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield event
        return
    before = {number: signal.signal(number, set_event) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Vote:
    """
    What processes agree on at every step: the largest of the numbers that they named at the step before. One number
    travels between the CPUs while that step is computed, so that no device waits for it.

    Args:
        num_processes: All of them must make this, and call it equally often; one alone is agreed with itself at once.
    """

    def __init__(self, num_processes: int):
        self._group = dist.new_group(backend="gloo") if num_processes > 1 else None
        self._on_its_way: tuple[dist.Work, Tensor] | None = None

    def __call__(self, number: int) -> int:
        if self._group is None:
            return number
        agreed = 0
        if self._on_its_way is not None:
            work, largest = self._on_its_way
            work.wait()
            agreed = int(largest)
        largest = torch.tensor(number)
        self._on_its_way = dist.all_reduce(largest, dist.ReduceOp.MAX, self._group, async_op=True), largest
        return agreed
