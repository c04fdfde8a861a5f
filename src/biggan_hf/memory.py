"""Out of memory: how errors tell of it, and how a CPU comes to tell of it."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


# Words in a `RuntimeError` of torch, of oneDNN, of CUDA's libraries, of ONNX Runtime or of OpenVINO.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "bad_alloc",
    "out of memory",
    "ALLOC_FAILED",
    "Failed to allocate",
    "can't alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of torch or of a library that torch uses tells that memory is short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # a fork, or a file that is mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)


@contextmanager
def refused_before_it_is_gone(processes: int) -> Iterator[None]:
    """
    Linux grants memory that is not there, and ends the program that uses it. Inside the block, it refuses what does
    not fit: this process gets its share of what is free, where so many processes share it.
    """
    if sys.platform != "linux":
        yield
        return
    import resource  # which other systems lack

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = in_use + int(0.9 * available_memory() / processes)
    allowed = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *allowed]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def available_memory() -> int:
    """Bytes that new programs of this machine, or of this container, can use without swapping. For Linux."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no container of version 2, or "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, limit - used + (int(cache[1]) if cache else 0))
    return max(free, 0)
