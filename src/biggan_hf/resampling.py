"""What upsampling and pooling by two beside a convolution are made of: see `layers.Conv2d`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .autograd import Function
from .onednn import product


def box_sum(hidden_states: Tensor, padding: int = 0) -> Tensor:
    """The sums of all 2x2 windows: (N, C, H, W) to (N, C, H - 1, W - 1), or (N, C, H + 1, W + 1) with `padding=1`."""
    if torch.compiler.is_compiling():  # which decides by itself what to keep, and fuses sums with what comes after
        return _sum_by_lines(hidden_states, padding)
    return _BoxSum.apply(hidden_states, padding)


def _sum_by_lines(hidden_states: Tensor, padding: int) -> Tensor:
    """Of two lines, then of two columns: on a GPU in half the time of pooling."""
    if padding:
        hidden_states = F.pad(hidden_states, (1, 1, 1, 1))
    lines = hidden_states[..., 1:, :] + hidden_states[..., :-1, :]
    return lines[..., 1:] + lines[..., :-1]


def _sum_in_place(hidden_states: Tensor, padding: int) -> Tensor:
    """In few passes over memory."""
    if not padding:
        total = hidden_states[..., 1:, 1:] + hidden_states[..., 1:, :-1]
        return total.add_(hidden_states[..., :-1, 1:]).add_(hidden_states[..., :-1, :-1])
    total = F.pad(hidden_states, (1, 0, 1, 0))
    total[..., 1:, :-1] += hidden_states
    total[..., :-1, 1:] += hidden_states
    total[..., :-1, :-1] += hidden_states
    return total


class _BoxSum(Function):
    """It keeps nothing for the backward pass, which is the sum with the other padding."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden_states: Tensor, padding: int) -> Tensor:
        if hidden_states.device.type != "cpu":
            return _sum_by_lines(hidden_states, padding)
        if hidden_states.stride(1) != 1:  # where a channel's pixels lie side by side, and pooling is slow
            return _sum_in_place(hidden_states, padding)
        return F.avg_pool2d(hidden_states, 2, stride=1, padding=padding, divisor_override=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.padding = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return box_sum(gradient, 1 - ctx.padding), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return box_sum(tangent, ctx.padding)


def halve(hidden_states: Tensor) -> Tensor:
    """Average pooling by two: (N, C, H, W), both even, to (N, C, H / 2, W / 2)."""
    if torch.compiler.is_compiling():
        return F.avg_pool2d(hidden_states, 2)
    return _Halve.apply(hidden_states)


class _Halve(Function):
    """torch's own keeps its input for the backward pass, of which it needs the shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden_states: Tensor) -> Tensor:
        return F.avg_pool2d(hidden_states, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return F.interpolate(gradient / 4, scale_factor=2, mode="nearest")

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return halve(tangent)


def transposed_product(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """
    The transposed convolution of stride two with a kernel (out, in, 3, 3) turned by 180 degrees, by one product of
    matrices: turning the map before and after does as well.

    (N, in, H, W) to (N, out, 2H + 1, 2W + 1), in the memory format of the weight, as convolutions do.
    """
    (samples, channels, height, width), out_channels = hidden_states.shape, weight.shape[0]
    pixels = hidden_states.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, channels)
    columns = product(pixels, weight.permute(0, 2, 3, 1).reshape(out_channels * 9, channels))
    columns = columns.view(samples, height * width, out_channels * 9).mT
    maps = F.fold(columns, (2 * height + 1, 2 * width + 1), kernel_size=3, stride=2).flip(2, 3)
    return maps.contiguous(memory_format=torch.channels_last) if weight.stride(1) == 1 else maps


def strided_product(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """
    The convolution of stride two with a kernel (out, in, 3, 3), by one product of matrices.

    (N, in, 2H + 1, 2W + 1) to (N, out, H, W), in the memory format of the weight, as convolutions do.
    """
    samples, channels, height, width = hidden_states.shape
    columns = F.unfold(hidden_states, kernel_size=3, stride=2).unflatten(1, (channels, 9))
    pixels = columns.permute(0, 3, 2, 1).reshape(-1, 9 * channels)
    maps = product(pixels, weight.permute(0, 2, 3, 1).reshape(-1, 9 * channels))
    maps = maps.view(samples, (height - 1) // 2, (width - 1) // 2, len(weight)).permute(0, 3, 1, 2)
    return maps if weight.stride(1) == 1 else maps.contiguous()
