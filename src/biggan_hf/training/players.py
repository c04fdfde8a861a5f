"""The two players and the average, ready for the game: new, from a checkpoint, or from a model to fine-tune."""

import copy
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .arguments import TrainingArguments
from .replicas import replica_group_size, set_cross_replica_batch_norm
from .steps import Players


Networks = tuple[BigGANModel, BigGANDiscriminator, BigGANModel]


def build_players(
    accelerator: Accelerator, config: BigGANConfig, args: TrainingArguments, checkpoint: Path | None
) -> tuple[Players, BigGANModel]:
    """Both networks with their optimisers, and the average, which stays in float32 and outside any wrapper."""
    replicas = replica_group_size(args.cross_replica_batch_norm, accelerator.num_processes)
    generator, discriminator, ema = new_networks(config) if checkpoint is None else load_networks(checkpoint)
    ema = ema.to(accelerator.device).eval().requires_grad_(False)
    for network in (generator, discriminator):
        _arrange(network.to(accelerator.device).train(), args)
    optimizers = (
        adam(generator, args.generator_learning_rate, args),
        adam(discriminator, args.discriminator_learning_rate, args),
    )
    players = Players(accelerator, *accelerator.prepare(generator, discriminator, *optimizers))
    set_cross_replica_batch_norm(players.bare_generator, replicas)
    return players, ema


def new_networks(config: BigGANConfig) -> Networks:
    generator, discriminator, ema = BigGANModel(config), BigGANDiscriminator(config), BigGANModel(config)
    ema.load_state_dict(generator.state_dict())
    return generator, discriminator, ema


def load_networks(checkpoint: Path) -> Networks:
    # Copies, since weights that were loaded lie unaligned in a mapped file, where CPU kernels round differently: a
    # resumed run would leave the uninterrupted one in the last bit.
    return (
        copy.deepcopy(BigGANModel.from_pretrained(checkpoint / "generator")),
        copy.deepcopy(BigGANDiscriminator.from_pretrained(checkpoint / "discriminator")),
        copy.deepcopy(BigGANModel.from_pretrained(checkpoint)),
    )


def _arrange(network: BigGANModel | BigGANDiscriminator, args: TrainingArguments) -> None:
    """Memory layout, activation checkpointing and compilation, as asked; the function stays the same."""
    if args.channels_last:
        convert_conv2d_weight_memory_format(network, torch.channels_last)
    if args.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if args.compile:
        network.compile()  # in place: no wrapper, and the names of the weights stay


def adam(network: nn.Module, learning_rate: float, args: TrainingArguments) -> torch.optim.Adam:
    # Fused: one kernel for all weights.
    return torch.optim.Adam(
        network.parameters(),
        learning_rate,
        betas=(float(args.adam_beta1), float(args.adam_beta2)),
        eps=args.adam_epsilon,
        fused=True,
    )
