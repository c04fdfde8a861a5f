"""Functions with a backward pass of their own."""

import inspect
from typing import Any

import torch


class Function(torch.autograd.Function):
    """
    One whose `forward` knows its signature. Where there is a `setup_context`, torch looks it up in every call, which
    takes a host as long as three launches on a GPU.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
