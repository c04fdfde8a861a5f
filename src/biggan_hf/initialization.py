"""The values with which the weights of a new network begin."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .layers import BatchNorm2d, ConditionalBatchNorm2d, SelfAttention
from .spectral_norm import SpectralNorm


@torch.no_grad()
def init_weights(module: nn.Module, initializer: str) -> None:
    """Gives the weights of one layer their first values; leaves those that transformers has loaded as they are."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        init_weight(module.weight, initializer)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            init.zeros_(bias)
    # The checkpoint has no singular vectors: start from a random u, which the first steps correct.
    if isinstance(module, SpectralNorm):
        init.normal_(module.u0)
        init.ones_(module.sv0)
        init.zeros_(module.v0)
    if isinstance(module, BatchNorm2d):
        init.ones_(module.gain)
        init.zeros_(module.bias)
    if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d):
        for name, buffer in module.named_buffers(recurse=False):
            (init.ones_ if name.endswith("var") else init.zeros_)(buffer)
    # Attention begins as the identity: γ = 0.
    if isinstance(module, SelfAttention):
        init.zeros_(module.gamma)


def init_weight(weight: Tensor, initializer: str) -> None:
    """`initializer`: "orthogonal" (paper, appendix C), "normal" (standard deviation 0.02) or "xavier_uniform"."""
    if initializer == "normal":
        init.normal_(weight, std=0.02)
    else:
        (init.orthogonal_ if initializer == "orthogonal" else init.xavier_uniform_)(weight)
