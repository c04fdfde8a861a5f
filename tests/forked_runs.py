"""Training runs in processes that are forked from this one, so that a run costs no imports; ended from within."""

import ctypes
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState

from biggan_hf import cli
from biggan_hf.files import write_text
from biggan_hf.training import loop, program
from biggan_hf.training.batches import kill_workers
from biggan_hf.training.logs import CURVES


class DiskChanges:
    """
    Counts what a process, once it is started there, changes below a folder: files that it opens to write, renames and
    removes, folders that it makes and removes. Before the change of the number `last` its process group is killed.
    """

    def __init__(self, folder: Path, last: int = 0) -> None:
        self.folder, self.last, self._number = str(folder), last, mmap.mmap(-1, 8)  # which forks share

    def start(self) -> None:
        sys.addaudithook(self._note)

    @property
    def number(self) -> int:
        return int.from_bytes(self._number[:], "little")

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            changes = not isinstance(args[0], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        # `shutil.rmtree` names what it removes within an open folder, the last argument.
        if changes and (
            (event != "open" and args[-1] > 0) or os.path.abspath(os.fsdecode(args[0])).startswith(self.folder)
        ):
            self._number[:] = (self.number + 1).to_bytes(8, "little")
            if self.number == self.last:
                os.killpg(0, signal.SIGKILL)


class ForkedRun:
    """
    So many processes that train as `train.py` does, in a process group of their own; what they print goes to a file.
    `disk` is started in the first one.
    """

    def __init__(
        self, argv: Sequence[str], printed: Path, processes: int = 1, disk: DiskChanges | None = None
    ) -> None:
        self.printed, self.pids = printed, list[int]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        printed.write_bytes(b"")
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, self.pids[0] if self.pids else 0)
                _call(partial(_train, argv, rank, processes, port, disk), printed)
            self.pids.append(pid)
            os.setpgid(pid, self.pids[0])

    def kill(self, rank: int) -> None:
        """One of the processes, unless it has ended."""
        if not os.waitid(os.P_PID, self.pids[rank], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(self.pids[rank], signal.SIGKILL)

    def end(self, seconds: float) -> list[int]:
        """
        The exit statuses, of a kill -9. If one process fails, the others are told to end, as launchers do. Raises
        `TimeoutError` if one does not end in time.
        """
        deadline, statuses = time.monotonic() + seconds, dict[int, int]()
        while len(statuses) < len(self.pids):
            for pid in set(self.pids) - statuses.keys():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
                    for other in set(self.pids) - statuses.keys() if status else ():
                        os.kill(other, signal.SIGTERM)
            if time.monotonic() > deadline:
                os.killpg(self.pids[0], signal.SIGKILL)
                raise TimeoutError(self.printed.read_text())
            time.sleep(0.01)
        return [statuses[pid] for pid in self.pids]


def command(argv: Sequence[str], printed: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Runs `biggan-hf` in a process of its own; returns its exit status."""

    def run() -> None:
        prepare()
        cli.main(list(argv))

    if (pid := os.fork()) == 0:
        _call(run, printed)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _call(function: Callable[[], None], printed: Path) -> None:
    """Calls a function, with its output to a file, and ends this process."""
    status: Any = 0
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        function()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    finally:
        kill_workers()
        os._exit(status)


def _train(argv: Sequence[str], rank: int, processes: int, port: int, disk: DiskChanges | None) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    # Drawing the curves would take two thirds of so short a run.
    vars(loop)["draw_curves"] = lambda folder: write_text(folder / CURVES, "curves")
    if disk is not None and rank == 0:
        disk.start()
    program(argv)


# Full disks

_NEW_MOUNTS, _PRIVATE = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE


def may_mount() -> str | None:
    """Why this process can't mount a small disk; `None` if it can."""
    if sys.platform != "linux":
        return f"small disks are mounted on Linux only, not on {sys.platform}"
    return None if os.geteuid() == 0 else "mounting a small disk needs root"


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of this size at a folder. Only this process, which must be a forked one, and its children see it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = f"size={num_bytes}".encode()
    folder.mkdir(exist_ok=True)
    _check(libc.unshare(_NEW_MOUNTS))
    _check(libc.mount(b"none", b"/", None, _PRIVATE, None))
    _check(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, size))
    try:
        yield folder
    finally:
        _check(libc.umount2(bytes(folder), 2))  # MNT_DETACH


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
