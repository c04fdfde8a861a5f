"""The processes of a distributed run: who this one is, and what all of them agree on.

Everything works in a process alone, where `torch.distributed` is not initialised.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


T = TypeVar("T")

AN_ANSWER = 2.0  # seconds that a process waits for where the processes count


def are_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def num_processes() -> int:
    return dist.get_world_size() if are_joined() else 1


def process_rank() -> int:
    return dist.get_rank() if are_joined() else 0


def is_main_process() -> bool:
    """Whether this is the first process, the one that writes and speaks. Before they are joined the launcher says."""
    return (dist.get_rank() if are_joined() else int(os.environ.get("RANK", "0"))) == 0


@contextmanager
def joined(on_gpu: bool) -> Iterator[None]:
    """Joins the processes that `accelerate launch` or `torchrun` started, if this is one and they are not joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or are_joined():
        yield
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_main(value: T) -> T:
    """The first process's value, on every process."""
    if num_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes."""
    if num_processes() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def count(name: str, number: int) -> int | None:
    """
    Adds to a counter of all processes, and returns the sum. It takes no other process but the launcher, or else the
    first one, which keeps the counter: so it serves a process that has lost another. `None` if nobody keeps it.
    """
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection((host, port), AN_ANSWER).close()  # torch would try, and print, again and again
        store = dist.TCPStore(host, port, timeout=timedelta(seconds=AN_ANSWER), wait_for_workers=False)
        return store.add(f"biggan_hf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{name}", number)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


class Vote:
    """
    What processes agree on at every step: the largest of the numbers that they named at the step before. One number
    travels between the CPUs while that step is computed, so that no device waits for it. Alone, a process is agreed
    with itself at once. All processes must make this object, and call it equally often.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if num_processes() > 1 else None
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


def end_with_parent(worker: int = 0) -> None:
    """
    Called in a process of `multiprocessing`: ends it as soon as the one that started it has ended, killed or not.
    torch's workers look for that only between two tasks, and never notice that it was gone before they looked first.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
