"""Converts a TFHub module of DeepMind, plain or deep, to a model folder.

The source is the HDF5 dump that `TFHub/converter.py` of BigGAN-PyTorch writes, or the folder of the module, which is
read as data: nothing of its graph is run.
"""

import argparse
import itertools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biggan_hf.conversion.architecture import (
    Findings,
    find_class_names,
    find_generator,
    no_discriminator,
    standing_truncations,
)
from biggan_hf.conversion.reading import State, check_finite, check_kind, hint
from biggan_hf.conversion.rename import (
    add_running_statistics,
    deepmind_blocks,
    deepmind_layouts,
    fill_in_singular_values,
    fold_power_step,
    keep_three_channels,
    rename,
)
from biggan_hf.conversion.repositories import HubFolder
from biggan_hf.conversion.tensorflow_files import Constants, read_checkpoint
from biggan_hf.conversion.writing import Conversion, Source, convert_and_write, parser, run


SOURCE = Source(
    "DeepMind's TFHub modules",
    "https://tfhub.dev/deepmind",
    "Licence: see the module's page. DeepMind released no discriminator.",
)

MODULES = {
    "linear": "class_embedding",
    "Generator.G_Z.G_linear": "linear",
    "Generator.GenZ.G_linear": "linear",
    "Generator.ScaledCrossReplicaBN": "output_bn",
    "Generator.ScaledCrossReplicaBNbn": "output_bn",
    "Generator.BatchNorm": "output_bn",
    "Generator.conv_2d": "output_conv",
    "Generator.conv_to_rgb": "output_conv",
}
PLAIN_BLOCK = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv_sc": "conv_sc",
    "HyperBN.gamma": "bn1.gain",
    "HyperBN.beta": "bn1.bias",
    "CrossReplicaBN": "bn1",
    "HyperBN_1.gamma": "bn2.gain",
    "HyperBN_1.beta": "bn2.bias",
    "CrossReplicaBN_1": "bn2",
}
DEEP_BLOCK = {
    module: ours
    for i in range(4)
    for module, ours in {
        f"conv{i}": f"conv{i + 1}",
        f"BatchNorm{f'_{i}' if i else ''}.scale": f"bn{i + 1}.gain",
        f"BatchNorm{f'_{i}' if i else ''}.offset": f"bn{i + 1}.bias",
    }.items()
}
NAMES = [
    (r"(theta|phi|g)\.w", r"\1.weight"),
    (r"(theta|phi|g)\.u0", r"\1.u0"),
    (r"o_conv\.w", "o.weight"),
    (r"o_conv\.u0", "o.u0"),
    (r"w", "weight"),
    (r"b", "bias"),
    (r"accumulated_(mean|var)", r"running_\1"),
    (r"(u0|gamma|beta|scale|offset)", r"\1"),
]
DROPPED = {
    r".*\.u1": "the right singular vector, which follows from u0",
    r".*\.(accumulation_counter|update_accumulators?)": "the count of accumulated statistics, which are divided by it",
    r"global_step": "a count of training steps",
}
GRAPH = "saved_model.pb"
EPS = 1e-4
DEEP_BLOCKS_PER_STAGE = 2
# The graph of a deep module holds the statistics at 51 truncations as constants. The tensors stack_1, 3, 6, 8, 11 and
# so on are the mean and the variance of each batch norm in turn.
STACKS = [10 * i + j for i in range(100) for j in (1, 3, 6, 8)]


# zlib packs at most so well.
MOST_PACKED = 1032


# Reading


def read_variables(source: Path) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """
    All variables by name, and the statistics of a deep module where the source has them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The source is neither an HDF5 file nor a folder that TensorFlow wrote.
        ImportError: The package that reads HDF5 is not installed.
    """
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file or folder {str(source)!r}")
    return _read_hdf5(source), []


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('reading an HDF5 file needs h5py: pip install "biggan_hf[convert]"') from error
    variables: dict[str, np.ndarray] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            _check_size(path, name, item)
            variables[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    # Damage makes its library raise errors of several types.
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is truncated, damaged or no HDF5 file{hint(path)}") from error
    return variables


def _check_size(path: Path, name: str, dataset: Any) -> None:
    """A few bytes of HDF5 can declare numbers without end, or that they lie in another file."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{str(path)!r}: the numbers of {name!r} lie in another file, which is not opened")
    most = dataset.id.get_storage_size() * (MOST_PACKED if dataset.chunks else 1)
    if dataset.nbytes > most:
        raise ValueError(f"{str(path)!r}: {name!r} of {dataset.shape} declares more numbers than the file holds")


def _read_folder(folder: Path) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    files = checkpoint_files(_names_in(folder))
    if not files:
        raise ValueError(
            f"{str(folder)!r} holds no SavedModel or TensorFlow checkpoint (no .index file){hint(folder)}"
        )
    variables = read_checkpoint(folder / files[0])
    is_deep = any(re.match(r"(module/)?Generator/GenZ/", name) for name in variables)
    return variables, _graph_statistics(folder / GRAPH) if is_deep else []


def checkpoint_files(names: Collection[str]) -> list[str]:
    """
    The index and the variables of a checkpoint, among the paths of the files in a folder: of a module's, or else of
    the one with the largest number at the end of its name. Empty if there is none.
    """
    indices = [name for name in names if re.fullmatch(r"variables/[^/]+\.index", name)]
    indices = indices or [name for name in names if re.fullmatch(r"[^/]+\.index", name)]
    if not indices:
        return []
    newest = max(indices, key=lambda name: (int((re.findall(r"(\d+)\.index$", name) or [-1])[0]), name))
    return [newest, *sorted(name for name in names if name.startswith(f"{newest.removesuffix('.index')}.data-"))]


def _names_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _graph_statistics(path: Path) -> list[np.ndarray]:
    """The tables of statistics of a deep module, mean and variance in turn."""
    constants: Any = Constants(path) if path.is_file() else {}
    names = itertools.takewhile(constants.__contains__, (f"stack_{number}" for number in STACKS))
    return [constants[name] for name in names]


def needed(folder: HubFolder, args: argparse.Namespace) -> list[str]:
    """The files of a folder on the Hub that the conversion reads."""
    return [*checkpoint_files(folder.names), *(name for name in folder.names if name == GRAPH)]


# Names and layouts


def to_state(variables: Mapping[str, np.ndarray]) -> State:
    """
    The variables as tensors in PyTorch's layouts, with `.` between the names of modules.

    Where a variable has an average, the average is taken. A convolution (height, width, in, out) becomes
    (out, in, height, width), a linear map (in, out) becomes (out, in), and accumulated statistics are divided by
    their count.
    """
    state: State = {}
    for averaged in (False, True):  # in the second round the average replaces the variable
        for name, value in variables.items():
            name, tensor = name.removesuffix(":0").removeprefix("module/"), torch.from_numpy(np.array(value))
            base = re.sub(r"/ema_[\w.]+$", "", name)
            if (base != name) == averaged:
                key = base.replace("/", ".")
                state[key] = _layout(key, tensor.float() if tensor.is_floating_point() else tensor)
    for key in [key for key in state if key.endswith((".accumulated_mean", ".accumulated_var"))]:
        counter = state.get(key.rsplit(".", 1)[0] + ".accumulation_counter")
        if counter is not None and counter > 0:
            state[key] = state[key] / counter
    return state


def _layout(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 4 and key.endswith(".w"):
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 2 and key.endswith(".w") and key != "linear.w":
        return tensor.t().contiguous()
    if key.endswith((".b", ".gamma", ".beta", ".scale", ".offset")):
        return tensor.reshape(-1)
    return tensor.reshape(1, -1) if key.endswith(".u0") else tensor


def add_statistics(state: State, tables: list[np.ndarray], source: Path) -> None:
    """Adds the tables of a deep module: in the order of its batch norms, a mean and a variance for each."""
    norms = sorted(
        {re.sub(r"\.gain\.weight$", "", key) for key in state if key.endswith(".gain.weight")},
        key=lambda name: [int(part) for part in re.findall(r"\d+", name)],
    )
    norms.append("output_bn")
    if not tables:
        raise ValueError(
            f"{str(source)!r} holds no batch-norm statistics. A deep module keeps them as constants of its graph; "
            "give the module's folder, with saved_model.pb"
        )
    if len(tables) != 2 * len(norms):
        raise ValueError(f"{str(source)!r} holds {len(tables)} tables of statistics, expected {2 * len(norms)}")
    for number, norm in enumerate(norms):
        for kind, table in zip(("mean", "var"), tables[2 * number : 2 * number + 2], strict=True):
            state[f"{norm}.standing_{kind}"] = torch.from_numpy(np.array(table, dtype=np.float32))


def convert_variables(
    variables: Mapping[str, np.ndarray], tables: list[np.ndarray], source: Path, findings: Findings
) -> State:
    """The tensors under this project's names. Adds the fields that the module implies to `findings`."""
    state = to_state(variables)
    deep = "Generator.GenZ.G_linear.w" in state
    check_kind(
        [key.replace(".", "/") for key in state], "a TFHub deep generator" if deep else "a TFHub generator", source
    )
    check_finite(state, source)
    modules, conv = (DEEP_BLOCK, "conv3") if deep else (PLAIN_BLOCK, "conv1")
    depth = DEEP_BLOCKS_PER_STAGE if deep else 1
    blocks = deepmind_blocks(
        state, "Generator.GBlock", modules, bias=f"{conv}.b", theta="Generator.attention.theta.w", depth=depth
    )
    state = rename(state, MODULES | blocks, NAMES, DROPPED, findings)
    deepmind_layouts(state, deep)
    if deep:
        state = fold_power_step(state, EPS)
        keep_three_channels(state)
        findings.remark("spectral norm is folded into the weights")
        add_statistics(state, tables, source)
        add_running_statistics(state)
        findings.add("statistics", standing_truncations=standing_truncations(state))
    else:
        fill_in_singular_values(state, EPS)
        findings.remark("the statistics are those of truncation 1, as the variables of a plain module hold no others")
    find_generator(state, findings)
    findings.add("fixed in the program", batch_norm_eps=EPS, spectral_norm_eps=EPS, truncation_mode="scale")
    return state


def convert(args: argparse.Namespace) -> Conversion:
    """What the script reads, under this project's names; raises `ValueError` or `OSError` for a wrong source."""
    findings = Findings()
    variables, tables = read_variables(args.source)
    state = convert_variables(variables, tables, args.source, findings)
    find_class_names("ImageNet", findings)
    no_discriminator(findings)
    files = [args.source]
    if args.source.is_dir():
        read = checkpoint_files(_names_in(args.source)) + ([GRAPH] if tables else [])
        files = [args.source / name for name in sorted(read)]
    return Conversion(SOURCE, findings, state, None, files)


def options() -> argparse.ArgumentParser:
    """The script's options."""
    return parser(__doc__, "SOURCE", "biggan-128.h5, or the folder of a module or of a TensorFlow checkpoint")


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    convert_and_write(convert, options().parse_args(argv))


if __name__ == "__main__":
    run(main)
