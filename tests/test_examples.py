"""examples/: each script runs as it stands, and the notebook runs in a kernel of its own."""

import ast
import base64
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from common import tiny_generator, with_standing_statistics
from PIL import Image

from biggan_hf import BigGANModel, embedded


EXAMPLES = Path(__file__).parents[1] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"sample", "mix_classes", "walk", "truncation_sweep", "engine", "evaluate", "fine_tune"}
NOTEBOOK = EXAMPLES / "biggan_hf.ipynb"


def run(name: str, *argv: str, **constants: int) -> None:
    """Runs a script with these arguments, and with other values of its constants."""
    path = EXAMPLES / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    for constant, value in constants.items():
        source, number = re.subn(rf"^{constant} = \d+", f"{constant} = {value}", source, flags=re.MULTILINE)
        assert number == 1, constant
    sys.argv = [str(path), *argv]
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model in the place of the one that comes with the package, with its classes and truncations."""
    config = BigGANModel.from_pretrained("biggan_hf:fashion").config
    same = {"id2label": config.id2label, "standing_truncations": config.standing_truncations, "num_channels": 1}
    with_standing_statistics(tiny_generator(**same)).save_pretrained(tmp_path / "models" / "fashion")
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path / "models")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a script leaves its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    return tmp_path


def pixels(path: Path, frame: int = 0) -> np.ndarray:
    with Image.open(path) as picture:
        picture.seek(frame)
        return np.asarray(picture.convert("L"), dtype=float)


def test_every_example_is_listed_and_run() -> None:
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    assert files == {*re.findall(r"^\| \[`(\S+)`\]\(\1\)", README, re.MULTILINE)}
    # job.py is run by test_jobs.py, engine.py by test_engines.py.
    assert files == {f"{name}.py" for name in SCRIPTS} | {"job.py", NOTEBOOK.name}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_are_short(name: str) -> None:
    docstring, *statements = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")).body
    imports = ast.Import | ast.ImportFrom
    lines = [node.end_lineno - node.lineno + 1 for node in statements if not isinstance(node, imports)]  # type: ignore
    assert isinstance(docstring, ast.Expr) and sum(lines) <= 10 and len(statements) <= 16


@pytest.mark.parametrize("name", ["sample", "mix_classes", "truncation_sweep"])
def test_pictures(name: str, here: Path) -> None:
    run(name)
    sheet = pixels(here / f"{name}.png")
    assert sheet.std() > 20 and min(sheet.shape) >= 32


def test_walk(here: Path) -> None:
    run("walk")
    with Image.open(here / "walk.gif") as film:
        assert film.size == (128, 128) and film.n_frames == 48 and film.info["loop"] == 0  # type: ignore[attr-defined]
    first, second, far, last = (pixels(here / "walk.gif", frame) for frame in (0, 1, 24, 47))
    step = max(abs(second - first).mean(), abs(last - first).mean())
    assert 0 < step < abs(far - first).mean() / 2  # a walk without jumps, which closes


def test_evaluate(pictures: Path, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", str(pictures), NUM_IMAGES=8)
    assert "MIND-Lite0@112" in capsys.readouterr().out


def test_fine_tune(pictures: Path, tiny: None, here: Path) -> None:
    run("fine_tune", str(pictures), "--max_train_steps", "2", "--per_device_batch_size", "4")
    model = BigGANModel.from_pretrained(here / "fine-tuned")
    assert [*model.config.id2label.values()] == ["cat", "dog"] and model.saved_step == 2


# The notebook


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: Any) -> list[tuple[str, Any]]:
    """The kind and the content of each output, in order; text that was printed is of the kind `stdout` or `stderr`."""
    found: list[tuple[str, Any]] = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        found += [(output.name, output.text)] if output.output_type == "stream" else output.data.items()
    return found


@pytest.mark.usefixtures("bars_as_before")  # the notebook turns them off
def test_cells_of_the_notebook(tiny: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, with a tiny model and few steps."""
    variables: dict[str, Any] = {}
    for cell in (cell for cell in read().cells if cell.cell_type == "code"):
        exec(compile(cell.source, NOTEBOOK.name, "exec"), variables)
        if "parameters" in cell.metadata.get("tags", []):
            variables |= {"STEPS": 2, "IMAGES": 20}
    printed = capsys.readouterr().out
    assert "before: MIND-Lite0@112" in printed and "after 2 steps: MIND-Lite0@112" in printed
    assert len([*here.glob("digits/*/*.png")]) == 20
    model = BigGANModel.from_pretrained(here / "digits-biggan")
    assert model.saved_step == 2 and model.config.id2label[7] == "7"


@pytest.mark.slow  # a hundred steps take a minute
def test_notebook_runs(here: Path) -> None:
    notebook, kept = read(), outputs(read())
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(here)}}).execute()
    made = outputs(notebook)
    assert {kind for kind, _ in made} == {kind for kind, _ in kept}
    before, after = (float(found) for found in re.findall(r"MIND-Lite0@112 (\d+)", str(made)))
    assert after < 0.8 * before


def test_what_the_notebook_shows() -> None:
    """On GitHub, where nobody runs it."""
    notebook = read()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kept = outputs(notebook)
    pictures = [base64.b64decode(content) for kind, content in kept if kind == "image/png"]
    assert len(pictures) == 5 and sum(map(len, pictures)) < 300_000
    assert {kind for kind, _ in kept} == {"image/png", "text/plain", "stdout", "stderr"}
    (told,) = [text for kind, text in kept if kind == "stderr"]  # and no warnings
    assert told == "biggan_hf:fashion has no discriminator: a new one learns from the start\n"
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text) and "iopub" not in text
