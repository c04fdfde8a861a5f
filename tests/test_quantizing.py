"""Int8: what is measured of a layer, what the graph computes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biggan_hf import BigGANConfig, BigGANModel, quantizing
from biggan_hf.commands.export import _check_in_words
from biggan_hf.engines import _RUNNERS, EngineModel
from biggan_hf.exporting import export_model, write_onnx
from biggan_hf.quantizing import ERROR_TOLERANCE, draw, measure, write_rounded


SENSITIVE = "stages.1.blocks.0.conv2"


@pytest.fixture(scope="module")
def model() -> BigGANModel:
    """A model with a channel in front of one convolution that is 1000 times as large as the others."""
    torch.manual_seed(0)
    config = BigGANConfig.preset("demo", generator_base_channels=4, discriminator_base_channels=4)
    model = BigGANModel(config).eval().fold_spectral_norm()
    block = model.get_submodule(SENSITIVE.rpartition(".")[0])
    with torch.no_grad():  # gain 1000 and bias 0, which the convolution takes back
        block.bn2.running_var[0] *= 1e-6
        block.bn2.eps = 0.0
        block.conv2.weight[:, 0] /= 1000
    return model


@pytest.fixture(scope="module")
def in_float(model: BigGANModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    write_onnx(model, path)
    return path


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).square().mean() / b.var()).item()


def test_the_measure_finds_a_sensitive_layer(model: BigGANModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = measure(model, [*draw(model.config, [None], 16, seed=0)])
    assert max(measured, key=lambda name: measured[name].error / measured[name].work) == SENSITIVE
    assert not measured[SENSITIVE].fits
    assert sum(conv.fits for conv in measured.values()) >= 3
    assert sum(conv.work for conv in measured.values()) == pytest.approx(1)
    assert measured["stages.0.blocks.0.conv1"].low == 0 > measured["stages.1.blocks.0.conv_sc"].low
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_rounded_graph_computes_what_was_measured(
    model: BigGANModel, in_float: Path, tmp_path: Path, engine: str
) -> None:
    # Each upsampling convolution is four in the graph: an engine that computes one of them wrong has an error of 0.05.
    measured = measure(model, [*draw(model.config, [None], 16, seed=0)])
    rounded = {name: conv for name, conv in measured.items() if name != SENSITIVE}
    path = tmp_path / "int8.onnx"
    write_rounded(in_float, path, rounded)
    (batch,) = draw(model.config, [None], 8, seed=0)
    assert batch.labels is not None
    feed = {"latents": batch.latents.numpy(), "class_labels": batch.labels.numpy()}
    feed["class_embeddings"] = np.zeros((8, model.config.class_embedding_dim), np.float32)
    images = torch.from_numpy(_RUNNERS[engine](path, "int8")(feed))
    expected = model._generate(batch.latents, batch.labels, None, None)
    # Without these instructions a processor adds products of 8 bits in 16, which overflow (OpenVINO 2026.4, AVX2).
    adds_in_32_bits = engine == "onnx" or "_vnni" in Path("/proc/cpuinfo").read_text()
    assert 0 < error(images, expected)
    if adds_in_32_bits:
        assert error(images, expected) < min(0.01, 2 * sum(conv.error for conv in rounded.values()))
    else:
        assert error(images, expected) < ERROR_TOLERANCE


def inputs(path: Path) -> dict[str, list[str]]:
    """The names of the inputs of each convolution."""
    import onnx

    return {node.name: list(node.input[:2]) for node in onnx.load(path).graph.node if node.op_type == "Conv"}


def test_an_export(model: BigGANModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "CHECKED_IMAGES", 48)
    exported = export_model(model, tmp_path, "onnx", "int8")
    entry: Any = EngineModel(tmp_path, "onnx", "int8").entry
    assert entry == exported.entry
    assert entry["images"] == 48
    assert entry["extractor"] == "Lite0@112"
    assert entry["frechet_distance"]["allowed"] == pytest.approx(1.02 * entry["frechet_distance"]["float"], rel=1e-3)
    for distance in (entry["frechet_distance"], entry["kernel_distance"]):
        assert distance["int8"] <= distance["allowed"] > distance["float"]
    assert entry["error"] < 0.01
    kernel = entry["kernel_distance"]
    assert f"KD {kernel['int8']:g} (torch: {kernel['float']:g}); 48 images, Lite0@112" in _check_in_words(entry)
    left = entry["float_convolutions"]
    assert SENSITIVE in left
    of_nodes = inputs(tmp_path / "onnx" / entry["file"])
    for name, (map_name, weight) in of_nodes.items():
        is_float = name.rpartition("/")[0] in left or name.endswith("conv1/Conv_3")
        assert [map_name.endswith("/rounded"), weight.endswith("/rounded")] == [not is_float] * 2
    assert len(of_nodes) > len(left)
    a, b = (m.sample([3, 4], 2, generator=torch.Generator().manual_seed(0)) for m in (model, exported))
    assert error(b, a) < 0.02


class Noisy:
    """In the place of a graph: the images of a model with noise, whose size is a share of their deviation."""

    engine = "openvino"

    def __init__(self, model: BigGANModel, noise: float):
        self.model, self.noise = model, noise

    def _generate(self, *inputs: Any) -> torch.Tensor:
        images = self.model._generate(*inputs)
        return (images + self.noise * images.std() * torch.randn(images.shape)).clamp(-1, 1)


def test_each_distance_refuses_and_chance_does_not(model: BigGANModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "CHECKED_IMAGES", 32)
    torch.manual_seed(0)

    def check(noise: float) -> dict[str, Any]:
        noisy: Any = Noisy(model, noise)
        return quantizing.check_quantized(model, noisy, [None])

    assert check(0.01)["error"] == pytest.approx(1e-4, rel=0.2)
    message = r"int8 have an error of 0.0\d+ of their .* Fréchet distance of .* kernel distance of .*allowed: "
    for other in ("DISTANCE_TOLERANCE", "DEVIATIONS"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(quantizing, other, 1e9)
            check(0.15)


@pytest.mark.slow  # an export
def test_a_graph_that_fails_its_check_is_not_written(
    model: BigGANModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "CHECKED_IMAGES", 16)
    monkeypatch.setattr(quantizing, "ERROR_TOLERANCE", -0.5)
    with pytest.raises(ValueError, match="the graph for openvino in int8 is not written: 16 images in int8 have"):
        export_model(model, tmp_path / "new", "openvino", "int8")
    assert [*tmp_path.iterdir()] == []


def test_a_missing_package_is_named_first(model: BigGANModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = quantizing.find_spec
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None if name == "torchmetrics" else find(name))
    with pytest.raises(ImportError, match=r'checked with the package torchmetrics: pip install "biggan_hf\[eval\]"'):
        export_model(model, tmp_path / "new", "onnx", "int8")
    assert [*tmp_path.iterdir()] == []
