"""benchmarks/ablations.py: from a run to the page, and what its last column says."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluation_common import TINY_SOURCE, save_pictures
from transformers.utils import logging


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import ablations  # noqa: E402


EXTRACTOR = "tiny_features:extract"


@pytest.fixture(autouse=True)
def bars() -> Any:
    yield
    logging.enable_progress_bar()  # which the program turns off


def test_from_a_run_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run, and a copy of it as if it were the preset's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, "PASSES", 2)
    Path("tiny_features.py").write_text(TINY_SOURCE)
    pictures = ["--dataset_name", str(save_pictures(tmp_path / "pictures", num_images=60, num_classes=2))]
    ablations.main(["train", "--output", "runs", *pictures, "--changes", "orthogonal", "--seeds", "3", "--steps", "4"])
    run = Path("runs/orthogonal-3")
    settings = ablations.read_settings(run)
    assert settings["status"] == 0 and str(tmp_path) not in json.dumps(settings)
    assert json.loads((run / "training_settings.json").read_text())["generator_orthogonality"] == 1e-4
    first = run.stat().st_mtime_ns
    ablations.main(["train", "--output", "runs", *pictures, "--changes", "orthogonal", "--seeds", "3", "--steps", "4"])
    assert run.stat().st_mtime_ns == first  # it has ended

    plain = shutil.copytree(run, run.with_name("baseline-3"))
    (plain / ablations.SETTINGS).write_text(json.dumps({**settings, "change": "baseline"}))
    with pytest.raises(ValueError, match="has no run of the preset that is measured"):
        ablations.main(["report", "runs", "--page", "page.md"])
    measure = ["measure", "runs", *pictures, "--dataset_split", "train", "--samples", "12", "--reference_images", "20"]
    measure += ["--extractor", EXTRACTOR]
    ablations.main(measure)
    lines = ablations.read_lines(run / ablations.MEASURED)
    assert [line["step"] for line in lines] == [1, 2, 3, *[4] * 8]
    assert [line["pictures"] for line in lines[:4]] == [32, 64, 96, 128]
    assert [(line["statistics"], line["truncation"]) for line in lines[3:]] == [
        *[("running", t) for t in (None, 0.1, 0.5, 1.0)],
        *[("standing", t) for t in (0.1, 0.5, 1.0, None)],
    ]
    assert len({line["fid"] for line in lines[3:]}) == 8  # no two are of the same pictures
    text = (run / ablations.MEASURED).read_text()
    (run / ablations.MEASURED).write_text("".join(text.splitlines(keepends=True)[:-2]))
    ablations.main(measure)  # what is missing
    assert (run / ablations.MEASURED).read_text() == text

    ablations.main(["report", "runs", "--page", "page.md"])
    page = Path("page.md").read_text()
    assert "N = 12 samples of the averaged generator are compared with\n20 pictures" in page
    same = f"{lines[3]['fid']:.0f} | {lines[3]['kid']:.3f}"
    assert f"| as the preset | 1 | 4 | 128 | {same} |" in page
    assert "| orthogonal regularisation, 1e-4 | 1 | 4 | 128 |" in page and "| 1.00 |" in page
    assert f"| standing | none | {lines[-1]['fid']:.0f} |" in page and "| orthogonal-3 | 4 | whole |" in page
    kept = {path.relative_to("page") for path in Path("page").rglob("*") if path.is_file()}
    of_run = {Path(name, file) for name in ("baseline-3", "orthogonal-3") for file in ablations.KEPT}
    assert kept == {*of_run, Path("ablations.png")} and str(tmp_path) not in page


def test_beside_the_preset() -> None:
    def side(*distances: float) -> list[dict[str, float]]:
        return [{"fid": distance, "floor_fid": 10.0} for distance in distances]

    assert ablations.beside(side(60, 70), side(100, 120)) == "0.55"
    assert ablations.beside(side(60, 100), side(90, 130)) == "0.70"


def test_a_batch_is_compared_at_equal_pictures_too() -> None:
    line = {"statistics": "running", "truncation": None, "extractor": "lite0", "fwd": 1.0, "precision": 0.5}
    line |= {"kid": 1.0, "recall": 0.1, "floor_fid": 10.0}
    plain = [line | {"step": step, "pictures": 32 * step, "fid": 110.0} for step in (500, 2_000)]
    batch = [line | {"step": step, "pictures": 128 * step, "fid": 60.0} for step in (500, 2_000)]
    rows = ablations.of_changes({"baseline": plain, "batch_x4": batch}).splitlines()[2:]
    assert [row.split(" | ")[2:4] for row in rows] == [["2,000", "64,000"], ["2,000", "256,000"], ["500", "64,000"]]
    assert [row.split(" | ")[-1] for row in rows] == ["1 |", "0.50 |", "0.50 |"]
