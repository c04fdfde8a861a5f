"""The generator as a graph for ONNX Runtime or OpenVINO: made, checked, written. `engines.py` runs such graphs."""

import ast
import copy
import itertools
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from .configuration_biggan import BigGANConfig
from .engine_files import EMBEDDINGS, PACKAGES, check_graphs, file_of, of_weights, read_index, write_index
from .engines import EngineModel, check_engine, check_installed, import_openvino, standing_inputs
from .eval_mode import eval_view
from .files import WEIGHT_GLOBS, checksum_of_file, checksum_of_weights, staged_folder
from .latents import sample_latents
from .layers import BatchNorm2d, ConditionalBatchNorm2d
from .modeling_biggan import BigGANModel
from .ops import plain_operations
from .quantizing import check_can_be_checked, check_quantized, quantize


OPSET = 22
# The largest difference between the images of a graph and those of the model, which lie in [-1, 1].
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@torch.no_grad()
def export_model(
    model: BigGANModel,
    output: str | PathLike[str],
    engine: str,
    precision: str = "fp32",
    *,
    overwrite: bool = False,
    weights: str | None = None,
) -> EngineModel:
    """
    Writes the graph of a generator to `output/onnx` or `output/openvino`, and `config.json` to `output` unless the
    model's weights lie there. A graph whose images differ from the model's is not written.

    Args:
        model: The generator; it does not change. One in another dtype is exported as it computes in float32.
        output: A folder: that of the model's weights, or another without weights.
        engine: "onnx" or "openvino".
        precision: "fp32", "bf16" (OpenVINO alone) or "int8".
        overwrite: Replaces a graph in the same precision.
        weights: The checksum of the weights, for a folder that does not hold them; by default that of the model if it
            were saved.

    Returns:
        The exported model.

    Raises:
        ImportError: A package is missing that runs the engine or makes its files.
        FileExistsError: There is a graph in this precision.
        ValueError: An unknown engine or precision; a folder with the weights or graphs of another model; a graph whose
            images differ too much from the model's.
    """
    output = Path(output)
    check_engine(engine, precision)
    if engine not in PACKAGES:
        raise ValueError(f"only {' and '.join(PACKAGES)} have files of their own, got engine={engine!r}")
    check_installed(engine)
    check_installed(engine, "onnxscript")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"the output {str(output)!r} is a file, expected a folder")
    if precision == "int8":
        check_can_be_checked()
    beside = _weights_beside(model, output)
    if beside is None:
        weights = weights or _checksum(model)
        check_graphs(output, weights)
    known = read_index(output / engine)
    if precision in known and not overwrite:
        raise FileExistsError(f"{str(output / engine / known[precision]['file'])!r} exists; overwrite replaces it")
    if model.dtype != torch.float32:  # the inputs and outputs of a graph are float32
        model = copy.deepcopy(model).float()
    with staged_folder(output) as staging:
        folder = staging / engine
        folder.mkdir()
        model.config.save_pretrained(staging)
        if model.config.num_labels and model.config.shared_class_embedding:
            labels = torch.arange(model.config.num_labels, device=model.device)
            np.save(folder / EMBEDDINGS, model.class_embedding(labels).float().cpu().numpy())
        path = folder / file_of(engine, precision)
        entry = {
            "file": path.name,
            "weights": beside or weights,
            "global_step": model.saved_step,
            **({"source": model.hub_id} if model.hub_id else {}),  # for the card; no folder of this machine
            **_write_graph(model, path, engine, precision),
            "crc32": {part.name: checksum_of_file(part) for part in sorted(folder.iterdir())},
            "bytes": sum(part.stat().st_size for part in folder.glob(f"{path.stem}.*")),
            "versions": {name: version(name) for name in ("biggan_hf", "torch", PACKAGES[engine])},
            "date": datetime.now(UTC).date().isoformat(),
        }
        same = of_weights(known, entry["weights"])  # graphs of other weights are no longer named
        write_index(folder, {**same, precision: entry})
        entry |= _check(model, EngineModel(staging, engine, precision))
        write_index(folder, {**same, precision: entry})
        if beside is not None:  # the configuration that lies there is the model's
            (staging / "config.json").unlink()
    return EngineModel(output, engine, precision)


def _weights_beside(model: BigGANModel, folder: Path) -> str | None:
    """The checksum of the weights in a folder, if there are any; raises `ValueError` if they are not the model's."""
    if (checksum := checksum_of_weights(folder)) is None:
        return None
    own, stored = model.state_dict(), dict(_stored(folder))
    are_same = own.keys() == stored.keys() and all(
        # γ of self-attention is a number in the files, and a vector in a network.
        tensor.numel() == own[name].numel()
        and torch.equal(tensor.float(), own[name].cpu().float().reshape(tensor.shape))
        for name, tensor in stored.items()
    )
    if not are_same:
        raise ValueError(
            f"{str(folder)!r} holds the weights of another model, or its own in another dtype than {model.dtype}; "
            "export to a folder of its own"
        )
    return checksum


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in (path for pattern in WEIGHT_GLOBS for path in folder.glob(pattern) if path.suffix == ".safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                yield name, file.get_tensor(name)


def _checksum(model: BigGANModel) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, global_step=model.saved_step)
        return checksum_of_weights(Path(folder))


def _write_graph(model: BigGANModel, path: Path, engine: str, precision: str) -> dict[str, Any]:
    """Writes the graph; returns what an engine's index says of one in int8, but for its check."""
    with tempfile.TemporaryDirectory() as folder:
        onnx = path if engine == "onnx" and precision != "int8" else Path(folder) / "model.onnx"
        write_onnx(model, onnx)
        if precision == "int8":
            return quantize(model, onnx, path, engine, _truncations(model.config))
        if engine == "openvino":
            openvino = import_openvino()
            openvino.save_model(openvino.convert_model(onnx), path, compress_to_fp16=precision == "bf16")
    return {}


# The check


def _check(model: BigGANModel, exported: EngineModel) -> dict[str, Any]:
    # What the index says of a check.
    if exported.precision == "int8":
        return check_quantized(model, exported, _truncations(model.config))
    return {"largest_difference": check_export(model, exported)}


def check_export(model: BigGANModel, exported: EngineModel) -> float:
    """
    The largest difference between the images of a model and of its export, over batches of one and of three, labels
    and embeddings, and the truncations at the ends, in the middle and between the rows of the model's table.

    Raises:
        ValueError: The difference is above `TOLERANCE` and above twice the model's own rounding: that is the
            difference between two orders of the same arithmetic in torch, for bf16 between torch in bf16 and float32.
    """
    found = rounding = 0.0
    generator = torch.Generator().manual_seed(0)
    half = copy.deepcopy(model).bfloat16() if exported.precision == "bf16" else None
    for number, truncation in itertools.product((1, 3), _truncations(model.config)):
        latents = sample_latents(number, model.config.z_dim, truncation, model.config.truncation_mode, generator)
        labels = model._labels_to_sample(None, number, generator)
        expected = model._generate(latents, labels, None, truncation).float().cpu()
        with plain_operations() if half is None else nullcontext():
            other = (half or model)._generate(latents, labels, None, truncation).float().cpu()
        rounding = max(rounding, _largest_difference(expected, other))
        found = max(found, _largest_difference(expected, exported._generate(latents, labels, None, truncation)))
        if labels is not None:
            embeddings = model.class_embedding(labels).float().cpu()
            images = exported._generate(latents, None, embeddings, truncation)
            found = max(found, _largest_difference(expected, images))
    allowed = max(TOLERANCE[exported.precision], 2 * rounding)
    if not found <= allowed:
        raise ValueError(
            f"the graph for {exported.engine} in {exported.precision} is not written: its images differ from the "
            f"model's by {found:.1e}, more than {allowed:.1e}"
        )
    return found


def _truncations(config: BigGANConfig) -> list[float | None]:
    table = [truncation for truncation in config.standing_truncations if truncation]  # a mirrored table begins at 0
    between = [(low + high) / 2 for low, high in zip(table, table[1:], strict=False)][:1]
    return [None, *dict.fromkeys([*table[:1], *between, *table[len(table) // 2 :][:1], *table[-1:]])]


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# The graph


class Graph(nn.Module):
    """
    The generator with the inputs that `engines.py` lists, in eval mode. It shares the model's weights.

    All norms take their statistics from one table, whose first row holds the running ones.
    """

    # Buffers (1 + num_standing, channels of all norms).
    mean: Tensor
    var: Tensor

    def __init__(self, model: BigGANModel):
        super().__init__()
        self.model = eval_view(model).fold_spectral_norm()  # a view: the model stays
        self.norms: list[Any] = []
        if model.config.standing_truncations:
            self.norms = [m for m in self.model.modules() if isinstance(m, BatchNorm2d | ConditionalBatchNorm2d)]
            rows = [_rows(norm) for norm in self.norms]
            self.register_buffer("mean", torch.cat([mean for mean, _ in rows], dim=1))
            self.register_buffer("var", torch.cat([var for _, var in rows], dim=1))

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        standing_rows: Tensor | None = None,
        standing_fraction: Tensor | None = None,
    ) -> Tensor:
        if standing_rows is not None and standing_fraction is not None:
            sizes = [norm.num_features for norm in self.norms]
            tables = [_between(table, standing_rows, standing_fraction) for table in (self.mean, self.var)]
            for norm, *chosen in zip(self.norms, *(table.split(sizes) for table in tables), strict=True):
                norm.observer = partial(_chosen, tuple(chosen))
        if class_labels is not None and class_embeddings is not None:
            of_labels = self.model.class_embedding(class_labels.clamp_min(0)).to(latents.dtype)
            class_embeddings = torch.where(class_labels[:, None] < 0, class_embeddings, of_labels)
        return self.model(latents, class_embeddings=class_embeddings, return_dict=False)[0]

    def inputs(self, number: int) -> dict[str, Tensor]:
        """Inputs of so many samples, all zeros."""
        config = self.model.config
        inputs = {"latents": torch.zeros(number, config.z_dim)}
        if config.num_labels:
            inputs["class_labels"] = torch.zeros(number, dtype=torch.int64)
            inputs["class_embeddings"] = torch.zeros(number, config.class_width)
        if self.norms:
            rows, fraction = standing_inputs(config, None)
            inputs["standing_rows"], inputs["standing_fraction"] = torch.from_numpy(rows), torch.from_numpy(fraction)
        return inputs


def _rows(norm: Any) -> tuple[Tensor, Tensor]:
    # Means and variances (1 + num_standing, C).
    mean = torch.cat([norm.running_mean[None], norm.standing_mean])
    return mean, torch.cat([norm.running_var[None], norm.standing_var])


def _between(table: Tensor, rows: Tensor, fraction: Tensor) -> Tensor:
    # A graph of torch.lerp would compute both of its two forms.
    lower, upper = table.index_select(0, rows).unbind(0)
    return lower + fraction * (upper - lower)


def _chosen(statistics: tuple[Tensor, Tensor], hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    return statistics


@torch.no_grad()
def write_onnx(model: BigGANModel, path: Path) -> None:
    """Writes the generator as one ONNX file, whose nodes bear the names of the modules that they come from."""
    graph = Graph(model if model.device.type == "cpu" else copy.deepcopy(model).cpu())
    inputs = graph.inputs(2)
    number = torch.export.Dim("N", min=1, max=2**16)
    shapes = {name: {} if name.startswith("standing") else {0: number} for name in inputs}
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # here: they come with an engine's extra
    from onnxscript.optimizer import fold_constants

    with _silence():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=["images"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    # Whatever is made of weights alone, such as the taps of a phase, is computed here and not whenever a file is read.
    fold_constants(program.model, input_size_limit=2**31, output_size_limit=2**31)
    RemoveUnusedNodesPass()(program.model)
    _name_nodes(program.model.graph)
    program.save(path, external_data=False)


@contextmanager
def _silence() -> Iterator[None]:
    # The exporter warns of torchvision, which is not needed, and of its own calls.
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def _name_nodes(graph: Any) -> None:
    # stages.0.blocks.0.conv1/Conv, …/Conv_1: what to quantise is chosen by module. The exporter's notes go: in torch
    # 2.13 they are half of a small file, and hold lines of source with the folders of this machine.
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        name = f"{next((s for s in reversed(scopes[:-1]) if s), '').removeprefix('model.')}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
    for noted in (graph, *graph.inputs, *graph.initializers.values()):
        noted.metadata_props.clear()
