"""
Haar wavelet packets of pictures, a ruler without weights (Veeramacheneni et al. 2025, arXiv:2312.15289).

A step replaces a picture by four of half its size: sums and differences of neighbours across, then down. Each of the
four takes the next step, so L steps give 4^L packets, each with its own band of frequencies in all places.
"""

import torch
from torch import Tensor


# px. Packets stay at least half as wide: 4 × 4 × 3 numbers, whose covariance 50 pictures determine.
SMALLEST_HALVED = 8
# Added to a coefficient before its logarithm: one grey level. Pixels are whole levels, so many differences are 0.
LEVEL = 1 / 255


def num_steps(image_shape: tuple[int, int, int]) -> int:
    """How often pictures (C, H, W) are halved."""
    side, steps = min(image_shape[1:]), 0
    while side >= SMALLEST_HALVED:
        side, steps = -(-side // 2), steps + 1
    return steps


def packets_shape(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """The number of packets of a picture (C, H, W), and the width of a packet."""
    channels, height, width = image_shape
    steps = num_steps(image_shape)
    for _ in range(steps):
        height, width = -(-height // 2), -(-width // 2)
    return 4**steps, channels * height * width


def log_packets(images: Tensor) -> Tensor:
    """
    From uint8 (N, C, H, W) to float32 (N, packets, width): log(|coefficient| + one grey level), with pixels in [0, 1].

    Without the logarithm the distance is that of the few coarsest packets, which hold nearly all of a picture's
    contrast: 500 pictures do not tell noise or blur (docs/evaluation.md).
    """
    coefficients = packets(images.float() / 255, num_steps((images.shape[1], images.shape[2], images.shape[3])))
    return (coefficients.flatten(2).abs() + LEVEL).log()


def packets(images: Tensor, steps: int) -> Tensor:
    """From (N, C, H, W) to (N, 4^steps, C, height, width). Each step keeps the sum of squares of even sides."""
    bands = images[:, None]
    for _ in range(steps):
        parts = [part for half in _halves(bands, -2) for part in _halves(half, -1)]
        bands = torch.stack(parts, 2).flatten(1, 2)
    return bands


def _halves(images: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sums and differences of neighbours, over √2. The last line of an odd number has itself as its neighbour."""
    if images.shape[dim] % 2:
        images = torch.cat([images, images.narrow(dim, images.shape[dim] - 1, 1)], dim)
    first, second = images.unflatten(dim, (-1, 2)).unbind(dim)
    return (first + second) / 2**0.5, (first - second) / 2**0.5
