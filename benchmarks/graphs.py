"""The generators of this project and of the other programs as each engine runs them: weights and graphs in one folder.

`engines.py` measures them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import peers
import torch
from torch import Tensor, nn

from biggan_hf import BigGANConfig, BigGANModel, quantizing
from biggan_hf.engine_files import file_of, read_index
from biggan_hf.engines import _RUNNERS, EngineModel, import_openvino
from biggan_hf.eval_mode import fold
from biggan_hf.exporting import OPSET, _silence, export_model
from biggan_hf.files import staged_folder


# Images from which nncf takes the ranges of the original's graph in int8.
CALIBRATION_IMAGES = 32
# Of the check of our own, which takes minutes with more.
FEW_IMAGES = 64
# Random weights make noise, of which the distances that guard int8 say nothing. `engines.py` compares the images.
UNCHECKED: dict[str, Any] = {
    "DISTANCE_TOLERANCE": float("inf"),
    "DEVIATIONS": float("inf"),
    "CHECKED_IMAGES": FEW_IMAGES,
}


class Program(NamedTuple):
    """The side is "ours" or "theirs"; engines and precisions are those of `biggan_hf.engines`."""

    side: str
    engine: str
    precision: str

    def __str__(self) -> str:
        return " ".join(self)


def _programs(*names: str) -> list[Program]:
    return [Program(*name.split()) for name in names]


# Of each architecture. The others are measured against the first.
PROGRAMS = {
    "biggan": _programs(
        *("theirs torch fp32", "theirs onnx fp32", "theirs openvino fp32", "theirs openvino bf16"),
        *("theirs openvino int8", "ours torch fp32", "ours onnx fp32", "ours onnx int8", "ours openvino fp32"),
        *("ours openvino bf16", "ours openvino int8"),
    ),
    "biggan-deep": _programs(
        *("theirs torch fp32", "theirs openvino bf16", "theirs openvino int8", "ours torch fp32"),
        *("ours openvino fp32", "ours openvino bf16", "ours openvino int8"),
    ),
}

# Both programs, their weights and their graphs


def config_of(architecture: str, args: argparse.Namespace) -> BigGANConfig:
    """Raises where the other program is missing or can't build the size."""
    if architecture == "biggan":
        peers.import_checkout(args.biggan_pytorch, "BigGAN")
        return peers.biggan_pytorch_config(f"biggan-{args.image_size}", args.channels)
    peers.import_pretrained_biggan()
    return peers.pretrained_biggan_config(args.image_size, args.channels)


def load_theirs(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, peers.Sample]:
    """The other program's generator, and how it samples."""
    if (folder / "theirs" / "G.pth").is_file():
        return peers.load_biggan_pytorch(args.biggan_pytorch, folder / "theirs"), peers.sample_biggan_pytorch
    return peers.load_pretrained_biggan(folder / "theirs"), peers.sample_pretrained_biggan


def prepare(architecture: str, args: argparse.Namespace) -> tuple[Path, list[Program]]:
    """The folder with the weights of both, `ours/` and `theirs/`, and graphs in each; and the programs that run."""
    config = config_of(architecture, args)
    folder = args.work / f"{architecture}-{args.image_size}-ch{config.generator_base_channels}"
    args.work.mkdir(exist_ok=True)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=args.work) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            if architecture == "biggan":
                peers.biggan_pytorch_pair(args.biggan_pytorch, config, made)
            else:
                peers.pretrained_biggan_pair(config, made)
            made.rename(folder)
    programs = []
    for program in PROGRAMS[architecture]:
        try:
            export(program, folder, config, args)
        except (ImportError, ValueError) as error:
            if program.precision != "int8":
                raise
            print(f"{program} is left out: {error}", file=sys.stderr)
        else:
            programs.append(program)
    return folder, programs


def export(program: Program, folder: Path, config: BigGANConfig, args: argparse.Namespace) -> None:
    """Writes the program's graph, unless it is there or the program runs in torch."""
    side, engine, precision = program
    source, path = folder / side, graph_of(program, folder)
    if engine == "torch" or path.is_file():
        return
    start = time.perf_counter()
    if side == "ours":
        with mock.patch.multiple(quantizing, **UNCHECKED):
            export_model(BigGANModel.from_pretrained(source), source, engine, precision)
        told = read_index(source / engine)[precision].get("largest_difference", "see export.json")
        print(f"{program}: largest difference {told}", file=sys.stderr)
    else:
        onnx = graph_of(Program("theirs", "onnx", "fp32"), folder)
        if not onnx.is_file():
            with staged_folder(onnx.parent) as staging:
                write_onnx(*load_theirs(folder, args), peers.draw(config, 2), staging / onnx.name)
        if engine == "openvino":
            with staged_folder(path.parent) as staging:
                write_openvino(onnx, staging / path.name, precision, config)
    print(f"{program} was exported in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def graph_of(program: Program, folder: Path) -> Path:
    return folder / program.side / program.engine / file_of(program.engine, program.precision)


class Original(nn.Module):
    """The other program's generator, as a function of latents and labels."""

    def __init__(self, network: nn.Module, sample: peers.Sample):
        super().__init__()
        self.network, self.sample = network, sample

    def forward(self, latents: Tensor, class_labels: Tensor) -> Tensor:
        return self.sample(self.network, latents, class_labels)


@torch.no_grad()
def write_onnx(network: nn.Module, sample: peers.Sample, inputs: tuple[Tensor, Tensor], path: Path) -> None:
    """The graph that a user of the other program would export, for any batch size."""
    number = torch.export.Dim("N", min=1, max=2**16)
    with _silence():
        program = torch.onnx.export(
            Original(network, sample).eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=({0: number}, {0: number}),
            input_names=["latents", "class_labels"],
            output_names=["images"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def write_openvino(onnx: Path, path: Path, precision: str, config: BigGANConfig) -> None:
    openvino = import_openvino()
    model = openvino.convert_model(onnx)
    if precision == "int8":
        import nncf

        drawn = (peers.draw(config, 1) for _ in range(CALIBRATION_IMAGES))
        images = [{"latents": latents.numpy(), "class_labels": labels.numpy()} for latents, labels in drawn]
        # Its correction of biases takes the 1 of batch norm's 1 + gain for a bias, and fails.
        settings = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        data = nncf.Dataset(images)
        model = nncf.quantize(model, data, subset_size=CALIBRATION_IMAGES, advanced_parameters=settings)
    openvino.save_model(model, path, compress_to_fp16=precision == "bf16")


def load(program: Program, folder: Path, args: argparse.Namespace) -> Callable[[Tensor, Tensor], Tensor]:
    """Latents (N, z_dim) and labels (N,) to images (N, 3, H, W)."""
    side, engine, precision = program
    if side == "ours":
        model: Any = (
            BigGANModel.from_pretrained(folder / side)
            if engine == "torch"
            else EngineModel(folder / side, engine, precision)
        )
        if engine == "torch":
            fold(model)  # as a pipeline does at its first call
        truncation = peers.TRUNCATION if model.config.standing_truncations else None
        return partial(peers.sample_biggan_hf, model, truncation=truncation)
    if engine == "torch":
        network, sample_theirs = load_theirs(folder, args)
        return partial(sample_theirs, network)
    compute = _RUNNERS[engine](graph_of(program, folder), precision)
    return lambda latents, labels: torch.from_numpy(
        compute({"latents": latents.numpy(), "class_labels": labels.numpy()})
    )
