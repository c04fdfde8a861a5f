"""`biggan-hf`: the sheet it writes, and that a mistake costs one line and no file."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from biggan_hf import BigGANConfig, BigGANModel, BigGANPipeline
from biggan_hf.cli import main, save_png
from biggan_hf.images import image_grid


SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "z_dim": 20,
    "class_embedding_dim": 8,
    "generator_base_channels": 4,
    "generator_attention_resolutions": [],
    "discriminator_attention_resolutions": [],
}
# The class that is called "1" has the id 2.
NAMES = ["tench, Tinca tinca", "crane", "1", "crane", *(f"class {i}" for i in range(4, 12))]


def save_model(folder: Path, **settings: Any) -> str:
    torch.manual_seed(0)
    BigGANModel(BigGANConfig(**SETTINGS, **settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), id2label=dict(enumerate(NAMES)))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("biggan-hf: error: ")
    return lines[0]


def test_a_row_a_class_with_its_name(model: str, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    options = ["--images_per_class", "3", "--truncation", "0.7", "--truncation_mode", "scale", "--seed", "5"]
    main(["sample", model, "--classes", "Tinca tinca", "1", "3", *options, "--output", str(output)])

    pipe = BigGANPipeline.from_pretrained(model)
    generator = torch.Generator().manual_seed(5)
    # "1" is a name before it is an id, "3" is no name.
    images = pipe.model.sample([0, 2, 3], 3, truncation=0.7, truncation_mode="scale", generator=generator)
    expected = image_grid(images, 3, ["tench", "1", "crane"])
    with Image.open(output) as sheet:
        assert sheet.format == "PNG" and sheet.size == expected.size
        difference = np.asarray(sheet).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1  # a last bit may round


def test_the_first_ten_classes_by_default(model: str, tmp_path: Path) -> None:
    main(["sample", model, "--images_per_class", "1", "--output", str(tmp_path / "sheet.png")])
    expected = image_grid(torch.zeros(10, 3, 32, 32), 1, [name.split(",")[0] for name in NAMES[:10]])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == expected.size


def test_an_unconditional_model_gives_a_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", num_labels=0)
    argv = ["sample", model, "--images_per_class", "3", "--batch_size", "4", "--output", str(tmp_path / "sheet.png")]
    main(argv)
    assert ".from_pretrained(" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == image_grid(torch.zeros(9, 3, 32, 32), 3).size
    message = refused([*argv[:-1], str(tmp_path / "other.png"), "--classes", "tench"], capsys)
    assert "unconditional" in message


@pytest.mark.parametrize(("standing", "proposed"), [([], 0.5), ([0.1, 0.3], 0.3), ([0.8, 1.0], 0.8)])
def test_the_path_and_what_to_try_next(
    standing: list[float], proposed: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "a model", num_labels=2, standing_truncations=standing)
    output = tmp_path / "the sheet.png"
    main(["sample", model, "--images_per_class", "1", "--output", str(output)])
    for _ in range(2):  # the command that is proposed, and the one that it proposes, run as they are printed
        path, command, python = capsys.readouterr().out.splitlines()
        assert path == str(output) and output.is_file()
        program, *argv = shlex.split(command.partition(": ")[2])
        assert program == "biggan-hf"
        assert float(argv[argv.index("--truncation") + 1]) == proposed
        main(argv)
        output = Path(argv[-1])
    code = python.partition(": ")[2].replace(".images[0].show()", ".images")
    exec(compile(code, "hint", "exec"), {})


def test_an_existing_file_is_kept(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    output.write_bytes(b"precious")
    argv = ["sample", model, "--classes", "tench", "--images_per_class", "1", "--output", str(output)]
    assert "--overwrite" in refused(argv, capsys)
    assert output.read_bytes() == b"precious"
    main([*argv, "--overwrite"])
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    output, folder = tmp_path / "sheet.png", tmp_path / "folder.png"
    output.write_bytes(b"precious")
    folder.mkdir()
    with pytest.raises(OSError, match="CMYK"):
        save_png(Image.new("CMYK", (2, 2)), output)  # PNG has no such mode
    with pytest.raises(OSError, match="folder.png"):
        save_png(Image.new("L", (2, 2)), folder)
    assert output.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == [folder, output]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "tensh"], "'tensh'.*'tench'"),
        (["--classes", "crane"], "'crane'.*1 .*3 "),
        (["--classes", "99"], "99 is outside 0 to 11"),
        (["--classes", "-1"], "'-1'"),
        (["--images_per_class", "0"], "--images_per_class.*'0'"),
        (["--batch_size", "many"], "--batch_size.*'many'"),
        (["--truncation", "0"], "truncation.*0"),
        (["--truncation", "nan"], "truncation.*nan"),
        (["--truncation_mode", "clip"], "'clip'"),
        (["--seed", "-1"], "--seed.*'-1'"),
        (["--seed", str(2**63)], f"--seed.*'{2**63}'"),
        (["--device", "abacus"], "'abacus'"),
        (["--output", "sheet.jpg"], r"\.png.*'sheet.jpg'"),
        (["--output", "nowhere/sheet.png"], "'nowhere' does not exist"),
        (["--output", "folder.png"], "'folder.png' is a folder"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_values(
    options: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    line = refused(["sample", model, "--output", "sheet.png", *options], capsys)
    assert re.search(message, line)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "sheet.png")
    assert "no folder here" in refused(["sample", str(tmp_path / "missing"), "--output", output], capsys)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "biggan", "image_size": "large"}')
    assert "image_size" in refused(["sample", str(strange), "--output", output], capsys)
    # The mistakes that do not take the model to see are told first.
    assert "truncation" in refused(["sample", "missing", "--truncation", "0", "--output", output], capsys)
    assert ".png" in refused(["sample", "missing", "--output", "sheet.jpg"], capsys)
    assert "COMMAND" in refused([], capsys)


def test_as_a_program(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "biggan_hf.cli", "sample", model, "--classes", "tench", "--images_per_class", "2"]
    source = str(Path(__file__).parents[1] / "src")
    ran = subprocess.run(
        [*command, "--output", "sheet.png"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "sheet.png" and len(ran.stdout.splitlines()) == 3
    assert "Traceback" not in ran.stderr and "Loading weights" not in ran.stderr
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("argv", [["--help"], ["sample", "--help"]])
def test_help_has_two_examples(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    examples = capsys.readouterr().out.partition("examples:")[2]
    assert examples.count("biggan-hf sample") == 2
