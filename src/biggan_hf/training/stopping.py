"""Why a run stops: its steps are done, its time is up, a signal came, or it collapsed."""

import enum
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop(enum.IntEnum):
    """Why a run stops. Where processes name different reasons, the largest counts."""

    NOT = 0
    STEPS_ARE_DONE = 1
    TIME_IS_UP = 2
    INTERRUPTED = 3
    COLLAPSED = 4


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set. A second SIGINT interrupts the program as usual."""
    event = threading.Event()

    def set_event(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # no other thread may handle signals
        yield event
        return
    before = {number: signal.signal(number, set_event) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
