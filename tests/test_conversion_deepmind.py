"""DeepMind's modules, from TensorFlow's variables and from ivclab's port: layouts, orders and statistics."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import tiny_config, tiny_generator
from conversion_common import FIXTURES, assert_equal, convert, weights
from torch import Tensor
from torch.nn import functional as F

from biggan_hf import BigGANModel
from biggan_hf.conversion import convert_ivclab, convert_tfhub, reading, tensorflow_files, writing


# A plain model whose stages differ in width, as attention has to be found by its width.
PLAIN: dict[str, Any] = {
    "image_size": 64,
    "z_dim": 20,
    "generator_base_channels": 2,
    "discriminator_base_channels": 2,
    "generator_attention_resolutions": [32],
    "truncation_mode": "scale",
}
DEEP: dict[str, Any] = {**PLAIN, "architecture": "biggan-deep", "z_dim": 7, "generator_base_channels": 4}
DEEP["discriminator_base_channels"] = 4


# This project's tensors in TensorFlow's layouts, written out by hand


def hwc_rows(tensor: Tensor) -> Tensor:
    """(C·4·4, …) to (4·4·C, …)."""
    return tensor.reshape(-1, 4, 4, *tensor.shape[1:]).movedim(0, 2).reshape(tensor.shape)


def latents_first(weight: Tensor, class_dim: int) -> Tensor:
    return torch.cat([weight[:, class_dim:], weight[:, :class_dim]], dim=1)


def tensorflow_layout(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.t()


def block(name: str, index: int) -> str:
    return name + (f"_{index}" if index else "")


def plain_layers(model: BigGANModel) -> Iterator[tuple[str, str, Tensor, Tensor | None]]:
    """Their name, our name, and weight and bias in their order of rows and columns, of each layer of a plain model."""
    state, class_dim = model.state_dict(), model.config.class_embedding_dim
    names = {"G_Z/G_linear": "linear", "conv_2d": "output_conv"}
    for i in range(len(model.stages)):
        theirs, ours = block("GBlock", i), f"stages.{i}.blocks.0"
        names |= {f"{theirs}/conv0": f"{ours}.conv1", f"{theirs}/conv1": f"{ours}.conv2"}
        names[f"{theirs}/conv_sc"] = f"{ours}.conv_sc"
        for suffix, bn in (("", "bn1"), ("_1", "bn2")):
            names[f"{theirs}/HyperBN{suffix}/gamma"] = f"{ours}.{bn}.gain"
            names[f"{theirs}/HyperBN{suffix}/beta"] = f"{ours}.{bn}.bias"
    names |= attention_names()
    for theirs, ours in names.items():
        weight, bias = state[f"{ours}.weight"], state.get(f"{ours}.bias")
        if ours == "linear":
            assert bias is not None
            weight, bias = hwc_rows(weight), hwc_rows(bias)
        elif "HyperBN" in theirs:
            weight = latents_first(weight, class_dim)
        yield theirs, ours, weight, bias


def attention_names() -> dict[str, str]:
    names = {"theta": "theta", "phi": "phi", "g": "g", "o_conv": "o"}
    return {f"attention/{theirs}": f"stages.2.attention.{ours}" for theirs, ours in names.items()}


def plain_norms(model: BigGANModel) -> Iterator[tuple[str, str, str]]:
    """Their block, their suffix and our name of each conditional batch norm of a plain model."""
    for i in range(len(model.stages)):
        yield block("GBlock", i), "", f"stages.{i}.blocks.0.bn1"
        yield block("GBlock", i), "_1", f"stages.{i}.blocks.0.bn2"


def plain_variables(model: BigGANModel) -> dict[str, np.ndarray]:
    """The variables of a plain module, averaged and not, with statistics accumulated three times."""
    state, ema = model.state_dict(), "ema_b999900"
    variables: dict[str, Tensor] = {f"linear/w/{ema}": state["class_embedding.weight"]}
    for theirs, ours, weight, bias in plain_layers(model):
        name = f"Generator/{theirs}"
        variables[f"{name}/w/{ema}"] = tensorflow_layout(weight)
        variables[f"{name}/w"] = torch.zeros_like(tensorflow_layout(weight))
        variables[f"{name}/u0"] = state[f"{ours}.u0"] if ours != "linear" else hwc_rows(state["linear.u0"][0])[None]
        variables[f"{name}/u1"] = torch.ones(1, weight[0].numel())
        if bias is not None:
            variables[f"{name}/b/{ema}"] = bias
    norms = {f"{theirs}/CrossReplicaBN{suffix}": ours for theirs, suffix, ours in plain_norms(model)}
    for theirs, ours in {**norms, "ScaledCrossReplicaBNbn": "output_bn"}.items():
        variables[f"Generator/{theirs}/accumulation_counter"] = torch.tensor(3.0)
        variables[f"Generator/{theirs}/accumulated_mean"] = 3 * state[f"{ours}.running_mean"]
        variables[f"Generator/{theirs}/accumulated_var"] = 3 * state[f"{ours}.running_var"]
    variables[f"Generator/attention/gamma/{ema}"] = state["stages.2.attention.gamma"].reshape(1)
    for theirs, ours in (("gamma", "gain"), ("beta", "bias")):
        scale = state[f"output_bn.{ours}"].reshape(1, 1, 1, -1)
        variables[f"Generator/ScaledCrossReplicaBN/{theirs}/{ema}"] = scale
    return {f"module/{name}:0": tensor.numpy() for name, tensor in variables.items()}


def assert_same_plain_model(tensors: dict[str, Tensor], model: BigGANModel) -> None:
    expected = dict(model.state_dict())
    statistics = [name for name in expected if "running_" in name]
    for name in statistics:  # divided by three again
        torch.testing.assert_close(tensors[name], expected[name])
    rest = [name for name in expected if name not in statistics and not name.endswith("sv0")]
    assert tensors.keys() == expected.keys()
    assert_equal({name: tensors[name] for name in rest}, {name: expected[name] for name in rest})


def test_variables_of_a_plain_module() -> None:
    model = tiny_generator(**PLAIN)
    findings = convert_tfhub.Findings()
    tensors = convert_tfhub.convert_variables(plain_variables(model), [], Path("module"), findings)
    assert_same_plain_model(tensors, model)
    fields = ("image_size", "z_dim", "class_embedding_dim", "num_labels", "generator_base_channels", "truncation_mode")
    assert {name: findings.fields[name] for name in fields} == {name: getattr(model.config, name) for name in fields}
    assert findings.fields["generator_attention_resolutions"] == [32]
    assert findings.fields["batch_norm_eps"] == 1e-4 and "output_batch_norm_eps" not in findings.fields


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    model = tiny_generator(**PLAIN)
    with h5py.File(tmp_path / "biggan.h5", "w") as file:
        for name, value in plain_variables(model).items():
            if not name.endswith("/w:0"):
                file.create_dataset(name, data=value)
    output = convert(convert_tfhub, tmp_path / "biggan.h5", tmp_path / "model")
    assert_same_plain_model(weights(output), model)
    latents, labels = torch.randn(2, 20), torch.tensor([0, 4])
    with torch.no_grad():
        images = BigGANModel.from_pretrained(output)(latents, labels).images
        torch.testing.assert_close(images, model(latents, labels).images, atol=1e-5, rtol=0)
    assert reading.recognise_source(tmp_path / "biggan.h5") == ("an HDF5 dump of a TFHub module", "convert_tfhub.py")
    content = (tmp_path / "biggan.h5").read_bytes()
    (tmp_path / "biggan.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated, damaged or no HDF5 file"):
        convert(convert_tfhub, tmp_path / "biggan.h5", tmp_path / "other")


def deep_variables(model: BigGANModel, last: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The variables of a deep module; `last` holds the weight, bias and u0 of its last, wider convolution."""
    state, class_dim = model.state_dict(), model.config.class_embedding_dim
    variables: dict[str, Tensor] = {"linear/w/ema_0.9999": state["class_embedding.weight"]}

    def layer(name: str, weight: Tensor, u0: Tensor, bias: Tensor | None = None) -> None:
        variables[f"{name}/w/ema_0.9999"] = tensorflow_layout(weight)
        variables[f"{name}/u0"] = u0
        if bias is not None:
            variables[f"{name}/b/ema_0.9999"] = bias

    stem = hwc_rows(latents_first(state["linear.weight"], class_dim))
    layer("Generator/GenZ/G_linear", stem, hwc_rows(state["linear.u0"][0])[None], hwc_rows(state["linear.bias"]))
    for i in range(2 * len(model.stages)):
        theirs, ours = f"Generator/{block('GBlock', i)}", f"stages.{i // 2}.blocks.{i % 2}"
        for k in range(4):
            conv = f"{ours}.conv{k + 1}"
            layer(f"{theirs}/conv{k}", state[f"{conv}.weight"], state[f"{conv}.u0"], state[f"{conv}.bias"])
            for their_map, our_map in (("scale", "gain"), ("offset", "bias")):
                name = f"{ours}.bn{k + 1}.{our_map}"
                weight = latents_first(state[f"{name}.weight"], class_dim)
                layer(f"{theirs}/{block('BatchNorm', k)}/{their_map}", weight, state[f"{name}.u0"])
    for theirs, ours in attention_names().items():
        layer(f"Generator/{theirs}", state[f"{ours}.weight"], state[f"{ours}.u0"])
    variables["Generator/attention/gamma/ema_0.9999"] = state["stages.2.attention.gamma"].reshape(1)
    variables["Generator/BatchNorm/scale/ema_0.9999"] = state["output_bn.gain"]
    variables["Generator/BatchNorm/offset/ema_0.9999"] = state["output_bn.bias"]
    layer("Generator/conv_to_rgb", last["weight"], last["u0"], last["bias"])
    return {name: tensor.numpy() for name, tensor in variables.items()}


def batch_norms(model: BigGANModel) -> list[str]:
    """All batch norms in the order of the forward pass."""
    names = [f"stages.{i}.blocks.{j}.bn{k}" for i in range(len(model.stages)) for j in (0, 1) for k in (1, 2, 3, 4)]
    return [*names, "output_bn"]


def test_variables_of_a_deep_module() -> None:
    model = tiny_generator(**DEEP)
    last = {"weight": torch.randn(8, 8, 3, 3), "bias": torch.randn(8), "u0": torch.randn(1, 8)}
    tables = [
        np.random.default_rng(i).random((11, len(model.state_dict()[f"{name}.running_mean"])))
        for i, name in enumerate(batch_norms(model))
    ]
    tables = [table + offset for table in tables for offset in (0, 10)]  # means, then variances, of each
    findings = convert_tfhub.Findings()
    tensors = convert_tfhub.convert_variables(deep_variables(model, last), tables, Path("module"), findings)
    for name, module in model.named_modules():
        if hasattr(module, "normalized_weight") and name != "output_conv":
            torch.testing.assert_close(tensors[f"{name}.weight"], module.normalized_weight().detach())
    # σ of the last convolution is that of all its eight channels.
    matrix = last["weight"].flatten(1)
    v = F.normalize(last["u0"] @ matrix)
    torch.testing.assert_close(tensors["output_conv.weight"], last["weight"][:3] / (v @ matrix.t()).norm())
    assert torch.equal(tensors["output_conv.bias"], last["bias"][:3])
    for number, name in enumerate(batch_norms(model)):
        for kind, table in zip(("mean", "var"), tables[2 * number : 2 * number + 2], strict=True):
            assert torch.equal(tensors[f"{name}.standing_{kind}"], torch.tensor(table, dtype=torch.float32))
            assert torch.equal(tensors[f"{name}.running_{kind}"], torch.tensor(table[-1], dtype=torch.float32))
    assert findings.fields["standing_truncations"] == [row / 10 for row in range(11)]
    assert findings.fields["generator_attention_resolutions"] == [32]
    convert_tfhub.no_discriminator(findings)
    assert writing.build(BigGANModel, findings.config(), tensors).config.generator_spectral_norm is False


def test_variables_that_fit_no_module() -> None:
    model = tiny_generator(**DEEP)
    last = {"weight": torch.randn(8, 8, 3, 3), "bias": torch.randn(8), "u0": torch.randn(1, 8)}
    variables = deep_variables(model, last)
    # At 32 pixels all stages have the same width.
    narrow = {f"Generator/{block('GBlock', i)}/conv1/b": np.zeros(16) for i in range(3)}
    narrow |= {"Generator/attention/theta/w": np.zeros((1, 1, 16, 2)), "Generator/G_Z/x": np.zeros(1)}
    for tensors, tables, message in (
        (variables, [], "holds no batch-norm statistics.*give the module's folder"),
        (variables, [np.zeros((2, 4))] * 3, "holds 3 tables of statistics, expected 66"),
        (narrow, [], "attention of 16 channels fits 3 of the stages"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_tfhub.convert_variables(tensors, tables, Path("module"), convert_tfhub.Findings())


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        convert(convert_tfhub, tmp_path / "nowhere", tmp_path / "model")
    with pytest.raises(ValueError, match="holds no SavedModel or TensorFlow checkpoint"):
        convert(convert_tfhub, tmp_path / "empty", tmp_path / "model")


def test_reader_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "file.h5").write_bytes(b"")
    with pytest.raises(ImportError, match="needs h5py: pip install .biggan_hf.convert.."):
        convert(convert_tfhub, tmp_path / "file.h5", tmp_path / "model")


# Folders that TensorFlow wrote

MODULE = FIXTURES / "tfhub_module" / "module"
LARGER = {"z_dim": 4, "class_embedding_dim": 3, "num_labels": 2}


def test_a_module_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    output = convert(convert_tfhub, MODULE, tmp_path / "model")
    assert not (tmp_path / "the-graph-was-run").exists()
    model = tiny_generator(**DEEP | LARGER)
    torch.manual_seed(1)
    last = {"weight": torch.randn(4, 8, 3, 3), "bias": torch.randn(4), "u0": torch.randn(1, 4)}
    tables = [
        np.random.default_rng(i).random((3, len(model.state_dict()[f"{name}.running_mean"]))).astype("f4") + offset
        for i, name in enumerate(batch_norms(model))
        for offset in (0, 10)
    ]
    variables = deep_variables(model, last)
    assert_equal(weights(output), convert_tfhub.convert_variables(variables, tables, MODULE, convert_tfhub.Findings()))


def test_the_newest_of_several_checkpoints(tmp_path: Path) -> None:
    for name in ("model.ckpt-1000", "model.ckpt-200", "model.ckpt"):
        for path in (MODULE / "variables").iterdir():
            shutil.copy(path, tmp_path / path.name.replace("variables", name, 1))
    for name in ("model.ckpt-200", "model.ckpt"):  # whoever reads these is told so
        (tmp_path / f"{name}.data-00000-of-00001").write_bytes(b"")
    shutil.copy(MODULE / "saved_model.pb", tmp_path)
    (tmp_path / "notes.txt").touch()
    output = convert(convert_tfhub, tmp_path, tmp_path / "model")
    assert_equal(weights(output), weights(convert(convert_tfhub, MODULE, tmp_path / "other")))
    listed = re.findall(r"^- `(.*)`: SHA-256", (output / "README.md").read_text(), re.MULTILINE)
    assert listed == ["model.ckpt-1000.data-00000-of-00001", "model.ckpt-1000.index", "saved_model.pb"]


def copy_of(module: Path, folder: Path, file: str, change: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(module, folder)
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    return folder


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "saved_model.pb",
            lambda c: c.replace(b"\x12\x04Pack", b"\x12\x04Sqrt"),
            "takes a run of the operation 'Sqrt'",
        ),
        (
            "saved_model.pb",
            lambda c: c[:5000],
            "is truncated or no SavedModel|holds 0 tables|no batch-norm statistics",
        ),
        ("saved_model.pb", lambda c: b"", "no batch-norm statistics"),
        ("variables/variables.index", lambda c: flipped(c, 600), "is truncated or no TensorFlow checkpoint"),
        ("variables/variables.index", lambda c: b"", "is truncated or no TensorFlow checkpoint"),
        ("variables/variables.data-00000-of-00001", lambda c: flipped(c, 600), "is not what was written .CRC-32C."),
        ("variables/variables.data-00000-of-00001", lambda c: c[:-1], "is truncated, or"),
    ],
)
def test_a_damaged_module(tmp_path: Path, file: str, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(convert_tfhub, copy_of(MODULE, tmp_path / "copy", file, change), tmp_path / "model")


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer."""
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def write_graph(path: Path, constants: int, levels: list[list[str]]) -> tensorflow_files.Constants:
    """A graph of constants c0, c1 … of four values, and of p0, p1 …, which stack what a level names."""
    tensor = bytes([8, 1]) + field(2, field(2, bytes([8, 4]))) + field(4, np.arange(4, dtype="<f4").tobytes())
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    nodes = [field(1, f"c{number}".encode()) + field(2, b"Const") + value for number in range(constants)]
    for number, inputs in enumerate(levels):
        names = b"".join(field(3, name.encode()) for name in inputs)
        nodes.append(field(1, f"p{number}".encode()) + field(2, b"Pack") + names)
    path.write_bytes(field(2, field(2, b"".join(field(1, node) for node in nodes))))
    return tensorflow_files.Constants(path)


def counted_constants(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made, constant = list[Any](), tensorflow_files._constant

    def count(*args: Any) -> np.ndarray:
        made.append(args)
        return constant(*args)

    monkeypatch.setattr(tensorflow_files, "_constant", count)
    return made


def test_a_constant_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [["c0"] * 2, *([f"p{level}"] * 2 for level in range(5))]
    made, constants = counted_constants(monkeypatch), write_graph(tmp_path / "saved_model.pb", 1, levels)
    np.testing.assert_array_equal(constants["p5"], np.broadcast_to(np.arange(4), (2,) * 6 + (4,)))
    assert len(made) == 1  # named 64 times


@pytest.mark.parametrize(("constants", "inputs"), [(3, ["c0", "c1", "c2"]), (1, ["c0", "c0", "c0"])])
def test_a_graph_of_too_many_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constants: int, inputs: list[str]
) -> None:
    monkeypatch.setattr(tensorflow_files, "MAX_VALUES", 10)
    made, graph = counted_constants(monkeypatch), write_graph(tmp_path / "saved_model.pb", constants, [inputs])
    with pytest.raises(ValueError, match="its constants hold 1[26] values, more than any tables of statistics"):
        graph["p0"]
    assert len(made) == min(constants, 2)


def test_variables_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index may name the same bytes any number of times."""
    table = tensorflow_files._table

    def twice(content: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, entry in table(content):
            yield from [(key, entry), (key + b"_again", entry)] if key else [(key, entry)]

    monkeypatch.setattr(tensorflow_files, "_table", twice)
    with pytest.raises(ValueError, match=r"variables.index' is damaged: its variables, such as '\S+', overlap"):
        convert_tfhub.read_variables(MODULE)


def test_variables_in_a_missing_file(tmp_path: Path) -> None:
    shutil.copytree(MODULE, tmp_path / "copy")
    (tmp_path / "copy" / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match="variables.data-00000-of-00001.*, which holds"):
        convert(convert_tfhub, tmp_path / "copy", tmp_path / "model")


@pytest.mark.parametrize("length", [0, 9, 31, 4096, 100_001])
def test_checksums_of_tensorflow(length: int) -> None:
    content = np.random.default_rng(length).bytes(length)
    crc = 0xFFFFFFFF
    for byte in content:  # bit by bit, as it is defined
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert tensorflow_files.crc32c(content) == crc ^ 0xFFFFFFFF
    assert tensorflow_files.crc32c(b"123456789") == 0xE3069283


def test_hdf5_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    declared: list[tuple[dict[str, Any], str]] = [
        ({"shape": (10**9, 10**3)}, "declares more numbers than the file holds"),
        ({"shape": (10**9, 10**3), "chunks": (10**3, 10**3), "compression": "gzip"}, "declares more numbers"),
        ({"shape": (4,), "external": [("/etc/hostname", 0, 16)]}, "lie in another file"),
    ]
    for options, message in declared:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("module/linear/w:0", dtype="f4", **options)
        with pytest.raises(ValueError, match=f"x.h5': .*module/linear/w:0.*{message}"):
            convert(convert_tfhub, tmp_path / "x.h5", tmp_path / "model")


# ivclab's port


def ivclab_state(model: BigGANModel) -> dict[str, Tensor]:
    """A file of the port. Its singular vectors are such that uᵀWv = 1 / 2 for each weight."""
    state = model.state_dict()
    result: dict[str, Tensor] = {"linear.weight": state["class_embedding.weight"]}
    for theirs, _, weight, bias in plain_layers(model):
        name = theirs.lower().replace("/", ".")
        matrix = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
        u = torch.randn(len(matrix))
        v = matrix.t() @ u
        result[f"{name}.weight_orig"], result[f"{name}.weight_u"] = weight, u
        result[f"{name}.weight_v"] = v / (2 * (u @ matrix @ v))
        if bias is not None:
            result[f"{name}.bias"] = bias
    norms = {f"{theirs.lower()}.hyperbn{suffix}.crossreplicabn": ours for theirs, suffix, ours in plain_norms(model)}
    for name, ours in {**norms, "scaledcrossreplicabn": "output_bn"}.items():
        result[f"{name}.standing_means"] = state[f"{ours}.standing_mean"]
        result[f"{name}.standing_vars"] = state[f"{ours}.standing_var"]
        result[f"{name}.running_mean"] = torch.zeros(3)
        result[f"{name}.num_batches_tracked"] = torch.tensor(0)
    result["attention.gamma"] = state["stages.2.attention.gamma"].reshape(1)
    result["scaledcrossreplicabn.weight"] = state["output_bn.gain"]
    result["scaledcrossreplicabn.bias"] = state["output_bn.bias"]
    return result


def test_ivclab(tmp_path: Path) -> None:
    truncations = [row / 50 for row in range(1, 51)]
    model = tiny_generator(**PLAIN, generator_spectral_norm=False, standing_truncations=truncations)
    torch.save(ivclab_state(model), tmp_path / "biggan64-release.pt")
    output = convert(convert_ivclab, tmp_path / "biggan64-release.pt", tmp_path / "model")
    tensors, expected = weights(output), model.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        if name.endswith("weight") and name != "class_embedding.weight":
            torch.testing.assert_close(tensor, 2 * expected[name])
        elif "running_" in name:
            assert torch.equal(tensor, expected[name.replace("running_", "standing_")][-1])
        else:
            assert_equal({name: tensor}, {name: expected[name]})
    config = BigGANModel.from_pretrained(output).config
    assert config.standing_truncations == truncations
    assert config.generator_attention_resolutions == [32]
    assert config.truncation_mode == "scale"
    assert config.z_dim == tiny_config(**PLAIN).z_dim
