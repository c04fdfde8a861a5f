"""benchmarks/gpu.py, rehearsed on a CPU: nothing shall be debugged on a GPU that is lent for a quarter of an hour."""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from biggan_hf import BigGANModel


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402


CHECKOUT = os.environ.get("BIGGAN_PYTORCH")
GPU = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What counts as one as long as no row needs it."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "BigGAN.py").touch()
    return tmp_path / "checkout"


def start(checkout: Path | str, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(GPU), "--rehearse", "--biggan_pytorch", str(checkout), "--output", str(output)]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)


def read(output: Path) -> dict[str, Any]:
    return {record["row"]: record for record in map(json.loads, (output / "rows.jsonl").read_text().splitlines())}


def test_a_killed_script_leaves_no_process_and_goes_on_with_the_missing_rows(checkout: Path, tmp_path: Path) -> None:
    output, printed = tmp_path / "rows", ""
    killed = start(checkout, output, "--only", "planned")
    deadline = time.monotonic() + 30
    while not printed.startswith("it waits: "):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        printed = (output / "log.txt").read_text().splitlines()[-1] if (output / "log.txt").exists() else ""
    killed.terminate()
    told = killed.communicate(timeout=30)[0]
    assert killed.returncode == 1 and "planned/limit, which may take 1 s, has 2 s at most" in told
    assert {name: record["status"] for name, record in read(output).items()} == {"planned/failure": gpu.FAILED}
    with pytest.raises(ProcessLookupError):
        os.kill(int(printed.split()[-1]), 0)

    again = start(checkout, output, "--only", "planned")
    told = again.communicate(timeout=30)[0]
    assert again.returncode == 0 and "planned/failure" not in told and "| planned/limit | past its limit: it" in told
    records = read(output)
    assert records["planned/failure"]["last_lines"] == ["it fails"]
    assert records["planned/limit"]["status"] == gpu.TOO_LONG and 2 <= records["planned/limit"]["seconds"] < 10
    table = (output / "rows.md").read_text().splitlines()
    assert len(table) == 4 and {line.count("|") for line in table} == {len(gpu.COLUMNS) + 1}


def test_what_the_end_of_the_minutes_stopped_is_done_anew(checkout: Path, tmp_path: Path) -> None:
    stopped = start(checkout, tmp_path, "--only", "planned/limit", "cifar10/float32", "--minutes", "0.02")
    assert "cifar10/float32, which may take 50 s, is not started" in stopped.communicate(timeout=30)[0]
    assert {name: each["status"] for name, each in read(tmp_path).items()} == {"planned/limit": gpu.OUT_OF_TIME}
    start(checkout, tmp_path, "--only", "planned/limit").communicate(timeout=30)
    assert {name: each["status"] for name, each in read(tmp_path).items()} == {"planned/limit": gpu.TOO_LONG}


def options(**changes: Any) -> argparse.Namespace:
    given = {"rehearse": False, "only": None, "speedrun": 1.0, "speedrun_compile": False, "settings": None}
    paths = {"biggan_pytorch": Path("/bgp"), "output": Path("/out"), "dataset_name": "/my pictures"}
    return argparse.Namespace(**{**given, **paths, **changes})


def record(name: str, words: str, median: float | None, status: str = gpu.DONE) -> dict[str, Any]:
    report = median and {"results": [{"ours": {"median_seconds": median}}]}
    return {"row": name, "command": f"python benchmarks/training.py {words}", "report": report, "status": status}


def test_the_speedrun_shares_what_is_left_and_takes_the_best_flags() -> None:
    ours, theirs = gpu.rows(options())[-2:]
    measured = [
        record("cifar10/tf32-graphs", "--tf32 --cuda_graphs --channels_last", 0.001),
        record("cifar10/bf16-graphs", "--cuda_graphs", 0.02),
        record("cifar10/bf16-graphs-channels_last", "--cuda_graphs --channels_last", 0.01),
        record("cifar10/bf16-compile-graphs", "--cuda_graphs --compile", 0.005),
    ]
    ran = gpu.speedrun(ours, 2, 220, measured, options())
    assert ran.seconds == 110 and ran.words[-2:] == ("--channels_last", "--no_compile")
    assert ran.words[ran.words.index("--minutes") + 1] == "1.000" and "/my pictures" in ran.words
    assert gpu.best_flags(measured, compiles=True) == ["--no_channels_last", "--compile"]
    done = [{"row": "speedrun/ours", "command": " ".join(map(str, ran.words[:6])), "status": gpu.DONE}]
    assert "--minutes 1.000" in done[0]["command"]
    assert gpu.speedrun(theirs, 1, 500, [*measured, *done], options()).seconds == 110
    failed = [record("cifar10/bf16-graphs", "--cuda_graphs", None, gpu.FAILED)]
    assert gpu.best_flags(failed, compiles=False)[2:] == ["--cuda_graphs", "off"]


def test_rows_run_in_the_order_of_asking() -> None:
    names = [row.name for row in gpu.chosen(options(only=["speedrun", "cifar10/tf32", "sampling"]))]
    assert names == ["speedrun/ours", "speedrun/theirs", "cifar10/tf32", "sampling/128px", "sampling/deep-128px"]
    assert not any(row.is_of("speedrun") for row in gpu.chosen(options(speedrun=0)))
    with pytest.raises(ValueError, match="there is no row 'cifar'; there are tests, cifar10/float32"):
        gpu.chosen(options(only=["cifar"]))


@pytest.mark.skipif(CHECKOUT is None, reason="the environment variable BIGGAN_PYTORCH names no checkout of it")
@pytest.mark.slow  # starts sixteen processes, each of which imports torch
def test_all_rows_from_the_first_to_the_last(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        folder = tmp_path / "pictures" / f"class {index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
    flags = ["--speedrun", "0.03", "--minutes", "60", "--dataset_name", str(tmp_path / "pictures")]
    run = start(str(CHECKOUT), tmp_path / "rows", *flags)
    told = run.communicate()[0]
    assert run.returncode == 0
    records = read(tmp_path / "rows")
    every = gpu.rows(options(rehearse=True))
    assert [*records] == [row.name for row in every] and told.count(" s are left: ") == len(every)
    failed = {name: record["last_lines"] for name, record in records.items() if record["status"] != gpu.DONE}
    assert failed.keys() == {"planned/failure", "planned/limit"}, failed
    for name in ("ours", "theirs"):
        with zipfile.ZipFile(tmp_path / "rows" / f"speedrun-{name}.zip") as packed:
            packed.extractall(tmp_path / name)
        model = BigGANModel.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert model.sample(1, 2).isfinite().all() and model.config.generator_base_channels == 4
        assert {"samples.png", "log.jsonl"} <= {path.name for path in (tmp_path / name).iterdir()}
