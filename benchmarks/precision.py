"""
Losses and gradients of one update of each player in bfloat16, beside those in float32.

    python benchmarks/precision.py --preset cifar10 --channels 16 --batch_size 50

Both begin at the same weights and see the same latents and pictures (noise). A row is a network's loss in either
precision, the norm of the difference of all its gradients over the norm of those in float32, and the cosine between
them. The second table has them once more from float32 with other latents and pictures: how far one batch is from
another is what the difference of the precisions has to be measured by.
"""

import argparse
import copy
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.training.steps import Latents, Objective, Pictures, Players, discriminator_step, generator_step


class Update(NamedTuple):
    loss: float
    gradient: Tensor  # of all weights, flat


Networks = tuple[BigGANModel, BigGANDiscriminator]


def batch_of(config: BigGANConfig, size: int, seed: int) -> tuple[Latents, Pictures]:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, config.num_channels, config.image_size, config.image_size)
    labels = torch.randint(config.num_labels, (size,), generator=generator) if config.num_labels else None
    z = torch.randn(size, config.z_dim, generator=generator)
    return Latents(z, labels), Pictures(torch.rand(shape, generator=generator) * 2 - 1, labels)


def updates(networks: Networks, latents: Latents, pictures: Pictures, bfloat16: bool) -> dict[str, Update]:
    """An update of each player, both from the weights that are given, by name."""
    found = {}
    for name in ("discriminator", "generator"):
        generator, discriminator = (network.train() for network in copy.deepcopy(networks))
        optimizers = [torch.optim.SGD(network.parameters(), 0.0) for network in (generator, discriminator)]
        players = Players(Accelerator(cpu=True), generator, discriminator, *optimizers)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            if name == "discriminator":
                told = discriminator_step(players, [(latents, pictures)], Objective())
            else:
                told = generator_step(players, [latents], Objective())
        gradients = [w.grad.flatten() for w in players.networks[name].parameters() if w.grad is not None]
        found[name] = Update(float(told[f"{name}_loss"]), torch.cat(gradients))
    return found


def compare(expected: Update, found: Update) -> dict[str, float]:
    difference = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
    cosine = torch.nn.functional.cosine_similarity(found.gradient, expected.gradient, dim=0)
    return {"loss": expected.loss, "other loss": found.loss, "difference": float(difference), "cosine": float(cosine)}


def comparisons(config: BigGANConfig, batch_size: int) -> dict[str, dict[str, dict[str, float]]]:
    """By what differs from float32 and by player."""
    torch.manual_seed(0)
    networks = BigGANModel(config), BigGANDiscriminator(config)
    one, other = (batch_of(config, batch_size, seed) for seed in (1, 2))
    exact = updates(networks, *one, bfloat16=False)
    others = {"bfloat16": updates(networks, *one, bfloat16=True), "other batch": updates(networks, *other, False)}
    return {what: {name: compare(exact[name], told[name]) for name in exact} for what, told in others.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--preset", default="cifar10")
    arguments.add_argument("--channels", type=int, default=16, help="the width of both networks")
    arguments.add_argument("--batch_size", type=int, default=50)
    args = arguments.parse_args()
    widths = {f"{network}_base_channels": args.channels for network in ("generator", "discriminator")}
    found = comparisons(BigGANConfig.preset(args.preset, **widths), args.batch_size)
    print("| beside float32 | network | loss | its loss | difference of the gradients | cosine |")
    print("|---|---|---|---|---|---|")
    for what, rows in found.items():
        for name, row in rows.items():
            print(f"| {what} | {name} | " + " | ".join(f"{value:.4f}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
