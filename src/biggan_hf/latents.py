"""Drawing latents: the one place where truncation is defined."""

import math
import numbers
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


TruncationMode = Literal["resample", "scale"]


def sample_latents(
    num_samples: int,
    z_dim: int,
    truncation: float | None = None,
    mode: TruncationMode = "resample",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """
    Draws latents, N(0, 1) or truncated.

    Args:
        num_samples: N.
        z_dim: Length of a latent vector.
        truncation: Threshold t > 0; `None` for plain N(0, 1).
        mode: `"resample"` (paper, section 3.1): entries of N(0, 1) beyond ±t are drawn again.
            `"scale"` (TFHub, pytorch-pretrained-biggan): t times a normal truncated at ±2.
        generator: One for all samples, or one a sample, so that a sample does not depend on its neighbours.
        device: Where the latents go; they are drawn where the generator lives.

    Returns:
        (N, z_dim) float32.

    Raises:
        ValueError: A truncation that is not a positive number, an unknown mode, a wrong number of generators, a
            negative size.
        TypeError: A generator that is none, for example a seed.
    """
    check_truncation(truncation)
    check_generators(generator, num_samples)
    if num_samples < 0 or z_dim < 1:
        raise ValueError(f"latents are (num_samples ≥ 0, z_dim ≥ 1), got ({num_samples}, {z_dim})")
    if mode not in ("resample", "scale"):
        raise ValueError(f"truncation mode must be 'resample' or 'scale', got {mode!r}")
    if isinstance(generator, Sequence):
        return torch.cat([sample_latents(1, z_dim, truncation, mode, g, device) for g in generator])
    drawn_on = generator.device if generator is not None else device
    if truncation is None:
        latents = torch.randn(num_samples, z_dim, generator=generator, device=drawn_on)
    elif mode == "resample":
        latents = _truncated_normal(num_samples, z_dim, truncation, generator, drawn_on)
    else:
        latents = truncation * _truncated_normal(num_samples, z_dim, 2.0, generator, drawn_on)
    return latents.to(device)


def check_truncation(truncation: float | None) -> None:
    """Raises `ValueError` unless the truncation is `None` or a positive finite number."""
    if truncation is None:
        return
    is_number = isinstance(truncation, numbers.Real) and not isinstance(truncation, bool)
    if not is_number or not 0 < truncation < math.inf:
        raise ValueError(f"truncation must be a positive number or None, got {truncation!r}")


def check_generators(generator: torch.Generator | Sequence[torch.Generator] | None, num_samples: int) -> None:
    """Raises unless there is no generator, one, or one a sample."""
    generators = generator if isinstance(generator, Sequence) else [generator]
    if isinstance(generator, Sequence) and len(generators) != num_samples:
        raise ValueError(f"{num_samples} samples need {num_samples} generators, got {len(generators)}")
    for one in generators:
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or one a sample, got {one!r}")


def _truncated_normal(
    num_samples: int,
    z_dim: int,
    threshold: float,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> Tensor:
    """
    N(0, 1) conditioned on |z| ≤ threshold, exact at any threshold: the inverse of the distribution function,
    z = √2 · erf⁻¹(v · erf(threshold / √2)) with v uniform on (-1, 1). Drawing again until all entries fit has the
    same distribution and takes 1 / erf(threshold / √2) tries an entry.
    """
    uniform = torch.rand(num_samples, z_dim, generator=generator, device=device, dtype=torch.float64)
    mass = math.erf(threshold / math.sqrt(2))
    latents = math.sqrt(2) * torch.erfinv((2 * uniform - 1) * mass)
    return latents.clamp(-threshold, threshold).float()
