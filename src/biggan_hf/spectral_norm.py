"""
Spectral normalisation, W / σ(W). Each training forward takes one power iteration to estimate σ, the largest singular
value.

Source: Miyato et al. 2018, arXiv:1802.05957, algorithm 1; the function is that of BigGAN-PyTorch's `layers.py`
(github.com/ajbrock/BigGAN-PyTorch).
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .eval_mode import FoldableWeight


# The normalised layers


class Float32Buffers(nn.Module):
    # Keeps its buffers in float32 when the module is cast to half precision, as by `.to(torch.bfloat16)`.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in (torch.bfloat16, torch.float16):
                self._buffers[name] = before[name].to(buffer.device, torch.float32)  # type: ignore[union-attr]
        return self


class Estimate(NamedTuple):
    # Constants for autograd.
    u: Tensor  # (1, rows)
    v: Tensor  # (1, columns)
    sigma: Tensor  # u W vᵀ, a scalar


class SpectralNorm(Float32Buffers, FoldableWeight):
    """
    What the normalised layers share: a mixin in front of a layer that has a `weight`.

    In training, a network calls `iterate_in_training` at the start of its forward. The layer divides by the σ that
    this found, until the next call: activation checkpointing runs parts of the forward again and meets the same σ.
    Eval mode also takes a step and does not store it, as in BigGAN-PyTorch.
    """

    weight: Tensor
    # Buffers, float32, named as in the original checkpoints.
    u0: Tensor  # (1, rows), the left singular vector from which the next step starts
    sv0: Tensor  # (1,), the last σ, for logging
    v0: Tensor  # (1, columns), the right singular vector of the last training forward; it is not saved
    # The smallest norm by which a vector is divided.
    spectral_norm_eps: float
    # What the last `power_iteration` found.
    _estimate: Estimate | None = None

    def _register_spectral_norm(self, eps: float) -> None:
        rows, columns = self.weight.shape[0], self.weight[0].numel()
        self.spectral_norm_eps = eps
        self.register_buffer("u0", torch.randn(1, rows, dtype=torch.float32))
        self.register_buffer("sv0", torch.ones(1, dtype=torch.float32))
        self.register_buffer("v0", torch.zeros(1, columns, dtype=torch.float32), persistent=False)

    def normalized_weight(self) -> Tensor:
        # W / σ(W), in the weight's own shape and dtype.
        estimate = self._estimate if self.training else estimates([self], iterate=True)[0]
        if estimate is None:
            raise RuntimeError("a spectrally normalised layer in training needs a call of iterate_in_training first")
        if torch.compiler.is_exporting():  # a graph for others: operations that engines know
            sigma = estimate.u @ self.weight.flatten(1).to(estimate.u.dtype) @ estimate.v.mT
            return self.weight / sigma.to(self.weight.dtype)
        return _DivideBySigma.apply(self.weight, *estimate)

    def _drop(self) -> None:
        super()._drop()
        self._estimate = None

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The same layer without spectral norm: its weight is the W / σ(W) of eval mode."""
        weight = nn.Parameter(self.weight / estimates([self], iterate=True)[0].sigma.to(self.weight.dtype))
        weight.requires_grad_(self.weight.requires_grad)
        layer: nn.Module = copy.copy(self)
        layer.__class__ = type(self).__bases__[1]
        layer._parameters, layer._buffers = {**self._parameters, "weight": weight}, {}
        layer._non_persistent_buffers_set = set()
        return layer

    def kernel_sources(self) -> list[Tensor]:
        return [self.weight, self.u0]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_estimate": None}


class _DivideBySigma(torch.autograd.Function):
    # W / σ with ∂σ/∂W = u vᵀ, hence the gradient (G - <G, W>/σ · u vᵀ) / σ for an incoming G.

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        return weight / sigma.to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, u, v, sigma = ctx.saved_tensors
        matrix = gradient.flatten(1).to(u.dtype)
        inner = torch.linalg.vecdot(matrix.flatten(), weight.flatten().to(u.dtype))
        matrix = torch.addmm(matrix, (u * (inner / sigma)).t(), v, alpha=-1).div_(sigma)
        return matrix.to(weight.dtype).view_as(weight), None, None, None


# Power iteration of all layers together: a network has about ninety, and each takes only a few small operations

# Weights of at most so many values are stacked with others of their shape. The copy costs less than eight more vector
# operations.
STACKED_WEIGHT = {"cpu": 2**16, "cuda": 2**22}


def iterate_in_training(network: nn.Module, iterate: bool = True) -> None:
    """Begins a training forward: one power iteration of every layer in training mode."""
    if layers := [m for m in network.modules() if isinstance(m, SpectralNorm) and m.training]:
        power_iteration(layers, iterate)


def power_iteration(layers: Sequence[SpectralNorm], iterate: bool = True) -> None:
    """
    Takes one step of all layers and stores it. With `iterate=False` their weights have not changed since the last
    step: they use what it found again, or after a load or a move make it anew from its vectors.
    """
    if not iterate and all(layer._estimate is not None for layer in layers):
        return
    found = estimates(layers, iterate)
    for layer, estimate in zip(layers, found, strict=True):
        layer._estimate = estimate
    if iterate:
        us, vs, sigmas = zip(*found, strict=True)
        torch._foreach_copy_([layer.u0 for layer in layers], us)
        torch._foreach_copy_([layer.v0 for layer in layers], vs)
        torch._foreach_copy_([layer.sv0 for layer in layers], [sigma[None] for sigma in sigmas])


def estimates(layers: Sequence[SpectralNorm], iterate: bool) -> list[Estimate]:
    """One step of each layer from its stored u, or with `iterate=False` from its stored v. Stores nothing."""
    if any(hasattr(layer.weight, "full_tensor") for layer in layers):
        raise ValueError(
            "spectral norm needs whole weights, and these are sharded (DTensor): call fully_shard once, for the whole "
            "network, and fold_spectral_norm before it"
        )
    # Small layers of one shape share two matrix products.
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        alone = index if layer.weight.numel() > STACKED_WEIGHT.get(layer.weight.device.type, 0) else None
        shape = layer.weight.shape[0], layer.weight[0].numel()
        groups[shape, alone, layer.weight.dtype, layer.spectral_norm_eps].append(index)
    found: dict[int, Estimate] = {}
    for indices in groups.values():
        found |= zip(indices, _estimates_of_a_shape([layers[i] for i in indices], iterate), strict=True)
    return [found[index] for index in range(len(layers))]


def _estimates_of_a_shape(layers: Sequence[SpectralNorm], iterate: bool) -> Iterator[Estimate]:
    eps, device = layers[0].spectral_norm_eps, layers[0].weight.device.type
    # Not without need: an exported graph would hold the context, and not every engine takes it.
    # The meta device has no autocast to ask for.
    is_cast = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if is_cast else nullcontext():
        weights = _stack([layer.weight.detach().flatten(1) for layer in layers])  # (layers, rows, columns)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        # v ← Wᵀu / |Wᵀu|
        if iterate:
            u = _stack([layer.u0 for layer in layers]).to(weights.dtype)
            v = F.normalize(u @ weights, dim=2, eps=eps)
        else:
            v = _stack([layer.v0 for layer in layers]).to(weights.dtype, copy=True)
        # u ← Wv / |Wv|, σ = uᵀWv
        weights_v = v @ weights.mT  # (layers, 1, rows)
        u = F.normalize(weights_v, dim=2, eps=eps)
        sigma = (weights_v * u).sum(dim=(1, 2))
    return map(Estimate, u.unbind(), v.unbind(), sigma.unbind())


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
