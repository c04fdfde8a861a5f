"""
Convolutions on a CPU with weights in oneDNN's own order.

Given a plain weight, oneDNN brings it into that order in every call, which at a small batch takes several times as
long as the convolution: 32 of 44 ms with 1,536 channels on a map of 8x8 pixels. These are the operations that
`torch.compile` puts in place of a convolution on a CPU; torch has no public name for them.
"""

import torch
from torch import Tensor


def can_pack(kernel: Tensor) -> bool:
    return (
        kernel.device.type == "cpu"
        and kernel.layout == torch.strided
        and kernel.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_transpose_weight")
    )


def pack(kernel: Tensor, input_size: torch.Size, stride: int, padding: int, transposed: bool) -> Tensor:
    """
    The kernel in the order that is best for inputs (N, C, H, W) of a size; with others it works, too.

    Args:
        kernel: (out, in, k, k), or (in, out, k, k) of a transposed convolution.
        input_size: Of the input.
        stride: Of the convolution.
        padding: Of the convolution.
        transposed: Whether it is a transposed one.
    """
    sizes = [padding, padding], [stride, stride], [1, 1], 1, list(input_size)
    if transposed:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(kernel, sizes[0], [0, 0], *sizes[1:])
    return torch.ops.mkldnn._reorder_convolution_weight(kernel, *sizes)


def packed_conv2d(
    hidden_states: Tensor, packed: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> Tensor:
    """The convolution (N, C, H, W) to (N, O, H', W') with a kernel from `pack`; it has no gradient."""
    sizes = [stride, stride], [1, 1], 1
    fused_with_nothing: tuple[str, list[float], str] = "none", [], ""
    if transposed:
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            hidden_states, packed, bias, [padding, padding], [0, 0], *sizes, *fused_with_nothing
        )
    return torch.ops.mkldnn._convolution_pointwise(
        hidden_states, packed, bias, [padding, padding], *sizes, *fused_with_nothing
    )
