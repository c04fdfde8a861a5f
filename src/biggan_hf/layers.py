"""The primitives: spectral-norm layers, (conditional) batch norm, self-attention.

They compute what BigGAN-PyTorch's `layers.py` computes (github.com/ajbrock/BigGAN-PyTorch), in the names of this
field's literature. Spectral norm: Miyato et al. 2018, arXiv:1802.05957. Self-attention: Zhang et al. 2018,
arXiv:1805.08318.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


def _is_recomputing() -> bool:
    """Whether this forward is activation checkpointing's second one, run from inside a backward pass.

    State that a forward moves (running statistics, singular vectors) must move once, and the second forward must see
    what the first one saw.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Float32Buffers(nn.Module):
    """Keeps its buffers in float32 when the module is cast to half precision, as by `.to(torch.bfloat16)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in (torch.bfloat16, torch.float16):
                self._buffers[name] = before[name].to(buffer.device, torch.float32)  # type: ignore[union-attr]
        return self


# Spectral normalisation: W / σ(W), the largest singular value estimated by one power iteration a training forward


class SpectralNorm(Float32Buffers):
    """
    The part that `SNConv2d`, `SNLinear` and `SNEmbedding` share.

    Buffers, float32: `u0` (1, rows), the left singular vector that the next power iteration starts from, and `sv0`
    (1,), the last estimate of σ, for logging. `v0` (1, columns) is the right singular vector of the last training
    forward; it is not saved. `iterates`: whether a training forward takes a step; without it the last step's vectors
    serve again, so that the micro-batches of one update see one function.
    """

    weight: Tensor
    u0: Tensor
    sv0: Tensor
    v0: Tensor
    spectral_norm_eps: float
    iterates: bool = True

    def _register_spectral_norm(self, eps: float) -> None:
        rows, columns = self.weight.shape[0], self.weight[0].numel()
        self.spectral_norm_eps = eps
        self.register_buffer("u0", torch.randn(1, rows, dtype=torch.float32))
        self.register_buffer("sv0", torch.ones(1, dtype=torch.float32))
        self.register_buffer("v0", torch.zeros(1, columns, dtype=torch.float32), persistent=False)

    def sigma(self) -> Tensor:
        """
        The estimate of the largest singular value, a scalar; its gradient u vᵀ reaches the weight alone.

        In training the stepped vectors are stored. In eval mode the same step is taken and not stored.
        """
        steps = not self.training or (self.iterates and not _is_recomputing())
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self.weight.flatten(1).to(torch.promote_types(self.weight.dtype, torch.float32))
            with torch.no_grad():
                if steps:
                    v = F.normalize(self.u0.to(weight.dtype) @ weight, eps=self.spectral_norm_eps)
                else:
                    v = self.v0.to(weight.dtype, copy=True)
            weight_v = v @ weight.t()  # (1, rows)
            u = F.normalize(weight_v.detach(), eps=self.spectral_norm_eps)
            sigma = (weight_v * u).sum()
        if self.training and steps:
            self._store(u, v, sigma)
        return sigma

    @torch.no_grad()
    def _store(self, u: Tensor, v: Tensor, sigma: Tensor) -> None:
        self.u0.copy_(u)
        self.v0.copy_(v)
        self.sv0.copy_(sigma)

    def normalized_weight(self) -> Tensor:
        """W / σ(W), in the weight's own shape and dtype."""
        return self.weight / self.sigma().to(self.weight.dtype)


class SNConv2d(SpectralNorm, nn.Conv2d):
    """Convolution of stride 1 that keeps the size of the map; the weight is normalised as an (out, in·k·k) matrix."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, eps: float = 1e-12):
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self._register_spectral_norm(eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.conv2d(hidden_states, self.normalized_weight(), self.bias, padding=self.padding)


class SNLinear(SpectralNorm, nn.Linear):
    """Linear map with a spectrally normalised weight."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-12):
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._register_spectral_norm(eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, self.normalized_weight(), self.bias)


class SNEmbedding(SpectralNorm, nn.Embedding):
    """Embedding with a spectrally normalised (classes, features) table."""

    def __init__(self, num_embeddings: int, embedding_dim: int, eps: float = 1e-12):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim)
        self._register_spectral_norm(eps)

    def forward(self, labels: Tensor) -> Tensor:
        # Dividing the rows that were looked up is dividing the table, at the cost of a batch.
        rows = F.embedding(labels, self.weight)
        return rows / self.sigma().to(rows.dtype)


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, sn_eps: float | None, bias: bool = True
) -> nn.Conv2d:
    """A same-size convolution, spectrally normalised unless `sn_eps` is `None`."""
    if sn_eps is None:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    return SNConv2d(in_channels, out_channels, kernel_size, bias=bias, eps=sn_eps)


def linear(in_features: int, out_features: int, sn_eps: float | None, bias: bool = True) -> nn.Linear:
    """A linear map, spectrally normalised unless `sn_eps` is `None`."""
    if sn_eps is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return SNLinear(in_features, out_features, bias=bias, eps=sn_eps)


# A 3x3 convolution together with the resampling beside it: the same function in 4/9 of the multiplications, and the
# large map between the two is never made.


def upsample_conv2d(conv: nn.Conv2d, hidden_states: Tensor) -> Tensor:
    """`conv(nearest-neighbour upsampling by two)`, as one transposed convolution of stride 2 with a 4x4 kernel."""
    kernel = _spread(_weight(conv).flip(2, 3)).transpose(0, 1)
    return F.conv_transpose2d(hidden_states, kernel, conv.bias, stride=2, padding=1)


def conv2d_downsample(conv: nn.Conv2d, hidden_states: Tensor) -> Tensor:
    """`average pooling by two(conv)`, as one convolution of stride 2 with a 4x4 kernel."""
    return F.conv2d(hidden_states, _spread(_weight(conv)) / 4, conv.bias, stride=2, padding=1)


def _spread(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) to (O, I, 4, 4): the sum of the kernel at the four places that share a pixel."""
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def _weight(conv: nn.Conv2d) -> Tensor:
    return conv.normalized_weight() if isinstance(conv, SNConv2d) else conv.weight


# Class labels as vectors


class OneHotLabels(nn.Module):
    """Stands where a shared class embedding would: (N,) labels to (N, num_labels) one-hot vectors, no parameters."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

    def forward(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels.long(), self.num_labels)


class MixedEmbedding(nn.Embedding):
    """An embedding looked up by weights (N, num_embeddings) instead of indices, so that classes can be mixed."""

    def forward(self, weights: Tensor) -> Tensor:
        return weights @ self.weight


# Batch norm


class StandingRow(NamedTuple):
    """Where a truncation lies in the table of standing statistics: `lower` + `fraction` of the way to `upper`."""

    lower: int
    upper: int
    fraction: float


def cross_replica_statistics(hidden_states: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, int]:
    """
    Mean and biased variance (C,) over the batches of all processes of the group, which have one size, and the number
    of values a channel. In float32 at least, in two passes, since E[x²] - E[x]² cancels; differentiable: a gradient
    comes back to every process's batch.
    """
    values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    replicas = dist.get_world_size(group)
    mean = all_reduce(values.mean(dim=(0, 2, 3)), group=group) / replicas
    var = all_reduce((values - mean[:, None, None]).square().mean(dim=(0, 2, 3)), group=group) / replicas
    return mean, var, replicas * values[:, 0].numel()


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
            hidden_states = self._normalize_batch(hidden_states)
        else:
            # One multiply-add: x·s + (b - mean·s), with s = gain / sqrt(var + eps).
            mean, var = self.statistics(row) if self.observer is None else self.observer(hidden_states)
            gain = gain * torch.rsqrt(var + self.eps)
            bias = bias - mean * gain
        gain, bias = (x[:, :, None, None].to(hidden_states.dtype) for x in (gain, bias))
        return torch.addcmul(bias, hidden_states, gain)

    def _normalize_batch(self, hidden_states: Tensor) -> Tensor:
        """(x - mean) / sqrt(var + eps) with the batch's own statistics, which also move the running ones."""
        momentum = 0.0 if _is_recomputing() else self.momentum
        if self.process_group is None:
            running = self.running_mean, self.running_var
            return F.batch_norm(hidden_states, *running, training=True, momentum=momentum, eps=self.eps)
        with torch.autocast(hidden_states.device.type, enabled=False):
            mean, var, count = cross_replica_statistics(hidden_states, self.process_group)
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1), momentum)  # unbiased, as F.batch_norm stores it
            scale = torch.rsqrt(var + self.eps)
            normalized = (hidden_states - mean[:, None, None]) * scale[:, None, None]
        return normalized.to(hidden_states.dtype)

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
        self, hidden_states: Tensor, condition: Tensor | None = None, row: StandingRow | None = None
    ) -> Tensor:
        return self.normalize(hidden_states, self.gain[None], self.bias[None], row)


class ConditionalBatchNorm2d(_BatchNorm):
    """
    Batch norm whose gain 1 + G·c and bias B·c are maps of each sample's condition c (paper, appendix B).

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
            self.gain: nn.Module = MixedEmbedding(condition_dim, num_features)
            self.bias: nn.Module = MixedEmbedding(condition_dim, num_features)
        else:
            self.gain = linear(condition_dim, num_features, sn_eps, bias=False)
            self.bias = linear(condition_dim, num_features, sn_eps, bias=False)

    def forward(self, hidden_states: Tensor, condition: Tensor, row: StandingRow | None = None) -> Tensor:
        return self.normalize(hidden_states, 1 + self.gain(condition), self.bias(condition), row)


# Self-attention


class SelfAttention(nn.Module):
    """
    Non-local block of SA-GAN: every position attends to a grid of half the size; x + γ·o(attention), γ = 0 at first.

    The logits are not divided by √d.
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
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (N, HW, C/2)
        return hidden_states + self.gamma * self.o(attended.transpose(1, 2).unflatten(2, (height, width)))
