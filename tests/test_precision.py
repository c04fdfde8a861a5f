"""Which precision 'auto' is, that a run keeps it, and how near bfloat16 comes to float32."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from training_runs import Patch, arguments, tiny

from biggan_hf.devices import bfloat16_unit
from biggan_hf.training import main, parse_arguments, set_up


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from precision import comparisons  # noqa: E402


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _new_precision() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of a process is set once
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("flags", "unit"),
    [("fpu avx2 avx512f", ""), ("fpu avx512_bf16", "AVX512-BF16"), ("fpu avx512_bf16 amx_bf16 amx_tile", "AMX")],
)
def test_instructions_of_a_processor(tmp_path: Path, flags: str, unit: str) -> None:
    assert bfloat16_unit(CPU, tmp_path) == ""  # where nothing tells
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert bfloat16_unit(CPU, tmp_path) == unit and bfloat16_unit(torch.device("meta"), tmp_path) == ""


def set_unit(monkeypatch: Patch, unit: str) -> None:
    for module in ("set_up", "report"):
        monkeypatch.setattr(sys.modules[f"biggan_hf.training.{module}"], "bfloat16_unit", lambda device: unit)


@pytest.mark.parametrize(
    ("unit", "given", "precision", "said"),
    [
        ("AMX", ["--mixed_precision", "auto"], "bf16", "bfloat16 (AMX)"),
        ("", ["--mixed_precision", "auto"], "no", "float32 (it has no fast bfloat16)"),
        ("AMX", [], "no", "float32 (its AMX would be faster in bfloat16: --mixed_precision auto)"),
        ("", ["--mixed_precision", "bf16"], "bf16", "bfloat16, which this device computes slowly"),
    ],
)
def test_a_run_says_its_precision_and_why(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, unit: str, given: list[str], precision: str, said: str
) -> None:
    set_unit(monkeypatch, unit)
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model", "--dry_run", *given)))
    assert run.accelerator.mixed_precision == precision and run.report is not None
    (device,) = [row.text for row in run.report.rows if row.title == "device"]
    assert device.endswith(f"1 process, {said}")


def test_a_run_that_goes_on_keeps_its_precision(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    settings = tmp_path / "model" / "training_settings.json"
    for unit in ("AMX", ""):  # the second machine has none
        set_unit(monkeypatch, unit)
        first = arguments(pictures, tmp_path / "model", "--mixed_precision", "auto")
        main(first if unit else ["--output_dir", str(tmp_path / "model"), "--resume_from_checkpoint", "latest"])
        assert json.loads(settings.read_text())["mixed_precision"] == "bf16"


def test_bfloat16_is_nearer_to_float32_than_one_batch_to_another() -> None:
    found = comparisons(tiny(), batch_size=8)
    for name, row in found["bfloat16"].items():
        assert row["other loss"] == pytest.approx(row["loss"], rel=0.01, abs=0.01) and row["cosine"] > 0.998
        assert 0 < row["difference"] < 0.2 * found["other batch"][name]["difference"]
