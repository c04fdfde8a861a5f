"""The kernels that evaluation computes with: made once of a weight, and anew when the weight has changed."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from .onednn import can_pack, may_pack


Forward = TypeVar("Forward")

# What a layer keeps, and whether it may trust it, belongs to one forward at a time.
_FORWARD = threading.RLock()


class Kept(NamedTuple):
    """A kernel, and what it was made of: the tensors, which share memory and version with the layer's own, their
    versions, and sums of their values with what each column is multiplied by."""

    kernel: Tensor
    sources: list[Tensor]
    versions: list[int]
    multiples: Tensor
    probe: Tensor
    is_packed: bool = False


class KeptKernel(nn.Module):
    """
    A mixin in front of a layer that has a `weight` and computes with something made of it.

    In eval mode and without gradients this kernel is kept: it costs the memory of another weight, of 16/9 of one
    in tiles (see `winograd`), and all that is done to a weight (spectral norm, the form of a resampling convolution,
    the memory format) is done once.
    """

    weight: Tensor
    _kept: Kept | None = None
    _trusts_kept: bool = False
    _packs: bool = False  # in this forward, see `onednn`

    def kernel_sources(self) -> list[Tensor]:
        """What the kernel depends on, the weight first."""
        return [self.weight]

    def divisor(self) -> Tensor | None:
        """What normalises the weight in eval mode, a scalar."""
        return None

    def normalized_weight(self) -> Tensor:
        return self.weight

    def arrange(self, weight: Tensor) -> Tensor:
        """A weight in the form in which the layer's operation takes it."""
        return weight

    def kernel(self) -> Tensor:
        """The normalised weight, arranged."""
        trusted = self._trusts_kept
        if not trusted and self._can_keep():
            _refresh([self])
            trusted = True
        kept = self._kept if trusted and not self._is_unfit() else None
        return self.arrange(self.normalized_weight()) if kept is None else kept.kernel

    def _is_unfit(self) -> bool:
        """Whether a hook has asked, in the midst of a forward, for what a kernel made at its start does not give."""
        if torch.compiler.is_compiling():
            return False
        wants_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        return wants_gradient or (self.kernel_is_packed() and not may_pack())

    def packed_kernel(self, pack: Callable[[Tensor], Tensor], serves: Callable[[Tensor], bool]) -> tuple[Tensor, bool]:
        """The kernel and whether it is packed: where it is kept, and the forward packs, it is from now on, and anew if
        one that is packed does not serve."""
        kernel, kept = self.kernel(), self._kept
        if kept is None or kernel is not kept.kernel:
            return kernel, False
        if not self._packs_now() or (serves(kernel) if kept.is_packed else not can_pack(kernel)):
            return kernel, kept.is_packed
        if kept.is_packed:
            del kernel, kept  # and their memory, before others are made
            self._kept = None
            kept = self._keep()
        self._kept = kept._replace(kernel=pack(kept.kernel), is_packed=True)
        return self._kept.kernel, True

    def _packs_now(self) -> bool:
        """Not in a part of a network that is compiled, nor where a hook has asked for what packed kernels have not."""
        return self._packs and not torch.compiler.is_compiling() and may_pack()

    def _can_keep(self) -> bool:
        """Not where a gradient is wanted or the weight is another function's variable, as in `functional_call`; nor
        inside a transform such as `torch.func.grad`, whose tensors are of no use after it; nor in `torch.jit.trace`,
        which records the making of a kernel once, and knows no packed one."""
        is_watched = torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()
        return (
            not (self.training or torch.compiler.is_compiling() or is_watched)
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
            and isinstance(self.weight, nn.Parameter)
            and not self.weight.is_inference()
            and self.weight.device.type != "meta"
        )

    def _keep(self) -> Kept:
        sources = [tensor.detach() for tensor in self.kernel_sources()]
        with torch.inference_mode(False), torch.no_grad():
            kernel, divisor = self.arrange(self.weight), self.divisor()
            # Convolutions hand on the map in their kernel's format.
            layout = self._fastest_format() if kernel.ndim == 4 else torch.contiguous_format
            if divisor is None:
                kernel = kernel.contiguous(memory_format=layout)
            else:  # one pass over memory, which is what a first image waits for
                kernel = torch.div(kernel, divisor, out=torch.empty_like(kernel, memory_format=layout))
            multiples = _multiples(sources[0])
            kept = Kept(kernel, sources, [tensor._version for tensor in sources], multiples, multiples.new_empty(0))
            return kept._replace(probe=_sums([kept]))

    def _fastest_format(self) -> torch.memory_format:
        """That of convolutions on CPUs and tensor cores; a GPU's in float32 would bring it back into the usual one."""
        weight, convolutions = self.weight, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        on_tensor_cores = weight.dtype != torch.float32 or convolutions.fp32_precision == "tf32"
        return torch.channels_last if weight.device.type == "cpu" or on_tensor_cores else torch.contiguous_format

    def _is_kept(self) -> bool:
        """Whether there is a kernel, of these very tensors as they were by autograd's record of writes."""
        return self._kept is not None and all(
            tensor.data_ptr() == source.data_ptr()
            and tensor.stride() == source.stride()
            and tensor.shape == source.shape
            and tensor._version == version
            for tensor, source, version in zip(
                self.kernel_sources(), self._kept.sources, self._kept.versions, strict=True
            )
        )

    def _is_ready(self) -> bool:
        """Whether a compiled forward may take the kernel that there is, but for the values of the weight."""
        return not self._trusts_kept and self._can_keep() and self._is_kept() and not self.kernel_is_packed()

    def kernel_is_packed(self) -> bool:
        return self._kept is not None and self._kept.is_packed

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in memory or on disk, makes its own kernel."""
        own = ("_kept", "_trusts_kept", "_packs")
        return {name: value for name, value in self.__dict__.items() if name not in own}


def _rows(weight: Tensor) -> Tensor:
    """As a matrix, in the order in which it lies."""
    return weight.flatten(1) if weight.is_contiguous() else weight.movedim(1, -1).flatten(1)


def _multiples(weight: Tensor) -> Tensor:
    """
    What the columns are multiplied by. Nothing is near zero, which would hide a change, nor are two alike, which would
    hide an exchange: multiples of the golden ratio without their whole parts.
    """
    multiples = torch.arange(_rows(weight).shape[1], device=weight.device) * 40503 % 2**16  # exact, in integers
    return 0.5 + multiples.to(torch.promote_types(weight.dtype, torch.float32)) / 2**16


def _sums(kept: Sequence[Kept]) -> Tensor:
    """Of what each was made of, as it is now: a weighted sum of each row of the weight, and the vectors after it."""
    parts = []
    with torch.autocast(kept[0].kernel.device.type, enabled=False):  # which would round what is to tell small changes
        for kernel in kept:
            weight, *vectors = kernel.sources
            parts += [_rows(weight).to(kernel.multiples.dtype) @ kernel.multiples, *(v.flatten() for v in vectors)]
    return torch.cat(parts)


def _differ(kept: Sequence[Kept]) -> bool:
    """Whether the values of any have changed: one comparison of all, since it waits for the device."""
    return bool(kept) and not torch.equal(_sums(kept), torch.cat([kernel.probe for kernel in kept]))


def _refresh(layers: Sequence[KeptKernel], packing: Collection[KeptKernel] = ()) -> None:
    """
    Sees to it that the kernels of all layers that can keep one are those of their present weights, and packed only
    in layers that pack.

    Autograd's record of writes misses those of fused optimisers and through `.data`, as averages of weights are often
    copied. Of these sums of the weight's values tell.
    """
    keeping = [layer for layer in layers if layer._can_keep()]
    kept = [layer for layer in keeping if layer._is_kept() and (layer in packing or not layer.kernel_is_packed())]
    if _differ([layer._kept for layer in kept if layer._kept is not None]):
        kept = []
    for layer in set(layers) - set(kept):
        layer._kept = None
    for layer in set(keeping) - set(kept):
        layer._kept = layer._keep()


def run_compiled(network: nn.Module, forward: Callable[[], Forward]) -> Forward:
    """
    A forward of a compiled network in eval mode. That values were written past autograd's record is looked for while
    the GPU works, since this takes a host as long as a small batch takes a GPU; if it is so, the forward is run again
    (and what hooks saw of the first one is not what it gives).
    """
    layers = [module for module in network.modules() if isinstance(module, KeptKernel)]
    with _FORWARD:
        kept = [layer._kept for layer in layers if layer._is_ready() and layer._kept is not None]
        if len(kept) == len(layers):
            with _trusted(layers):
                result = forward()
            if not _differ(kept):
                return result
        with kept_kernels(network):
            return forward()


@contextmanager
def kept_kernels(network: nn.Module) -> Iterator[None]:
    """
    A forward of a network in which the layers that keep kernels do not look again whether these are fresh: all are
    seen to at the start. What `torch.compile` captures inside, if this is entered from outside, holds the kernels and
    not what makes them.
    """
    if torch.compiler.is_compiling():
        yield
        return
    modules = list(network.modules())
    kept = [module for module in modules if isinstance(module, KeptKernel) and not module.training]
    if not kept:
        yield
        return
    with _FORWARD:
        layers = [layer for layer in kept if not layer._trusts_kept]
        packing = set(layers) - _compiled(modules) if may_pack() else set()
        _refresh(layers, packing)
        with _trusted(layers, packing):
            yield


def _compiled(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those in a part that is compiled, by `compile()` or `torch.compile`, where a kernel that is packed would stay in
    the graph whatever is asked of it."""
    parts = [m for m in modules if m._compiled_call_impl is not None or "_orig_mod" in m._modules]
    return {module for part in parts for module in part.modules()}


@contextmanager
def _trusted(layers: Sequence[KeptKernel], packing: Collection[KeptKernel] = ()) -> Iterator[None]:
    _set(layers, _trusts_kept=True, _packs=False)  # as it is left, or what was compiled once would be compiled anew
    _set(packing, _packs=True)
    try:
        yield
    finally:
        _set(layers, _trusts_kept=False, _packs=False)


def _set(layers: Iterable[KeptKernel], **attributes: bool) -> None:
    """Without `nn.Module.__setattr__`, which for a network takes as long as the sums of a GPU."""
    for layer in layers:
        vars(layer).update(attributes)
