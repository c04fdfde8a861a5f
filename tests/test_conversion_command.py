"""The scripts as they are run: in a process of their own, from the root of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import tiny_generator
from conversion_common import FIXTURES, ORIGINALS, ROOT
from safetensors.torch import load_file
from test_conversion_deepmind import PLAIN, ivclab_state

from biggan_hf.cli import main
from biggan_hf.conversion import convert as convert_any
from biggan_hf.conversion import convert_biggan_pytorch


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"conversion/{script}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("convert_biggan_pytorch.py", [ORIGINALS / "biggan_thin", "--weights", "ema"]),
        ("convert_pretrained_biggan.py", [ORIGINALS / "pretrained_biggan", "--stats-interpolation", "linear"]),
        ("convert_studiogan.py", [FIXTURES / "golden" / "studiogan_c10", "--step", "20"]),
        ("convert.py", [ORIGINALS / "studiogan_unconditional"]),
    ],
)
def test_conversions(script: str, arguments: list[object], tmp_path: Path) -> None:
    done = run(script, *arguments, "--output", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "model").iterdir()}
    assert done.stdout.splitlines()[-1] == str(tmp_path / "model")
    if script == "convert.py":
        assert "is a StudioGAN checkpoint: convert_studiogan.py" in done.stdout.splitlines()[0]


def test_ivclab_and_export(tmp_path: Path) -> None:
    model = tiny_generator(**PLAIN, generator_spectral_norm=False, standing_truncations=[0.5, 1.0])
    torch.save(ivclab_state(model), tmp_path / "release.pt")
    assert run("convert_ivclab.py", tmp_path / "release.pt", "--output", tmp_path / "model").returncode == 0
    done = run("export_biggan_pytorch.py", tmp_path / "model", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "no D.pth: the model has no discriminator" in done.stdout
    assert "left out the standing statistics" in done.stdout


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = run("convert_tfhub.py", FIXTURES, "--output", tmp_path / "model")
    assert done.returncode == 2
    assert done.stderr == (
        f"convert_tfhub.py: error: {str(FIXTURES)!r} holds no SavedModel or TensorFlow checkpoint (no .index file)\n"
    )
    assert not (tmp_path / "model").exists()


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        convert_biggan_pytorch.main(["folder"])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith("error: the following arguments are required: --output\n") and error.count("\n") == 1


def test_what_no_converter_takes() -> None:
    with pytest.raises(ValueError, match="is none of the known checkpoints"):
        convert_any.main([str(FIXTURES / "README.md"), "--output", "model"])
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        convert_any.main(["nowhere", "--output", "model"])


def test_command_line_says_what_a_checkpoint_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", str(ORIGINALS / "biggan_thin"), "--output", str(tmp_path / "model"), "--weights", "ema"])
    assert "is a BigGAN-PyTorch checkpoint: convert_biggan_pytorch.py" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(FIXTURES / "README.md"), "--output", str(tmp_path / "other")])
    assert stop.value.code == 2 and "is none of the known checkpoints" in capsys.readouterr().err


def test_a_named_file_of_studiogan_is_the_one_that_is_converted(tmp_path: Path) -> None:
    source = tmp_path / "run"
    source.mkdir()
    for path in (FIXTURES / "golden" / "studiogan_c10").glob("model=*.pth"):
        for step in ("10", "20"):
            shutil.copy(path, source / path.name.replace("step=20", f"step={step}"))
    named = source / "model=G-best-weights-step=10.pth"
    state = torch.load(named, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**state, "linear0.bias": state["linear0.bias"] + 1}}, named)
    convert_any.main([str(named), "--output", str(tmp_path / "model")])
    bias = load_file(tmp_path / "model" / "model.safetensors")["linear.bias"]
    assert torch.equal(bias, state["linear0.bias"] + 1)
    # Of a step with two copies, too.
    current = source / "model=G-current-weights-step=10.pth"
    shutil.copy(source / "model=G-best-weights-step=20.pth", current)
    convert_any.main([str(current), "--output", str(tmp_path / "current")])
    assert torch.equal(load_file(tmp_path / "current" / "model.safetensors")["linear.bias"], state["linear0.bias"])
    with pytest.raises(ValueError, match="is no generator by its name"):
        convert_any.main([str(source / "model=D-best-weights-step=20.pth"), "--output", str(tmp_path / "other")])


def test_a_named_file_of_pretrained_biggan_is_the_one_that_is_converted(tmp_path: Path) -> None:
    source = Path(shutil.copytree(ORIGINALS / "pretrained_biggan", tmp_path / "source"))
    other = Path(shutil.copy(source / "pytorch_model.bin", source / "other.bin"))
    with pytest.raises(ValueError, match="other.bin' must have the name pytorch_model.bin, beside its config.json"):
        convert_any.main([str(other), "--output", str(tmp_path / "model")])
    convert_any.main([str(source / "pytorch_model.bin"), "--output", str(tmp_path / "model")])


def test_damaged_files_are_named_as_such(tmp_path: Path) -> None:
    whole = next((ORIGINALS / "biggan_thin").glob("G*.pth")).read_bytes()
    (tmp_path / "G.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is truncated or "):
        convert_any.main([str(tmp_path / "G.pth"), "--output", str(tmp_path / "model")])
