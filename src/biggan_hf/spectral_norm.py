"""
Spectral normalisation: W / σ(W), the largest singular value estimated by one power iteration a training forward.

Source: Miyato et al. 2018, arXiv:1802.05957, algorithm 1; the function is that of BigGAN-PyTorch's `layers.py`
(github.com/ajbrock/BigGAN-PyTorch).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .autograd import Function
from .kernels import KeptKernel


def is_recomputing() -> bool:
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


# Up to this many values a weight is copied beside others of its shape: the copy costs less than eight more operations
# on vectors.
STACKED_WEIGHT = {"cpu": 2**16, "cuda": 2**22}


class Estimate(NamedTuple):
    """The singular vectors u (1, rows) and v (1, columns) and σ = u W vᵀ, a scalar; constants for autograd."""

    u: Tensor
    v: Tensor
    sigma: Tensor


class SpectralNorm(Float32Buffers, KeptKernel):
    """
    What the normalised layers share: a mixin in front of a layer that has a `weight`.

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
    _estimate: Estimate | None = None  # of this training forward, taken for all layers at its start

    def _register_spectral_norm(self, eps: float) -> None:
        rows, columns = self.weight.shape[0], self.weight[0].numel()
        self.spectral_norm_eps = eps
        self.register_buffer("u0", torch.randn(1, rows, dtype=torch.float32))
        self.register_buffer("sv0", torch.ones(1, dtype=torch.float32))
        self.register_buffer("v0", torch.zeros(1, columns, dtype=torch.float32), persistent=False)

    def matrix(self) -> Tensor:
        """The weight (rows, columns), detached, in float32 at least."""
        weight = self.weight.detach().flatten(1)
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def normalized_weight(self) -> Tensor:
        """
        W / σ(W), in the weight's own shape and dtype.

        In training the stepped vectors are stored. In eval mode the same step is taken and not stored.
        """
        if not self.training:
            return _DivideBySigma.apply(self.weight, *estimates([self], iterate=True)[0])
        if self._estimate is None:
            power_iteration([self])
        estimate = cast(Estimate, self._estimate)
        if not torch.compiler.is_compiling():
            self._estimate = None
        return _DivideBySigma.apply(self.weight, *estimate)

    def divisor(self) -> Tensor:
        return estimates([self], iterate=True)[0].sigma.to(self.weight.dtype)

    def kernel_sources(self) -> list[Tensor]:
        return [self.weight, self.u0]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_estimate": None}


class _DivideBySigma(Function):
    """W / σ with ∂σ/∂W = u vᵀ, hence the gradient (G - <G, W>/σ · u vᵀ) / σ for an incoming G."""

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


def iterate_in_training(network: nn.Module) -> None:
    """What every training forward begins with: a step of all the layers that are in training."""
    power_iteration([m for m in network.modules() if isinstance(m, SpectralNorm) and m.training])


@torch.no_grad()
def power_iteration(layers: Sequence[SpectralNorm]) -> None:
    """A step of all the layers (or the last step's vectors again, see `SpectralNorm.iterates`), stored."""
    iterate = all(layer.iterates for layer in layers) and not is_recomputing()
    found = estimates(layers, iterate)
    for layer, estimate in zip(layers, found, strict=True):
        layer._estimate = estimate
    if iterate and layers:
        us, vs, sigmas = zip(*found, strict=True)
        torch._foreach_copy_([layer.u0 for layer in layers], us)
        torch._foreach_copy_([layer.v0 for layer in layers], vs)
        torch._foreach_copy_([layer.sv0 for layer in layers], [sigma[None] for sigma in sigmas])


@torch.no_grad()
def estimates(layers: Sequence[SpectralNorm], iterate: bool) -> list[Estimate]:
    """
    v ← W'u / |W'u|, u ← Wv / |Wv|, σ = u'Wv of each layer, from the stored u, or with `iterate=False` from the stored
    v. Small layers of one shape take two matrix products together.
    """
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
    eps = layers[0].spectral_norm_eps
    with torch.autocast(layers[0].weight.device.type, enabled=False):
        weights = _stack([layer.matrix() for layer in layers])  # (layers, rows, columns)
        if iterate:
            u = _stack([layer.u0 for layer in layers]).to(weights.dtype)
            v = F.normalize(u @ weights, dim=2, eps=eps)
        else:
            v = _stack([layer.v0 for layer in layers]).to(weights.dtype, copy=True)
        weights_v = v @ weights.mT  # (layers, 1, rows)
        u = F.normalize(weights_v, dim=2, eps=eps)
        sigma = (weights_v * u).sum(dim=(1, 2))
    return map(Estimate, u.unbind(), v.unbind(), sigma.unbind())


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
