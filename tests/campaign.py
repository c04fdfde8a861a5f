"""
What the tests of the campaign share: the trials, each in a process of its own, and the table of what became of them.

A trial ends in one of RESULTS. `same`: what was read, or what a run made, is what it would be without the fault.
`clear`: an error of one line that names the file or the field. `unseen`: other values, in a format without checksums.
`silent`: other values, where a checksum or a check could have told. `other`: another error. `crash or hang`: the
process died, or did not end in time. `executed`: something in a file ran.

    CAMPAIGN_SEED=7 pytest -s -m slow tests/test_campaign*.py      # other trials
"""

import os
import random
import select
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch


SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
RESULTS = ("same", "clear", "unseen", "silent", "other", "crash or hang", "executed")

# What became of a trial with these random numbers; the first argument is the number of its row.
Trial = Callable[[int, random.Random], str]


def campaign(name: str, rows: Sequence[str], trial: Trial, number: int, seconds: float = 20) -> None:
    """
    Makes so many trials, the rows in turn, and prints the table. Fails where something was silent, unclear, without
    end or executed. A trial that lasts longer than `seconds` hangs.
    """
    start, table = time.monotonic(), {row: Counter[str]() for row in rows}
    done = 0
    while done < number:
        for result in _trials(name, len(rows), trial, range(done, number), seconds):
            table[rows[done % len(rows)]][result] += 1
            done += 1
    for row, counts in table.items():
        print(f"| {name}: {row} | {counts.total()} | {' | '.join(str(counts[result]) for result in RESULTS)} |")
    print(f"{name}: {time.monotonic() - start:.0f} s")
    wrong = {row: dict(counts) for row, counts in table.items() if not {"same", "clear", "unseen"}.issuperset(counts)}
    assert not wrong, wrong


def _trials(name: str, rows: int, trial: Trial, numbers: range, seconds: float) -> Any:
    """The results of a forked process, until it has made all trials or has died in one."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        os.close(reader)
        try:
            for number in numbers:
                dice = random.Random(f"{SEED} {name} {number}")
                os.write(writer, bytes([RESULTS.index(trial(number % rows, dice))]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(writer)
    try:
        for number in numbers:
            result = os.read(reader, 1) if select.select([reader], [], [], seconds)[0] else b""
            if not result:
                print(f"{name}: trial {number} died, or had not ended after {seconds:g} s")
                yield "crash or hang"
                return
            yield RESULTS[result[0]]
    finally:
        os.close(reader)
        for process in [*psutil.Process(child).children(recursive=True), psutil.Process(child)]:
            process.kill()
        os.waitpid(child, 0)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor | np.ndarray):
        both = np.asarray(one), np.asarray(other)
        return both[0].shape == both[1].shape and both[0].tobytes() == both[1].tobytes()
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and (one == other or one != one)


# What a trial executes

_STARTS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
_STARTS |= {"socket.connect", "ctypes.dlopen", "pty.spawn"}
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


class Watch:
    """
    Notes, once it is started in a process, what this process starts, what it writes outside `folder`, and the code
    that it takes from there. A hook of Python's audit can't be taken away: the process ends with the trials.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.process = str(folder), list[str](), 0

    def start(self) -> None:
        """Forgets what it has seen, and begins to look."""
        self.seen.clear()
        if self.process != os.getpid():
            self.process = os.getpid()
            sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _STARTS or (event in _CHANGES and not self._is_inside(args[0])):
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self._is_inside(args[0]):
            self.seen.append(f"open {args!r:.200}")
        elif event == "exec" and str(args[0].co_filename).startswith(self.folder):
            self.seen.append(f"exec {args[0].co_filename}")

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, int) or os.path.abspath(os.fsdecode(path)).startswith((self.folder, os.devnull))
