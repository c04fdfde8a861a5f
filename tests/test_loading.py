"""A network is loaded whole, with weights that are numbers, or one line says why not."""

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import seeded, tiny_generator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biggan_hf import BigGANModel, BigGANPipeline, modeling_biggan
from biggan_hf.cli import main
from biggan_hf.initialization import init_weights


CONV, VAR = "stages.0.blocks.0.conv1.weight", "stages.1.blocks.0.bn2.running_var"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_generator().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def set_entry(name: str, value: float) -> Callable[[Weights], object]:
    return lambda weights: weights[name].view(-1)[:1].fill_(value)


def only_others(weights: Weights) -> None:
    weights.clear()
    weights["something.else"] = torch.zeros(2)


CHANGES: list[tuple[Callable[[Weights], object], str]] = [
    (set_entry(CONV, float("nan")), f"cannot be used: '{CONV}' holds numbers that are not finite"),
    (set_entry("output_bn.gain", float("inf")), "cannot be used: 'output_bn.gain' holds numbers that are not finite"),
    (set_entry(VAR, -1e-6), f"cannot be used: '{VAR}' holds negative variances"),
    (lambda weights: weights.pop(CONV), f"lacks the weight '{CONV}' of BigGANModel"),
    (lambda weights: weights.pop("linear.u0"), "lacks the weight 'linear.u0' of BigGANModel"),
    (only_others, "lacks 97 weights, such as 'class_embedding.weight', of BigGANModel"),
    (
        lambda weights: weights.update({CONV: torch.zeros(3, 3)}),
        rf"'{CONV}' is \(3, 3\) in the file and \(16, 16, 3, 3\)",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_weights_that_make_no_image_are_refused(
    change: Callable[[Weights], object], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for loader in (BigGANModel, BigGANPipeline):
        with pytest.raises((ValueError, RuntimeError), match=message):
            loader.from_pretrained(folder)
    commands = {"sample": "sheet.png", "npz": "samples.npz", "interpolate": "film.gif", "stats": "copy"}
    for command, output in commands.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([command, str(folder), "--output", str(folder.parent / output)])
        out, err = capsys.readouterr()
        assert stopped.value.code == 2 and out == "" and len(err.splitlines()) == 1, err
        assert not (folder.parent / output).exists()


def test_weights_that_cannot_be_opened_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()  # no right to read it would stop anyone but root
    with pytest.raises(IsADirectoryError, match="model.safetensors"):
        BigGANModel.from_pretrained(folder)


def test_a_refused_load_draws_no_initial_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw(module: nn.Module, initializer: str) -> None:
        drawn.append(initializer)
        init_weights(module, initializer)

    monkeypatch.setattr(modeling_biggan, "init_weights", draw)
    (folder / "config.json").write_text('{"model_type": "biggan"}')  # a network that takes half a minute to draw
    with pytest.raises(ValueError, match="lacks 69 weights, such as"):
        BigGANModel.from_pretrained(folder)
    assert not drawn
    tiny = tiny_generator()
    BigGANModel.from_pretrained(None, config=tiny.config, state_dict={CONV: tiny.state_dict()[CONV]})
    assert drawn


def test_weights_without_a_place_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = BigGANModel.from_pretrained(folder)
    assert "holds the weight 'extra' for which BigGANModel has no place" in caplog.text
    assert "LOAD REPORT" not in caplog.text
    expected = tiny_generator().sample(0, generator=seeded(0))
    torch.testing.assert_close(loaded.sample(0, generator=seeded(0)), expected)


def test_images_that_are_not_finite_are_refused() -> None:
    model = tiny_generator()
    with torch.no_grad():
        model.get_parameter("output_conv.bias").fill_(float("nan"))
    for draw in (
        lambda: model.sample(0),
        lambda: BigGANPipeline(model)(0),
        lambda: BigGANPipeline(model)(0, output_type="pt"),
    ):
        with pytest.raises(ValueError, match="images hold numbers that are not finite: 'output_conv.bias' holds"):
            draw()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: .*header too small"),
        (b"x" * 99, "cannot be read: .*header too large"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "it is a pointer of Git LFS; `git lfs pull`"),
        (None, "cannot be read: .*incomplete metadata"),
    ],
)
def test_a_damaged_file_is_named(content: bytes | None, message: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=f"^'{file}' .*{message}") as told:
        BigGANModel.from_pretrained(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [CONV, "linear.u0"])
def test_zeros_that_nothing_divides_by_are_named(name: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.zeros_like(weights[name], dtype=torch.int32)  # as float weights that a program has rounded
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"numbers that are not finite: '{name}' holds zeros alone"):
        BigGANModel.from_pretrained(folder).eval().sample(torch.tensor([0]))


class Executed:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_is_refused_without_advice_to_load_it(plain: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    file, marker = folder / "pytorch_model.bin", folder.parent / "executed"
    with open(file, "wb") as opened:
        (pickle.dump if plain else torch.save)({CONV: Executed(marker)}, opened)
    with pytest.raises(ValueError, match=f"^'{file}' is refused: .*ask for safetensors$") as told:
        BigGANModel.from_pretrained(folder)
    assert not gives_advice(str(told.value)) and not marker.exists()


def gives_advice(text: str) -> bool:
    return any(word in text for word in ("weights_only", "safe_globals", "trust", "\n"))


@pytest.mark.parametrize("content", [b"hello", b"", pickle.dumps([1, 2]), b"\x80\x02G123", b"\x80\x8a123"])
def test_a_bin_that_holds_no_weights_is_named(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    warnings.simplefilter("error")  # torch's would stand before the line
    with pytest.raises(ValueError, match=f"^'{folder / 'pytorch_model.bin'}' .*(refused|cannot be read)"):
        BigGANModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["../saved/model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\model.safetensors", "..", 3, "", [1]]
)
def test_an_index_names_files_of_its_folder(name: Any, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json' is refused: it names .*, which is no file in its folder"):
        BigGANModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "{", "[" * 10**5, '{"weight_map": 3}', '{"weight_map": {}}', '{"metadata": {}, "weight_map": {}}'],
)
def test_what_is_no_index(content: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="index.json' is no index of weights: (it is no JSON|expected an object)"):
        BigGANModel.from_pretrained(folder)


@pytest.mark.parametrize("field", [{"generator_base_channels": 10**4}, {"generator_base_channels": 2**16}])
def test_a_network_beyond_the_memory_is_refused(field: dict[str, int], folder: Path) -> None:
    with pytest.raises(MemoryError, match="a network of this configuration does not fit the memory"):
        BigGANModel.from_pretrained(folder, **field)
