"""Training beside the original, at sizes where an iteration takes a moment: what is resumed, compared and refused."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_common import TINY_SOURCE, save_pictures
from safetensors.torch import load_file
from transformers.utils import logging

from biggan_hf.evaluation import resampling


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import legs  # noqa: E402
import quality  # noqa: E402
import results  # noqa: E402


CHECKOUT = os.environ.get("BIGGAN_PYTORCH")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="the environment variable BIGGAN_PYTORCH names no checkout of BigGAN-PyTorch"
)
EXTRACTOR = "tiny_features:extract"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pictures(tmp_path_factory.mktemp("pictures") / "train", num_images=40))


@pytest.fixture(autouse=True)
def bars() -> Any:
    yield
    logging.enable_progress_bar()  # which the program turns off


def train(whose: str, output: Path, pictures: str, *more: str) -> Path:
    """Two iterations of 8 pictures, with a snapshot of each."""
    small = ["--channels", "4", "--batch_size", "2", "--ema_decay", "0.5", "--ema_start_step", "2", "--device", "cpu"]
    checkout = ["--biggan_pytorch", CHECKOUT] if CHECKOUT else []
    sizes = ["--images", "16", "--snapshot_images", "8", "--output", str(output), "--dataset_name", pictures]
    quality.main(["train", whose, *small, *sizes, *checkout, *more])
    return output / f"{whose}-0"


@pytest.fixture(scope="module")
def ours(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("ours", tmp_path_factory.mktemp("runs"), pictures)


@pytest.mark.parametrize("whose", ["ours", pytest.param("theirs", marks=needs_checkout)])
def test_a_stopped_and_killed_leg_goes_on(
    whose: str, ours: Path, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ours if whose == "ours" else train(whose, tmp_path / "whole", pictures)
    stopped = train(whose, tmp_path / "killed", pictures, "--minutes", "0")
    assert [line["images"] for line in legs.read_log(stopped)] == [8]
    write = quality.write_snapshot

    def killed(leg: Path, program: legs.Program) -> None:
        if program.images == 16:  # there is a line of the log, and no checkpoint
            raise KeyboardInterrupt
        write(leg, program)

    with monkeypatch.context() as patch:
        patch.setattr(quality, "write_snapshot", killed)
        with pytest.raises(KeyboardInterrupt):
            train(whose, tmp_path / "killed", pictures)
    again = train(whose, tmp_path / "killed", pictures)
    lines, lines_again = legs.read_log(whole), legs.read_log(again)
    losses = ("images", "discriminator_loss", "generator_loss", "snapshot")
    assert [[line[name] for name in losses] for line in lines] == [[line[n] for n in losses] for line in lines_again]
    assert [line["images"] for line in lines] == [8, 16]
    seconds = [line["seconds"] for line in lines_again]
    assert seconds == sorted(set(seconds))
    first, second = (load_file(legs.snapshot(leg, 16) / "model.safetensors") for leg in (whole, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert first["linear.weight"].dtype == torch.float16 and first["output_bn.running_mean"].dtype == torch.float32
    with pytest.raises(ValueError, match="began with channels=4, now it is 8"):
        train(whose, tmp_path / "killed", pictures, "--channels", "8")


@needs_checkout
def test_both_programs_begin_alike(pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first iteration both see the same pictures, with the same weights."""
    seen: dict[str, Any] = {}

    def look(leg: Path, program: Any, *_: Any) -> None:
        ours = isinstance(program, legs.Ours)
        batches = program.run.batches if ours else program.batches
        networks = program.run.players.bare_generator if ours else program.program.generator
        seen[leg.name] = [*(b for b in batches.pictures().__dict__.values()), networks.linear.weight.detach()]

    monkeypatch.setattr(quality, "go_on", look)
    starts = [legs.read_settings(train(whose, tmp_path, pictures))["settings"]["start"] for whose in results.NAMES]
    assert starts[0] == starts[1] is not None
    for ours, theirs in zip(seen["ours-0"], seen["theirs-0"], strict=True):
        assert torch.equal(ours, theirs)


def test_from_legs_to_a_page(ours: Path, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of a leg, one of them as if it were the original's and took twice as long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resampling, "DRAWS", 2)  # which take the most time here
    Path("tiny_features.py").write_text(TINY_SOURCE)
    ours = shutil.copytree(ours, tmp_path / "runs" / ours.name)
    theirs = shutil.copytree(ours, ours.with_name("theirs-0"))
    settings = legs.read_settings(theirs)
    settings["settings"]["whose"] = "theirs"
    (theirs / legs.SETTINGS).write_text(json.dumps(settings))
    lines = [{**line, "seconds": 2 * line["seconds"]} for line in legs.read_log(ours)]
    (theirs / legs.LOG).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = tmp_path / "results.md"
    with pytest.raises(ValueError, match="no ruler that has measured both"):
        quality.main(["report", str(tmp_path / "runs"), "--page", str(page)])
    assert not page.exists()

    measure = ["measure", str(ours), str(theirs), "--dataset_name", pictures, "--samples", "12"]
    measure += ["--reference_images", "20", "--extractors", EXTRACTOR, "--device", "cpu"]
    with pytest.raises(ValueError, match="20 pictures are left for the floor, fewer than --samples 21"):
        quality.main([*measure, "--samples", "21"])
    quality.main(measure)
    rows = results.read_rows(ours / results.MEASURED)
    assert {row["metric"] for row in rows} >= {*quality.RULERS} and {row["samples"] for row in rows} == {12}
    assert {row["images"] for row in rows} == {8, 16}
    results.write_rows(ours / results.MEASURED, [row for row in rows if row["metric"] != "kid"])
    quality.main(measure)  # only what is missing
    assert results.read_rows(ours / results.MEASURED) == rows

    quality.main(["report", str(tmp_path / "runs"), "--page", str(page)])
    text, kept = page.read_text(), tmp_path / "results" / "runs"
    assert f"| KD-{EXTRACTOR}, N = 12 | 16 |" in text and "| 1.00 |" in text
    assert {file.name for file in kept.iterdir()} == {"ours-0", "theirs-0", "quality.csv", "quality.png"}
    quality.main(["report", str(kept), "--page", str(page)])  # again, from what was kept
    assert page.read_text() == text


def test_ratios_of_curves() -> None:
    ours = results.Curve([8, 16, 24], [1.0, 2.0, 3.0], [10.0, 6.0, 4.0])
    theirs = results.Curve([8, 16, 24], [2.0, 4.0, 6.0], [10.0, 8.0, 7.0])
    cells = results.compare(2.0, {"ours": {0: ours}, "theirs": {0: theirs}})
    # At equal images 2 of 5 above the floor; its 7.0 is reached after 1.75 of 6 seconds.
    assert cells == ["24", "2", "4", "7", "0.40", "0.40", "0.29"]
    # Theirs was slower and has no snapshot of as many images: 4.0 after 3 of its 5 seconds, in which it came to 7.0.
    slow = results.Curve([20], [5.0], [7.0])
    cells = results.compare(2.0, {"ours": {0: ours}, "theirs": {0: slow}})
    assert cells == ["the last", "2", "4", "7", "–", "0.40", "0.35"]
    assert theirs.time_to(5.0) == float("inf") and ours.after(2.5) == 5.0


def test_theirs_needs_a_checkout(pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CHECKOUT", None)
    with pytest.raises(ValueError, match="training theirs needs --biggan_pytorch"):
        train("theirs", tmp_path / "runs", pictures)
    assert not (tmp_path / "runs").exists()
