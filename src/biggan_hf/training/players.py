"""The two players and the average at the start of a run: new, from a checkpoint, or from a model to fine-tune."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ..class_names import names_of
from ..configuration_biggan import BigGANConfig
from ..devices import fastest_format
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .adapters import add_adapters, average_of, stand_still
from .arguments import TrainingArguments
from .checkpoints import BASE
from .fine_tuning import is_of_classes, map_classes, take_classes
from .replicas import join_batch_norms
from .steps import Players


logger = logging.getLogger(__name__)

Networks = tuple[BigGANModel, BigGANDiscriminator, BigGANModel]


def build_players(
    accelerator: Accelerator,
    config: BigGANConfig,
    args: TrainingArguments,
    checkpoint: Path | None,
    init_from: str | None,
    revision: str | None = None,
    alone: bool = False,
) -> tuple[Players, BigGANModel]:
    """
    Both networks with their optimisers, and the average, which stays in float32 and has no wrapper. They come from the
    checkpoint, or else from the model to fine-tune, or else they are new. Those that are `alone` wait for no other
    process.
    """
    if checkpoint is not None:
        generator, discriminator, ema = load_networks(checkpoint, config, bool(args.lora_rank))
    elif init_from is not None:
        try:
            generator, discriminator, ema = networks_to_fine_tune(init_from, config, revision)
        except Exception as error:  # damage can make any part of the reader fail
            why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"init_from {init_from!r} can't be fine-tuned: {why}") from error
    else:
        generator, discriminator = BigGANModel(config), BigGANDiscriminator(config)
        ema = copy.deepcopy(generator)
    freeze(generator, discriminator, args)
    if args.lora_rank:
        add_adapters(generator, args.lora_rank)
        add_adapters(discriminator, args.lora_rank)
        ema = average_of(generator)
    ema = ema.to(accelerator.device).eval().requires_grad_(False)
    for network in (generator, discriminator):
        _arrange(network.to(accelerator.device).train(), args, accelerator)
        if args.lora_rank:
            stand_still(network)
    optimizers = [
        adam(generator, args.generator_learning_rate, args),
        adam(discriminator, args.discriminator_learning_rate, args),
    ]
    if alone:
        wrapped = [accelerator.prepare_model(network, evaluation_mode=True) for network in (generator, discriminator)]
        return Players(accelerator, *wrapped, *map(accelerator.prepare_optimizer, optimizers)), ema
    players = Players(accelerator, *accelerator.prepare(generator, discriminator, *optimizers))
    join_batch_norms(players.bare_generator, args.cross_replica_batch_norm if not args.lora_rank else "off")
    return players, ema


def load_networks(checkpoint: Path, config: BigGANConfig | None = None, has_adapters: bool = False) -> Networks:
    """
    With their own configuration, or with another one whose weights are the same. Those to which a run adds its
    adapters are frozen ones; the generator then stands in the place of the average.
    """
    try:
        folder = checkpoint / BASE if has_adapters else checkpoint
        generator = BigGANModel.from_pretrained(folder if has_adapters else folder / "generator", config=config)
        discriminator = BigGANDiscriminator.from_pretrained(folder / "discriminator", config=config)
        ema = generator if has_adapters else BigGANModel.from_pretrained(folder, config=config)
    except RuntimeError as error:  # other shapes than the configuration says
        raise ValueError(f"the weights in {str(checkpoint)!r} do not fit their config.json: {error}") from error
    # Copies: loaded weights lie unaligned in a mapped file, where the CPU's kernels round differently. The resumed run
    # would differ from the uninterrupted one in the last bit.
    return copy.deepcopy((generator, discriminator, ema))


def networks_to_fine_tune(model: str, config: BigGANConfig, revision: str | None = None) -> Networks:
    """A published generator, and its discriminator if it has one. Weights of other classes are new."""
    where: dict[str, Any] = {"revision": revision or "main"}
    names = names_of(BigGANConfig.from_pretrained(model, **where).id2label)
    rows = map_classes(model, names, names_of(config.id2label)).rows
    generator = _load_to_fine_tune(BigGANModel, model, config, rows, **where)
    ema = copy.deepcopy(generator)
    try:
        where["subfolder"] = "discriminator"
        discriminator = _load_to_fine_tune(BigGANDiscriminator, model, config, rows, **where)
    except OSError:
        if (Path(model) / "discriminator").is_dir():  # it is damaged
            raise
        logger.warning("%s has no discriminator: a new one learns from the start", model)
        discriminator = BigGANDiscriminator(config)
    return generator, discriminator, ema


def _load_to_fine_tune(cls: Any, model: str, config: BigGANConfig, rows: list[int | None], **where: str) -> Any:
    """
    A network whose classes have the weights of these rows of the model, or new ones. Raises `ValueError` where other
    weights have another shape than the configuration asks for.
    """
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "dtype": torch.float32}
    network, report = cls.from_pretrained(model, config=config, output_loading_info=True, **options, **where)
    names = [name for name, *_ in report["mismatched_keys"]]  # u0, too, has an entry per class
    others = sorted(name for name in names if not is_of_classes(network, f"{name.rpartition('.')[0]}.weight"))
    if others:
        raise ValueError(
            f"{model!r} has other shapes than the configuration asks for, as of {others[0]!r}: fine-tuning keeps the "
            f"architecture, and takes only other classes"
        )
    network_config: Any = cls.config_class.from_pretrained(model, **where)
    if rows != list(range(network_config.num_labels or 0)):
        take_classes(network, cls.from_pretrained(model, **options, **where), rows)
    return copy.deepcopy(network)


def _arrange(network: BigGANModel | BigGANDiscriminator, args: TrainingArguments, accelerator: Accelerator) -> None:
    """Memory layout, activation checkpointing and compilation. None of them changes the function."""
    channels_last = args.channels_last
    if channels_last is None:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision), torch.float32)
        channels_last = fastest_format(accelerator.device, dtype) == torch.channels_last
    if channels_last:
        convert_conv2d_weight_memory_format(network, torch.channels_last)
    if args.gradient_checkpointing:
        # No stage draws random numbers, and a CUDA graph cannot hold a state of a generator.
        network.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    # torch has no second derivative of what it compiles (2.13), and the penalties need that of the discriminator.
    is_penalised = isinstance(network, BigGANDiscriminator) and (args.r1_gamma or args.r2_gamma)
    if args.compile and not is_penalised:
        # In place, so that the weights keep their names. There are two batch sizes at most: the generator's step shows
        # the discriminator generated pictures alone. Whole: stages differ in size, and hardly any share code. Stage by
        # stage, `cifar10` compiles in two thirds of the time, and then each update takes 5 to 8 % more (on a CPU).
        network.compile(dynamic=False)


def freeze(generator: BigGANModel, discriminator: BigGANDiscriminator, args: TrainingArguments) -> None:
    """Freezes first stages (FreezeD, Mo et al. 2020, arXiv:2002.10964), or all weights but those of the classes."""
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


def adam(network: nn.Module, learning_rate: float, args: TrainingArguments) -> torch.optim.Adam:
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Fused: one kernel updates all weights.
    return torch.optim.Adam(learning, learning_rate, **_adam_options(args, learning), fused=True)


def _adam_options(args: TrainingArguments, learning: Sequence[Tensor]) -> dict[str, Any]:
    moments = {"betas": (float(args.adam_beta1), float(args.adam_beta2)), "eps": args.adam_epsilon}
    return {**moments, "capturable": learning[0].is_cuda}  # by a CUDA graph; the steps are the same


def set_adam(players: Players, args: TrainingArguments, factor: float) -> None:
    """Sets the optimisers as the arguments say, not as their checkpoint does. Learning rates are times the factor."""
    for name, optimizer in players.optimizers.items():
        for group in optimizer.param_groups:
            options = _adam_options(args, group["params"])
            group.update(lr=factor * getattr(args, f"{name}_learning_rate"), **options)
