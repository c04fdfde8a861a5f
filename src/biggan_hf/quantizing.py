"""
The convolutions of an exported graph in int8: which of them, in which steps, and what that costs in images.

A weight has a step for each output channel, a map one for all its values. The graph holds pairs of QuantizeLinear and
DequantizeLinear. OpenVINO makes convolutions of integers of them; ONNX Runtime computes in float with the rounded
values. All else stays in float: the linear maps of the norms, attention's products, sums.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_biggan import BigGANConfig
from .engines import EngineModel, import_openvino
from .images import to_uint8
from .latents import sample_latents
from .layers import Conv2d
from .modeling_biggan import BigGANModel


BATCH = 8
# Images of each truncation that is tried, from which the ranges of the maps come.
CALIBRATION_IMAGES = 16
# What int8 may change: the mean squared difference of the images, over their variance. A convolution goes to int8 if
# it alone changes at most its share of this, which is its share of the multiplications. So all of them together change
# about as much as this, and a layer that would use up what the others may is left in float.
BUDGET = 0.02
# The same for a whole graph. One that an engine computed wrong, see `write_rounded`, had 0.12, and yet a Fréchet
# distance of only 1.7 % above the model's. Trained models have 0.001.
ERROR_TOLERANCE = 0.05
CHECKED_IMAGES = 512  # of a set, up to 128 pixels; a quarter above: minutes on two cores
DISTANCE_TOLERANCE = 0.02  # relative, above the distances of the float model
# The kernel distance of two sets of one model is about 0, so 2 % of it is nothing. So many standard deviations of what
# chance makes of it are allowed: of the distances between random halves of both sets of the model's images.
DEVIATIONS, SPLITS = 2, 20


class Conv(NamedTuple):
    """What is measured of one convolution."""

    low: float  # the range of its input
    high: float
    work: float  # its share of the multiplications of all convolutions
    error: float  # the mean squared difference of the images if it alone is in int8, over their variance

    @property
    def fits(self) -> bool:
        return self.error <= BUDGET * self.work


class Batch(NamedTuple):
    latents: Tensor
    labels: Tensor | None
    truncation: float | None


def check_can_be_checked() -> None:
    """Raises `ImportError` if a package is missing that the check needs."""
    for package in ("efficientnet_lite_pytorch", "torchmetrics"):
        if find_spec(package) is None:
            raise ImportError(
                f'a graph in int8 is checked with the package {package}: pip install "biggan_hf[eval]"', name=package
            )


def quantize(
    model: BigGANModel, onnx_path: Path, path: Path, engine: str, truncations: Sequence[float | None]
) -> dict[str, Any]:
    """
    Writes a graph in int8.

    Args:
        model: The generator; it does not change.
        onnx_path: Its graph in float.
        path: The file to write.
        engine: "onnx" or "openvino".
        truncations: Whose latents give the ranges.

    Returns:
        `calibration_images`, how many; `float_convolutions`, by name the share of the multiplications and the error
        (see `Conv`) of each that stays in float.
    """
    batches = [*draw(model.config, truncations, CALIBRATION_IMAGES * len(truncations), seed=0)]
    measured = measure(model, batches)
    rounded = {name: conv for name, conv in measured.items() if conv.fits}
    written = path if engine == "onnx" else onnx_path.with_name("int8.onnx")
    write_rounded(onnx_path, written, rounded)
    if engine == "openvino":
        openvino = import_openvino()
        openvino.save_model(openvino.convert_model(written), path, compress_to_fp16=False)
    left = {
        name: {"multiplications": _short(conv.work), "error": _short(conv.error)}
        for name, conv in sorted(measured.items(), key=lambda item: -item[1].error)
        if name not in rounded
    }
    return {"calibration_images": sum(len(batch.latents) for batch in batches), "float_convolutions": left}


def draw(config: BigGANConfig, truncations: Sequence[float | None], number: int, seed: int) -> Iterator[Batch]:
    """Latents and labels, the same for a seed, in batches of one truncation each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, number - start) for start in range(0, number, BATCH)]
    for size, truncation in zip(sizes, itertools.cycle(truncations), strict=False):
        latents = sample_latents(size, config.z_dim, truncation, config.truncation_mode, generator)
        labels = torch.randint(config.num_labels, (size,), generator=generator) if config.num_labels else None
        yield Batch(latents, labels, truncation)


# The measure


@torch.no_grad()
def measure(model: BigGANModel, batches: Sequence[Batch]) -> dict[str, Conv]:
    """What int8 costs and saves in each convolution, by the name of its module."""
    model = copy.deepcopy(model).cpu().float().eval().fold_spectral_norm()  # a copy: it gets hooks and other weights
    convs = {name: module for name, module in model.named_modules() if isinstance(module, Conv2d)}
    seen = {name: [0.0, 0.0, 0] for name in convs}
    hooks = [conv.register_forward_pre_hook(partial(_see, seen[name])) for name, conv in convs.items()]
    for batch in batches:
        _images(model, batch)
    for hook in hooks:
        hook.remove()
    total = sum(work for _, _, work in seen.values())
    few = batches[:2]  # which have the first two truncations
    expected = [_images(model, batch) for batch in few]
    measured = {}
    for name, conv in convs.items():
        low, high, work = seen[name]
        with _rounded(conv, low, high):
            error = _error(expected, [_images(model, batch) for batch in few])
        measured[name] = Conv(low, high, work / total, error)
    return measured


def _error(expected: Sequence[Tensor], images: Sequence[Tensor]) -> float:
    # The mean squared difference, over the variance.
    right = torch.cat([*expected])
    return ((torch.cat([*images]) - right).square().mean() / right.var()).item()


def _images(model: BigGANModel, batch: Batch) -> Tensor:
    return model(batch.latents, batch.labels, truncation=batch.truncation, return_dict=False)[0]


def _see(seen: list[Any], conv: Conv2d, inputs: tuple[Tensor]) -> None:
    # Range of the input; multiplications: a convolution after upsampling has as many as one before it.
    hidden_states = inputs[0]
    seen[0] = min(seen[0], hidden_states.min().item())
    seen[1] = max(seen[1], hidden_states.max().item())
    seen[2] += conv.weight.numel() * hidden_states[:, 0].numel()


@contextmanager
def _rounded(conv: Conv2d, low: float, high: float) -> Iterator[None]:
    # One convolution in int8: whole numbers, in float.
    weight = conv.weight
    steps = weight_steps(weight)[:, None, None, None]
    conv.weight = nn.Parameter((weight / steps).round() * steps)
    step, lowest, highest = step_of(low, high)
    hook = conv.register_forward_pre_hook(lambda _, x: (x[0] / step).round().clamp(lowest, highest) * step)
    try:
        yield
    finally:
        hook.remove()
        conv.weight = weight


def step_of(low: float, high: float) -> tuple[float, int, int]:
    """The step of a map in a range, and the least and the largest number of steps: uint8 after a ReLU, else int8."""
    if low >= 0:
        return high / 255 or 1.0, 0, 255
    return max(-low, high) / 127, -127, 127


def weight_steps(weight: Tensor) -> Tensor:
    """The steps (out,) of a weight (out, in, k, k) in int8; 1 for a channel of zeros."""
    steps = weight.abs().amax(dim=(1, 2, 3)) / 127
    return torch.where(steps > 0, steps, 1.0)


# The graph


def write_rounded(source: Path, path: Path, convs: Mapping[str, Conv]) -> None:
    """Writes an ONNX graph with the convolutions of some modules in int8."""
    import onnx

    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    summands = Counter(name for node in graph.node if node.op_type == "Add" for name in node.input)
    # A result that is added twice, the centre of an upsampling convolution, stays in float: OpenVINO 2026.4 takes its
    # step out of both sums and puts it back into one.
    chosen = {
        node.name: convs[node.name.rpartition("/")[0]]
        for node in graph.node
        if node.op_type == "Conv" and node.name.rpartition("/")[0] in convs and summands[node.output[0]] < 2
    }
    nodes: list[Any] = []
    rounded: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input[:2] if node.name in chosen else ()):
            node.input[place] = f"{name}/rounded"
            if name not in rounded:  # the four convolutions of an upsampling one share their map
                rounded.add(name)
                made = _rounded_map(name, chosen[node.name]) if place == 0 else _rounded_weight(weights[name])
                nodes.extend(made[0])
                graph.initializer.extend(made[1])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.save(model, path)


def _rounded_map(name: str, conv: Conv) -> tuple[list[Any], list[Any]]:
    # Nodes and constants.
    from onnx import helper, numpy_helper

    step, least, _ = step_of(conv.low, conv.high)
    zero = np.zeros((), np.uint8 if least == 0 else np.int8)
    constants: dict[str, np.ndarray] = {f"{name}/step": np.array(step, np.float32), f"{name}/zero": zero}
    nodes = [
        helper.make_node("QuantizeLinear", [name, *constants], [f"{name}/int8"], f"{name}/int8"),
        helper.make_node("DequantizeLinear", [f"{name}/int8", *constants], [f"{name}/rounded"], f"{name}/rounded"),
    ]
    return nodes, [numpy_helper.from_array(value, key) for key, value in constants.items()]


def _rounded_weight(tensor: Any) -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    name, weight = tensor.name, torch.from_numpy(numpy_helper.to_array(tensor).copy())
    steps = weight_steps(weight)
    constants: dict[str, np.ndarray] = {
        f"{name}/int8": (weight / steps[:, None, None, None]).round().to(torch.int8).numpy(),
        f"{name}/step": steps.numpy(),
        f"{name}/zero": np.zeros(len(steps), np.int8),
    }
    nodes = [helper.make_node("DequantizeLinear", [*constants], [f"{name}/rounded"], f"{name}/rounded", axis=0)]
    return nodes, [numpy_helper.from_array(value, key) for key, value in constants.items()]


# The check


def check_quantized(model: BigGANModel, exported: EngineModel, truncations: Sequence[float | None]) -> dict[str, Any]:
    """
    Compares a graph in int8 with its model, by the images of latents of the given truncations.

    Returns:
        `error`, the mean squared difference of the images over their variance, and two distances of sets: of the
        model's images to others of the model, and of the graph's to the same others. `frechet_distance` and
        `kernel_distance` have "float", "int8" and "allowed"; `extractor` is that of the distances, `images` the size
        of a set.

    Raises:
        ValueError: The error is above `ERROR_TOLERANCE`, or a distance of int8 above that of float: by more than
            `DISTANCE_TOLERANCE`, and the kernel distance also by more than `DEVIATIONS`.
    """
    from .evaluation import frechet_distance, kernel_distance, load_extractor  # here: they are slow to import

    extractor = load_extractor("lite0")
    number = CHECKED_IMAGES if model.config.image_size <= 128 else CHECKED_IMAGES // 4

    def images(source: Any, seed: int) -> list[Tensor]:
        batches = draw(model.config, truncations, number, seed)
        return [source._generate(z, labels, None, truncation).float().cpu() for z, labels, truncation in batches]

    def features(batches: list[Tensor]) -> Tensor:
        return torch.cat([extractor(to_uint8(batch))[0] for batch in batches]).double()

    own, int8 = images(model, 1), images(exported, 1)
    error = _error(own, int8)
    others, sets = features(images(model, 2)), {"float": features(own), "int8": features(int8)}
    moments = others.mean(0), others.T.cov()
    frechet = {name: frechet_distance(rows.mean(0), rows.T.cov(), *moments) for name, rows in sets.items()}
    kernel = {name: kernel_distance(others, rows)[0] for name, rows in sets.items()}
    generator, both = torch.Generator().manual_seed(3), torch.cat([others, sets["float"]])
    halves = (both[torch.randperm(len(both), generator=generator)].chunk(2) for _ in range(SPLITS))
    by_chance = DEVIATIONS * torch.tensor([kernel_distance(one, other)[0] for one, other in halves]).std().item()
    frechet["allowed"] = frechet["float"] * (1 + DISTANCE_TOLERANCE)
    kernel["allowed"] = kernel["float"] + max(DISTANCE_TOLERANCE * kernel["float"], by_chance)
    if not (error <= ERROR_TOLERANCE and all(d["int8"] <= d["allowed"] for d in (frechet, kernel))):
        raise ValueError(
            f"the graph for {exported.engine} in int8 is not written: {number} images in int8 have an error of "
            f"{error:.2g} of their variance (allowed: {ERROR_TOLERANCE:g}), and to others of the model "
            f"({extractor.name}) {_compared('a Fréchet', frechet)} and {_compared('a kernel', kernel)}"
        )
    return {
        "extractor": extractor.name,
        "images": number,
        "error": _short(error),
        "frechet_distance": {name: _short(value) for name, value in frechet.items()},
        "kernel_distance": {name: _short(value) for name, value in kernel.items()},
    }


def _compared(name: str, found: Mapping[str, float]) -> str:
    return f"{name} distance of {found['int8']:.4g} (float: {found['float']:.4g}, allowed: {found['allowed']:.4g})"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
