"""Functions with a backward pass of their own."""

from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers


class Function(torch.autograd.Function):
    """
    One whose arguments are given by position and all of them. Where there is a `setup_context`, torch looks up the
    signature of `forward` in every call and binds the arguments to it, which takes a host as long as several launches
    on a GPU.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
