"""Differentiable augmentation of what the discriminator sees (Zhao et al. 2020, arXiv:2006.10738): pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F


def diff_augment(images: Tensor) -> Tensor:
    """
    Changes brightness, saturation and contrast, shifts by up to an eighth, and cuts a hole of half the size.

    Real and generated pictures pass through it on their way to the discriminator, so that it cannot tell them apart by
    the augmentation. The generator's gradient passes back through it. Images are (N, C, H, W) in [-1, 1]; the random
    numbers come from torch's global generator.
    """
    return _cutout(shift(_color(images)))


def _color(images: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * 2 * saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def shift(images: Tensor) -> Tensor:
    """Moves each picture (N, C, H, W) by up to an eighth; zeros fill the edge. A gather is differentiable."""
    number, channels, height, width = images.shape
    rows = _shifted(number, height, height // 8, images.device)[:, None, :, None]
    columns = _shifted(number, width, width // 8, images.device)[:, None, None, :]
    padded = F.pad(images, (1, 1, 1, 1))
    padded = padded.gather(2, rows.expand(-1, channels, -1, width + 2))
    return padded.gather(3, columns.expand(-1, channels, height, -1))


def _shifted(number: int, size: int, most: int, device: torch.device) -> Tensor:
    """Indices (N, size) into a side with one zero at each end, to which those outside the picture point."""
    distance = torch.randint(-most, most + 1, (number, 1), device=device)
    return (torch.arange(size, device=device) + 1 + distance).clamp(0, size + 1)


def _cutout(images: Tensor) -> Tensor:
    number, _, height, width = images.shape
    hole_rows, hole_columns = _hole(number, height, images.device), _hole(number, width, images.device)
    hole = hole_rows[:, None, :, None] & hole_columns[:, None, None, :]
    return images.masked_fill(hole, 0)


def _hole(number: int, size: int, device: torch.device) -> Tensor:
    """(N, size): half the side around a random place between the edges, which cut it."""
    first = torch.randint(0, size + 1, (number, 1), device=device) - size // 4
    distance = torch.arange(size, device=device) - first
    return (distance >= 0) & (distance < size // 2)
