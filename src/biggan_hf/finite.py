"""Whether weights and images are numbers."""

import math

import torch
from torch import Tensor, nn


class NotFiniteError(ValueError):
    """Pixels that are no numbers."""


@torch.no_grad()
def wrong_tensor(network: nn.Module) -> str | None:
    """What is wrong with the first weight or statistic that no image can be made of; `None` if all are right."""
    for name, tensor in network.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = (value.item() for value in tensor.aminmax())
        if not (math.isfinite(least) and math.isfinite(most)):
            return f"{name!r} holds numbers that are not finite"
        if name.endswith("_var") and least < 0:
            return f"{name!r} holds negative variances"
    return None


def _zeros(network: nn.Module) -> str | None:
    """A weight of zeros has no largest singular value by which it could be divided; nor has one with such a vector."""
    tensors = network.state_dict().items()
    names = (name for name, tensor in tensors if name.endswith((".weight", ".u0")) and not tensor.any())
    return next((f"{name!r} holds zeros alone" for name in names), None)


def check_images(images: Tensor, network: nn.Module, waits: bool = False) -> Tensor:
    """The images; raises `NotFiniteError` if a pixel is not finite. On a GPU it looks only if it may wait."""
    if (waits or images.device.type == "cpu") and not images.isfinite().all():
        reason = wrong_tensor(network) or _zeros(network) or f"the numbers leave the range of {images.dtype}"
        raise NotFiniteError(f"the images hold numbers that are not finite: {reason}")
    return images
