"""
The campaign of runs: kills, full disks, power cuts, lost processes, threads and forks.

campaign.py says what a trial may end in; docs/guarantees.md shows the table of the whole campaign.
"""

import faulthandler
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from campaign import SEED, campaign, equal
from common import VARIANTS, tiny_generator, tiny_latents
from conversion_common import ORIGINALS
from fake_hub import FakeHub
from forked_runs import DiskChanges, ForkedRun, command, may_mount, small_disk
from training_runs import EVALUATION, arguments, read_log, write_pictures

from biggan_hf import BigGANDiscriminator, BigGANModel, BigGANPipeline
from biggan_hf.training.settings import OF_THE_START


# On pictures of noise the discriminator wins soon, which the rule for collapses would call.
FLAGS = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "2", "--watch_steps", "2", "--horizontal_flip"]
FLAGS += ["--on_collapse", "ignore", "--sample_steps", "2", *EVALUATION, "--evaluation_steps", "2"]
FLAGS += ["--evaluation_allow_few_images"]
STEPS = 4
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
        with suppress(Exception):  # it is damaged
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


@pytest.fixture(scope="module")
def run_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and in `next` what becomes of it after more steps."""
    folder = tmp_path_factory.mktemp("runs")
    for steps in (STEPS, STEPS + 2):
        argv = arguments(pictures, folder / "model", *FLAGS, *LATEST, steps=steps)
        assert ForkedRun(argv, folder / "printed").end(A_RUN) == [0], (folder / "printed").read_text()
        if steps == STEPS:
            shutil.copytree(folder / "model", folder / "whole")
    (folder / "model").rename(folder / "next")
    return folder


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


# Full disks

# What each program writes to the disk, which is `{}`. `more` is written once, by a program with room.
PROGRAMS: dict[str, list[str]] = {
    "train": [],
    "convert": ["convert", str(ORIGINALS / "biggan_thin"), "--output", "{}/out", "--overwrite"],
    "sample": ["sample", "{model}", "--output", "{}/out.png", "--overwrite"],
    "npz": ["npz", "{model}", "--num_images", "40", "--output", "{}/out.npz", "--overwrite"],
    "interpolate": ["interpolate", "{model}", "--output", "{}/out.gif", "--overwrite"],
    "evaluate": [
        "evaluate",
        "{model}",
        *"--metrics fid kid --cache_dir {}/cache --save_moments {}/moments.npz".split(),
    ],
    "push": ["push", "{model}", "user/model"],
}
PROGRAMS["evaluate"] += ["--output", "{}/out.json", "--overwrite"]


@part(tenth=14, whole=140)
def test_full_disks(trials: int, run_folder: Path, pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    if (why_not := may_mount()) is not None:
        pytest.skip(why_not)
    disk, printed, programs = tmp_path / "disk", tmp_path / "printed", list(PROGRAMS)
    expected = content_of(run_folder / "whole")
    measured = ["--dataset_name", str(pictures), "--num_images", "8", "--reference_images", "8", "--allow_few_images"]
    measured += ["--extractor", "training_runs:features"]
    model = tmp_path / "model"
    BigGANModel.from_pretrained(run_folder / "whole").save_pretrained(model)

    def run(program: str) -> int:
        if program == "train":
            return ForkedRun(arguments(pictures, disk / "out", *FLAGS, *LATEST, steps=STEPS), printed).end(A_RUN)[0]
        argv = [word.format(disk, model=model) for word in PROGRAMS[program]]
        argv += measured if program == "evaluate" else []
        printed.unlink(missing_ok=True)
        return command(argv, printed, partial(setattr, tempfile, "tempdir", str(disk)))

    def trial(row: int, dice: random.Random) -> str:
        program = programs[row]
        with small_disk(disk, 2**24):
            if program != "train":
                assert run(program) == 0, printed.read_text()
                if program == "evaluate":
                    shutil.rmtree(disk / "cache")
            before = content_of(disk)
            most = {"train": 2**21, "convert": 2**17, "npz": 2**16}.get(program, 2**15)
            leave_free(disk, 4096 * dice.randrange(most // 4096))
            status = run(program)
            (disk / "ballast").unlink()
            if program == "train":
                result = ending(status, printed, str(disk)) if status else "same"
                went_on = goes_on(arguments(pictures, disk / "out", *FLAGS, steps=STEPS), printed, 1, expected)
                return result if went_on == "same" else went_on
            if status == 0:
                return "same"
            after = content_of(disk)
            whole = all(equal(after.get(name), content) for name, content in before.items())
            left = [name for name in after.keys() - before.keys() if not name.startswith("cache/")]
            result = ending(status, printed, str(disk)) if whole and not left else "silent"
            if result != "clear":
                print(f"{program}: {result}, left {left}\n{printed.read_text()}")
            return result

    campaign("full disks", programs, trial, trials, 2 * A_RUN)


def leave_free(disk: Path, num_bytes: int) -> None:
    usage = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(usage.f_bavail * usage.f_bsize - num_bytes))


# Power cuts: each file that a run leaves is empty, holds zeros, is cut in half or missing

DAMAGES = ("empty", "zeros", "half", "missing")
A_MODEL = ("config.json", "model.safetensors")


def cut(path: Path, damage: str) -> None:
    size = path.stat().st_size
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "zeros": bytes(size), "half": path.read_bytes()[: size // 2]}[damage])


def power_cuts(whole: Path) -> list[tuple[str, str, str]]:
    """The row, the file and the damage, in an order that the seed chooses."""
    cases = []
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole).as_posix()
        readers = ["resume", *(["load"] if path.name in A_MODEL else [])]
        readers += ["sample", "evaluate"] if name in A_MODEL else []
        cases += [(reader, name, damage) for reader in readers for damage in DAMAGES]
    random.Random(SEED).shuffle(cases)
    return cases


@pytest.mark.parametrize("share", [pytest.param(10, id="tenth"), pytest.param(1, marks=pytest.mark.slow, id="whole")])
def test_power_cuts(share: int, run_folder: Path, pictures: Path, tmp_path: Path) -> None:
    cases, printed, output = power_cuts(run_folder / "whole"), tmp_path / "printed", tmp_path / "model"
    expected = content_of(run_folder / "next")
    more = ["--dataset_name", str(pictures), "--num_images", "8", "--reference_images", "8", "--allow_few_images"]
    more += ["--extractor", "training_runs:features", "--metrics", "fid", "--cache_dir", str(tmp_path / "cache")]
    commands = {
        "sample": ["sample", str(output), "--output", str(tmp_path / "sheet.png"), "--overwrite"],
        "evaluate": ["evaluate", str(output), *more],
    }

    def trial(case: int, dice: random.Random) -> str:
        reader, name, damage = cases[case]
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(run_folder / "whole", output)
        cut(output / name, damage)
        if reader == "resume":
            argv = arguments(pictures, output, *FLAGS, *LATEST, steps=STEPS + 2)
            result = after_a_cut(argv, printed, name, expected)
        elif reader == "load":
            result = load((output / name).parent)
        else:
            printed.unlink(missing_ok=True)
            result = ending(command(commands[reader], printed), printed, str(output))
        if result not in ("same", "clear"):
            print(f"{reader}, {name} {damage}: {result}\n{printed.read_text() if printed.exists() else ''}")
        return result

    campaign("power cuts", [case[0] for case in cases], trial, len(cases) // share, A_RUN)


def load(folder: Path) -> str:
    network = BigGANDiscriminator if folder.name == "discriminator" else BigGANModel
    try:
        network.from_pretrained(folder)
    except (ValueError, OSError) as error:
        return "clear" if str(folder) in str(error) else "other"
    return "silent"


def ending(status: int, printed: Path, word: str) -> str:
    """Whether a program that has failed says why in one line, which holds this word."""
    lines = [line for line in re.split("[\r\n]+", printed.read_text()) if line.startswith(("error: ", "biggan-hf: "))]
    if status == 0:
        return "silent"
    return "clear" if status == 2 and len(lines) == 1 and word in lines[0] else "other"


def after_a_cut(argv: list[str], printed: Path, name: str, expected: Content) -> str:
    """What is lost for good is told, now or by who reads it; all else is as it would have been."""
    status = ForkedRun(argv, printed).end(A_RUN)[0]
    if status:
        return ending(status, printed, name.split("/")[-1])
    output = Path(argv[argv.index("--output_dir") + 1])
    # Sheets and curves are pictures of the rest; what was set aside is told.
    # An older checkpoint that lacks a file is not removed with its time: somebody may want the rest.
    passed_over = ("samples/", "curves.png", "abandoned-", f"checkpoint-{STEPS - 1}/")
    lost = [other for other in differing(content_of(output), expected) if not other.startswith(passed_over)]
    if not lost:
        return "same"
    print(f"lost: {lost}")
    if lost == [name] and output.joinpath(name).name in A_MODEL:
        return load(output.joinpath(name).parent)
    told = f"{name}'" in printed.read_text()
    return "clear" if lost == [name] and told else "unseen" if lost == [name] and name in UNCHECKED else "silent"


# Nothing tells how many lines these had.
UNCHECKED = ("evaluations.jsonl", "spectra.jsonl")


# Lost processes, threads and forks


@part(tenth=2, whole=20)
def test_lost_workers(trials: int, tmp_path: Path) -> None:
    pictures, output, printed = write_pictures(tmp_path / "pictures", number=200), tmp_path / "model", tmp_path / "out"
    flags = ["--checkpointing_steps", "1000000", "--sample_steps", "0", "--on_collapse", "ignore"]

    def trial(row: int, dice: random.Random) -> str:
        shutil.rmtree(output, ignore_errors=True)
        workers = ["--dataloader_num_workers", str(row + 1)]
        run = ForkedRun(arguments(pictures, output, *flags, *workers, steps=10**6), printed)
        while not (output / "log.jsonl").exists():
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1))
        dice.choice(psutil.Process(run.pids[0]).children()).kill()
        (status,) = run.end(20)  # a quiet machine needs three
        return ending(status and 2, printed, "(dataloader_num_workers) has ended: ")

    campaign("a killed reader of pictures", ["one of 1", "one of 2"], trial, trials, A_RUN)


@part(tenth=20, whole=200)
def test_threads_and_forks(trials: int) -> None:
    pipe = BigGANPipeline(tiny_generator(**VARIANTS["attention"]).train())
    latents = tiny_latents(16, pipe.model.config)

    def draw(index: int) -> torch.Tensor:
        return pipe(index % 5, latents=latents[index, None], output_type="pt", progress_bar=False).images

    expected = [draw(index) for index in range(16)]

    def in_a_fork(index: int) -> int:
        """The status of a child that samples while other threads of its parent do."""
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                draw(0)

        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(work) for _ in range(2)]
            if (child := os.fork()) == 0:
                faulthandler.dump_traceback_later(15)  # where a child waits for a lock
                signal.alarm(20)
                torch.set_num_threads(1)  # a fork does not inherit the threads of OpenMP
                os._exit(not torch.equal(draw(index), expected[index]))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            done.set()
        if status:
            print(f"a child ended with {status}")
        assert not any(one.exception() for one in working)
        return status

    def trial(row: int, dice: random.Random) -> str:
        pipe.renew_weights()
        if row:
            return {0: "same", 1: "silent"}.get(in_a_fork(dice.randrange(16)), "crash or hang")
        indices = [dice.randrange(16) for _ in range(40)]
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(draw, indices))
        return "same" if equal(images, [expected[index] for index in indices]) else "silent"

    campaign("sampling", ["8 threads on one pipeline", "a fork while threads sample"], trial, trials, 60)
