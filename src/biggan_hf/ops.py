"""
The operations that have two forms: as the paper writes them, and as they are computed.

Both forms have one name and one signature. `plain_operations()` selects the paper's form. Tests compare the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


# On a CPU, a convolution beside resampling with at least so many input channels becomes one matrix product. Sampling
# then takes a third to half of the time (1,536 channels, 4x4 and 8x8 pixels, batch 1 to 8): `F.conv2d` reorders the
# weight in every call, and that takes longer than the convolution of so few pixels.
WIDE = 1024

# On a CPU, a 3x3 convolution with at least so many input channels is computed in tiles. Their maps are small.
WIDE_FOR_TILES = 384

_plain = 0  # the open blocks of `plain_operations`


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside the block, all threads compute every operation as the paper writes it (batch norm: in one process)."""
    global _plain
    _plain += 1
    try:
        yield
    finally:
        _plain -= 1


def is_plain() -> bool:
    return bool(_plain)


# Convolutions that keep the size
#
# Winograd's form F(2x2, 3x3) takes 16 multiplications where the plain form takes 36 (Lavin & Gray 2016,
# arXiv:1509.09308, section 4.1): Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, with a filter g, a tile d of 4x4 pixels that overlaps
# its neighbours by two, and 2x2 pixels Y of the output. Sampling 128 pixels on a CPU takes 0.7 of the time (one image)
# to 0.88 (eight). G g Gᵀ costs more than one use of a weight saves: this form is for folded weights.


def conv2d(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution, (N, in, H, W) to (N, out, H, W). Takes a weight from `weight_in_tiles` too, if H, W are even."""
    if weight.ndim == 4:
        return F.conv2d(hidden_states, weight, bias, padding=weight.shape[-1] // 2)
    (samples, channels, height, width), dtype = hidden_states.shape, hidden_states.dtype
    with torch.autocast("cpu", enabled=False):  # half precision has too few digits for the sums
        padded = F.pad(hidden_states.to(weight.dtype).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        # Bᵀ d B for all tiles: (4, 4, N, H/2, W/2, in). Then a product of matrices for each place in a tile.
        tiles = _times_b(_times_b(padded.unfold(1, 4, 2)).unfold(3, 4, 2))
        products = torch.bmm(tiles.view(16, -1, channels), weight)
        # Aᵀ m A: (4, 4, N, H/2, W/2, out) to (4, N, H/2, W/2, 2, out), to (N, H/2, 2, W/2, 2, out).
        products = products.view(4, 4, samples, height // 2, width // 2, -1)
        output = _times_a(_times_a(products, dim=4), dim=2).view(samples, height, width, -1)
        output = output if bias is None else output.add_(bias)
    return output.permute(0, 3, 1, 2).to(dtype)


def pays_in_tiles(weight: Tensor) -> bool:
    is_wide = weight.ndim == 4 and weight.shape[1] >= WIDE_FOR_TILES and weight.shape[2:] == (3, 3)
    return is_wide and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def weight_in_tiles(weight: Tensor) -> Tensor:
    """G g Gᵀ of all filters: (out, in, 3, 3) to (16, in, out)."""
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return (g @ weight @ g.T).permute(3, 2, 1, 0).flatten(0, 1).contiguous()


def _times_b(lines: Tensor) -> Tensor:
    a, b, c, d = lines.unbind(-1)
    return torch.stack([a - c, b + c, c - b, b - d])


def _times_a(products: Tensor, dim: int) -> Tensor:
    a, b, c, d = products.unbind(0)
    return torch.stack([(b + c).add_(a), (b - c).sub_(d)], dim)


# Convolutions beside resampling by two
#
# Nearest-neighbour upsampling puts zeros between the pixels and then sums every 2x2 window. Average pooling sums every
# 2x2 window and then keeps a quarter of every second sum. A sum of windows commutes with a convolution. If it moves to
# the other side of the convolution, the convolution has a stride of two. In the first case it skips the zeros; in the
# second it skips the sums that pooling would drop. The function is the same, with a quarter of the multiplications.


def upsample(hidden_states: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by two: (N, C, H, W) to (N, C, 2H, 2W)."""
    return F.interpolate(hidden_states, scale_factor=2, mode="nearest")


def upsample_conv2d(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour upsampling by two, then a 3x3 convolution: (N, in, H, W) to (N, out, 2H, 2W)."""
    if _plain:
        return F.conv2d(upsample(hidden_states), weight, bias, padding=1)
    if torch.compiler.is_exporting():
        return _upsample_by_phases(hidden_states, weight, bias)
    if _is_wide(weight):
        output = _upsample_by_product(hidden_states, weight)
    else:
        kernel = weight.flip(2, 3).transpose(0, 1)  # a transposed convolution runs over a filter backwards
        output = window_sum(F.conv_transpose2d(hidden_states, kernel, stride=2))  # of (N, out, 2H + 1, 2W + 1)
    return output if bias is None else output.add_(bias[:, None, None])


def conv2d_pool(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution, then average pooling by two: (N, in, H, W), H and W even, to (N, out, H / 2, W / 2)."""
    if _plain:
        return F.avg_pool2d(F.conv2d(hidden_states, weight, bias, padding=1), 2)
    sums, weight = window_sum(hidden_states, padding=1), weight / 4
    if not _is_wide(weight):
        return F.conv2d(sums, weight, bias, stride=2)
    samples, _, height, width = hidden_states.shape
    pixels = F.unfold(sums, 3, stride=2).transpose(0, 1).flatten(1)  # (in·3·3, N·H/2·W/2)
    output = (weight.flatten(1) @ pixels).view(len(weight), samples, height // 2, width // 2).transpose(0, 1)
    return output if bias is None else output.add_(bias[:, None, None])


def _is_wide(weight: Tensor) -> bool:
    # Not in an exported graph: the engine that runs it orders weights itself.
    return weight.device.type == "cpu" and weight.shape[1] >= WIDE and not torch.compiler.is_exporting()


def _upsample_by_product(hidden_states: Tensor, weight: Tensor) -> Tensor:
    # One product of matrices for all pixels and taps, then sums.
    (samples, channels, height, width), out_channels = hidden_states.shape, len(weight)
    pixels = hidden_states.permute(0, 2, 3, 1).reshape(-1, channels)
    products = F.linear(pixels, weight.permute(0, 2, 3, 1).reshape(-1, channels))  # (N·H·W, out·3·3)
    products = products.view(samples, height, width, out_channels, 9).transpose(3, 4).contiguous()
    lines = _add_taps(products.view(samples, height, width, 3, 3, out_channels), dim=1)  # (N, 2H, W, 3, out)
    return _add_taps(lines, dim=2).permute(0, 3, 1, 2)


def _upsample_by_phases(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # For engines, whose convolutions are faster than their transposed ones: the four phases of the transposed
    # convolution (rows and columns even or odd), each an ordinary one with the taps that fall on it, 4, 2, 2 and 1 of
    # the 9. A window of the sum that follows holds one value of each phase.
    outer = torch.stack([weight[:, :, 0], weight[:, :, 2]], dim=2)
    both = F.conv2d(hidden_states, torch.stack([outer[..., 0], outer[..., 2]], dim=3), padding=1)  # (H + 1, W + 1)
    rows = F.conv2d(hidden_states, outer[..., 1:2], padding=(1, 0))  # (H + 1, W)
    outer = torch.stack([weight[:, :, 1:2, 0], weight[:, :, 1:2, 2]], dim=3)
    columns = F.conv2d(hidden_states, outer, padding=(0, 1))  # (H, W + 1)
    centre = F.conv2d(hidden_states, weight[:, :, 1:2, 1:2], bias)  # (H, W)
    # The pixel at (2i + a, 2j + b) is both[i + a, j + b] + rows[i + a, j] + columns[i, j + b] + centre[i, j].
    height, width = hidden_states.shape[2:]
    phases = [
        both[:, :, a : height + a, b : width + b] + (rows[:, :, a : height + a] + centre) + columns[..., b : width + b]
        for a in (0, 1)
        for b in (0, 1)
    ]
    return _interleave(phases)


def _interleave(phases: list[Tensor]) -> Tensor:
    # The pixels (2i + a, 2j + b) from four maps (N, C, H, W), in the order of (a, b).
    samples, channels, height, width = phases[0].shape
    if not torch.onnx.is_in_onnx_export():
        return F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)
    shape = (samples, channels, 2 * height, 2 * width)
    attributes: dict[str, Any] = {"blocksize": 2, "mode": "DCR"}  # which torch has no operation for
    stacked = torch.cat(phases, dim=1)
    return torch.onnx.ops.symbolic("DepthToSpace", (stacked,), attributes, dtype=stacked.dtype, shape=shape)


def _add_taps(products: Tensor, dim: int) -> Tensor:
    # A line of pixels (along `dim`), each times three taps (dimension 3), becomes the line of twice the length. Place
    # 2i takes taps 1 and 2 of pixel i and tap 0 of pixel i - 1. Place 2i + 1 takes taps 0 and 1 of pixel i and tap 2
    # of pixel i + 1.
    (first, second, third), last = products.unbind(3), products.shape[dim] - 1
    even, odd = second + third, first + second
    even.narrow(dim, 1, last).add_(first.narrow(dim, 0, last))
    odd.narrow(dim, 0, last).add_(third.narrow(dim, 1, last))
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)


def average_pool(hidden_states: Tensor) -> Tensor:
    """Average pooling by two: (N, C, H, W), H and W even, to (N, C, H / 2, W / 2)."""
    if _plain or torch.compiler.is_compiling():
        return F.avg_pool2d(hidden_states, 2)
    return _WindowSum.apply(hidden_states, 2, 0) / 4


def window_sum(hidden_states: Tensor, padding: int = 0) -> Tensor:
    """The sums of all 2x2 windows: (N, C, H, W) to (N, C, H - 1, W - 1), or (N, C, H + 1, W + 1) with `padding=1`."""
    if torch.compiler.is_compiling():  # the compiler fuses the sums and decides what to keep for the gradient
        return _sum_lines(hidden_states, padding)
    return _WindowSum.apply(hidden_states, 1, padding)


class _WindowSum(torch.autograd.Function):
    # Saves no map for the gradient. torch's pooling saves its input but needs only the shape; that would be a quarter
    # more memory for a block of the discriminator.

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden_states: Tensor, stride: int, padding: int) -> Tensor:
        if stride == 2:
            return F.avg_pool2d(hidden_states, 2, divisor_override=1)
        on_cpu = hidden_states.device.type == "cpu"
        return (_sum_in_place if on_cpu else _sum_lines)(hidden_states, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.stride, ctx.padding = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # A pixel gets the gradients of the windows that it is in.
        if ctx.stride == 2:
            return upsample(gradient), None, None
        return window_sum(gradient, 1 - ctx.padding), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _WindowSum.apply(tangent, ctx.stride, ctx.padding)


def _sum_lines(hidden_states: Tensor, padding: int) -> Tensor:
    # Adds two lines, then two columns. On a GPU this takes half the time of pooling.
    hidden_states = F.pad(hidden_states, [padding] * 4)
    lines = hidden_states[..., 1:, :] + hidden_states[..., :-1, :]
    return lines[..., 1:] + lines[..., :-1]


def _sum_in_place(hidden_states: Tensor, padding: int) -> Tensor:
    # Adds the four shifted maps in few passes over memory. On a CPU this takes a third of the time of pooling.
    if not padding:
        total = hidden_states[..., 1:, 1:] + hidden_states[..., 1:, :-1]
        return total.add_(hidden_states[..., :-1, 1:]).add_(hidden_states[..., :-1, :-1])
    total = F.pad(hidden_states, (1, 0, 1, 0))
    total[..., 1:, :-1] += hidden_states
    total[..., :-1, 1:] += hidden_states
    total[..., :-1, :-1] += hidden_states
    return total


# Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167), with a gain and a bias of each sample


def batch_norm(hidden_states: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """
    gain · (x - mean) / sqrt(var + eps) + bias with given statistics, as in eval mode.

    Args: maps (N, C, H, W); gain and bias (N, C) or (1, C); mean and variance (C,).
    """
    if _plain:
        normalized = (hidden_states - _as_map(mean, hidden_states)) / _as_map(torch.sqrt(var + eps), hidden_states)
        return _as_map(gain, hidden_states) * normalized + _as_map(bias, hidden_states)
    # One multiply-add: x·s + (bias - mean·s) with s = gain / sqrt(var + eps).
    scale = gain * torch.rsqrt(var + eps)
    shift = bias - mean * scale
    return torch.addcmul(_as_map(shift, hidden_states), hidden_states, _as_map(scale, hidden_states))


def batch_norm_in_training(
    hidden_states: Tensor, gain: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The same with the batch's own statistics, through which gradients flow. `group`: the processes that normalise their
    batches together; the batches must have one size.

    Returns: the normalised map; the batch's mean and unbiased variance (C,), without gradients.
    """
    if not _plain or group is not None:  # across processes there is no plain form
        return _BatchNormInTraining.apply(hidden_states, gain, bias, eps, group)
    values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    mean = values.mean(dim=(0, 2, 3))
    var = (values - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    output = batch_norm(values, gain, bias, mean, var, eps).to(hidden_states.dtype)
    return output, mean.detach(), var.detach() * _unbiased(hidden_states)


class _BatchNormInTraining(torch.autograd.Function):
    # Keeps one map for the gradient, the input; composed operations would keep the normalised map as well.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if group is None:
            mean, var = x.new_zeros(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            # With momentum 1, torch writes the batch's own statistics to mean and var.
            normalized, _, inv_std = torch.native_batch_norm(x, None, None, mean, var, True, 1.0, eps)
        else:
            normalized, mean, var, inv_std = _normalize_together(x, eps, group)
        ctx.save_for_backward(x, gain, mean, inv_std)
        ctx.mark_non_differentiable(mean, var)
        ctx.group = group
        return _multiply_add(normalized, _as_map(gain, x), _as_map(bias, x)), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # With x̂ = (x - mean) / std and g = gradient · gain, the gradient of x is (g - E[g] - x̂ E[g x̂]) / std, the
        # expectations taken over the batch (section 3 of the paper named above).
        x, gain, mean, inv_std = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        centred = x.to(mean.dtype) - mean[:, None, None]  # before any product: afterwards digits would cancel
        # Gradients of bias and gain, (N, C), and the two expectations, (C,).
        of_bias = wide.sum(dim=(2, 3))
        of_gain = (wide * centred).sum(dim=(2, 3)) * inv_std
        sums = torch.stack([(gain * of_bias).sum(0), (gain * of_gain).sum(0)])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gx = sums / (x[:, 0].numel() * _size(ctx.group))
        # Gradient of the map: a multiply-add of the centred map and one of the incoming gradient.
        slope, offset = -inv_std.square() * mean_gx, -inv_std * mean_g
        of_x = _multiply_add(centred, _as_map(slope, wide), _as_map(offset, wide))
        of_x.addcmul_(wide, _as_map(gain * inv_std, wide))
        of_gain, of_bias = (tensor.sum_to_size(gain.shape).to(gain.dtype) for tensor in (of_gain, of_bias))
        return of_x.to(x.dtype), of_gain, of_bias, None, None


def _normalize_together(x: Tensor, eps: float, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The normalised map, then mean, unbiased variance and 1 / sqrt(var + eps) (C,) of all batches of the group.
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    # Two passes, since E[x²] - E[x]² cancels digits.
    mean = _average(values.mean(dim=(0, 2, 3)), group)
    centred = values - mean[:, None, None]
    var = _average(centred.square().mean(dim=(0, 2, 3)), group)
    inv_std = torch.rsqrt(var + eps)
    normalized = centred.mul_(inv_std[:, None, None]).to(x.dtype)
    return normalized, mean, var * _unbiased(x, group), inv_std


def _average(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    # The mean over the processes of a group, in place.
    dist.all_reduce(values, group=group)
    return values.div_(_size(group))


def _unbiased(x: Tensor, group: dist.ProcessGroup | None = None) -> float:
    # n / (n - 1) turns the mean of squares of n values into their unbiased variance.
    count = x[:, 0].numel() * _size(group)
    return count / (count - 1)


def _size(group: dist.ProcessGroup | None) -> int:
    return 1 if group is None else dist.get_world_size(group)


def _multiply_add(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    # x · factor + summand, written into x. `torch.compile` chooses the memory itself and breaks its graph at `out`.
    return torch.addcmul(summand, x, factor, out=None if torch.compiler.is_compiling() else x)


def _as_map(values: Tensor, x: Tensor) -> Tensor:
    # (N, C) to (N, C, 1, 1), or (C,) to (C, 1, 1), in the dtype of the map.
    return values[..., None, None].to(x.dtype)


# Self-attention (Zhang et al. 2018, arXiv:1805.08318, equation 1)


def attention(query: Tensor, key: Tensor, value: Tensor, fused: bool = True) -> Tensor:
    """softmax(Q Kᵀ) V, not divided by √d: (N, positions, d), (N, keys, d), (N, keys, C) to (N, positions, C)."""
    # An exported graph has the plain form, which engines know. No network has queries wider than its values.
    if _plain or not fused or torch.compiler.is_exporting() or query.shape[-1] > value.shape[-1]:
        return torch.softmax(query @ key.mT, dim=-1) @ value
    # The fused kernel does not store the matrix of all pairs. It needs contiguous tensors. On a CPU it also needs
    # query, key and value of one width, so query and key are padded with zeros.
    if query.device.type == "cpu":
        missing = value.shape[-1] - query.shape[-1]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    query, key, value = (x.contiguous().unsqueeze(1) for x in (query, key, value))  # one head
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)
