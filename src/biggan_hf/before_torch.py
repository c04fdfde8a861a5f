"""What our programs do before torch is imported: how its threads wait, and how many there are.

`__init__.py` imports this file first. In a program of somebody else, which imports the package, nothing here acts.
"""

import atexit
import contextlib
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType


# This process and the one that started it, noted as early as can be: a launcher may end while torch is being imported.
STARTED = os.getpid(), os.getppid()

status: int | None = None  # the exit status, once the program has told it

# A thread that waits for others shall sleep, not spin. On a machine with other work a spinning thread takes the core
# that the others need. libgomp, which torch's wheels carry on Linux, reads the first two; LLVM's and Intel's runtimes
# read the first and the last.
SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def is_ours() -> bool:
    """
    Whether this process runs `biggan-hf`, `python -m biggan_hf…`, or a script such as train.py that begins with
    `__program__ = "biggan_hf"`.
    """
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    is_module = sys.argv[:1] == ["-m"] and module != [] and module[0].partition(".")[0] == "biggan_hf"
    is_script = getattr(sys.modules.get("__main__"), "__program__", None) == "biggan_hf"
    return is_module or is_script or Path(sys.argv[0] if sys.argv else "").stem == "biggan-hf"


def prepare() -> None:
    """Sets the environment that torch reads. What the user has set stays."""
    if not is_ours() or "torch" in sys.modules:
        return
    sys.excepthook = say_interrupted
    atexit.register(end)  # it is called last, since it was registered first
    if not os.environ.keys() & {
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
    }:  # each of them decides how libgomp's threads wait
        for name, value in SLEEP.items():
            os.environ.setdefault(name, value)
    if "OMP_NUM_THREADS" not in os.environ:  # `accelerate launch` and `torchrun` set it to 1
        threads = usable_cores(idle=idle_cores())
        if threads < (os.cpu_count() or 1):  # or else torch knows better: it counts no core twice
            os.environ["OMP_NUM_THREADS"] = str(threads)


def end() -> None:
    """Ends a program that has told its exit status, whatever destructors of libraries still wait for."""
    if status is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C is no bug: it ends a program with one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# How many cores there are


def usable_cores(root: Path = Path("/"), idle: float = math.inf) -> int:
    """
    The cores that this process may use: those it is bound to, fewer where its container has a quota, and only those
    that are idle. A thread more than that waits for its turn, and all others wait for it.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = math.ceil(min(quota(root), bound))
    return max(1, min(granted, round(min(idle, bound))))


def idle_cores(seconds: float = 0.2) -> float:
    """How many cores did nothing in this time (Linux); infinite where nothing tells."""

    def times() -> list[int]:
        return [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    try:
        before = times()
        time.sleep(seconds)
        passed = [late - early for early, late in zip(before, times(), strict=True)]
    except (OSError, ValueError, IndexError):
        return math.inf
    return (os.cpu_count() or 1) * passed[3] / max(sum(passed), 1)  # user, nice, system, idle, …


def quota(root: Path = Path("/")) -> float:
    """
    Cores' worth of time that the control groups of this process grant (Linux); infinite without a limit. A group is
    limited by all groups above it.
    """
    granted = math.inf
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return granted
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mounts, files = ["", "unified"], ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mounts, files = [controllers, "cpu"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        for folder in [path, *map(str, Path(path).parents)]:
            folders = [root / "sys/fs/cgroup" / mount / folder.lstrip("/") for mount in mounts]
            granted = min([granted, *(_granted([place / file for file in files]) for place in folders)])
    return granted


def _granted(files: list[Path]) -> float:
    """Quota over period, which stand in one file (version 2) or in two."""
    try:
        numbers = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        limit, period = float(numbers[0]), float(numbers[1])
    except (OSError, ValueError, IndexError):  # "max" is no limit either
        return math.inf
    return limit / period if limit > 0 and period > 0 else math.inf
