"""
How the two networks learn: one update of the discriminator, and one of the generator.

The discriminator D learns to tell real pictures from generated ones. The generator G learns to make pictures that D
takes for real (paper, section 2). An update may be larger than what a device holds. Then it comes in micro-batches,
whose gradients add up to that of the whole batch. Scalars for the log stay on the device: no step waits for it.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from ..spectral_norm import SpectralNorm
from .augment import diff_augment
from .losses import LOSSES, orthogonal_regularization_gradient, r1_penalty


# What a step is given


@dataclass(frozen=True)
class Latents:
    z: Tensor  # (N, z_dim)
    class_labels: Tensor | None  # (N,); `None` without classes


@dataclass(frozen=True)
class Pictures:
    pixel_values: Tensor  # (N, C, H, W) in [-1, 1]
    class_labels: Tensor | None


@dataclass(frozen=True)
class Players:
    """Both networks and their optimisers, as `Accelerator.prepare` returned them."""

    accelerator: Accelerator
    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer

    # Without the wrapper that exchanges gradients between processes

    @functools.cached_property
    def bare_generator(self) -> BigGANModel:
        return self.accelerator.unwrap_model(self.generator)

    @functools.cached_property
    def bare_discriminator(self) -> BigGANDiscriminator:
        return self.accelerator.unwrap_model(self.discriminator)

    # By name

    @property
    def networks(self) -> dict[str, Any]:
        return {"generator": self.bare_generator, "discriminator": self.bare_discriminator}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}


@dataclass(frozen=True)
class Objective:
    """What the two players minimise, and how."""

    loss: str = "hinge"  # a row of `LOSSES`
    generator_orthogonality: float = 0.0  # β of the orthogonal regularisation (paper, section 3.1)
    r1_gamma: float = 0.0  # γ of the discriminator's R1 penalty (paper, section 4.2); 0 for none
    diff_augment: bool = False  # augments all pictures on their way to the discriminator
    # Spectral norms take a power iteration in every forward, as in BigGAN-PyTorch. Otherwise they take one in the
    # first micro-batch of an update: the others see the same function, and their gradients add up to that of all.
    iterate_every_forward: bool = False


# The updates


def discriminator_step(
    players: Players, micro_batches: Sequence[tuple[Latents, Pictures]], objective: Objective
) -> dict[str, Tensor]:
    """
    One update of D on the mean loss of the micro-batches. Returns the norm of the gradient, and of the last one
    the loss and the shares of real and of generated pictures that D told right.
    """
    accelerator, optimizer = players.accelerator, players.discriminator_optimizer
    discriminator_loss, _ = LOSSES[objective.loss]
    _require_gradients(optimizer, True)
    optimizer.zero_grad()

    for index, (latents, real) in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        _iterate_spectral_norms(players, objective.iterate_every_forward or index == 0)
        with _exchange_gradients(accelerator, players.discriminator, is_last), _attention_kernels(objective):
            # G is fixed: its pictures G(z) are inputs like the real pictures x.
            with torch.no_grad():
                images = players.bare_generator(latents.z, latents.class_labels).images.to(real.pixel_values.dtype)
            fake, real = _augment(Pictures(images, latents.class_labels), objective), _augment(real, objective)

            # L_D = E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] for the hinge loss (paper, section 3).
            fake_logits, real_logits = _logits(players.discriminator, fake, real)
            loss = discriminator_loss(real_logits, fake_logits)

            # Regularisers of D that are computed from pictures: γ/2 E‖∇D(x)‖² (paper, section 4.2).
            penalty = _r1(players, real, objective) if objective.r1_gamma else 0.0

            accelerator.backward((loss + penalty) / len(micro_batches))

    gradient_norm = _gradient_norm(accelerator, optimizer)
    optimizer.step()
    return {
        "discriminator_gradient": gradient_norm,
        "discriminator_loss": loss.detach(),
        "real_accuracy": (real_logits > 0).float().mean(),
        "fake_accuracy": (fake_logits < 0).float().mean(),
    }


def generator_step(players: Players, micro_batches: Sequence[Latents], objective: Objective) -> dict[str, Tensor]:
    """As `discriminator_step`, for G. Returns the loss of the last micro-batch, and the norm of the gradient."""
    accelerator, optimizer = players.accelerator, players.generator_optimizer
    _, generator_loss = LOSSES[objective.loss]
    # D is fixed, and called without its wrapper: its own gradients are neither computed nor exchanged.
    discriminator = players.bare_discriminator
    _require_gradients(players.discriminator_optimizer, False)
    optimizer.zero_grad()

    for index, latents in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        _iterate_spectral_norms(players, objective.iterate_every_forward or index == 0)
        with _exchange_gradients(accelerator, players.generator, is_last):
            # L_G = -E[D(G(z))] for the hinge loss (paper, section 3).
            images = players.generator(latents.z, latents.class_labels).images
            fake = _augment(Pictures(images, latents.class_labels), objective)
            loss = generator_loss(_in_float32(discriminator(fake.pixel_values, fake.class_labels).logits))
            accelerator.backward(loss / len(micro_batches))

    # Regularisers of G that are computed from weights: their gradients are added once an update (paper, section 3.1).
    _add_orthogonality(accelerator, players.bare_generator, objective.generator_orthogonality)

    gradient_norm = _gradient_norm(accelerator, optimizer)
    optimizer.step()
    return {"generator_loss": loss.detach(), "generator_gradient": gradient_norm}


# Pictures and logits


def _augment(pictures: Pictures, objective: Objective) -> Pictures:
    if not objective.diff_augment:
        return pictures
    return Pictures(diff_augment(pictures.pixel_values), pictures.class_labels)


def _logits(discriminator: nn.Module, fake: Pictures, real: Pictures) -> tuple[Tensor, Tensor]:
    """D(G(z)) and D(x), from one forward: both meet the same singular vectors."""
    labels = None
    if fake.class_labels is not None and real.class_labels is not None:
        labels = torch.cat([fake.class_labels, real.class_labels])
    logits = _in_float32(discriminator(torch.cat([fake.pixel_values, real.pixel_values]), labels).logits)
    return logits[: len(fake.pixel_values)], logits[len(fake.pixel_values) :]


def _in_float32(logits: Tensor) -> Tensor:
    """Losses are computed in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# Regularisers


def _r1(players: Players, real: Pictures, objective: Objective) -> Tensor:
    """γ times the R1 penalty. It takes a forward of its own, on the real pictures alone."""
    _iterate_spectral_norms(players, objective.iterate_every_forward)
    pixel_values = real.pixel_values.detach().requires_grad_()
    logits = players.discriminator(pixel_values, real.class_labels).logits
    return objective.r1_gamma * r1_penalty(_in_float32(logits), pixel_values)


def _attention_kernels(objective: Objective) -> Any:
    """
    R1 needs a second derivative, and the fused kernels of attention have none. The choice of kernels lasts until the
    end of the backward pass, where activation checkpointing runs the forward again.
    """
    return sdpa_kernel(SDPBackend.MATH) if objective.r1_gamma else contextlib.nullcontext()


@torch.no_grad()
def _add_orthogonality(accelerator: Accelerator, generator: BigGANModel, strength: float) -> None:
    """Adds β times the gradient of the regulariser to every weight but the shared class embedding."""
    if not strength:
        return
    for name, weight in generator.named_parameters():
        if weight.ndim >= 2 and name != "class_embedding.weight" and weight.grad is not None:
            gradient = orthogonal_regularization_gradient(weight)
            weight.grad.add_(_scaled(accelerator, gradient), alpha=strength)


# Gradients


def _require_gradients(optimizer: torch.optim.Optimizer, required: bool) -> None:
    """Of the weights that learn. No optimiser holds the frozen ones."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(required)


def _iterate_spectral_norms(players: Players, iterates: bool) -> None:
    """Whether the next forwards of both networks take a power iteration, or use the vectors of the last one again."""
    for network in players.networks.values():
        for module in network.modules():
            if isinstance(module, SpectralNorm) and module.iterates is not iterates:
                module.iterates = iterates


def _exchange_gradients(accelerator: Accelerator, network: nn.Module, is_last: bool) -> Any:
    """Processes exchange gradients once an update, in the backward pass of the last micro-batch."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(network)


def _scaled(accelerator: Accelerator, gradient: Tensor) -> Tensor:
    """With float16, gradients are multiplied by the scale of the loss until the optimiser steps."""
    return gradient if accelerator.scaler is None else accelerator.scaler.scale(gradient)


def _gradient_norm(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> Tensor:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm / _scaled(accelerator, torch.ones_like(norm))
