"""Draws latents: only this file defines truncation. Also makes paths between latents."""

import math
import numbers
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .devices import exact_device
from .keywords import answers_keywords


TruncationMode = Literal["resample", "scale", "normal"]


@answers_keywords("sample_latents")
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
            `"normal"` (BigGAN-PyTorch, whose `z_var` is this t): N(0, t²), not truncated at all.
        generator: One for all samples, or one per sample; then a sample does not depend on the others.
        device: Device of the result. The draw happens on the generator's device.

    Returns:
        (N, z_dim) float32.

    Raises:
        ValueError: A truncation that is not a positive number, an unknown mode, a wrong number of generators, a
            negative size.
        TypeError: `generator` is not a torch.Generator, for example a seed.
    """
    check_truncation(truncation)
    check_truncation_mode(mode)
    check_generators(generator, num_samples)
    if device is None and generator is None:
        device = torch.get_default_device()
    if num_samples < 0 or z_dim < 1:
        raise ValueError(f"latents are (num_samples ≥ 0, z_dim ≥ 1), got ({num_samples}, {z_dim})")
    inverse = truncation is not None and mode in ("resample", "scale")
    generators, size = (generator, 1) if isinstance(generator, Sequence) else ([generator], num_samples)
    drawn = torch.cat([_draw(size, z_dim, inverse, g, device) for g in generators])
    if truncation is None:
        latents = drawn
    elif mode == "resample":
        latents = _truncated_normal(drawn, truncation)
    elif mode == "scale":
        latents = truncation * _truncated_normal(drawn, 2.0)
    else:
        latents = truncation * drawn
    return latents.to(device)


def check_truncation(truncation: float | None) -> None:
    """Raises `ValueError` unless the truncation is `None` or a positive finite number."""
    if truncation is None:
        return
    is_number = isinstance(truncation, numbers.Real) and not isinstance(truncation, bool)
    if not is_number or not 0 < truncation < math.inf:
        raise ValueError(f"truncation must be a positive number or None, got {truncation!r}")


def check_truncation_mode(mode: str) -> None:
    """Raises `ValueError` unless it is one of `TruncationMode`."""
    if mode not in get_args(TruncationMode):
        raise ValueError(f"truncation_mode must be one of {', '.join(get_args(TruncationMode))}, got {mode!r}")


def check_generators(generator: torch.Generator | Sequence[torch.Generator] | None, num_samples: int) -> None:
    """Raises unless there is no generator, one generator, or one per sample."""
    generators = generator if isinstance(generator, Sequence) else [generator]
    if isinstance(generator, Sequence) and len(generators) != num_samples:
        raise ValueError(f"{num_samples} samples need {num_samples} generators, got {len(generators)}")
    for one in generators:
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or one a sample, got {one!r}")


def check_latents(latents: Tensor | None, number: int, z_dim: int) -> None:
    """Raises unless there are none, or a latent vector for each image."""
    if latents is None:
        return
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, got {type(latents).__name__}")
    shape = tuple(latents.shape)
    if shape != (number, z_dim):
        hint = "; num_images_per_prompt= says how many images each label has, and model(latents, class_labels) takes"
        hint += " a label for each of the latents"
        raise ValueError(f"latents must be ({number}, {z_dim}), got {shape}{hint if shape[1:] == (z_dim,) else ''}")


def _draw(
    num_samples: int, z_dim: int, uniform: bool, generator: torch.Generator | None, device: torch.device | str | None
) -> Tensor:
    """Uniform on [0, 1) in double precision, if the device of the generator has it, or N(0, 1) in single."""
    drawn_on = device if generator is None else generator.device
    if uniform and generator is None:
        drawn_on = exact_device(device or torch.get_default_device())
    if uniform:
        dtype = torch.float32 if torch.device(drawn_on or "cpu").type == "mps" else torch.float64
        return torch.rand(num_samples, z_dim, generator=generator, device=drawn_on, dtype=dtype)
    return torch.randn(num_samples, z_dim, generator=generator, device=drawn_on)


def _truncated_normal(uniform: Tensor, threshold: float) -> Tensor:
    """
    N(0, 1) conditioned on |z| ≤ threshold, exact at any threshold: the inverse of the distribution function,
    z = √2 · erf⁻¹((2u - 1) · erf(threshold / √2)) with u uniform on (0, 1). Drawing each entry again until it fits
    gives the same distribution, but needs 1 / erf(threshold / √2) tries per entry.
    """
    mass = math.erf(threshold / math.sqrt(2))
    latents = math.sqrt(2) * torch.erfinv((2 * uniform - 1) * mass)
    return latents.clamp(-threshold, threshold).float()


# Paths


def interpolation_path(points: Tensor, num_steps: int, *, spherical: bool = False, closed: bool = False) -> Tensor:
    """
    A path through given points, latents or class embeddings, in their order.

    Args:
        points: (K, D), at least two.
        num_steps: Steps from a point to the next.
        spherical: `True`: great circles, with a norm that changes linearly. `False`: straight lines. Latents of
            N(0, 1) have norms near √D; the middle of a straight line has a norm of only √(D / 2).
        closed: The path returns to the first point and does not repeat it.

    Returns:
        ((K - 1) · num_steps + 1, D), or (K · num_steps, D) if closed; each `num_steps`-th is a point as given.

    Raises:
        ValueError: Fewer than two points, or `num_steps` below 1.
    """
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"a path needs points of shape (at least 2, D), got {tuple(points.shape)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    starts, ends = (points, points.roll(-1, dims=0)) if closed else (points[:-1], points[1:])
    fractions = torch.linspace(0, 1, num_steps + 1, dtype=points.dtype, device=points.device)[:-1, None, None]
    between = _slerp if spherical else torch.lerp
    path = between(starts, ends, fractions).transpose(0, 1).flatten(0, 1)  # (steps, points, D) to (points · steps, D)
    path[::num_steps] = starts  # rounding in the sines moves the points a little
    return path if closed else torch.cat([path, points[-1:]])


def _slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """
    sin((1 - t)Ω) / sin Ω · u + sin(tΩ) / sin Ω · v for unit vectors u, v at the angle Ω (Shoemake 1985), times the
    norm; (K, D) twice and (T, 1, 1) to (T, K, D). Where sin Ω vanishes, a straight line.
    """
    norms = [x.norm(dim=-1, keepdim=True) for x in (start, end)]
    units = [x / norm.clamp_min(torch.finfo(x.dtype).tiny) for x, norm in zip((start, end), norms, strict=True)]
    angle = torch.acos((units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    arc = (torch.sin((1 - fraction) * angle) * units[0] + torch.sin(fraction * angle) * units[1]) / sine
    on_sphere = torch.lerp(norms[0], norms[1], fraction) * arc
    return torch.where(sine > 1e-3, on_sphere, torch.lerp(start, end, fraction))


# Standing statistics: which rows of the table belong to a truncation


class StandingRow(NamedTuple):
    """Two rows of the table of standing statistics, and how far to go from `lower` to `upper` (0 to 1)."""

    lower: int
    upper: int
    fraction: float


def standing_row(table: Sequence[float], truncation: float, mirrored: bool) -> StandingRow:
    """
    The place of a truncation in a table of standing statistics: between the two rows around it.

    `mirrored`: as pytorch-pretrained-biggan computes it, whose rounding decides which rows a threshold gets.
    """
    if not table[0] <= truncation <= table[-1]:
        raise ValueError(f"truncation={truncation} is outside the standing statistics, {table[0]} to {table[-1]}")
    if mirrored:
        position = truncation / (1.0 / (len(table) - 1))
        lower = int(position)
        weight = position - lower
        return StandingRow(lower, min(lower + 1, len(table) - 1), 1 - weight if weight else 0.0)
    upper = next(i for i, threshold in enumerate(table) if threshold >= truncation)
    if table[upper] == truncation:
        return StandingRow(upper, upper, 0.0)
    fraction = (truncation - table[upper - 1]) / (table[upper] - table[upper - 1])
    return StandingRow(upper - 1, upper, fraction)
