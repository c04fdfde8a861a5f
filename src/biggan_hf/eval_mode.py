"""
Networks in eval mode. The kernel of a layer, W / σ(W) where it is spectrally normalised, is made once for many
forwards. A network can be used so while other threads train it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from .devices import fastest_format
from .ops import is_plain, pays_in_tiles, weight_in_tiles


Network = TypeVar("Network", bound=nn.Module)


# Folded kernels


class Folded(NamedTuple):
    """A kernel, and what it was made of."""

    kernel: Tensor
    sources: list[Tensor]
    memory: list[Tensor]  # of each source: holds its memory, so that nothing else comes to lie there
    versions: list[int]  # of each source: how many writes autograd had counted

    def is_fresh(self, sources: Sequence[Tensor]) -> bool:
        # Whether these are the same tensors in the same memory, and autograd has counted no write to them since.
        return all(
            source is own and source.data_ptr() == memory.data_ptr() and source._version == version
            for source, own, memory, version in zip(sources, *self[1:], strict=True)
        )


class FoldableWeight(nn.Module):
    """
    A mixin in front of a layer that has a `weight` and computes with `kernel()`.

    Unless the layer is folded, every forward makes the kernel. Eval mode uses a folded kernel, unless the weight needs
    a gradient. Training mode, loading, moving and casting drop it. An exported graph has no folded kernel: it holds
    the weights themselves.
    """

    weight: Tensor
    may_fold_in_tiles = False
    _folded: Folded | None = None

    def normalized_weight(self) -> Tensor:
        return self.weight

    def kernel_sources(self) -> list[Tensor]:
        """What the kernel of eval mode depends on."""
        return [self.weight]

    def kernel(self) -> Tensor:
        folded = self._folded
        wants_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        if folded is None or self.training or wants_gradient or is_plain() or torch.compiler.is_exporting():
            return self.normalized_weight()
        # A compiled forward cannot check. `drop_stale_folds` has done so before it.
        if torch.compiler.is_compiling() or folded.is_fresh(self.kernel_sources()):
            return folded.kernel
        return self.normalized_weight()

    def fold(self) -> bool:
        """Makes the kernel and returns True. Returns False where it is fresh already or cannot be kept."""
        sources = self.kernel_sources()
        untracked = any(source.is_meta or source.is_inference() for source in sources)
        if self.training or untracked or ((folded := self._folded) and folded.is_fresh(sources)):
            return False
        # Autograd cannot use a tensor of inference mode, and a caller may want gradients of the latents.
        with torch.inference_mode(False), torch.no_grad():
            kernel = self.normalized_weight()
            if self.may_fold_in_tiles and pays_in_tiles(kernel):
                kernel = weight_in_tiles(kernel)
            elif kernel.ndim == 4:
                kernel = kernel.contiguous(memory_format=fastest_format(kernel.device, kernel.dtype))
            memory = [source.detach() for source in sources]
        self._folded = Folded(kernel, sources, memory, [source._version for source in sources])
        return True

    # What ends a folded kernel

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._folded = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drop()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop()
        super()._load_from_state_dict(*args, **kwargs)

    def _drop(self) -> None:
        # Drops what was made of weights that are moved, cast or loaded.
        self._folded = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy (deepcopy or pickle) makes its own kernel.
        return {name: value for name, value in self.__dict__.items() if name != "_folded"}


def _count_write(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    # Optimisers write to weights and do not count the writes: fused ones anywhere (torch 2.13), and on a GPU all that
    # use `torch._foreach_…`, which is their default (torch 2.11). This counts for them.
    for group in optimizer.param_groups:
        increment_version(group["params"])


register_optimizer_step_post_hook(_count_write)


def fold(network: nn.Module) -> list[FoldableWeight]:
    """Folds all weights of a network in eval mode that are not folded, or no longer fresh; returns those layers."""
    try:
        return [module for module in network.modules() if isinstance(module, FoldableWeight) and module.fold()]
    except BaseException:  # as where memory is short
        unfold(network)
        raise


def drop_stale_folds(network: nn.Module) -> None:
    for module in network.modules():
        folded = module._folded if isinstance(module, FoldableWeight) else None  # once: another thread may drop it
        if isinstance(module, FoldableWeight) and folded and not folded.is_fresh(module.kernel_sources()):
            module._folded = None


def unfold(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, FoldableWeight):
            module._folded = None


@contextmanager
def folded_weights(network: nn.Module) -> Iterator[None]:
    """Inside the block, all forwards in eval mode use the same kernels. They are dropped at its end."""
    folded = fold(network)
    try:
        yield
    finally:
        for layer in folded:
            layer._folded = None


# A network in eval mode, while other threads may use it in training


def eval_view(network: Network) -> Network:
    """
    The parameters and buffers of a network in modules of their own, which are in eval mode and are not compiled. The
    modes of the network stay: other threads may use it.
    """
    view = copy.copy(network)
    view._modules = {name: child and eval_view(child) for name, child in network._modules.items()}
    view.training = False
    forward = vars(view).pop("forward", None)  # accelerate's wrapper, which sets the precision
    if isinstance(forward, MethodType):
        view.forward = MethodType(forward.__func__, view)
    return view


def in_eval_mode(network: Network) -> Network:
    """The network itself if all of it is in eval mode, or else a view."""
    return eval_view(network) if any(module.training for module in network.modules()) else network
