"""Reads the checkpoints of strangers. Nothing in a file is executed, and a wrong file gets an error of one line."""

import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biggan_hf.files import check_archive


State = dict[str, Tensor]

# The classes that the known programs store beside tensors: BigGAN-PyTorch stores its activation function, and NumPy
# numbers as scores. Unpickling an object of these classes runs no code that the file's author wrote.
_scalar = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    nn.ReLU,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
HARMLESS_NAMES: dict[str, Any] = {
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # the name in Python 2, which old pickles use
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": codecs.encode,
}

# State dicts: a pattern of a key, the kind of network that has such a key, and the script that converts it.
KINDS = [
    (r"generator\.gen_z\.weight_orig", "a pytorch-pretrained-biggan generator", "convert_pretrained_biggan.py"),
    (r"g_z\.g_linear\.weight_orig", "a generator ported by ivclab", "convert_ivclab.py"),
    (r"linear0\.weight(_orig)?", "a StudioGAN generator", "convert_studiogan.py"),
    (r"linear1\.weight(_orig)?", "a StudioGAN discriminator", "convert_studiogan.py"),
    (r"shared_feat\..+", "an IC-GAN generator", None),
    (r"(generator(_ema)?\.)?noise2feat\..+", "a mmgeneration generator", None),
    (r"output_layer\.0\.gain", "a BigGAN-PyTorch generator", "convert_biggan_pytorch.py"),
    (r"embed\.weight", "a BigGAN-PyTorch discriminator", "convert_biggan_pytorch.py"),
    (r"output_bn\.gain", "a biggan_hf generator", None),
    (r"stages\.0\.blocks\.0\.conv1\.weight", "a biggan_hf discriminator", None),
    (r"(module/)?Generator/G_Z/.+", "a TFHub generator", "convert_tfhub.py"),
    (r"(module/)?Generator/GenZ/.+", "a TFHub deep generator", "convert_tfhub.py"),
]

# Folders: a pattern of a file, the kind of folder that has such a file, and the script that converts it.
FOLDERS = [
    ("model=*-weights-step=*.pth", "a StudioGAN checkpoint", "convert_studiogan.py"),
    ("pytorch_model.bin", "a pytorch-pretrained-biggan model", "convert_pretrained_biggan.py"),
    ("variables/*.index", "a TFHub module", "convert_tfhub.py"),
    ("*.index", "a TensorFlow checkpoint", "convert_tfhub.py"),
    ("G.pth", "a BigGAN-PyTorch checkpoint", "convert_biggan_pytorch.py"),
    ("G_*.pth", "a BigGAN-PyTorch checkpoint", "convert_biggan_pytorch.py"),
    ("model.safetensors", "a biggan_hf model", None),
]
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


# Files of torch


def load(path: Path) -> Any:
    """
    The content of a file that `torch.save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, truncated, or no torch file, or it holds a class that is not among `HARMLESS`.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is a folder, expected a file" if path.is_dir() else f"there is no file {str(path)!r}"
        )
    check_archive(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "persistent_load" in str(error):
            return _load_old_settings(path)
        foreign = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"class '?([\w.]+)'? ", str(error))
        raise _refusal(path, foreign[1] if foreign else None) from error
    # A damaged file can make any part of torch's reader fail.
    except Exception as error:
        raise _refusal(path) from error


def _refusal(path: Path, foreign_class: str | None = None) -> ValueError:
    if foreign_class is None:
        return ValueError(f"{str(path)!r} is truncated or no torch file")
    return ValueError(
        f"{str(path)!r} holds the class {foreign_class}, which is not one of the harmless classes that a checkpoint "
        "needs; nothing in it was executed"
    )


class _ForeignClass(Exception):
    pass


class _SettingsUnpickler(pickle.Unpickler):
    """Python's unpickler for plain values and modules without tensors. It allows the classes of a list, by name."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in HARMLESS_NAMES:
            raise _ForeignClass(f"{module}.{name}")
        return HARMLESS_NAMES[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        """The class of a module. The old format stores the module's source code beside it, which is ignored."""
        if isinstance(pid, tuple) and pid[0] == "module":
            return pid[1]
        raise pickle.UnpicklingError("tensors among settings")


def _load_old_settings(path: Path) -> Any:
    """
    The settings of BigGAN-PyTorch in the format that torch wrote before 1.6: a magic number, a version, properties of
    the machine, and then the object. In this format `weights_only` refuses modules, even those of harmless classes.
    """
    try:
        with path.open("rb") as file:
            *_, content = [_SettingsUnpickler(file).load() for _ in range(4)]
        return content
    except _ForeignClass as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:
        raise _refusal(path) from error


def load_state(path: Path, expected: str) -> State:
    """
    The tensors of a network in float32, without the prefix `module.` and out of StudioGAN's `{"state_dict": …}`.

    Args:
        path: The file.
        expected: The kind of network, one of `KINDS`.

    Raises:
        ValueError: As for `load`; or the file holds something else, or a tensor that is not finite.
    """
    content = load(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    is_state = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, expected the tensors of {expected}")
    state = {key.removeprefix("module."): value for key, value in content.items()}
    check_kind(state, expected, path)
    for key, value in state.items():
        if not value.is_floating_point() and value.ndim > 0:  # a scalar is a count of batches
            raise ValueError(f"{str(path)!r}: {key} is {value.dtype}, expected floating-point numbers")
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    check_finite(state, path)
    return state


def check_finite(state: State, path: Path) -> None:
    """Raises `ValueError` for a tensor that holds NaN or infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{str(path)!r}: {key} holds NaN or infinity")


# Which program wrote it


def check_kind(keys: Iterable[str], expected: str, path: Path) -> None:
    """Raises `ValueError`, with the kind that the keys look like, unless they are those of the expected network."""
    kind, script = recognise(keys)
    if kind == expected:
        return
    found = f"looks like {kind}" if kind else "is none of the known networks"
    scripts = {kind: script for _, kind, script in KINDS}
    hint = f"; try {script}" if script and script != scripts[expected] else ""
    raise ValueError(f"{str(path)!r} {found}, expected {expected}{hint}")


def recognise(keys: Iterable[str]) -> tuple[str, str | None]:
    """The kind of network that has these keys and the script that converts it; `("", None)` for none."""
    text = "\n".join(key.removeprefix("module.") for key in keys)
    found = (row[1:] for row in KINDS if re.search(f"^{row[0]}$", text, re.MULTILINE))
    return next(found, ("", None))


def recognise_source(source: Path) -> tuple[str, str | None]:
    """The kind of a file or folder and the script that converts it; `("", None)` for an unknown one."""
    if source.is_dir():
        return next((row[1:] for row in FOLDERS if next(source.glob(row[0]), None)), ("", None))
    with source.open("rb") as file:
        if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
            return "an HDF5 dump of a TFHub module", "convert_tfhub.py"
    try:
        content = load(source)
    except ValueError:
        return "", None
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return recognise(map(str, content))


def hint(source: Path) -> str:
    """The end of an error on a wrong source: what it looks like and which script converts that, if this is known."""
    kind, script = recognise_source(source) if source.exists() else ("", None)
    return (f"; it looks like {kind}" if kind else "") + (f", try {script}" if script else "")


def check_folder(source: Path) -> None:
    """Raises `FileNotFoundError` unless the source is a folder."""
    if source.is_file():
        raise FileNotFoundError(f"{str(source)!r} is a file, expected the folder that it lies in{hint(source)}")
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {str(source)!r}")
