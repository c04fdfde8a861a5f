"""
Four iterations with options that only BigGAN-PyTorch has, against its own training function.

tests/fixtures/original_options.npz was made once by that program (commit 9845943): `GAN_training_function` of its
`train_fns.py` in float64, its networks with weights and inputs that this file draws, its `utils.ema`, with split_D,
G_batch_size 6 beside batch_size 4, two D steps of two accumulations, two G accumulations, D_ortho and G_ortho 0.01,
ema_decay 0.9 and ema_start 3. It holds the losses, and of each tensor of G, D and G_ema in the end the norm and the
product with a random direction, by name in this project. This project has neither split_D, nor D_ortho, nor a
G_batch_size; small additions of this file play them on its own training step.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from training_runs import of_the_original

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.training import TrainingArguments
from biggan_hf.training.loop import train_step
from biggan_hf.training.losses import orthogonal_regularization_gradient
from biggan_hf.training.players import adam
from biggan_hf.training.run import Run
from biggan_hf.training.steps import Latents, Pictures, Players


FIXTURE = Path(__file__).parent / "fixtures" / "original_options.npz"
CONFIG = of_the_original(4)
ARGUMENTS = TrainingArguments(
    output_dir="unused",
    per_device_batch_size=4,
    num_discriminator_steps=2,
    generator_learning_rate=2e-4,
    discriminator_learning_rate=5e-4,
    power_iteration="every_forward",
    generator_orthogonality=1e-2,
    ema_decay=0.9,
    ema_start_step=3,
)
ITERATIONS, ACCUMULATION = 4, 2
D_STEPS, G_BATCH_SIZE, D_ORTHO = 2, 6, 1e-2


def start_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Every tensor from NumPy's legacy generator, whose stream never changes; no parameter stays at 0 or 1."""
    random = np.random.RandomState(seed)
    weights = {}
    for name, value in sorted(network.state_dict().items()):
        noise = torch.from_numpy(np.asarray(random.standard_normal(tuple(value.shape))))
        if name.endswith("running_var"):
            noise = 1 + 0.1 * noise.abs()
        elif value.ndim < 2:
            noise = 0.1 * noise + (1 if name.endswith(("gain", "sv0")) else 0)
        weights[name] = noise
    return weights


class Inputs:
    """Latents (iteration, draw, 6, 20) and pictures (iteration, draw, 4, 3, 32, 32) with labels, as a run asks."""

    def __init__(self) -> None:
        random = np.random.RandomState(2)
        self.z = torch.from_numpy(random.standard_normal((ITERATIONS, 3 * ACCUMULATION, 6, CONFIG.z_dim)))
        self.y = torch.from_numpy(random.randint(0, 10, self.z.shape[:3])).long()
        self.x = torch.from_numpy(random.uniform(-1, 1, (ITERATIONS * 2 * ACCUMULATION, 4, 3, 32, 32)))
        self.x_labels = torch.from_numpy(random.randint(0, 10, self.x.shape[:2])).long()
        self.seen = 0

    def latents(self, step: int, draw: int) -> Latents:
        number = ARGUMENTS.per_device_batch_size if draw < D_STEPS * ACCUMULATION else G_BATCH_SIZE
        return Latents(self.z[step, draw, :number], self.y[step, draw, :number])

    def pictures(self) -> Pictures:
        self.seen += 1
        return Pictures(self.x[self.seen - 1], self.x_labels[self.seen - 1])


class Split(nn.Module):
    """split_D: the discriminator judges generated and real pictures in two forwards, with a power iteration each."""

    def __init__(self, discriminator: BigGANDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, pixel_values: Tensor, class_labels: Tensor) -> Any:
        halves = zip(pixel_values.chunk(2), class_labels.chunk(2), strict=True)
        logits = [self.discriminator(pixels, labels).logits for pixels, labels in halves]
        return SimpleNamespace(logits=torch.cat(logits))


def add_orthogonality(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """D_ortho: before the discriminator's optimiser steps, as the generator's own."""
    for weight in optimizer.param_groups[0]["params"]:
        if weight.ndim >= 2:
            weight.grad.add_(orthogonal_regularization_gradient(weight.detach()), alpha=D_ORTHO)


def tiny_run(args: TrainingArguments) -> Run:
    """In float64, where both programs agree to rounding."""
    generator, discriminator, ema = BigGANModel(CONFIG), BigGANDiscriminator(CONFIG), BigGANModel(CONFIG)
    for network, seed in ((generator, 0), (discriminator, 1), (ema.eval(), 0)):
        network.double().load_state_dict(start_weights(network, seed))
    optimizers = (
        adam(generator.train(), args.generator_learning_rate, args),
        adam(discriminator.train(), args.discriminator_learning_rate, args),
    )
    optimizers[1].register_step_pre_hook(add_orthogonality)
    players = Players(Accelerator(cpu=True), generator, Split(discriminator), *optimizers)
    players.__dict__["bare_discriminator"] = discriminator  # which the generator's step calls
    return Run(args, players.accelerator, CONFIG, players, ema, Inputs(), ACCUMULATION, {}, {}, None, None, {})  # type: ignore[arg-type]


def summary(network: nn.Module) -> np.ndarray:
    """(tensors, 2), by name."""
    random = np.random.RandomState(3)
    values = []
    for _, value in sorted(network.state_dict().items()):
        direction = torch.from_numpy(np.asarray(random.standard_normal(tuple(value.shape))))
        values.append([float(value.norm()), float((value * direction).sum())])
    return np.array(values)


def test_options_of_the_original_give_its_weights_and_losses() -> None:
    expected = np.load(FIXTURE)
    run = tiny_run(ARGUMENTS)
    losses = []
    for _ in range(ITERATIONS):
        metrics = train_step(run)
        losses.append([float(metrics["generator_loss"]) / ACCUMULATION, float(metrics["discriminator_loss"])])
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=1e-6)
    networks = {"generator": run.players.bare_generator, "discriminator": run.players.bare_discriminator}
    for name, network in {**networks, "ema": run.ema}.items():
        np.testing.assert_allclose(summary(network), expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
