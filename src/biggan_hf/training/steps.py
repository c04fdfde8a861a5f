"""One update of each player. Everything comes in as an argument; what to log goes back detached, on the device."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..losses import discriminator_hinge_loss, generator_hinge_loss
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


@dataclass(frozen=True)
class Batch:
    """`inputs`: latents (N, z_dim), or pictures (N, C, H, W) in [-1, 1]; `class_labels` (N,), or `None`."""

    inputs: Tensor
    class_labels: Tensor | None


@dataclass(frozen=True)
class Players:
    """Both networks and their optimisers, as `Accelerator.prepare` returned them."""

    accelerator: Accelerator
    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer

    @property
    def bare_generator(self) -> BigGANModel:
        return self.accelerator.unwrap_model(self.generator)

    @property
    def bare_discriminator(self) -> BigGANDiscriminator:
        return self.accelerator.unwrap_model(self.discriminator)


def discriminator_step(players: Players, micro_batches: Sequence[tuple[Batch, Batch]]) -> dict[str, Tensor]:
    """
    One update of the discriminator on the mean loss of (latents, pictures) micro-batches.

    Returns:
        Scalars of the last micro-batch: the loss, and the share of real and of fake pictures it told right.
    """
    accelerator, optimizer = players.accelerator, players.discriminator_optimizer
    players.bare_discriminator.requires_grad_(True)
    optimizer.zero_grad()
    for index, (latents, real) in enumerate(micro_batches):
        with _reduce_gradients(accelerator, players.discriminator, index == len(micro_batches) - 1):
            with torch.no_grad():
                fake = players.bare_generator(latents.inputs, latents.class_labels).images
            # One forward for both, so that spectral norm sees them with the same singular vectors.
            both = torch.cat([fake.to(real.inputs.dtype), real.inputs])
            logits = players.discriminator(both, _cat_labels(latents, real)).logits.float()
            fake_logits, real_logits = logits.split([len(fake), len(real.inputs)])
            loss = discriminator_hinge_loss(real_logits, fake_logits)
            accelerator.backward(loss / len(micro_batches))
    optimizer.step()
    return {
        "discriminator_loss": loss.detach(),
        "real_accuracy": (real_logits > 0).float().mean(),
        "fake_accuracy": (fake_logits < 0).float().mean(),
    }


def generator_step(players: Players, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
    """One update of the generator on the mean loss of micro-batches of latents; returns the last one's loss."""
    accelerator, optimizer = players.accelerator, players.generator_optimizer
    # Frozen and without its wrapper: no gradient of the discriminator is computed, let alone exchanged.
    discriminator = players.bare_discriminator.requires_grad_(False)
    optimizer.zero_grad()
    for index, latents in enumerate(micro_batches):
        with _reduce_gradients(accelerator, players.generator, index == len(micro_batches) - 1):
            fake = players.generator(latents.inputs, latents.class_labels).images
            loss = generator_hinge_loss(discriminator(fake, latents.class_labels).logits.float())
            accelerator.backward(loss / len(micro_batches))
    optimizer.step()
    return {"generator_loss": loss.detach()}


def _reduce_gradients(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Any:
    """Processes exchange gradients once an update, in the backward pass of the last micro-batch."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(model)


def _cat_labels(fake: Batch, real: Batch) -> Tensor | None:
    if fake.class_labels is None or real.class_labels is None:
        return None
    return torch.cat([fake.class_labels, real.class_labels])
