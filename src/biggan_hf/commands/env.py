"""Print versions and devices, for the report of a problem.

Prints the versions of the packages, and the devices that torch can use.

examples:
  biggan-hf env
  biggan-hf env --device cuda
"""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import __version__
from ..devices import check_device, device_or_best
from . import common


PACKAGES = "torch transformers huggingface_hub safetensors accelerate datasets numpy pillow torchmetrics".split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_device_argument(parser.add_argument_group("the device"))


def run(args: argparse.Namespace) -> None:
    check_device(args.device)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "biggan_hf": __version__,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "CUDA of torch": torch.version.cuda or "none",
        "GPUs": ", ".join(gpus) or "none",
        "MPS": "yes" if torch.backends.mps.is_available() else "no",
        "threads of torch": torch.get_num_threads(),
        "device": device_or_best(args.device),
    }
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
