"""The two players and the average, ready for the game: new, from a checkpoint, or from a model to fine-tune."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .arguments import TrainingArguments
from .replicas import replica_group_size, set_cross_replica_batch_norm
from .steps import Players


logger = logging.getLogger(__name__)

Networks = tuple[BigGANModel, BigGANDiscriminator, BigGANModel]


def build_players(
    accelerator: Accelerator,
    config: BigGANConfig,
    args: TrainingArguments,
    checkpoint: Path | None,
    init_from: str | None,
) -> tuple[Players, BigGANModel]:
    """
    Both networks with their optimisers, and the average, which stays in float32 and outside any wrapper: from a
    checkpoint, else from a model to fine-tune, else new.
    """
    replicas = replica_group_size(args.cross_replica_batch_norm, accelerator.num_processes)
    if checkpoint is not None:
        generator, discriminator, ema = load_networks(checkpoint)
        for network in (generator, discriminator, ema):  # a converted checkpoint has no names of classes
            network.config.id2label, network.config.label2id = config.id2label, config.label2id
    elif init_from is not None:
        generator, discriminator, ema = networks_to_fine_tune(init_from, config)
    else:
        generator, discriminator, ema = new_networks(config)
    ema = ema.to(accelerator.device).eval().requires_grad_(False)
    freeze(generator, discriminator, args)
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
    try:
        return _load_networks(checkpoint)
    except SafetensorError as error:
        raise ValueError(f"the checkpoint {str(checkpoint)!r} is damaged: {error}") from error


def _load_networks(checkpoint: Path) -> Networks:
    # Copies, since weights that were loaded lie unaligned in a mapped file, where CPU kernels round differently: a
    # resumed run would leave the uninterrupted one in the last bit.
    return (
        copy.deepcopy(BigGANModel.from_pretrained(checkpoint / "generator")),
        copy.deepcopy(BigGANDiscriminator.from_pretrained(checkpoint / "discriminator")),
        copy.deepcopy(BigGANModel.from_pretrained(checkpoint)),
    )


def networks_to_fine_tune(model: str, config: BigGANConfig) -> Networks:
    """A published generator and, where there is one, its discriminator; for another number of classes the weights of
    the classes are new."""
    generator = _load_to_fine_tune(BigGANModel, model, config)
    ema = copy.deepcopy(generator)
    try:
        discriminator = _load_to_fine_tune(BigGANDiscriminator, model, config, subfolder="discriminator")
    except OSError:
        logger.warning("%s has no discriminator: a new one learns from the start", model)
        discriminator = BigGANDiscriminator(config)
    return generator, discriminator, ema


def _load_to_fine_tune(cls: Any, model: str, config: BigGANConfig, **where: str) -> Any:
    """
    A network whose weights of classes are new where their number is another.

    Raises:
        ValueError: The configuration's other weights have other shapes.
    """
    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    network, report = cls.from_pretrained(model, output_loading_info=True, **options, **where)
    modules = {name: name.rpartition(".")[0] for name, *_ in report["mismatched_keys"]}  # u0 has a row a class, too
    others = sorted(name for name, module in modules.items() if not is_of_classes(network, f"{module}.weight"))
    if others:
        raise ValueError(
            f"{model!r} has other shapes than the configuration asks for, as of {others[0]!r}: fine-tuning keeps the "
            f"architecture, and takes only another number of classes"
        )
    return copy.deepcopy(network)


def _arrange(network: BigGANModel | BigGANDiscriminator, args: TrainingArguments) -> None:
    """Memory layout, activation checkpointing and compilation, as asked; the function stays the same."""
    if args.channels_last:
        convert_conv2d_weight_memory_format(network, torch.channels_last)
    if args.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if args.compile:
        # In place: no wrapper, and the names of the weights stay. Sizes are few and known: D sees fakes alone, too.
        network.compile(dynamic=False)


def freeze(generator: BigGANModel, discriminator: BigGANDiscriminator, args: TrainingArguments) -> None:
    """FreezeD (Mo et al. 2020, arXiv:2002.10964), or everything but what belongs to the classes."""
    stages = discriminator.stages
    if args.freeze_discriminator_stages >= len(stages):
        raise ValueError(
            f"freeze_discriminator_stages must be below {len(stages)}, the discriminator's number of stages, got "
            f"{args.freeze_discriminator_stages}"
        )
    for frozen in [discriminator.input_conv, *stages] if args.freeze_discriminator_stages else []:
        frozen.requires_grad_(frozen not in [discriminator.input_conv, *stages[: args.freeze_discriminator_stages]])
    if args.train_only == "class_embeddings":
        if not generator.config.num_labels:
            raise ValueError("train_only=class_embeddings needs classes, and the data has none")
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(is_of_classes(network, name))


def is_of_classes(network: BigGANModel | BigGANDiscriminator, name: str) -> bool:
    """Whether a weight has a row a class: a class embedding, or a gain or bias of a network that shares none."""
    per_layer = isinstance(network, BigGANModel) and not network.config.shared_class_embedding
    return name == "class_embedding.weight" or (per_layer and name.endswith((".gain.weight", ".bias.weight")))


def adam(network: nn.Module, learning_rate: float, args: TrainingArguments) -> torch.optim.Adam:
    # Fused: one kernel for all weights.
    return torch.optim.Adam(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        learning_rate,
        **_moments(args),
        fused=True,
    )


def _moments(args: TrainingArguments) -> dict[str, Any]:
    return {"betas": (float(args.adam_beta1), float(args.adam_beta2)), "eps": args.adam_epsilon}


def set_adam(players: Players, args: TrainingArguments, factor: float) -> None:
    """The arguments' settings, in place of those that a checkpoint's optimisers bring along; rates times a factor."""
    rates = (args.generator_learning_rate, args.discriminator_learning_rate)
    optimizers = (players.generator_optimizer, players.discriminator_optimizer)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group.update(lr=rate * factor, **_moments(args))
