"""
oneDNN's own operations on a CPU: convolutions with weights in its order, and products of matrices.

Given a plain weight, oneDNN brings it into that order in every call, which at a small batch takes several times as
long as the convolution: 32 of 44 ms with 1,536 channels on a map of 8x8 pixels. These are the operations that
`torch.compile` puts in place of a convolution on a CPU; torch has no public name for them. Products that torch itself
gives to MKL take 2.1 to 2.3 times as long on an AMD processor with AVX-512, which MKL does not use there, from some
128 rows and 1,536 columns up; with few of both they are quicker.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .autograd import Function


_FUSED_WITH_NOTHING: tuple[str, list[float], str] = "none", [], ""
_OPERATIONS = ("_convolution_pointwise", "_reorder_convolution_transpose_weight", "_linear_pointwise")


def can_pack(kernel: Tensor) -> bool:
    """Whether oneDNN has these operations for such a tensor."""
    return (
        kernel.device.type == "cpu"
        and kernel.layout == torch.strided
        and kernel.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATIONS)
    )


def may_pack() -> bool:
    """Packed convolutions know no gradients."""
    return not torch.is_grad_enabled() and _serves()


def _serves() -> bool:
    """Whether oneDNN is switched on, in the absence of what its operations do not know: forward gradients, transforms
    such as `vmap`, autocast."""
    is_transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    is_on = bool(torch.backends.mkldnn.enabled)
    return is_on and not (is_transformed or torch.is_autocast_enabled("cpu"))


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
    sizes = [stride, stride], [1, 1], 1, *_FUSED_WITH_NOTHING
    if transposed:
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            hidden_states, packed, bias, [padding, padding], [0, 0], *sizes
        )
    return torch.ops.mkldnn._convolution_pointwise(hidden_states, packed, bias, [padding, padding], *sizes)


def can_multiply(*matrices: Tensor) -> bool:
    """Whether `product` is oneDNN's."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _serves():
        return False
    return all(can_pack(matrix) and matrix.numel() for matrix in matrices)


def product(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) and (N, K) to the product (M, N) of the first with the second transposed."""
    return _Product.apply(left, right) if can_multiply(left, right) else F.linear(left, right)


class _Product(Function):
    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(_dense(left), _dense(right), None, *_FUSED_WITH_NOTHING)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        (left, right), (needs_left, needs_right) = inputs, ctx.needs_input_grad
        ctx.save_for_backward(left if needs_right else None, right if needs_left else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        return (
            product(gradient, right.t()) if needs_left else None,
            product(gradient.t(), left.t()) if needs_right else None,
        )


def _dense(matrix: Tensor) -> Tensor:
    """Of others oneDNN makes the product, too, but number by number."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
