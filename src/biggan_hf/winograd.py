"""
3x3 convolutions on a CPU, without gradients, in 4/9 of the multiplications.

Two neighbours in a line that a filter of three weights passes over take four products in place of six, and a tile of
2x2 pixels sixteen in place of 36. For all tiles together these are sixteen products of matrices. Source: Winograd's
F(2x2, 3x3), Lavin & Gray 2015, arXiv:1509.09308, section 4.1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .onednn import product


# Tiles save time from here on, by docs/benchmarks.md. With fewer channels their reading and writing costs more than is
# saved, with fewer tiles the reading of the kernel, with fewer multiplications in a product the number of products.
CHANNELS, TILES, MULTIPLICATIONS = 384, 32, 35_000_000
FILTERS = 64  # whose kernels, made at a time, stay in a cache
TILE_VALUES = 2**22  # so many of them at a time stay in a cache


def saves_time(size: torch.Size, out_channels: int) -> bool:
    """Whether for inputs (N, C, H, W) of a size."""
    samples, in_channels, height, width = size
    tiles = samples * (-(-height // 2)) * (-(-width // 2))
    multiplications = tiles * in_channels * out_channels
    return min(in_channels, out_channels) >= CHANNELS and tiles >= TILES and multiplications >= MULTIPLICATIONS


def winograd_kernel(weight: Tensor) -> Tensor:
    """G w Gᵀ of each filter of a weight (out, in, 3, 3): (16, out, in)."""
    line = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    lines = torch.kron(line, line)
    kernel = weight.new_empty(16, *weight.shape[:2])
    for part, filters in zip(kernel.split(FILTERS, dim=1), weight.split(FILTERS), strict=True):
        part.copy_((lines @ filters.permute(2, 3, 0, 1).reshape(9, -1)).view_as(part))
    return kernel


def winograd_conv2d(hidden_states: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """
    The convolution (N, C, H, W) to (N, O, H, W) with a padding of one, the maps in channels-last order.

    Args:
        hidden_states: (N, C, H, W).
        kernel: (16, O, C), from `winograd_kernel`.
        bias: (O,), or none.
    """
    height, width = hidden_states.shape[2:]
    x = F.pad(hidden_states, (1, 1 + width % 2, 1, 1 + height % 2)).permute(0, 2, 3, 1)
    parts = x.split(max(1, TILE_VALUES // (4 * hidden_states.shape[1:].numel())))
    maps = torch.cat([_convolve_tiles(part, kernel) for part in parts])
    if bias is not None:
        maps += bias
    return maps[:, :height, :width].permute(0, 3, 1, 2)


def _convolve_tiles(x: Tensor, kernel: Tensor) -> Tensor:
    """(N, H + 2, W + 2, C) to (N, H, W, O), of an even height and width."""
    samples, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    rows = _spread(*(x[:, i : i + height : 2] for i in range(4)))
    tiles = torch.stack([t for row in rows for t in _spread(*(row[:, :, i : i + width : 2] for i in range(4)))])
    maps = [product(tile, matrix) for tile, matrix in zip(tiles.flatten(1, 3), kernel, strict=True)]
    products = torch.stack(maps).view(4, 4, samples, height // 2, width // 2, kernel.shape[1])
    pixels = [torch.stack(_gather(*row), dim=3) for row in _gather(*products)]
    return torch.stack(pixels, dim=2).view(samples, height, width, kernel.shape[1])


def _spread(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bᵀ of four pixels in a line."""
    return a - c, b + c, c - b, b - d


def _gather(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Aᵀ of four products."""
    return a + b + c, b - c - d
