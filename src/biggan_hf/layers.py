"""The primitives: spectral-norm layers, (conditional) batch norm, self-attention.

They compute what BigGAN-PyTorch's `layers.py` computes (github.com/ajbrock/BigGAN-PyTorch), in the names of this
field's literature. Spectral norm: Miyato et al. 2018, arXiv:1802.05957. Self-attention: Zhang et al. 2018,
arXiv:1805.08318.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import KeptKernel
from .normalization import batch_normalize
from .onednn import can_multiply, pack, packed_conv2d, product
from .resampling import box_sum, strided_product, transposed_product
from .spectral_norm import Float32Buffers, SpectralNorm, is_recomputing
from .winograd import saves_time, winograd_conv2d, winograd_kernel


Resample = Literal["up", "down"]
# Beside upsampling or pooling on a CPU, see `Conv2d`: from here a product of matrices takes half the time of a strided
# convolution.
PRODUCT_CHANNELS = 1024
# From so many keys and channels of values on, attention without gradients on a CPU goes in parts, see `SelfAttention`:
# with fewer of either the fused kernel is faster.
PART_KEYS, PART_CHANNELS = 256, 32
# So many of the numbers that attention computes of pairs of positions stay in a cache.
PAIRS = 2**20


# Convolutions, linear maps and embeddings, with and without spectral norm


class Conv2d(KeptKernel, nn.Conv2d):
    """
    Convolution that keeps the size of the map, with nearest-neighbour upsampling by two before it (`resample="up"`)
    or average pooling by two after it (`resample="down"`).

    Upsampling puts zeros between the pixels and sums every 2x2 window; pooling sums every 2x2 window and keeps a
    quarter of every second one. Such sums commute with a convolution, and then its stride skips the zeros in the one
    case and what is not kept in the other: the same function in a quarter of the multiplications. This form is always
    taken: docs/benchmarks.md has the measurement, and where the plain one would save a millisecond or two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        resample: Resample | None = None,
    ):
        if resample is not None and kernel_size != 3:
            raise ValueError(f"kernel_size must be 3 with resample={resample!r}, got {kernel_size}")
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.resample = resample

    def arrange(self, weight: Tensor) -> Tensor:
        """A weight (out, in, k, k) in the form in which the operation takes it."""
        if self.resample == "up" and not self._is_product(weight):  # a transposed convolution runs backwards
            return weight.flip(2, 3).transpose(0, 1)
        return weight / 4 if self.resample == "down" else weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.resample is None:
            return self._convolve(hidden_states, self.bias, 1, self.kernel_size[0] // 2)
        if self.resample == "down":
            hidden_states = box_sum(hidden_states, padding=1)
            if not self._is_product(self.weight):
                return self._convolve(hidden_states, self.bias, 2, 0)
            hidden_states = strided_product(hidden_states, self.kernel())
        elif self._is_product(self.weight):
            hidden_states = box_sum(transposed_product(hidden_states, self.kernel()))
        else:
            hidden_states = box_sum(self._convolve(hidden_states, None, 2, 0))
        return hidden_states if self.bias is None else hidden_states.add_(self.bias[:, None, None])

    def _convolve(self, hidden_states: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        transposed, size = self.resample == "up", hidden_states.shape

        def pack_kernel(plain: Tensor) -> Tensor:
            if self._saves_time_in_tiles(size):
                return winograd_kernel(plain)
            return pack(plain, size, stride, padding, transposed)

        def serves(packed: Tensor) -> bool:
            """A kernel in tiles, (16, O, C), serves small maps, too, if not as well: none is made anew for these."""
            return packed.ndim == 3 or not self._saves_time_in_tiles(size)

        kernel, is_packed = self.packed_kernel(pack_kernel, serves)
        if is_packed and kernel.ndim == 3:
            return winograd_conv2d(hidden_states, kernel, bias)
        if is_packed:
            return packed_conv2d(hidden_states, kernel, bias, stride, padding, transposed)
        convolution = F.conv_transpose2d if transposed else F.conv2d
        return convolution(hidden_states, kernel, bias, stride=stride, padding=padding)

    def _saves_time_in_tiles(self, size: torch.Size) -> bool:
        """Where kernels are packed."""
        return self.resample is None and self.kernel_size == (3, 3) and saves_time(size, self.out_channels)

    def _is_product(self, weight: Tensor) -> bool:
        """Maps of so many channels are small, and oneDNN would spend its time on the order of the weight."""
        return weight.device.type == "cpu" and self.in_channels >= PRODUCT_CHANNELS


class SNConv2d(SpectralNorm, Conv2d):
    """`Conv2d` whose weight is normalised as an (out, in·k·k) matrix."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        resample: Resample | None = None,
        eps: float = 1e-12,
    ):
        Conv2d.__init__(self, in_channels, out_channels, kernel_size, bias, resample)
        self._register_spectral_norm(eps)


class SNLinear(SpectralNorm, nn.Linear):
    """Linear map with a spectrally normalised weight."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-12):
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._register_spectral_norm(eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, self.kernel(), self.bias)


class SNEmbedding(SpectralNorm, nn.Embedding):
    """Embedding with a spectrally normalised (classes, features) table."""

    def __init__(self, num_embeddings: int, embedding_dim: int, eps: float = 1e-12):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim)
        self._register_spectral_norm(eps)

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.kernel())


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    sn_eps: float | None,
    bias: bool = True,
    resample: Resample | None = None,
) -> Conv2d:
    """A convolution, spectrally normalised unless `sn_eps` is `None`."""
    if sn_eps is None:
        return Conv2d(in_channels, out_channels, kernel_size, bias, resample)
    return SNConv2d(in_channels, out_channels, kernel_size, bias, resample, eps=sn_eps)


def linear(in_features: int, out_features: int, sn_eps: float | None, bias: bool = True) -> nn.Linear:
    """A linear map, spectrally normalised unless `sn_eps` is `None`."""
    if sn_eps is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return SNLinear(in_features, out_features, bias=bias, eps=sn_eps)


# Class labels as vectors


class OneHotLabels(nn.Module):
    """Stands where a shared class embedding would: (N,) labels to (N, num_labels) one-hot vectors, no parameters."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

    def forward(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels.long(), self.num_labels)


# Batch norm


class StandingRow(NamedTuple):
    """Where a truncation lies in the table of standing statistics: `lower` + `fraction` of the way to `upper`."""

    lower: int
    upper: int
    fraction: float


Modulation = tuple[Tensor, Tensor]  # gain and bias, (N, C) each


class _BatchNorm(Float32Buffers):
    """
    The statistics of a batch norm over (N, H, W), and how they meet a gain and a bias.

    Buffers, float32: `running_mean` and `running_var` (C,), moved by a tenth in each training forward;
    `standing_mean` and `standing_var` (num_standing, C), a row a truncation, if there are any.
    """

    momentum = 0.1
    process_group: dist.ProcessGroup | None = None  # processes whose batches are normalised as one
    # While standing statistics are collected: (N, C, H, W) to the mean and variance (C,) that eval mode then takes.
    observer: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    running_mean: Tensor
    running_var: Tensor
    standing_mean: Tensor
    standing_var: Tensor

    def __init__(self, num_features: int, eps: float, num_standing: int):
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("running_mean", torch.zeros(num_features, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(num_features, dtype=torch.float32))
        if num_standing:
            self.register_buffer("standing_mean", torch.zeros(num_standing, num_features, dtype=torch.float32))
            self.register_buffer("standing_var", torch.ones(num_standing, num_features, dtype=torch.float32))

    def normalize(self, hidden_states: Tensor, gain: Tensor, bias: Tensor, row: StandingRow | None) -> Tensor:
        """(x - mean) / sqrt(var + eps) · gain + bias, with `gain` and `bias` (1, C) or (N, C)."""
        if self.training:
            running, momentum = (self.running_mean, self.running_var), 0.0 if is_recomputing() else self.momentum
            return batch_normalize(hidden_states, gain, bias, running, momentum, self.eps, self.process_group)
        # One multiply-add: x·s + (b - mean·s), with s = gain / sqrt(var + eps).
        mean, var = self.statistics(row) if self.observer is None else self.observer(hidden_states)
        gain = gain * torch.rsqrt(var + self.eps)
        bias = bias - mean * gain
        gain, bias = (x[:, :, None, None].to(hidden_states.dtype) for x in (gain, bias))
        return torch.addcmul(bias, hidden_states, gain)

    def statistics(self, row: StandingRow | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of eval mode: the running ones, or the standing ones of a truncation."""
        if row is None:
            return self.running_mean, self.running_var
        mean = torch.lerp(self.standing_mean[row.lower], self.standing_mean[row.upper], row.fraction)
        var = torch.lerp(self.standing_var[row.lower], self.standing_var[row.upper], row.fraction)
        return mean, var

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class BatchNorm2d(_BatchNorm):
    """
    Batch norm with one gain and one bias a channel.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        num_standing: Rows of the table of standing statistics.
    """

    def __init__(self, num_features: int, eps: float, num_standing: int = 0):
        super().__init__(num_features, eps, num_standing)
        self.gain = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(
        self, hidden_states: Tensor, modulation: Modulation | None = None, row: StandingRow | None = None
    ) -> Tensor:
        return self.normalize(hidden_states, self.gain[None], self.bias[None], row)


class ConditionalBatchNorm2d(_BatchNorm):
    """
    Batch norm whose gain 1 + G·c and bias B·c are maps of each sample's condition c (paper, appendix B), computed
    for several norms together by `modulations`.

    Args:
        num_features: Channels C.
        condition_dim: Length of the condition.
        eps: Added to the variance.
        sn_eps: Spectral norm of the two maps, `None` for none.
        per_class: The condition holds weights of the classes, and the maps are embeddings (num_labels, C).
        num_standing: Rows of the table of standing statistics.
    """

    def __init__(
        self,
        num_features: int,
        condition_dim: int,
        eps: float,
        sn_eps: float | None,
        per_class: bool = False,
        num_standing: int = 0,
    ):
        super().__init__(num_features, eps, num_standing)
        if per_class:
            self.gain: nn.Module = nn.Embedding(condition_dim, num_features)
            self.bias: nn.Module = nn.Embedding(condition_dim, num_features)
        else:
            self.gain = linear(condition_dim, num_features, sn_eps, bias=False)
            self.bias = linear(condition_dim, num_features, sn_eps, bias=False)

    def forward(self, hidden_states: Tensor, modulation: Modulation, row: StandingRow | None = None) -> Tensor:
        return self.normalize(hidden_states, *modulation, row)


def modulations(norms: Sequence[nn.Module], condition: Tensor | None) -> list[Modulation | None]:
    """
    What the condition (N, condition_dim) makes of every norm's gain and bias, on a GPU in one matrix product, where
    the launch of one costs more than its work; `None` for the plain norms of a network without a condition.

    The norms are those of a stage and not of the network, since a stage is what gradient checkpointing computes again
    and what `device_map` places: the weights of other stages may be elsewhere.
    """
    if condition is None:
        return [None] * len(norms)
    maps = [_rows(norm.get_submodule(name)) for norm in norms for name in ("gain", "bias")]
    # On a CPU a product costs its reading of the map, and joining maps another.
    parts = _products(condition, maps) if condition.device.type == "cpu" else _joint_product(condition, maps)
    return [(1 + gain, bias) for gain, bias in zip(parts[::2], parts[1::2], strict=True)]


def _products(condition: Tensor, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    return [F.linear(condition, rows) for rows in maps]


def _joint_product(condition: Tensor, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    return F.linear(condition, torch.cat(list(maps))).split([len(rows) for rows in maps], dim=1)


def _rows(layer: nn.Module) -> Tensor:
    """The map (C, condition_dim) of a gain or a bias; an embedding looked up by weights of classes is one too."""
    if isinstance(layer, SNLinear):
        return layer.kernel()
    weight = cast(Tensor, layer.weight)
    return weight.t() if isinstance(layer, nn.Embedding) else weight


# Self-attention


class SelfAttention(nn.Module):
    """
    Non-local block of SA-GAN: every position attends to a grid of half the size; x + γ·o(attention), γ = 0 at first.

    The logits are not divided by √d. On a CPU and without gradients, maps of 64 channels and 32x32 pixels up go in
    parts: docs/benchmarks.md has the measurement.
    """

    def __init__(self, channels: int, sn_eps: float | None):
        super().__init__()
        self.theta = conv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.phi = conv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.g = conv2d(channels, channels // 2, 1, sn_eps, bias=False)
        self.o = conv2d(channels // 2, channels, 1, sn_eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_states: Tensor) -> Tensor:
        height, width = hidden_states.shape[2:]
        query = self.theta(hidden_states).flatten(2).transpose(1, 2)  # (N, HW, C/8)
        key = F.max_pool2d(self.phi(hidden_states), 2).flatten(2).transpose(1, 2)  # (N, HW/4, C/8)
        value = F.max_pool2d(self.g(hidden_states), 2).flatten(2).transpose(1, 2)  # (N, HW/4, C/2)
        in_parts = not (self.training or torch.is_grad_enabled()) and _saves_time_in_parts(query, key, value)
        attended = (_attend_in_parts if in_parts else _attend)(query, key, value)  # (N, HW, C/2)
        out = self.o(attended.transpose(1, 2).unflatten(2, (height, width))).to(hidden_states.dtype)
        return torch.addcmul(hidden_states, out, self.gamma.to(out.dtype))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    softmax(Q Kᵀ) V, in a fused kernel where there is one, which does not make the matrix of all pairs of positions. It
    wants values that lie side by side, and on a CPU one width of all three, so zeros make up for it.
    """
    if query.device.type == "cpu":
        missing = value.shape[-1] - query.shape[-1]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    query, key, value = (x.contiguous().unsqueeze(1) for x in (query, key, value))  # one head
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


def _saves_time_in_parts(query: Tensor, key: Tensor, value: Tensor) -> bool:
    # In this order: what is compiled or traced asks for no size.
    return can_multiply(query, key, value) and key.shape[1] >= PART_KEYS and value.shape[2] >= PART_CHANNELS


def _attend_in_parts(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same on a CPU without gradients, of so many queries at a time that their pairs stay in a cache: in 0.46 of
    the fused kernel's time with 192 channels at 64 pixels, where docs/benchmarks.md has other sizes."""
    attended = query.new_empty(*query.shape[:2], value.shape[2])
    for outputs, queries, keys, values in zip(attended, query, key.contiguous(), value.mT.contiguous(), strict=True):
        rows = max(1, PAIRS // len(keys))
        for output, part in zip(outputs.split(rows), queries.split(rows), strict=True):
            output.copy_(product(torch.softmax(product(part, keys), dim=1), values))
    return attended
