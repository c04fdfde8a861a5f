"""How runs end: by Ctrl-C, by a fault, without their launcher. Each is a process of its own, ended from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from training_runs import ON_CPU, REPO, arguments, launcher, write_pictures

from biggan_hf.training import ending
from biggan_hf.training.ending import Interruption, Lasting, Stop


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
BIGGAN_HF = [sys.executable, "-m", "biggan_hf.cli", "train"]
FOREVER = ["--checkpointing_steps", "1000000", "--sample_steps", "0", "--on_collapse", "ignore"]

# Seconds. A quiet machine needs six at most; that of the tests may be busy.
SOON = float(os.environ.get("SECONDS_TO_END", "20"))  # 10 s on an idle machine; other tests run beside these


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More pictures than the first steps look at."""
    return write_pictures(tmp_path / "pictures", number=200)


@contextmanager
def started(
    command: list[str], argv: list[str], output: Path, file: str = "log.jsonl"
) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """A run in a process group of its own, as a terminal has it, and its processes; since it has written a file."""
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command, *argv], env=ON_CPU, cwd=REPO, start_new_session=True, **streams)
    members = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + 120
        while not (output / file).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
        members += members[0].children(recursive=True)
        yield process, members
    finally:
        for member in psutil.wait_procs(members, timeout=0)[1]:
            member.kill()


def ending_of(process: subprocess.Popen[str], members: list[Any]) -> tuple[int, str]:
    """Exit status and print of a run all of whose processes end soon."""
    printed, _ = process.communicate(timeout=SOON)
    _, alive = psutil.wait_procs(members, timeout=SOON)
    assert not alive, printed
    return process.returncode, printed


# Ctrl-C and lost launchers

STOPPING = "stopping after this step; press Ctrl-C again to abort"
ONE_BY_ONE: dict[str, list[str]] = {
    "train.py": [sys.executable, str(REPO / "train.py")],
    "biggan-hf": BIGGAN_HF,
    "accelerate, one process": [*launcher(1), str(REPO / "train.py")],
    "accelerate, two processes": [*launcher(2), str(REPO / "train.py")],
    "torchrun": [*TORCHRUN, str(REPO / "train.py")],
}
# `train.py` tests the signal, and test_run_without_its_launcher… what becomes of a run whose launcher has ended.
SLOW = set(ONE_BY_ONE) - {"train.py"}
WAYS = [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in ONE_BY_ONE]


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_leaves_a_checkpoint(many: Path, tmp_path: Path, way: str) -> None:
    output = tmp_path / "model"
    with started(ONE_BY_ONE[way], arguments(many, output, *FOREVER, steps=10**6), output) as (process, members):
        os.killpg(process.pid, signal.SIGINT)
        status, printed = ending_of(process, members)
    assert printed.count(STOPPING) == printed.count("of 1,000,000 steps; --resume_from_checkpoint latest goes on") == 1
    assert status == 130 or (status and way not in ("train.py", "biggan-hf"))  # launchers end by the signal
    assert len(list(output.glob("checkpoint-*"))) == 1


@pytest.mark.slow  # test_second_ctrl_c_to_the_launcher… sends the same signals
@pytest.mark.parametrize("way", ["accelerate, two processes", "torchrun"])
def test_second_ctrl_c_aborts_several_processes(many: Path, tmp_path: Path, way: str) -> None:
    output = tmp_path / "model"
    argv = arguments(many, output, *FOREVER, "--num_discriminator_steps", "600", steps=10**6)
    with started(ONE_BY_ONE[way], argv, output, "report.txt") as (process, members):
        time.sleep(5)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(1)
        status, printed = ending_of(process, members)
    assert status != 0 and printed.count(STOPPING) == printed.count("aborted after step") == 1, printed
    assert not list(output.glob("checkpoint-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_without_its_launcher_leaves_a_checkpoint(
    many: Path, tmp_path: Path, number: int, num_processes: int
) -> None:
    output = tmp_path / "model"
    command = ONE_BY_ONE["accelerate, one process" if num_processes == 1 else "accelerate, two processes"]
    with started(command, arguments(many, output, *FOREVER, steps=10**6), output) as (process, members):
        process.send_signal(number)
        _, printed = ending_of(process, members)
    gone = num_processes == 1 or number == signal.SIGKILL  # the launcher of several processes passes SIGTERM on
    assert printed.count("the launcher is gone: stopping after this step") == gone
    assert printed.count("of 1,000,000 steps; --resume_from_checkpoint latest goes on") == 1
    assert len(list(output.glob("checkpoint-*"))) == 1


def test_a_closed_terminal_leaves_a_checkpoint(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    argv = arguments(many, output, *FOREVER, "--dataloader_num_workers", "1", steps=10**6)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` may have started the tests
    try:
        with started(ONE_BY_ONE["train.py"], argv, output) as (process, members):
            os.killpg(process.pid, signal.SIGHUP)
            status, printed = ending_of(process, members)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status == 129 and len(list(output.glob("checkpoint-*"))) == 1, printed


def test_a_stopped_reader_of_pictures_is_waited_for(many: Path, tmp_path: Path) -> None:
    """A debugger or `kill -STOP` stops it. The run stands still with it, and goes on with it."""
    output = tmp_path / "model"
    argv = arguments(many, output, *FOREVER, "--dataloader_num_workers", "1", "--logging_steps", "1", steps=10**6)
    with started(ONE_BY_ONE["train.py"], argv, output) as (process, members):
        log, (reader,) = output / "log.jsonl", members[1:]
        reader.suspend()
        time.sleep(2)  # batches that are ready are used up
        still = log.read_bytes()
        time.sleep(2)
        assert log.read_bytes() == still and process.poll() is None
        reader.resume()
        deadline = time.monotonic() + SOON
        while log.read_bytes() == still and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(log.read_bytes()) > len(still)
        os.killpg(process.pid, signal.SIGINT)
        status, printed = ending_of(process, members)
    assert status == 130 and len(list(output.glob("checkpoint-*"))) == 1, printed


def test_who_starts_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending.before_torch, "STARTED", (os.getpid(), 1))
    for name in ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert ending.launcher() is None  # a shell may end: the run stays
    assert Interruption().reason() == Stop.NOT
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert ending.launcher() == 1 and Interruption().reason() == Stop.LAUNCHER_IS_GONE
    monkeypatch.setattr(ending.before_torch, "STARTED", (1, 1))  # a fork
    assert Interruption().reason() == Stop.NOT


def test_two_signals_of_one_press_are_one(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interruption.reason() == Stop.INTERRUPTED == ending.exit_status(Stop.INTERRUPTED)
        time.sleep(ending.SAME_PRESS + 0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count(STOPPING) == 1 and signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_to_the_launcher_of_several_processes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(ending, "SAME_PRESS", -1)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)  # which it passes on
        signal.raise_signal(signal.SIGHUP)
        assert interruption.reason() == Stop.INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)  # to which it turns the second one
    assert f"{STOPPING}; a launcher that is stopped kills this run after 30 s" in capfd.readouterr().err
    with Interruption() as interruption:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)  # a cluster may repeat it: this is no Ctrl-C
        assert interruption.reason() == Stop.TERMINATED


def test_the_first_process_of_a_machine_tells_its_launcher_of_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ending.exit_status(stop) for stop in (Stop.HUNG_UP, Stop.TERMINATED, Stop.LAUNCHER_IS_GONE)] == [
        129,
        143,
        1,
    ]
    monkeypatch.setenv("LOCAL_RANK", "1")  # at its failure the launcher would end the first one
    assert ending.exit_status(Stop.INTERRUPTED) == 0
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")  # what is stopped stays so
    assert ending.exit_status(Stop.INTERRUPTED) == 0


def test_nohup_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lost_terminal_is_no_error() -> None:
    reader, writer = os.pipe()
    stream = Lasting(os.fdopen(writer, "w", buffering=1))
    os.close(reader)
    print("lost", file=stream, flush=True)
    assert stream.fileno() == writer


# Faults

LOST = "another process of this run has ended; its line or the launcher's says why: "
LINES = {
    "abort": ("aborted after step", 130),
    "error": ("error: RuntimeError: a fault of the test; the traceback is in", 1),
    "memory": ("error: out of memory at step 3 with per_device_batch_size=4: try --per_device_batch_size 2", 2),
    "pictures": ("error: ", 2),
    "process": (LOST, 1),
    "first": (LOST, 1),
    "worker": ("error: a process that reads pictures (dataloader_num_workers) has ended: ", 1),
}
FAST = {("error", 1, 0), ("worker", 2, 0), ("abort", 1, 0), ("pictures", 1, 0), ("memory", 0, 2)}
CAMPAIGN = [
    pytest.param(fault, workers, processes, marks=[pytest.mark.slow] * ((fault, workers, processes) not in FAST))
    for fault in LINES
    for workers in (0, 1, 2)
    for processes in (0, 2)
    if (workers or fault != "worker") and (processes or fault not in ("process", "first"))
]


@pytest.mark.parametrize(("fault", "workers", "processes"), CAMPAIGN)
def test_every_fault_ends_all_processes(many: Path, tmp_path: Path, fault: str, workers: int, processes: int) -> None:
    output = tmp_path / "model"
    flags = [*FOREVER, "--dataloader_num_workers", str(workers), "--on_unreadable_image", "error"]
    command = [*(launcher(processes) if processes else [sys.executable]), str(REPO / "tests" / "failing.py"), fault]
    with started(command, arguments(many, output, *flags, steps=10**6), output, "fault") as (process, members):
        code, printed = ending_of(process, members)
    line, status = LINES[fault]
    assert code == (1 if processes else status), printed
    beginnings = ("error: ", "aborted", "another process", "stopping after")
    last_words = [text for text in re.split("[\r\n]+", printed) if text.startswith(beginnings)]
    expected = [STOPPING, line] if fault == "abort" and not processes else [line]
    assert len(last_words) == len(expected) and all(map(str.startswith, last_words, expected)), printed
    assert "Traceback" not in printed or processes  # launchers print theirs


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The second of two processes, whose launcher counts."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    two = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**two, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ending, "num_processes", lambda: 2)
    yield
    del store


def test_one_of_several_processes_tells(one_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ending.may_tell(of_other) for of_other in (False, False, True)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # what has been told belongs to the run before
    assert [ending.may_tell(of_other) for of_other in (True, True, False)] == [True, False, True]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(nobody.getsockname()[1]))
        monkeypatch.setattr(ending, "PATIENCE", 0)
        assert ending.may_tell(True) and ending.may_tell(False)


def test_every_process_tells_of_a_lost_one(one_of_two: None, capfd: pytest.CaptureFixture[str]) -> None:
    for told in (f"\n{LOST}Connection closed by peer\n", ""):
        with pytest.raises(SystemExit), Interruption():
            raise RuntimeError("Connection closed by peer")
        assert capfd.readouterr().err == told


def test_sigterm_of_the_launcher_is_told_once_all_stop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It also comes where another process has failed: then this one does not stop after its step."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.reason() == Stop.TERMINATED and capfd.readouterr().err == ""
        for told in (1, 0):
            interruption.agreed()
            assert capfd.readouterr().err.count("stopping after this step") == told
