"""One update of each player. Everything comes in as an argument; what to log goes back detached, on the device."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..augment import diff_augment
from ..layers import SpectralNorm
from ..losses import LOSSES, orthogonal_regularization_gradient, r1_penalty
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

    @functools.cached_property
    def bare_generator(self) -> BigGANModel:
        return self.accelerator.unwrap_model(self.generator)

    @functools.cached_property
    def bare_discriminator(self) -> BigGANDiscriminator:
        return self.accelerator.unwrap_model(self.discriminator)


@dataclass(frozen=True)
class Rules:
    """
    How the game is played.

    Args:
        loss: A row of `LOSSES`.
        iterate_every_forward: A power iteration in every forward, as in BigGAN-PyTorch; else one an update, in its
            first micro-batch, so that micro-batches add up to the gradient of the whole batch.
        split_discriminator: Fake and real pictures in two forwards of the discriminator instead of one.
        generator_orthogonality: β of the orthogonal regularisation of the generator's weights.
        discriminator_orthogonality: The same of the discriminator's.
        relaxed_orthogonality: Without the diagonal, as in the paper.
        r1_gamma: γ of the R1 penalty in the discriminator's update, 0 for none.
        diff_augment: Differentiable augmentation of whatever the discriminator sees.
    """

    loss: str = "hinge"
    iterate_every_forward: bool = False
    split_discriminator: bool = False
    generator_orthogonality: float = 0.0
    discriminator_orthogonality: float = 0.0
    relaxed_orthogonality: bool = True
    r1_gamma: float = 0.0
    diff_augment: bool = False


def discriminator_step(
    players: Players, micro_batches: Sequence[tuple[Batch, Batch]], rules: Rules
) -> dict[str, Tensor]:
    """
    One update of the discriminator on the mean loss of (latents, pictures) micro-batches. There may be more latents
    than pictures: the first ones are used.

    Returns:
        Scalars: of the last micro-batch the loss and the share of real and of fake pictures it told right, and the
        norm of the update's gradient.
    """
    accelerator, discriminator = players.accelerator, players.bare_discriminator
    discriminator_loss = LOSSES[rules.loss][0]
    _require_gradients(players.discriminator_optimizer, True)
    players.discriminator_optimizer.zero_grad()
    for index, (latents, real) in enumerate(micro_batches):
        _iterate_spectral_norms(players, rules.iterate_every_forward or index == 0)
        is_last = index == len(micro_batches) - 1
        with _reduce_gradients(accelerator, players.discriminator, is_last), _attention_kernels(rules):
            fake = _generate(players, latents, len(real.inputs), real.inputs.dtype)
            if rules.diff_augment:
                fake, real = (Batch(_augmented(b.inputs, rules), b.class_labels) for b in (fake, real))
            fake_logits, real_logits = _judge(players, fake, real, rules)
            loss = discriminator_loss(real_logits, fake_logits)
            penalty = _r1(players, real, rules) if rules.r1_gamma else 0.0
            accelerator.backward((loss + penalty) / len(micro_batches))
    _add_orthogonality(accelerator, discriminator, rules.discriminator_orthogonality, rules.relaxed_orthogonality)
    norm = _gradient_norm(accelerator, players.discriminator_optimizer)
    players.discriminator_optimizer.step()
    return {
        "discriminator_gradient": norm,
        "discriminator_loss": loss.detach(),
        "real_accuracy": (real_logits > 0).float().mean(),
        "fake_accuracy": (fake_logits < 0).float().mean(),
    }


def generator_step(players: Players, micro_batches: Sequence[Batch], rules: Rules) -> dict[str, Tensor]:
    """One update of the generator on micro-batches of latents; returns the last one's loss and the gradient's norm."""
    accelerator = players.accelerator
    generator_loss = LOSSES[rules.loss][1]
    # Frozen and without its wrapper: no gradient of the discriminator is computed, let alone exchanged.
    discriminator = players.bare_discriminator
    _require_gradients(players.discriminator_optimizer, False)
    players.generator_optimizer.zero_grad()
    for index, latents in enumerate(micro_batches):
        _iterate_spectral_norms(players, rules.iterate_every_forward or index == 0)
        with _reduce_gradients(accelerator, players.generator, index == len(micro_batches) - 1):
            fake = _augmented(players.generator(latents.inputs, latents.class_labels).images, rules)
            loss = generator_loss(_precise(discriminator(fake, latents.class_labels).logits))
            accelerator.backward(loss / len(micro_batches))
    generator = players.bare_generator
    _add_orthogonality(accelerator, generator, rules.generator_orthogonality, rules.relaxed_orthogonality)
    norm = _gradient_norm(accelerator, players.generator_optimizer)
    players.generator_optimizer.step()
    return {"generator_loss": loss.detach(), "generator_gradient": norm}


def _require_gradients(optimizer: torch.optim.Optimizer, required: bool) -> None:
    """Of the weights that learn; what is frozen is in no optimiser."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(required)


def _scaled(accelerator: Accelerator, gradient: Tensor) -> Tensor:
    """Times what float16's scaler multiplied the loss by, and will divide gradients by; on the device."""
    return gradient if accelerator.scaler is None else accelerator.scaler.scale(gradient)


def _gradient_norm(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> Tensor:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm / _scaled(accelerator, torch.ones_like(norm))


def _augmented(images: Tensor, rules: Rules) -> Tensor:
    return diff_augment(images) if rules.diff_augment else images


def _iterate_spectral_norms(players: Players, iterates: bool) -> None:
    """Lets both networks' forwards take a power iteration from here on, or use the last one's vectors again."""
    for network in (players.bare_generator, players.bare_discriminator):
        for module in network.modules():
            if isinstance(module, SpectralNorm) and module.iterates is not iterates:
                module.iterates = iterates


def _reduce_gradients(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Any:
    """Processes exchange gradients once an update, in the backward pass of the last micro-batch."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(model)


@torch.no_grad()
def _generate(players: Players, latents: Batch, number: int, dtype: torch.dtype) -> Batch:
    labels = None if latents.class_labels is None else latents.class_labels[:number]
    return Batch(players.bare_generator(latents.inputs[:number], labels).images.to(dtype), labels)


def _judge(players: Players, fake: Batch, real: Batch, rules: Rules) -> tuple[Tensor, Tensor]:
    """Logits of fake and real pictures: of one forward, so that both meet one set of singular vectors, or of two."""
    if rules.split_discriminator:
        fake_logits = players.discriminator(fake.inputs, fake.class_labels).logits
        _iterate_spectral_norms(players, rules.iterate_every_forward)
        real_logits = players.discriminator(real.inputs, real.class_labels).logits
        return _precise(fake_logits), _precise(real_logits)
    labels = None
    if fake.class_labels is not None and real.class_labels is not None:
        labels = torch.cat([fake.class_labels, real.class_labels])
    logits = _precise(players.discriminator(torch.cat([fake.inputs, real.inputs]), labels).logits)
    return logits[: len(fake.inputs)], logits[len(fake.inputs) :]


def _r1(players: Players, real: Batch, rules: Rules) -> Tensor:
    """γ times the R1 penalty, from a forward of its own."""
    _iterate_spectral_norms(players, rules.iterate_every_forward)
    pixels = real.inputs.detach().requires_grad_()
    logits = players.discriminator(pixels, real.class_labels).logits
    return rules.r1_gamma * r1_penalty(_precise(logits), pixels)


def _attention_kernels(rules: Rules) -> Any:
    """
    The fused kernels of attention have no second derivative, which R1 takes. The choice holds to the end of the
    backward pass, since activation checkpointing computes the forward again there.
    """
    return sdpa_kernel(SDPBackend.MATH) if rules.r1_gamma else contextlib.nullcontext()


def _precise(logits: Tensor) -> Tensor:
    """Losses are taken in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def _add_orthogonality(
    accelerator: Accelerator, model: BigGANModel | BigGANDiscriminator, strength: float, relaxed: bool
) -> None:
    """Adds β times the gradient of the regularisation, for every weight but the generator's shared embedding."""
    if not strength:
        return
    shared = {"class_embedding.weight"} if isinstance(model, BigGANModel) else set()
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and name not in shared and parameter.grad is not None:
            gradient = orthogonal_regularization_gradient(parameter, relaxed)
            parameter.grad.add_(_scaled(accelerator, gradient), alpha=strength)
