"""The training run: set up, one step, what happens every so often, the end."""

import copy
import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast, set_seed
from torch import Tensor
from tqdm.auto import tqdm

from ..configuration_biggan import BigGANConfig
from ..data import LabelledImages, load_labelled_images
from ..hub import model_card, upload_folder
from ..images import sample_sheet
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .arguments import DataArguments, ModelArguments, TrainingArguments
from .batches import BatchSource
from .checkpoints import SETTINGS, check_same_architecture, find_checkpoint, load_training_state, save_checkpoint
from .ema import update_ema
from .replicas import replica_group_size, set_cross_replica_batch_norm
from .steps import Players, Rules, discriminator_step, generator_step


@dataclass
class Run:
    """A run between two steps."""

    args: TrainingArguments
    accelerator: Accelerator
    config: BigGANConfig
    players: Players
    ema: BigGANModel
    batches: BatchSource
    accumulation_steps: int
    images: LabelledImages
    settings: dict[str, Any]
    global_step: int = 0

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)


def train(run: Run) -> Path:
    """Trains what `set_up` made ready, and returns the folder of the finished model."""
    deadline = time.monotonic() + 60 * (run.args.max_train_minutes or float("inf"))
    with tqdm(
        total=run.args.max_train_steps,
        initial=run.global_step,
        desc="training",
        disable=not run.accelerator.is_local_main_process,
        dynamic_ncols=True,
    ) as progress:
        while run.global_step < run.args.max_train_steps and not out_of_time(run, deadline):
            metrics = train_step(run)
            progress.update()
            if run.global_step % run.args.logging_steps == 0:
                progress.set_postfix(log_metrics(run, metrics))
            periodically(run)
    return finish(run)


def train_step(run: Run) -> dict[str, Tensor]:
    """Discriminator updates, one generator update, the average: one `global_step`."""
    micro_batches, draw, rules = range(run.accumulation_steps), 0, rules_of(run.args, run.global_step)
    for _ in range(run.args.num_discriminator_steps):
        pairs = []
        for _ in micro_batches:
            pairs.append((run.batches.latents(run.global_step, draw), run.batches.pictures()))
            draw += 1
        metrics = discriminator_step(run.players, pairs, rules)
    number = run.args.generator_batch_size
    latents = [run.batches.latents(run.global_step, draw + index, number) for index in micro_batches]
    metrics |= generator_step(run.players, latents, rules)
    run.global_step += 1
    decay = run.args.ema_decay if run.global_step >= run.args.ema_start_step else 0.0
    update_ema(run.ema, run.players.bare_generator, decay)
    return metrics


def rules_of(args: TrainingArguments, step: int) -> Rules:
    """The rules of one step: R1 comes every so many steps, and weighs as many times more."""
    return Rules(
        loss=args.loss,
        iterate_every_forward=args.power_iteration == "every_forward",
        split_discriminator=args.split_discriminator,
        generator_orthogonality=args.generator_orthogonality,
        discriminator_orthogonality=args.discriminator_orthogonality,
        relaxed_orthogonality=args.orthogonality == "relaxed",
        r1_gamma=0.0 if step % args.r1_interval else args.r1_gamma * args.r1_interval,
    )


# Every so often


def log_metrics(run: Run, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetches the scalars, which waits for the device, and appends them to log.jsonl."""
    values = {name: round(float(value), 5) for name, value in metrics.items()}
    if run.accelerator.is_main_process:
        line = {"step": run.global_step, "samples_seen": run.batches.samples_seen, "time": round(time.time(), 1)}
        with open(run.output_dir / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({**line, **values}) + "\n")
    return values


def out_of_time(run: Run, deadline: float) -> bool:
    """
    Whether the main process's clock has passed the deadline, so that all processes stop at the same step; asked when
    the scalars are fetched, since it waits for the device too.
    """
    if run.global_step == 0 or run.global_step % run.args.logging_steps:
        return False
    flag = torch.tensor(float(time.monotonic() > deadline), device=run.accelerator.device)
    return bool(broadcast(flag).item())


def periodically(run: Run) -> None:
    """Sample sheets and checkpoints, written by the main process."""
    args, step = run.args, run.global_step
    if args.sample_steps and step % args.sample_steps == 0 and run.accelerator.is_main_process:
        samples = run.output_dir / "samples"
        samples.mkdir(exist_ok=True)
        sample_sheet(run.ema, seed=args.seed).save(samples / f"step-{step:07d}.png")
    if args.checkpointing_steps and step % args.checkpointing_steps == 0 and run.accelerator.is_main_process:
        checkpoint(run)


def checkpoint(run: Run) -> None:
    """Networks, average, optimisers, counters; no random state, since the batches are a function of the counters."""
    save_checkpoint(
        run.output_dir,
        run.global_step,
        ema=run.ema,
        generator=run.players.bare_generator,
        discriminator=run.players.bare_discriminator,
        training_state={
            "global_step": run.global_step,
            "samples_seen": run.batches.samples_seen,
            "generator_optimizer": run.players.generator_optimizer.state_dict(),
            "discriminator_optimizer": run.players.discriminator_optimizer.state_dict(),
        },
        total_limit=run.args.checkpoints_total_limit,
    )


# The beginning


def set_up(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything up to the first step. Whatever can't be raises one clear line, and nothing has been written yet."""
    resumed = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    accumulation_steps = args.accumulation_steps(accelerator.num_processes)
    replicas = replica_group_size(args.cross_replica_batch_norm, accelerator.num_processes)
    with accelerator.main_process_first():
        images = load_images(data_args, model_args.config([]))
    config = model_args.config(images.class_names)
    if resumed is not None:
        check_same_architecture(resumed, config)

    set_seed(args.seed)
    players, ema = build_players(accelerator, config, args, resumed)
    set_cross_replica_batch_norm(players.bare_generator, replicas)
    state: dict[str, Any] = {"global_step": 0, "samples_seen": 0}
    if resumed is not None:
        state = load_training_state(resumed)
        players.generator_optimizer.load_state_dict(state["generator_optimizer"])
        players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
    batches = BatchSource(
        images,
        z_dim=config.z_dim,
        num_labels=config.num_labels or 0,
        batch_size=args.per_device_batch_size,
        seed=args.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        horizontal_flip=data_args.horizontal_flip,
        samples_seen=state["samples_seen"],
        num_workers=data_args.dataloader_num_workers,
    )
    settings: dict[str, Any] = {"num_processes": accelerator.num_processes}
    settings |= {k: v for group in (model_args, data_args, args) for k, v in dataclasses.asdict(group).items()}
    run = Run(
        args, accelerator, config, players, ema, batches, accumulation_steps, images, settings, state["global_step"]
    )
    if accelerator.is_main_process:
        write_settings(run)
    return run


def load_images(data_args: DataArguments, config: BigGANConfig) -> LabelledImages:
    return load_labelled_images(
        data_args.dataset_name,
        image_size=config.image_size,
        num_channels=config.num_channels,
        dataset_config_name=data_args.dataset_config_name,
        split=data_args.dataset_split,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        on_unreadable_image=data_args.on_unreadable_image,
    )


def build_players(
    accelerator: Accelerator, config: BigGANConfig, args: TrainingArguments, checkpoint: Path | None
) -> tuple[Players, BigGANModel]:
    """Both networks with their optimisers, and the average, which stays outside `prepare`."""
    if checkpoint is None:
        generator, discriminator = BigGANModel(config), BigGANDiscriminator(config)
        ema = BigGANModel(config)
        ema.load_state_dict(generator.state_dict())
    else:
        # Copies, since weights that were loaded lie unaligned in a mapped file, where CPU kernels round differently:
        # a resumed run would leave the uninterrupted one in the last bit.
        ema = copy.deepcopy(BigGANModel.from_pretrained(checkpoint))
        generator = copy.deepcopy(BigGANModel.from_pretrained(checkpoint / "generator"))
        discriminator = copy.deepcopy(BigGANDiscriminator.from_pretrained(checkpoint / "discriminator"))
    ema = ema.to(accelerator.device).eval().requires_grad_(False)
    prepared = accelerator.prepare(
        generator.train(),
        discriminator.train(),
        adam(generator, args.generator_learning_rate, args),
        adam(discriminator, args.discriminator_learning_rate, args),
    )
    return Players(accelerator, *prepared), ema


def adam(model: torch.nn.Module, learning_rate: float, args: TrainingArguments) -> torch.optim.Adam:
    betas = (float(args.adam_beta1), float(args.adam_beta2))
    return torch.optim.Adam(model.parameters(), learning_rate, betas, args.adam_epsilon)


def write_settings(run: Run) -> None:
    run.output_dir.mkdir(parents=True, exist_ok=True)
    with open(run.output_dir / SETTINGS, "w", encoding="utf-8") as file:
        json.dump(run.settings, file, indent=2)


# The end


def finish(run: Run) -> Path:
    """Writes the finished model: the averaged generator at the root, `discriminator/`, the card, a sample sheet."""
    folder = run.output_dir
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        if run.args.checkpointing_steps and run.global_step % run.args.checkpointing_steps:
            checkpoint(run)  # so that a longer run can go on from here
        run.ema.save_pretrained(folder)
        run.players.bare_discriminator.save_pretrained(folder / "discriminator")
        sample_sheet(run.ema, seed=run.args.seed).save(folder / "samples.png")
        name = run.settings["dataset_name"]
        card = model_card(
            run.config,
            repo_id=run.args.hub_model_id,
            datasets=[name] if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None,
            sample_image="samples.png",
            training={**run.settings, "steps": run.global_step},
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        if run.args.push_to_hub:
            assert run.args.hub_model_id is not None
            upload_folder(folder, run.args.hub_model_id, ignore_patterns=["checkpoint-*", "samples/*"])
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return folder
