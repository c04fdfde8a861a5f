"""The training loop: one step, what happens every so often, the end."""

import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor
from tqdm.auto import tqdm

from ..hub import model_card, upload_folder
from ..images import sample_sheet
from .arguments import TrainingArguments
from .checkpoints import save_checkpoint
from .ema import update_ema
from .run import Run, training_state
from .steps import Rules, discriminator_step, generator_step


def train(run: Run) -> Path | None:
    """
    Trains what `set_up` made ready.

    Returns:
        The folder of the finished model; `None` if a signal (SIGTERM, SIGINT) ended the run, which then left a
        checkpoint.
    """
    deadline = time.monotonic() + 60 * (run.args.max_train_minutes or float("inf"))
    with interruption() as interrupted, progress_bar(run) as progress:
        while run.global_step < run.args.max_train_steps and not should_stop(run, deadline, interrupted):
            metrics = train_step(run)
            progress.update()
            if run.global_step % run.args.logging_steps == 0:
                progress.set_postfix(log_metrics(run, metrics))
            periodically(run)
        if agreed(run, interrupted.is_set()):
            interrupt(run)
            return None
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


# When to stop


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while a run goes on; a second SIGINT interrupts as usual."""
    event = threading.Event()

    def set_event(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield event
        return
    before = {number: signal.signal(number, set_event) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def should_stop(run: Run, deadline: float, interrupted: threading.Event) -> bool:
    """
    Whether time is up or a signal came. Several processes must stop at one step: they ask each other when the scalars
    are fetched, which waits for the device anyway.
    """
    if run.global_step == 0:
        return interrupted.is_set() if run.accelerator.num_processes == 1 else False
    if run.accelerator.num_processes > 1 and run.global_step % run.args.logging_steps:
        return False
    return agreed(run, interrupted.is_set() or time.monotonic() > deadline)


def agreed(run: Run, flag: bool) -> bool:
    """The main process's flag, on every process."""
    if run.accelerator.num_processes == 1:
        return flag
    return bool(broadcast(torch.tensor(float(flag), device=run.accelerator.device)).item())


# Every so often


def progress_bar(run: Run) -> tqdm:
    return tqdm(
        total=run.args.max_train_steps,
        initial=run.global_step,
        desc="training",
        disable=not run.is_main,
        dynamic_ncols=True,
    )


def log_metrics(run: Run, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetches the scalars, which waits for the device, and appends them to log.jsonl."""
    values = {name: round(float(value), 5) for name, value in metrics.items()}
    if run.is_main:
        line = {"step": run.global_step, "samples_seen": run.batches.samples_seen, "time": round(time.time(), 1)}
        with open(run.output_dir / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({**line, **values}) + "\n")
    return values


def periodically(run: Run) -> None:
    """Sample sheets and checkpoints, written by the main process."""
    args, step = run.args, run.global_step
    if not run.is_main:
        return
    if args.sample_steps and step % args.sample_steps == 0:
        samples = run.output_dir / "samples"
        samples.mkdir(exist_ok=True)
        sample_sheet(run.ema, seed=args.seed).save(samples / f"step-{step:07d}.png")
    if args.checkpointing_steps and step % args.checkpointing_steps == 0:
        checkpoint(run)


def checkpoint(run: Run) -> Path:
    return save_checkpoint(
        run.output_dir,
        run.global_step,
        ema=run.ema,
        generator=run.players.bare_generator,
        discriminator=run.players.bare_discriminator,
        training_state=training_state(run),
        total_limit=run.args.checkpoints_total_limit,
    )


# The end


def interrupt(run: Run) -> None:
    """Leaves a checkpoint from which `--resume_from_checkpoint latest` goes on."""
    if run.is_main:
        tqdm.write(f"interrupted at step {run.global_step}; go on from {checkpoint(run)} by resume_from_checkpoint")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def finish(run: Run) -> Path:
    """Writes the finished model: the averaged generator at the root, `discriminator/`, the card, a sample sheet."""
    folder = run.output_dir
    run.accelerator.wait_for_everyone()
    if run.is_main:
        if run.args.checkpointing_steps and run.global_step % run.args.checkpointing_steps:
            checkpoint(run)  # so that a longer run can go on from here
        run.ema.save_pretrained(folder)
        run.players.bare_discriminator.save_pretrained(folder / "discriminator")
        sample_sheet(run.ema, seed=run.args.seed).save(folder / "samples.png")
        (folder / "README.md").write_text(card(run), encoding="utf-8")
        if run.args.push_to_hub:
            assert run.args.hub_model_id is not None
            upload_folder(folder, run.args.hub_model_id, ignore_patterns=["checkpoint-*", "samples/*"])
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return folder


def card(run: Run) -> str:
    name = run.settings["dataset_name"]
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return model_card(
        run.config,
        repo_id=run.args.hub_model_id,
        datasets=[name] if is_hub_id else None,
        sample_image="samples.png",
        training={**run.settings, "steps": run.global_step},
    )
