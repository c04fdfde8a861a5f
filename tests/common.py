"""What several test files share: configurations and networks small enough to run in milliseconds."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.layers import SelfAttention, SNConv2d, SNEmbedding, SNLinear, SNUpsampleConv2d, _BatchNorm
from biggan_hf.spectral_norm import SpectralNorm


ATTENTION = {"generator_attention_resolutions": [16], "discriminator_attention_resolutions": [16]}

# A row a kind of network: what it changes in `tiny_config()`.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention": ATTENTION,
    "deep": {"architecture": "biggan-deep", **ATTENTION},
    "per-layer labels": {"shared_class_embedding": False, "hierarchical_latents": False},
    "not hierarchical": {"hierarchical_latents": False},
    "unconditional": {"num_labels": 0},
    "deep unconditional": {"architecture": "biggan-deep", "num_labels": 0},
    "unconditioned": {"num_labels": 0, "hierarchical_latents": False},
    "grey": {"num_channels": 1},
    "narrow, no spectral norm": {
        "discriminator_wide": False,
        "generator_spectral_norm": False,
        "discriminator_spectral_norm": False,
    },
}

# A row a kind of spectrally normalised layer: what builds one, and what it may be called with.
SPECTRAL: dict[str, tuple[Callable[[], SpectralNorm], Tensor]] = {
    "conv": (lambda: SNConv2d(3, 8, 3, eps=1e-12), torch.randn(2, 3, 4, 4)),
    "up": (lambda: SNUpsampleConv2d(3, 8, 3, eps=1e-12), torch.randn(2, 3, 4, 4)),
    "linear": (lambda: SNLinear(12, 7), torch.randn(2, 12)),
    "embedding": (lambda: SNEmbedding(9, 6), torch.tensor([3, 0, 3])),
}


def tiny_config(**overrides: Any) -> BigGANConfig:
    """32 pixels, five classes, 16 channels, latents of 16; no attention."""
    settings: dict[str, Any] = {
        "image_size": 32,
        "num_labels": 5,
        "z_dim": 16,
        "class_embedding_dim": 6,
        "generator_base_channels": 4,
        "discriminator_base_channels": 4,
        "generator_attention_resolutions": [],
        "discriminator_attention_resolutions": [],
    }
    if "num_classes" in overrides or "id2label" in overrides:
        del settings["num_labels"]
    return BigGANConfig(**{**settings, **overrides})


def tiny_generator(**overrides: Any) -> BigGANModel:
    """A generator in eval mode, the same at each call, with no parameter or statistic left at its initial 0 or 1."""
    torch.manual_seed(0)
    return _perturbed(BigGANModel(tiny_config(**overrides)))


@torch.no_grad()
def with_standing_statistics(model: BigGANModel) -> BigGANModel:
    """The same model, whose rows of standing statistics all differ, and differ from the running ones."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.standing_mean.normal_(std=0.2)
            module.standing_var.uniform_(0.5, 1.5)
    return model


def tiny_discriminator(**overrides: Any) -> BigGANDiscriminator:
    """As `tiny_generator`."""
    torch.manual_seed(0)
    return _perturbed(BigGANDiscriminator(tiny_config(**overrides)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_latents(num_samples: int, config: BigGANConfig, seed: int = 0) -> Tensor:
    return torch.randn(num_samples, config.z_dim, generator=seeded(seed))


def tiny_labels(num_samples: int, config: BigGANConfig) -> Tensor | None:
    """0, 1, 2, … over the classes; `None` without classes."""
    return torch.arange(num_samples) % config.num_labels if config.num_labels else None


def tiny_images(num_samples: int, config: BigGANConfig, seed: int = 0) -> Tensor:
    """Noise in [-1, 1]."""
    shape = num_samples, config.num_channels, config.image_size, config.image_size
    return 2 * torch.rand(shape, generator=seeded(seed)) - 1


def tiny_inputs(
    model: BigGANModel | BigGANDiscriminator, num_samples: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """What the network is called with: latents or images, and labels."""
    draw = tiny_latents if isinstance(model, BigGANModel) else tiny_images
    return draw(num_samples, model.config, seed), tiny_labels(num_samples, model.config)


def saved_for_the_gradient(run: Callable[[], object]) -> list[Tensor]:
    """What autograd keeps of a forward for its backward pass."""
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return kept


@torch.no_grad()
def _perturbed(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.2 * torch.randn(parameter.shape))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, SelfAttention):
            module.gamma.fill_(0.7)
    return model.eval()


def in_two_processes(work: Callable[..., None], folder: Path, *args: Any) -> None:
    """
    Runs `work(rank, *args)` in two processes as `torchrun` starts them, but forked, so that nothing is imported anew.
    What they print goes to `folder/out 0` and `folder/out 1`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_as_rank, (port, folder, work, args), nprocs=2, start_method="fork")


def _as_rank(rank: int, port: int, folder: Path, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = open(folder / f"out {rank}", "w", buffering=1)
    work(rank, *args)


class Operations(TorchDispatchMode):
    """The names of the operations that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))
