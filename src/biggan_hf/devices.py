"""Devices: the fastest that there is, whether there is one, and what it can compute, and how fast."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def device_or_best(device: str | None) -> str:
    """`None` is "cuda" where there is one, else "mps" where there is one."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return device or best


def check_device(device: Any) -> None:
    """Raises `ValueError` for a GPU, by name or number, that this machine does not have. All else passes."""
    name = f"cuda:{device}" if isinstance(device, int) else str(device)
    kind, _, index = name.partition(":")
    there_are = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind in there_are and int(index or 0) >= there_are[kind]:
        raise ValueError(f"device {name}: this machine has no such device that torch can use")


# Linux's names for the instructions of x86 processors that multiply bfloat16, and everybody's.
BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def bfloat16_unit(device: torch.device, root: Path = Path("/")) -> str:
    """
    What a device has that multiplies bfloat16 faster than float32: tensor cores of NVIDIA GPUs since the A100, AMX or
    AVX512-BF16. Empty where it has none, or nothing tells.
    """
    if device.type == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    try:
        told = (root / "proc/cpuinfo").read_text(encoding="utf-8") if device.type == "cpu" else ""
    except OSError:
        return ""
    flags = next((line.split() for line in told.splitlines() if line.startswith("flags")), [])
    return next((name for flag, name in BFLOAT16_UNITS.items() if flag in flags), "")


def exact_device(device: torch.device | str) -> torch.device:
    """Where float64 is computed: the device itself, or the CPU for one of MPS, which has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, where that is computed. Gradients flow back."""
    return tensor.to(exact_device(tensor.device)).double()


def fastest_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """
    How a kernel lies in memory so that it convolves fastest: channels last on CPUs and on tensor cores. A GPU in plain
    float32 would convert it back in every call.
    """
    if device.type != "cuda":  # and the GPU is not asked, which a forked process must not do
        return torch.channels_last if device.type == "cpu" else torch.contiguous_format
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    in_tf32 = convolutions.fp32_precision == "tf32" and torch.cuda.is_tf32_supported()
    return torch.channels_last if dtype != torch.float32 or in_tf32 else torch.contiguous_format


def check_not_offloaded(network: nn.Module) -> None:
    """Raises `ValueError` if the weights are offloaded layer by layer."""
    if any(weight.is_meta for weight in network.parameters()):
        raise ValueError(
            "the model's weights are offloaded layer by layer (device 'meta'); it cannot generate with them. "
            "Move the whole model with accelerate.cpu_offload_with_hook(model, device)"
        )
