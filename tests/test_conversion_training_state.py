"""A run of BigGAN-PyTorch goes on in train.py: weights, averages, Adam's moments and counters."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_common import ORIGINALS, SHARED, convert
from safetensors.torch import load_file
from training_runs import write_pictures

from biggan_hf import BigGANModel
from biggan_hf.conversion import convert_biggan_pytorch, export_biggan_pytorch, reading
from biggan_hf.presets import CIFAR10_CLASSES
from biggan_hf.training import main


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden run's end, under the names of a running experiment."""
    source = SHARED / "biggan_c10_train3"
    if not source.is_dir():
        pytest.skip(f"needs the original run at {source}")
    folder = tmp_path_factory.mktemp("original")
    for path in source.glob("*_end.pth"):
        shutil.copy(path, folder / path.name.replace("_end", ""))
    return folder


def test_training_state_holds_the_moments_of_each_weight(original: Path, tmp_path: Path) -> None:
    folder = convert(convert_biggan_pytorch, original, tmp_path / "checkpoint", "--training_state")
    state = torch.load(folder / "training_state.pt", weights_only=True)
    assert state["global_step"] == 9 and state["samples_seen"] == 9 * 2 * 2 * 6
    saved = torch.load(original / "G_optim.pth", weights_only=True)
    moments = state["generator_optimizer"]["state"]
    model = BigGANModel.from_pretrained(folder / "generator")
    places = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    assert len(moments) == len(places) == len(saved["param_groups"][0]["params"])
    # The original's parameters are its state dict without buffers, in that order.
    live = torch.load(original / "G.pth", weights_only=True)
    buffers = ("u0", "sv0", "stored_mean", "stored_var")
    order = [name for name in live if not name.endswith(buffers)]
    for theirs, ours in (
        ("linear.weight", "linear.weight"),
        ("blocks.1.0.conv2.bias", "stages.1.blocks.0.conv2.bias"),
        ("blocks.2.0.bn1.gain.weight", "stages.2.blocks.0.bn1.gain.weight"),
        ("blocks.1.1.gamma", "stages.1.attention.gamma"),
        ("output_layer.0.bias", "output_bn.bias"),
    ):
        expected = saved["state"][order.index(theirs)]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            moment = moments[places[ours]][key]  # the original's γ is a number
            assert torch.equal(moment, expected[key].view_as(moment)), ours
    live = torch.load(original / "G.pth", weights_only=True)["linear.weight"]
    assert torch.equal(load_file(folder / "generator" / "model.safetensors")["linear.weight"], live)


def test_train_goes_on_from_it(original: Path, tmp_path: Path) -> None:
    folder = convert(convert_biggan_pytorch, original, tmp_path / "checkpoint", "--training_state")
    pictures = write_pictures(tmp_path / "pictures", tuple(CIFAR10_CLASSES), 20)
    argv = ["--preset", "cifar10", "--init_from", str(folder), "--resume_from_checkpoint", str(folder)]
    argv += ["--dataset_name", str(pictures), "--output_dir", str(tmp_path / "model"), "--max_train_steps", "10"]
    main([*argv, "--per_device_batch_size", "4", "--logging_steps", "1"])
    (line,) = (tmp_path / "model" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["step"] == 10
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "model"))
    moved = (after["linear.weight"] - before["linear.weight"]).abs().max()
    assert 0 < moved < 1e-3


def test_what_a_training_state_needs_is_said(tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="G_optim|--training_state needs"):
        convert(convert_biggan_pytorch, ORIGINALS / "biggan_shared", tmp_path / "out", "--training_state")
    assert not (tmp_path / "out").exists()


def test_exported_checkpoint_keeps_the_live_generator_and_the_step(original: Path, tmp_path: Path) -> None:
    checkpoint = convert(convert_biggan_pytorch, original, tmp_path / "checkpoint", "--training_state")
    exported = convert(export_biggan_pytorch, checkpoint, tmp_path / "exported")
    for name in ("G", "G_ema", "D"):
        theirs, ours = (torch.load(folder / f"{name}.pth", weights_only=True) for folder in (original, exported))
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs), name
    assert reading.load(exported / "state_dict.pth")["itr"] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [({"hello": torch.zeros(1)}, "not as the program writes them: KeyError"), (None, "exp_avg holds NaN or infinity")],
)
def test_broken_optimiser_is_one_line(original: Path, tmp_path: Path, content: Any, message: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(original, broken)
    if content is None:
        content = torch.load(original / "G_optim.pth", weights_only=True)
        content["state"][0]["exp_avg"].fill_(torch.nan)
    torch.save(content, broken / "G_optim.pth")
    with pytest.raises(ValueError, match=message):
        convert(convert_biggan_pytorch, broken, tmp_path / "out", "--training_state")
    assert not (tmp_path / "out").exists()
