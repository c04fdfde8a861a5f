"""The largest batch that the memory of every device holds (`--auto_batch_size`)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..configuration_biggan import BigGANConfig
from ..memory import is_out_of_memory, refused_before_it_is_gone
from ..modeling_biggan import BigGANModel
from ..processes import add_up
from .arguments import TrainingArguments
from .ema import update_ema
from .players import build_players
from .run import objective_at
from .steps import Latents, Pictures, Players, discriminator_step, generator_step


def fit_batch(
    args: TrainingArguments,
    accelerator: Accelerator,
    config: BigGANConfig,
    checkpoint: Path | None,
    init_from: str | None,
    revision: str | None,
    saved: Mapping[str, Any],
) -> TrainingArguments:
    """
    With `auto_batch_size`, the arguments with the largest `per_device_batch_size` whose update fits on every process.
    The update keeps its size: the more forwards accumulate. A run that goes on tries first what fitted when it began,
    as the `saved` settings say.

    Raises:
        ValueError: The update does not divide into equal parts for all processes.
        MemoryError: Not even one picture a forward fits.
    """
    if not args.auto_batch_size:
        return args
    number = accelerator.num_processes
    batch = args.global_batch_size or args.per_device_batch_size * number
    if batch % number:
        raise ValueError(f"global_batch_size={batch} does not divide into {number} processes")
    if accelerator.is_main_process:
        looks = "a run looks" if args.dry_run else "looking"
        print(f"auto_batch_size: {looks} for the largest forward that fits", flush=True)
    if args.dry_run:  # which has one line of it, and does not wait
        return dataclasses.replace(args, per_device_batch_size=batch // number, global_batch_size=batch)

    def build() -> tuple[Players, BigGANModel]:
        return build_players(accelerator, config, args, checkpoint, init_from, revision, alone=True)

    on_cpu = accelerator.device.type == "cpu"
    known = saved.get("per_device_batch_size") if checkpoint is not None else None
    for size in sizes(batch // number, known):
        fitted = dataclasses.replace(args, per_device_batch_size=size, global_batch_size=batch)
        with refused_before_it_is_gone(number) if on_cpu else nullcontext():
            does_fit = fits(fitted, accelerator, build)
        failures = torch.tensor([not does_fit], device=accelerator.device).float()
        add_up([failures])  # over all processes: they agree on what the smallest of them holds
        if not failures.item():
            if accelerator.is_main_process:
                parts = f"forwards: {fitted.accumulation_steps(number)}, processes: {number}, update: {batch}"
                print(f"auto_batch_size: {size} pictures fit in a forward ({parts})")
            return fitted
    raise MemoryError("not even one picture fits in a forward")


def sizes(share: int, known: int | None) -> Iterator[int]:
    """Divisors of the pictures that one process has in an update, the largest first, or the known one."""
    most = known if known and share % known == 0 else share
    return (size for size in range(most, 0, -1) if share % size == 0)


def fits(args: TrainingArguments, accelerator: Accelerator, build: Callable[[], tuple[Players, BigGANModel]]) -> bool:
    """Whether two updates fit: only the second one meets the moments of Adam. No process waits for another."""
    scaler = accelerator.scaler
    before = scaler.state_dict() if scaler is not None else {}
    try:
        players, ema = build()
        for _ in range(2):
            update(args, players, ema)
        does_fit = True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        does_fit = False
    players = ema = None  # type: ignore[assignment]  # the error has gone, too: nothing holds tensors any more
    accelerator.free_memory()
    if scaler is not None:
        scaler.load_state_dict(before)
    return does_fit


def update(args: TrainingArguments, players: Players, ema: BigGANModel) -> None:
    """An update, with R1 and R2, of all that a process holds in memory; on grey pictures."""
    accelerator, config, size = players.accelerator, ema.config, args.per_device_batch_size
    device = accelerator.device
    labels = torch.zeros(size, dtype=torch.int64, device=device) if config.num_labels else None
    shape = (size, config.num_channels, config.image_size, config.image_size)
    number = args.accumulation_steps(accelerator.num_processes)
    latents = [Latents(torch.zeros(size, config.z_dim, device=device), labels) for _ in range(number)]
    pairs = [(z, Pictures(torch.zeros(shape, device=device), labels)) for z in latents]
    objective = objective_at(args, 0)
    # Several processes hold every gradient twice: once more to exchange it.
    networks = players.networks.values() if accelerator.num_processes > 1 else ()
    exchanged = [torch.empty_like(weight) for network in networks for weight in network.parameters()]
    discriminator_step(players, pairs, objective)
    generator_step(players, latents, objective, [real for _, real in pairs])
    update_ema(ema, players.bare_generator, args.ema_decay)
    del exchanged
