"""
The campaign of runs: kills, full disks, power cuts, lost processes, threads and forks.

campaign.py says what a trial may end in; docs/guarantees.md shows the table of the whole campaign.
"""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import campaign, equal
from forked_runs import DiskChanges, ForkedRun
from training_runs import EVALUATION, arguments, read_log

from biggan_hf.training.settings import OF_THE_START


# On pictures of noise the discriminator wins soon, which the rule for collapses would call.
FLAGS = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "2", "--watch_steps", "2", "--horizontal_flip"]
FLAGS += ["--on_collapse", "ignore", "--sample_steps", "3", *EVALUATION, "--evaluation_steps", "2"]
FLAGS += ["--evaluation_allow_few_images"]
STEPS = 6
LATEST = ["--resume_from_checkpoint", "latest"]

A_RUN = 120.0  # seconds at most


def part(tenth: int, whole: int) -> pytest.MarkDecorator:
    values = [pytest.param(tenth, id="tenth"), pytest.param(whole, marks=pytest.mark.slow, id="whole")]
    return pytest.mark.parametrize("trials", values)


Content = dict[str, Any]


def content_of(folder: Path) -> Content:
    """What a run leaves, by file, without what tells of times and places, and of the start."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("README.md", "report.txt")]
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [{**line, "time": None} for line in read_log(path.parent, path.name)]
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.name == "training_settings.json":
        return {**json.loads(path.read_text()), **dict.fromkeys(OF_THE_START)}
    return path.read_bytes()


def differing(one: Content, other: Content) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if not equal(one.get(name), other.get(name)))


def goes_on(argv: list[str], printed: Path, processes: int, expected: Content) -> str:
    """What becomes of a run that is resumed."""
    output = Path(argv[argv.index("--output_dir") + 1])
    if ForkedRun([*argv, *LATEST], printed, processes).end(A_RUN) != [0] * processes:
        print(printed.read_text())
        return "other"
    names = differing(content_of(output), expected)
    if names:
        print(f"other than the whole run's: {names}")
    return "silent" if names else "same"


# Kills

KILLS = ["1 process, at a change on the disk", "1 process, at any time"]
KILLS += ["2 processes, at a change on the disk", "one of 2 processes, at any time"]


@part(tenth=4, whole=40)
def test_kills(trials: int, pictures: Path, tmp_path: Path) -> None:
    printed, output = tmp_path / "printed", tmp_path / "model"
    argv = arguments(pictures, output, *FLAGS, steps=STEPS)
    whole: dict[int, tuple[Content, int, float]] = {}
    for processes in (1, 2):
        disk, start = DiskChanges(output), time.monotonic()
        run = ForkedRun(argv, printed, processes, disk)
        assert run.end(A_RUN) == [0] * processes, printed.read_text()
        whole[processes] = content_of(output), disk.number, time.monotonic() - start
        print(f"{processes} processes: {disk.number} changes, {time.monotonic() - start:.1f} s")
        shutil.rmtree(output)

    def trial(row: int, dice: random.Random) -> str:
        processes = 1 + row // 2
        expected, changes, seconds = whole[processes]
        shutil.rmtree(output, ignore_errors=True)
        for _ in range(dice.randint(1, 2)):
            disk = DiskChanges(output, 0 if row % 2 else dice.randint(1, changes))
            run = ForkedRun([*argv, *LATEST], printed, processes, disk)
            if row % 2:
                time.sleep(dice.uniform(0, seconds))
                run.kill(dice.randrange(processes))
            run.end(A_RUN)
        return goes_on(argv, printed, processes, expected)

    campaign("kills", KILLS, trial, trials, 4 * A_RUN)
