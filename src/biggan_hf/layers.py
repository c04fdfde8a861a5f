"""
The primitives: spectral-norm layers, (conditional) batch norm, self-attention.

They compute what BigGAN-PyTorch's `layers.py` computes (github.com/ajbrock/BigGAN-PyTorch), under the names that the
literature uses. `ops.py` says how; `kernel()` returns the weight, W / σ(W) where it is spectrally normalised.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .eval_mode import FoldableWeight
from .latents import StandingRow
from .ops import attention, batch_norm, batch_norm_in_training, conv2d_pool, upsample_conv2d
from .ops import conv2d as padded_conv2d
from .spectral_norm import Float32Buffers, SpectralNorm


# Convolutions, linear maps and embeddings


class Conv2d(FoldableWeight, nn.Conv2d):
    """
    Convolution that keeps the size of the map. Adapters are built with the class of the layer that they adapt, so it
    takes the arguments of `nn.Conv2d`.

    Raises:
        ValueError: Arguments with which it would not keep the size, or a kernel that is neither 1x1 nor 3x3.
    """

    may_fold_in_tiles = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,  # `None`: what keeps the size
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        **kwargs: Any,
    ):
        size = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
        padding = size // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **kwargs)
        form = self.kernel_size, self.stride, self.padding, self.dilation, groups
        if form not in [((k, k), (1, 1), (k // 2, k // 2), (1, 1), 1) for k in (1, 3)]:
            raise ValueError(
                f"{type(self).__name__} keeps the size: kernel_size is 1 or 3, stride 1, padding kernel_size // 2, "
                f"dilation 1 and groups 1, got {form}"
            )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return padded_conv2d(hidden_states, self.kernel(), self.bias)


class UpsampleConv2d(Conv2d):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution. A 1x1 one, as in adapters, does not resample."""

    may_fold_in_tiles = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        operation = padded_conv2d if self.kernel_size == (1, 1) else upsample_conv2d
        return operation(hidden_states, self.kernel(), self.bias)


class Conv2dPool(Conv2d):
    """A 3x3 convolution, then average pooling by two. A 1x1 one, as in adapters, does not resample."""

    may_fold_in_tiles = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        operation = padded_conv2d if self.kernel_size == (1, 1) else conv2d_pool
        return operation(hidden_states, self.kernel(), self.bias)


# With spectral norm, which sees the weight as a matrix: (out, in·k·k), or (classes, features) of an embedding. The
# `forward` is that of the second base class, and `plain()` makes a layer of that class.


class SNConv2d(SpectralNorm, Conv2d):
    def __init__(self, *args: Any, eps: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if eps is None:  # an adapter, built with the class of its layer: it is not normalised
            self.__class__ = type(self).__bases__[1]
        else:
            self._register_spectral_norm(eps)


class SNUpsampleConv2d(SNConv2d, UpsampleConv2d): ...


class SNConv2dPool(SNConv2d, Conv2dPool): ...


class SNLinear(SpectralNorm, nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-12):
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._register_spectral_norm(eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, self.kernel(), self.bias)


class SNEmbedding(SpectralNorm, nn.Embedding):
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
    resample: Literal["up", "down"] | None = None,
) -> Conv2d:
    """A convolution, spectrally normalised unless `sn_eps` is `None`, with resampling by two before or after it."""
    if resample is not None and kernel_size != 3:
        raise ValueError(f"kernel_size must be 3 with resample={resample!r}, got {kernel_size}")
    plain, normalized = {
        None: (Conv2d, SNConv2d),
        "up": (UpsampleConv2d, SNUpsampleConv2d),
        "down": (Conv2dPool, SNConv2dPool),
    }[resample]
    if sn_eps is None:
        return plain(in_channels, out_channels, kernel_size, bias=bias)
    return normalized(in_channels, out_channels, kernel_size, bias=bias, eps=sn_eps)


def linear(in_features: int, out_features: int, sn_eps: float | None, bias: bool = True) -> nn.Linear:
    """A linear map, spectrally normalised unless `sn_eps` is `None`."""
    if sn_eps is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return SNLinear(in_features, out_features, bias=bias, eps=sn_eps)


# Class labels as vectors


class OneHotLabels(nn.Module):
    """Replaces a shared class embedding: turns labels (N,) into one-hot vectors (N, num_labels); has no weights."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

    def forward(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels.long(), self.num_labels)


# Batch norm


class _BatchNorm(Float32Buffers):
    """The statistics of a batch norm over (N, H, W); applies them with a given gain and bias."""

    momentum = 0.1
    # The processes that normalise their batches together.
    process_group: dist.ProcessGroup | None = None
    # Set while standing statistics are collected: takes a map (N, C, H, W), returns the mean and variance (C,) to use.
    observer: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    # Mean and variance (C,) of the last training forward; `move_running_statistics` uses and clears them.
    batch_statistics: tuple[Tensor, Tensor] | None = None
    # Buffers, float32. Running: (C,). Standing: (num_standing, C), one row per truncation, where there are any.
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
        # gain · (x - mean) / sqrt(var + eps) + bias, with `gain` and `bias` (1, C) or (N, C).
        if self.training:
            output, mean, var = batch_norm_in_training(hidden_states, gain, bias, self.eps, self.process_group)
            self.batch_statistics = mean, var
            return output
        mean, var = self.statistics(row) if self.observer is None else self.observer(hidden_states)
        return batch_norm(hidden_states, gain, bias, mean, var, self.eps)

    def statistics(self, row: StandingRow | None) -> tuple[Tensor, Tensor]:
        # Mean and variance (C,) of eval mode: the running ones, or the standing ones of a truncation.
        if row is None:
            return self.running_mean, self.running_var
        mean = torch.lerp(self.standing_mean[row.lower], self.standing_mean[row.upper], row.fraction)
        var = torch.lerp(self.standing_var[row.lower], self.standing_var[row.upper], row.fraction)
        return mean, var

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "batch_statistics": None}


def move_running_statistics(network: nn.Module) -> None:
    """Ends a training forward: running statistics move a tenth of the way to those of the batch."""
    # Done for the network and not in each layer, because activation checkpointing runs layers twice.
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.batch_statistics]
    if norms:
        running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        batch = [statistic for norm in norms for statistic in norm.batch_statistics or ()]
        # Detached: in a network that torch 2.11 compiles, outputs that a function marks as without gradients have
        # some, and the next backward pass would run through this forward again.
        moved = [statistic.detach().to(buffer.dtype) for statistic, buffer in zip(batch, running, strict=True)]
        torch._foreach_lerp_(running, moved, _BatchNorm.momentum)
    for norm in norms:
        norm.batch_statistics = None


class BatchNorm2d(_BatchNorm):
    """Batch norm with one gain and one bias a channel, for all samples."""

    def __init__(self, num_features: int, eps: float, num_standing: int = 0):
        super().__init__(num_features, eps, num_standing)
        self.gain = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, hidden_states: Tensor, condition: Tensor | None, row: StandingRow | None = None) -> Tensor:
        return self.normalize(hidden_states, self.gain[None], self.bias[None], row)


class ConditionalBatchNorm2d(_BatchNorm):
    """Batch norm with a gain 1 + G·c and a bias B·c for each sample, from its condition c (paper, appendix B)."""

    def __init__(
        self,
        num_features: int,  # channels C
        condition_dim: int,  # length of the condition
        eps: float,  # added to the variance
        sn_eps: float | None,  # epsilon of the spectral norm of both maps; `None`: no spectral norm
        per_class: bool = False,  # c is the label, or holds weights of the classes; G and B are embeddings
        num_standing: int = 0,  # rows of the table of standing statistics
    ):
        super().__init__(num_features, eps, num_standing)
        self.per_class = per_class
        if per_class:
            self.gain: nn.Module = nn.Embedding(condition_dim, num_features)
            self.bias: nn.Module = nn.Embedding(condition_dim, num_features)
        else:
            self.gain = linear(condition_dim, num_features, sn_eps, bias=False)
            self.bias = linear(condition_dim, num_features, sn_eps, bias=False)

    def forward(self, hidden_states: Tensor, condition: Tensor, row: StandingRow | None = None) -> Tensor:
        # The class and the latents act here: each sample has its own gain and bias, (N, C).
        if not (self.per_class and condition.is_floating_point()):
            return self.normalize(hidden_states, 1 + self.gain(condition), self.bias(condition), row)
        # A mixture of classes. The embeddings are called and their weights not read: they may have adapters.
        classes = torch.arange(condition.shape[1], device=condition.device)
        gain, bias = (condition @ embedding(classes) for embedding in (self.gain, self.bias))
        return self.normalize(hidden_states, 1 + gain, bias, row)


# Self-attention


class SelfAttention(nn.Module):
    """
    Non-local block of SA-GAN (Zhang et al. 2018, arXiv:1805.08318): every position attends to a grid of half the size.
    The output is x + γ·o(attention). γ starts at 0.
    """

    def __init__(self, channels: int, sn_eps: float | None, config: Any = None):
        super().__init__()
        self.config = config  # `attn_implementation="eager"` selects the form of the paper
        self.theta = conv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.phi = conv2d(channels, channels // 8, 1, sn_eps, bias=False)
        self.g = conv2d(channels, channels // 2, 1, sn_eps, bias=False)
        self.o = conv2d(channels // 2, channels, 1, sn_eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))  # not (), which FSDP cannot shard

    def forward(self, hidden_states: Tensor) -> Tensor:
        height, width = hidden_states.shape[2:]
        # Queries come from every position; keys and values from a grid of half the size.
        query = self.theta(hidden_states).flatten(2).transpose(1, 2)  # (N, HW, C/8)
        key = F.max_pool2d(self.phi(hidden_states), 2).flatten(2).transpose(1, 2)  # (N, HW/4, C/8)
        value = F.max_pool2d(self.g(hidden_states), 2).flatten(2).transpose(1, 2)  # (N, HW/4, C/2)
        fused = self.config is None or self.config._attn_implementation != "eager"
        attended = attention(query, key, value, fused).transpose(1, 2).unflatten(2, (height, width))  # (N, C/2, H, W)
        # x + γ·o(attention)
        out = self.o(attended).to(hidden_states.dtype)
        return torch.addcmul(hidden_states, out, self.gamma.to(out.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # In the files γ is (), as in the original's.
        if (name := f"{prefix}gamma") in state_dict:
            state_dict[name] = state_dict[name].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)
