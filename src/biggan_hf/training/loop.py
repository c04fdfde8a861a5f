"""The training loop: one step, what happens every so often, the end."""

import json
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..hub import model_card, upload_folder
from ..images import sample_sheet
from .batches import counter_seed
from .checkpoints import rotate_checkpoints
from .collapse import respond, save
from .ema import update_ema
from .plots import plot_curves, read_lines
from .quality import keep_if_best
from .replicas import average_running_statistics
from .run import EVALUATIONS, LOG, SPECTRA, Run
from .stability import all_finite, diagnose, share_taken_for_real
from .steps import Rules, discriminator_step, generator_step
from .stopping import Stop, Vote, interruption


CURVES = "curves.png"
NOT_PUBLISHED = ["*checkpoint-*", "abandoned-best*", "before-collapse-*", "collapsed-*", "samples/*"]


def train(run: Run) -> Path | None:
    """
    Trains what `set_up` made ready.

    Returns:
        The folder of the finished model; `None` if a signal (SIGTERM, SIGINT) ended the run, which then left a
        checkpoint, or a collapse did.
    """
    deadline = time.monotonic() + 60 * (run.args.max_train_minutes or float("inf"))
    vote = Vote(run.accelerator.num_processes)
    with interruption() as interrupted, progress_bar(run) as progress:
        stop: int = Stop.NOT
        while not stop:
            stop = why_stop(run, vote, deadline, interrupted)
            collapse = None if stop else advance(run, progress)
            if collapse is None and (stop or is_kept(run)):
                collapse = not_finite(run)
            if collapse is not None:
                stop = Stop.NOT if goes_on_after(run, collapse) else Stop.COLLAPSED
            elif not stop:
                periodically(run)
        return end(run, stop)


def advance(run: Run, progress: tqdm) -> str | None:
    """One step, and what the rule for collapses says if it is a logged one."""
    metrics = train_step(run)
    collapse = report(run, metrics, progress) if run.global_step % run.args.logging_steps == 0 else None
    progress.update(run.global_step - progress.n)
    return collapse


def train_step(run: Run) -> dict[str, Tensor]:
    """Discriminator updates, one generator update, the average: one `global_step`."""
    micro_batches, draw, rules = range(run.accumulation_steps), 0, rules_of(run)
    # Augmentation and dropout draw from the global generator, which thereby depends on the counters alone, too.
    torch.manual_seed(counter_seed(run.batch_seed, run.global_step, run.accelerator.process_index))
    for _ in range(run.args.num_discriminator_steps):
        pairs = []
        for _ in micro_batches:
            pairs.append((run.batches.latents(run.global_step, draw), run.batches.pictures()))
            draw += 1
        metrics = discriminator_step(run.players, pairs, rules)
    number = run.args.generator_batch_size
    latents = [run.batches.latents(run.global_step, draw + index, number) for index in micro_batches]
    metrics |= generator_step(run.players, latents, rules)
    if run.clamp is not None:
        run.clamp.apply()
    run.global_step += 1
    average_running_statistics(run.players.bare_generator)
    decay = run.args.ema_decay if run.global_step >= run.args.ema_start_step else 0.0
    update_ema(run.ema, run.players.bare_generator, decay)
    if run.accelerator.scaler is not None:
        run.overflows = count_overflows(run.overflows, metrics)
        metrics["overflows_in_a_row"] = run.overflows
    return metrics


def count_overflows(so_far: Tensor | float, metrics: Mapping[str, Tensor]) -> Tensor:
    """Steps in a row in which float16 overflowed, so that its scaler left an update out; stays on the device."""
    norm = metrics["discriminator_gradient"] + metrics["generator_gradient"]
    return (so_far + 1) * ~norm.isfinite()


def rules_of(run: Run) -> Rules:
    """The rules of this step: R1 comes every so many steps, and weighs as many times more."""
    args = run.args
    r1_gamma = args.rollback_r1_gamma if run.rollbacks and args.rollback_r1_gamma else args.r1_gamma
    return Rules(
        loss=args.loss,
        iterate_every_forward=args.power_iteration == "every_forward",
        split_discriminator=args.split_discriminator,
        generator_orthogonality=args.generator_orthogonality,
        discriminator_orthogonality=args.discriminator_orthogonality,
        relaxed_orthogonality=args.orthogonality == "relaxed",
        r1_gamma=0.0 if run.global_step % args.r1_interval else r1_gamma * args.r1_interval,
        diff_augment=args.diff_augment,
    )


# When to stop


def why_stop(run: Run, vote: Vote, deadline: float, interrupted: threading.Event) -> int:
    """A `Stop`, the same on every process."""
    done = Stop.STEPS_ARE_DONE if run.global_step >= run.args.max_train_steps else Stop.NOT
    mine = Stop.NOT
    if interrupted.is_set():
        mine = Stop.INTERRUPTED
    elif run.global_step and time.monotonic() > deadline:
        mine = Stop.TIME_IS_UP
    return max(vote(mine), done)


def is_kept(run: Run) -> bool:
    """Whether the weights of this step go to a checkpoint, or may become the best."""
    intervals = (run.args.checkpointing_steps, run.args.evaluation_steps)
    return any(interval and run.global_step % interval == 0 for interval in intervals)


def not_finite(run: Run) -> str | None:
    """What the rule calls even where collapses are ignored: nothing is kept, let alone finished, with NaN in it."""
    networks = (run.players.bare_generator, run.players.bare_discriminator, run.ema)
    broken = agreed(run, not all_finite(networks))
    return f"step {run.global_step}: weights are not finite" if broken else None


def goes_on_after(run: Run, collapse: str) -> bool:
    goes_on = respond(run, collapse)
    if run.is_main:
        draw_curves(run)
        tqdm.write(f"back to step {run.global_step}" if goes_on else "the run stops")
    return goes_on


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


def report(run: Run, metrics: Mapping[str, Tensor], progress: tqdm) -> str | None:
    """
    Fetches the scalars, which waits for the device, logs them, and asks the rule for collapses.

    Returns:
        What the rule says; on other processes than the main one an empty text, if it says something.
    """
    values = fetch(run.accelerator, metrics)
    if run.batches.unreadable:
        values["unreadable_pictures"] = len(run.batches.unreadable)
    collapse = None
    if run.is_main:
        values |= {"samples_seen": run.batches.samples_seen, **measure_stability(run)}
        append_line(run.output_dir / LOG, {"step": run.global_step, "time": round(time.time(), 1), **values})
        progress.set_postfix({name: values[name] for name in ("discriminator_loss", "generator_loss")})
        args = run.args
        log = read_lines(run.output_dir / LOG)
        collapse = diagnose(log, args.collapse_window, args.collapse_loss_floor, args.collapse_sigma_factor)
    run.accelerator.log(values, run.global_step)
    if run.args.on_collapse == "ignore" or not agreed(run, collapse is not None):
        return None
    return collapse or ""


def fetch(accelerator: Accelerator, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, means over all processes."""
    means = accelerator.reduce(torch.stack([value.float() for value in metrics.values()]), "mean")
    return {name: round(value, 5) for name, value in zip(metrics, means.tolist(), strict=True)}


def measure_stability(run: Run) -> dict[str, float]:
    """
    On the first logged step after every `watch_steps`: all spectra to spectra.jsonl; to the log the largest σ0, and
    how the discriminator takes the same real pictures each time, held out and of training.
    """
    steps, logging = run.args.watch_steps, run.args.logging_steps
    if not steps or run.global_step // steps == (run.global_step - logging) // steps:
        return {}
    spectra = {"generator": run.watch.generator.measure(), "discriminator": run.watch.discriminator.measure()}
    append_line(run.output_dir / SPECTRA, {"step": run.global_step, **spectra})
    values = {f"{network}_sigma0": max(s[0] for s in sigmas.values()) for network, sigmas in spectra.items() if sigmas}
    for name, pictures in run.watch.pictures.items():
        values[f"{name}_accuracy"] = share_taken_for_real(run.players.bare_discriminator, pictures)
    return values


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def periodically(run: Run) -> None:
    """Checkpoints and sample sheets, written by the main process; evaluations, in which every one takes part."""
    args, step = run.args, run.global_step
    # First, so that nothing that follows can cost the steps so far.
    if run.is_main and args.checkpointing_steps and step % args.checkpointing_steps == 0:
        checkpoint(run)
    if args.evaluation_steps and step % args.evaluation_steps == 0:
        evaluate(run)
    if not run.is_main:
        return
    if args.sample_steps and step % args.sample_steps == 0:
        samples = run.output_dir / "samples"
        samples.mkdir(exist_ok=True)
        sheet = sample_sheet(run.ema, seed=args.seed)
        sheet.save(samples / f"step-{step:07d}.png")
        track_sheet(run, sheet)
        draw_curves(run)


def draw_curves(run: Run) -> None:
    log, spectra, evaluations = (read_lines(run.output_dir / name) for name in (LOG, SPECTRA, EVALUATIONS))
    plot_curves(log, spectra, evaluations, run.output_dir / CURVES)


def evaluate(run: Run) -> None:
    """Measures the average, logs the numbers by their labels, and keeps the best model apart."""
    assert run.quality is not None
    values = run.quality.measure(run.ema)
    if run.is_main:
        named = {f"eval_{label}": value for label, value in values.items()}
        append_line(run.output_dir / EVALUATIONS, {"step": run.global_step, **named})
        keep_if_best(run.output_dir, run.global_step, values, run.ema, run.players.bare_discriminator)
    run.accelerator.log({f"eval_{label}": value for label, value in values.items()}, run.global_step)


def track_sheet(run: Run, sheet: Image.Image) -> None:
    """Sends a sample sheet to the trackers that take pictures."""
    for tracker in run.accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(sheet)[None]}, run.global_step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [sheet]}, run.global_step)


def checkpoint(run: Run) -> Path:
    folder = run.output_dir / f"checkpoint-{run.global_step}"
    save(run, folder)
    onset = None if run.args.on_collapse == "ignore" else run.onset
    rotate_checkpoints(run.output_dir, run.args.checkpoints_total_limit, onset)
    return folder


# The end


def end(run: Run, stop: int) -> Path | None:
    """Leaves the finished model, and returns its folder, or what an interrupted run goes on from; of a run that has
    collapsed everything is saved."""
    run.accelerator.wait_for_everyone()
    folder = run.output_dir if stop in (Stop.STEPS_ARE_DONE, Stop.TIME_IS_UP) else None
    if run.is_main and folder is not None:
        finish(run, folder)
    elif run.is_main and stop == Stop.INTERRUPTED:
        interrupt(run)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return folder


def interrupt(run: Run) -> None:
    """Leaves a checkpoint from which `--resume_from_checkpoint latest` goes on."""
    draw_curves(run)
    tqdm.write(f"interrupted at step {run.global_step}; go on from {checkpoint(run)} by resume_from_checkpoint")


def finish(run: Run, folder: Path) -> None:
    """Writes the finished model: the averaged generator at the root, `discriminator/`, the card, a sample sheet."""
    if run.global_step < run.args.max_train_steps:
        tqdm.write(f"time is up at step {run.global_step} of {run.args.max_train_steps}")
    if run.args.checkpointing_steps and run.global_step % run.args.checkpointing_steps:
        checkpoint(run)  # so that a longer run can go on from here
    run.ema.save_pretrained(folder)
    run.players.bare_discriminator.save_pretrained(folder / "discriminator")
    sample_sheet(run.ema, seed=run.args.seed).save(folder / "samples.png")
    draw_curves(run)
    (folder / "README.md").write_text(card(run), encoding="utf-8")
    if run.args.push_to_hub:
        assert run.args.hub_model_id is not None
        upload_folder(folder, run.args.hub_model_id, ignore_patterns=NOT_PUBLISHED)


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
