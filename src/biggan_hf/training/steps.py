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
from .augment import diff_augment, shift
from .losses import LOSSES, consistency_penalty, gradient_penalties, orthogonal_regularization_gradient


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

    def iterate_spectral_norms(self, iterate: bool) -> None:
        """Whether the next forwards of both networks take a power iteration or use the last vectors again."""
        self.bare_generator.iterates = self.bare_discriminator.iterates = iterate


@dataclass(frozen=True)
class Objective:
    """What the two players minimise, and how."""

    loss: str = "hinge"  # a row of `LOSSES`
    generator_orthogonality: float = 0.0  # β of the orthogonal regularisation (paper, section 3.1)
    r1_gamma: float = 0.0  # γ of the discriminator's R1 penalty (paper, section 4.2); 0 for none
    r2_gamma: float = 0.0  # the same for R2, of generated pictures
    consistency: float = 0.0  # λ of the discriminator's consistency under shifts (arXiv:2002.04724); 0 for none
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
    _require_gradients(optimizer, True)
    optimizer.zero_grad()

    for index, (latents, real) in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        players.iterate_spectral_norms(objective.iterate_every_forward or index == 0)
        with _exchange_gradients(accelerator, players.discriminator, is_last), _attention_kernels(objective):
            # G is fixed: its pictures G(z) are inputs like the real pictures x.
            labels = _labels(latents, real, objective)
            with torch.no_grad():
                images = players.bare_generator(latents.z, labels).images.to(real.pixel_values.dtype)
            fake, real = _augment(Pictures(images, labels), objective), _augment(real, objective)
            fake, real = _with_slope(fake, objective.r2_gamma), _with_slope(real, objective.r1_gamma)

            # L_D = E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] for the hinge loss (paper, section 3).
            shifted = [_shifted(fake), _shifted(real)] if objective.consistency else []
            fake_logits, real_logits, *logits_of_shifted = _logits(players.discriminator, fake, real, *shifted)
            loss = LOSSES[objective.loss].of_discriminator(real_logits, fake_logits)

            # Regularisers of D that are computed from pictures: γ/2 E‖∇D(x)‖² (paper, section 4.2).
            shown = (objective.r1_gamma, real_logits, real), (objective.r2_gamma, fake_logits, fake)
            penalty = _gradient_penalty([kind for kind in shown if kind[0]])
            if objective.consistency:  # λ E[(D(x) - D(T(x)))²] of real and of generated pictures, each and shifted
                pairs = (fake_logits, real_logits), logits_of_shifted
                penalty = penalty + objective.consistency * consistency_penalty(*pairs)

            accelerator.backward((loss + penalty) / len(micro_batches))

    gradient_norm = _gradient_norm(accelerator, optimizer)
    optimizer.step()
    # Above the bar D takes a picture for real. A relativistic one only says which of two is more so.
    is_relative = LOSSES[objective.loss].is_relative
    real_bar, fake_bar = (fake_logits, real_logits) if is_relative else (0, 0)
    return {
        "discriminator_gradient": gradient_norm,
        "discriminator_loss": loss.detach(),
        "real_accuracy": (real_logits > real_bar).float().mean(),
        "fake_accuracy": (fake_logits < fake_bar).float().mean(),
    }


def generator_step(
    players: Players, micro_batches: Sequence[Latents], objective: Objective, compared: Sequence[Pictures] = ()
) -> dict[str, Tensor]:
    """
    As `discriminator_step`, for G. Returns the loss of the last micro-batch, and the norm of the gradient. A
    relativistic loss needs real pictures to compare with, for each of the micro-batches.
    """
    accelerator, optimizer = players.accelerator, players.generator_optimizer
    # D is fixed, and called without its wrapper: its own gradients are neither computed nor exchanged.
    discriminator = players.bare_discriminator
    _require_gradients(players.discriminator_optimizer, False)
    optimizer.zero_grad()

    reals = compared if LOSSES[objective.loss].is_relative else [None] * len(micro_batches)
    for index, (latents, real) in enumerate(zip(micro_batches, reals, strict=True)):
        is_last = index == len(micro_batches) - 1
        players.iterate_spectral_norms(objective.iterate_every_forward or index == 0)
        with _exchange_gradients(accelerator, players.generator, is_last):
            # L_G = -E[D(G(z))] for the hinge loss (paper, section 3).
            labels = _labels(latents, real, objective)
            fake = _augment(Pictures(players.generator(latents.z, labels).images, labels), objective)
            beside = [] if real is None else [_augment(real, objective)]
            loss = LOSSES[objective.loss].of_generator(*_logits(discriminator, fake, *beside))
            accelerator.backward(loss / len(micro_batches))

    # Regularisers of G that are computed from weights: their gradients are added once an update (paper, section 3.1).
    _add_orthogonality(accelerator, players.bare_generator, objective.generator_orthogonality)

    gradient_norm = _gradient_norm(accelerator, optimizer)
    optimizer.step()
    return {"generator_loss": loss.detach(), "generator_gradient": gradient_norm}


# Pictures and logits


def _labels(latents: Latents, real: Pictures | None, objective: Objective) -> Tensor | None:
    """Of the generated pictures. A relativistic loss compares pictures of one class."""
    has_classes, is_relative = latents.class_labels is not None, LOSSES[objective.loss].is_relative
    return real.class_labels if real is not None and is_relative and has_classes else latents.class_labels


def _augment(pictures: Pictures, objective: Objective) -> Pictures:
    if not objective.diff_augment:
        return pictures
    return Pictures(diff_augment(pictures.pixel_values), pictures.class_labels)


def _shifted(pictures: Pictures) -> Pictures:
    return Pictures(shift(pictures.pixel_values), pictures.class_labels)


def _logits(discriminator: nn.Module, *kinds: Pictures) -> tuple[Tensor, ...]:
    """D of each kind of pictures, from one forward: all meet the same singular vectors."""
    labels = [pictures.class_labels for pictures in kinds if pictures.class_labels is not None]
    pixel_values = torch.cat([pictures.pixel_values for pictures in kinds])
    logits = discriminator(pixel_values, torch.cat(labels) if len(labels) == len(kinds) else None).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # losses are computed in it or better
    return logits.split([len(pictures.pixel_values) for pictures in kinds])


# Regularisers


def _with_slope(pictures: Pictures, gamma: float) -> Pictures:
    """Where there is a penalty, autograd shall know the slope of D at these pictures."""
    return Pictures(pictures.pixel_values.detach().requires_grad_(bool(gamma)), pictures.class_labels)


def _gradient_penalty(kinds: Sequence[tuple[float, Tensor, Pictures]]) -> Tensor | float:
    """Σ γ/2 E‖∇D‖² over kinds of pictures, each with its γ and its logits."""
    if not kinds:
        return 0.0
    gammas, logits, pictures = zip(*kinds, strict=True)
    penalties = gradient_penalties(logits, [kind.pixel_values for kind in pictures])
    return torch.stack([gamma * penalty for gamma, penalty in zip(gammas, penalties, strict=True)]).sum()


def _attention_kernels(objective: Objective) -> Any:
    """
    The penalties need a second derivative, and the fused kernels of attention have none. The choice of kernels lasts
    until the end of the backward pass, where activation checkpointing runs the forward again.
    """
    is_penalised = objective.r1_gamma or objective.r2_gamma
    return sdpa_kernel(SDPBackend.MATH) if is_penalised else contextlib.nullcontext()


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
