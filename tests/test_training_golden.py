"""Three whole iterations against BigGAN-PyTorch's own (tests/fixtures/three_iterations)."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from training_runs import of_the_original

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.training.ema import update_ema
from biggan_hf.training.steps import Latents, Objective, Pictures, Players, discriminator_step, generator_step


CASE = Path(__file__).parent / "fixtures" / "three_iterations"
CONFIG = of_the_original(8)
# Generator, real and fake loss of each iteration, by that program in float64; the fixture's are in float32, and their
# last iterations are off by its rounding.
LOSSES = (
    (13.716100296110596, 25.731218640851683, 7.3717123666900735),
    (12.682762545079804, 8.59805936327622, 15.03114872192321),
    (-1.319021334293966, 3.047218861996154, 0.0),
)


def part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def players() -> Players:
    start = load_file(CASE / "start.safetensors")
    generator, discriminator = BigGANModel(CONFIG), BigGANDiscriminator(CONFIG)
    generator.load_state_dict(part(start, "generator"))
    discriminator.load_state_dict(part(start, "discriminator"))
    # Adam divides noise by noise where a gradient is nothing but rounding (a bias before batch norm): the original
    # run twice differs from itself by two of its steps, 1e-4. In float64 both programs agree to 1e-11.
    generator.double().train()
    discriminator.double().train()
    optimizers = (
        torch.optim.Adam(generator.parameters(), 5e-5, betas=(0.0, 0.999), eps=1e-6),
        torch.optim.Adam(discriminator.parameters(), 2e-4, betas=(0.0, 0.999), eps=1e-6),
    )
    return Players(Accelerator(cpu=True), generator, discriminator, *optimizers)


def test_three_iterations_repeat_the_original() -> None:
    inputs = {name: torch.from_numpy(value) for name, value in np.load(CASE / "inputs.npz").items()}
    game, ema = players(), BigGANModel(CONFIG).double()
    objective = Objective(iterate_every_forward=True, generator_orthogonality=1e-4)
    latents = iter(
        Latents(z.double(), y.long()) for z, y in zip(inputs["train_latents"], inputs["train_labels"], strict=True)
    )
    for iteration in range(3):
        pixels, labels = inputs["real_images"][iteration].double(), inputs["real_labels"][iteration].long()
        reals = [Pictures(x, y) for x, y in zip(pixels.split(6), labels.split(6), strict=True)]
        for pair in (reals[:2], reals[2:]):
            metrics = discriminator_step(game, [(next(latents), real) for real in pair], objective)
        metrics |= generator_step(game, [next(latents), next(latents)], objective)
        update_ema(ema, game.bare_generator, 0.0 if iteration == 0 else 0.9)
        generator_loss, real_loss, fake_loss = LOSSES[iteration]
        np.testing.assert_allclose(metrics["generator_loss"] / 2, generator_loss, rtol=0, atol=1e-6)
        np.testing.assert_allclose(metrics["discriminator_loss"], real_loss + fake_loss, rtol=0, atol=1e-6)
    np.testing.assert_allclose(LOSSES, inputs["losses"], rtol=0, atol=3e-3)

    end = load_file(CASE / "end.safetensors")
    networks = {"generator": game.bare_generator, "discriminator": game.bare_discriminator, "ema": ema}
    for name, network in networks.items():
        state = network.state_dict()
        for key, expected in part(end, name).items():
            # The few weights whose gradient changed its sign by rounding differ by two of Adam's steps.
            assert (state[key] - expected).abs().max() < 1e-4, f"{name}.{key}"
