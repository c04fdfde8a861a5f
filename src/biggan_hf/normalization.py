"""Batch norm in training: the batch's own statistics, of one process or of a group, and the gradient through them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


Group = dist.ProcessGroup | None
Statistics = tuple[Tensor, Tensor, Tensor]


def batch_normalize(
    hidden_states: Tensor,
    gain: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
    group: Group = None,
) -> Tensor:
    """
    (x - mean) / sqrt(var + eps) · gain + bias. Of all maps autograd keeps the input alone; that of composed operations
    would keep the normalised one as well.

    Args:
        hidden_states: (N, C, H, W).
        gain: (N, C) or (1, C).
        bias: The same.
        running: Mean and unbiased variance (C,), which move by `momentum` towards the batch's, in place.
        momentum: Of these.
        eps: Added to the variance.
        group: Processes whose batches, of one size, are normalised as one.
    """
    return _BatchNormalize.apply(hidden_states, gain, bias, running, momentum, eps, group)


class _BatchNormalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
        group: Group,
    ) -> Tensor:
        if group is None:
            normalized, mean, inv_std = torch.native_batch_norm(x, None, None, *running, True, momentum, eps)
        else:
            normalized, mean, inv_std = _normalize_as_one(x, running, momentum, eps, group)
        ctx.save_for_backward(x, gain, mean, inv_std)
        ctx.group = group
        return _multiply_add(normalized, _of_map(gain, x), _of_map(bias, x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """
        With x̂ = (x - mean) / std and g the gradient times the gain, that of x is (g - E[g] - x̂ E[g x̂]) / std, the
        expectations over the batch (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3): a multiply-add of each map.
        """
        x, gain, mean, inv_std = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        centred = x.to(mean.dtype) - mean[:, None, None]  # before any product, which would cancel
        of_bias = wide.sum(dim=(2, 3))  # (N, C)
        of_gain = (wide * centred).sum(dim=(2, 3)) * inv_std
        sums = torch.stack([(gain * of_bias).sum(0), (gain * of_gain).sum(0)])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gx = sums / (x[:, 0].numel() * _number_of(ctx.group))
        slope, offset = -inv_std.square() * mean_gx, -inv_std * mean_g
        of_x = _multiply_add(centred, _of_map(slope[None], wide), _of_map(offset[None], wide))
        of_x.addcmul_(wide, _of_map(gain * inv_std, wide))
        of_gain, of_bias = (tensor.sum_to_size(gain.shape).to(gain.dtype) for tensor in (of_gain, of_bias))
        return of_x.to(x.dtype), of_gain, of_bias, None, None, None, None


def _normalize_as_one(
    x: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float, group: dist.ProcessGroup
) -> Statistics:
    """The normalised map, the mean and 1/sqrt(var + eps) (C,) over the batches of all processes of the group."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    # Two passes, since E[x²] - E[x]² cancels.
    mean = values.mean(dim=(0, 2, 3))
    dist.all_reduce(mean, group=group)
    mean /= _number_of(group)
    centred = values - mean[:, None, None]
    var = centred.square().mean(dim=(0, 2, 3))
    dist.all_reduce(var, group=group)
    var /= _number_of(group)
    count = x[:, 0].numel() * _number_of(group)
    running[0].lerp_(mean.to(running[0].dtype), momentum)
    running[1].lerp_((var * count / (count - 1)).to(running[1].dtype), momentum)  # unbiased, as of one process
    inv_std = torch.rsqrt(var + eps)
    return centred.mul_(inv_std[:, None, None]).to(x.dtype), mean, inv_std


def _multiply_add(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """x · factor + summand, in the place of x; `torch.compile`, which finds a place by itself, stops at one given."""
    return torch.addcmul(summand, x, factor, out=None if torch.compiler.is_compiling() else x)


def _number_of(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def _of_map(values: Tensor, x: Tensor) -> Tensor:
    """(N, C) to (N, C, 1, 1) in the dtype of the map."""
    return values[:, :, None, None].to(x.dtype)
