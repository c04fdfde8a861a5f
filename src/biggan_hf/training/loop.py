"""The training loop: a step, what happens every so often, and the end."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..bars import open_bar
from ..files import append_line, staged_folder, step_of, write_file
from ..finite import NotFiniteError
from ..images import sample_sheet
from ..processes import Vote, from_main
from ..sheets import write_sheets
from . import stability
from .adapters import FOLDER, bound_adapters, merged, save_adapter, write_adapter_card
from .arguments import TrainingArguments
from .batches import counter_seed
from .ema import update_ema
from .ending import Interruption, Stop, exit_status
from .logs import (
    COLLAPSES,
    EVALUATIONS,
    LOG,
    SPECTRA,
    draw_curves,
    fetch,
    last_lines,
    read_lines,
    track_collapse,
    track_sheet,
)
from .losses import LOSSES
from .publishing import publish, publish_step, write_card
from .quality import keep_if_best
from .replicas import average_running_statistics
from .report import Estimate
from .run import Run
from .steps import Latents, Objective, Pictures, discriminator_step, generator_step
from .uploads import LITTLE_PATIENCE, PATIENCE


FINISHED = (Stop.STEPS_ARE_DONE, Stop.TIME_IS_UP)


def train(run: Run) -> Path | None:
    """
    Trains a run that `set_up` made ready. Returns the folder of the finished model. Returns `None` where a signal or
    the end of its launcher stopped the run, which then left a checkpoint, where a collapse ended it, and after a dry
    run.
    """
    if run.report is not None:
        print(run.report.screen())
    if run.args.dry_run:
        run.accelerator.end_training()
        return None
    estimate = Estimate(run)
    deadline = time.monotonic() + 60 * (run.args.max_train_minutes or float("inf"))
    vote, stop = Vote(), int(Stop.NOT)
    bar: Any = {"desc": "training", "disable": not run.is_main, "dynamic_ncols": True}
    progress = open_bar(total=run.args.max_train_steps, initial=run.global_step, **bar)
    with Interruption() as interruption, progress:
        make_up(run)
        metrics: dict[str, Tensor] = {}
        while not stop:
            stop = why_stop(run, vote, deadline, interruption)
            collapse = None
            if not stop:
                metrics = train_step(run)
                collapse = report(run, metrics, progress) if run.is_due(run.args.logging_steps) else None
                progress.update(run.global_step - progress.n)
                estimate()
            if collapse is None and (stop or saves(run)):
                collapse = not_finite(run)
            if collapse is not None:
                stop, metrics = Stop.NOT if stop_or_roll_back(run, collapse) else Stop.COLLAPSED, {}
            elif not stop:
                periodically(run)
        if metrics and stop in FINISHED and not run.is_due(run.args.logging_steps):
            report(run, metrics, progress)  # the last step is in the log, too
        return end(run, stop)


def train_step(run: Run) -> dict[str, Tensor]:
    """The updates of the discriminator, one of the generator, and the average: one `global_step`."""
    batches, step, objective = run.batches, run.global_step, run.objective()
    micro_batches, draw = range(run.accumulation_steps), 0
    # Augmentation and dropout draw from the global generator: it, too, shall depend on the counters alone.
    torch.manual_seed(counter_seed(run.batch_seed, step, run.accelerator.process_index))

    for _ in range(run.args.num_discriminator_steps):
        pairs = [(batches.latents(step, draw + index), batches.pictures()) for index in micro_batches]
        metrics = run.graphs(discriminator_step, run.players, pairs, objective)
        draw += run.accumulation_steps
    latents = [batches.latents(step, draw + index) for index in micro_batches]
    run.global_step += 1
    decay = run.args.ema_decay if run.global_step >= run.args.ema_start_step else 0.0
    compared = [real for _, real in pairs] if LOSSES[objective.loss].is_relative else []
    metrics |= run.graphs(update_generator, run, (latents, compared), objective, decay)
    if run.accelerator.scaler is not None:
        # Counts the steps in a row in which float16 overflowed, and its scaler left an update out; on the device.
        norm = metrics["discriminator_gradient"] + metrics["generator_gradient"]
        run.overflows = metrics["overflows_in_a_row"] = (run.overflows + 1) * ~norm.isfinite()
    return metrics


def update_generator(
    run: Run, shown: tuple[Sequence[Latents], Sequence[Pictures]], objective: Objective, decay: float
) -> dict[str, Tensor]:
    """One update of the generator, what bounds its weights, and the average. A relativistic loss is shown pictures."""
    latents, compared = shown
    metrics = generator_step(run.players, latents, objective, compared)
    if run.clamp is not None:
        run.clamp.apply()
    if run.args.lora_rank:
        bound_adapters(run.players.networks.values())
    average_running_statistics(run.players.bare_generator)
    update_ema(run.ema, run.players.bare_generator, decay)
    return metrics


# When to stop


def why_stop(run: Run, vote: Vote, deadline: float, interruption: Interruption) -> int:
    """A `Stop`, the same on every process."""
    done = Stop.STEPS_ARE_DONE if run.global_step >= run.args.max_train_steps else Stop.NOT
    mine = interruption.reason()
    if mine == Stop.NOT and run.global_step and time.monotonic() > deadline:
        mine = Stop.TIME_IS_UP
    agreed = vote(mine)
    if agreed:
        interruption.agreed()
    return max(agreed, done)


def saves(run: Run) -> bool:
    """Whether the weights of this step go to a checkpoint or to the Hub, or may become the best."""
    return any(map(run.is_due, (run.args.checkpointing_steps, run.args.evaluation_steps, run.args.push_to_hub_every)))


def not_finite(run: Run) -> str | None:
    """Weights with NaN in them are a collapse even where collapses are ignored: they are never saved as a model."""
    return from_main(None if stability.all_finite(run.networks) else f"step {run.global_step}: weights are not finite")


def stop_or_roll_back(run: Run, why: str) -> bool:
    """
    Says what happened, notes it in collapses.jsonl, and keeps the weights as `collapsed-{step}`. Then the run rolls
    back, if `on_collapse` says so, a good checkpoint is there, and it has not done so too often. Returns whether the
    run goes on. Every process calls this.
    """
    may_roll_back = run.args.on_collapse == "rollback" and run.rollbacks < stability.MAX_ROLLBACKS
    good = run.last_good_checkpoint() if may_roll_back else None
    if run.is_main:
        tqdm.write(f"collapse at {why}")  # this comes first and the weights last: the disk may be full
        note = {"step": run.global_step, "why": why, "rolled_back_to": good and step_of(good)}
        append_line(run.output_dir / COLLAPSES, note)
        track_collapse(run.accelerator, why, run.global_step)
        run.save(run.output_dir / f"collapsed-{run.global_step}")
    run.accelerator.wait_for_everyone()
    if good is not None:
        run.roll_back(good)
    run.accelerator.wait_for_everyone()
    run.collapsed = good is None
    if run.is_main:
        draw_curves(run.output_dir)
        tqdm.write("the run stops" if good is None else f"back to step {run.global_step}")
    return good is not None


# Every so often


def report(run: Run, metrics: Mapping[str, Tensor], progress: tqdm) -> str | None:
    """Fetches the scalars, which waits for the device, logs them, and returns what the rule for collapses says."""
    values = fetch(run.accelerator, metrics)
    if run.batches.unreadable:
        values["unreadable_pictures"] = len(run.batches.unreadable)
    collapse = None
    if run.is_main:
        values |= {"samples_seen": run.batches.samples_seen, **measure_stability(run)}
        append_line(run.output_dir / LOG, {"step": run.global_step, "time": round(time.time(), 1), **values})
        progress.set_postfix({name: values[name] for name in ("discriminator_loss", "generator_loss")})
        collapse = stability.diagnose(last_lines(run.output_dir / LOG, lines_of_the_rule(run.args)))
    run.accelerator.log(values, run.global_step)
    return None if run.args.on_collapse == "ignore" else from_main(collapse)


def lines_of_the_rule(args: TrainingArguments) -> int:
    """The lines of the log in which the rule for collapses finds as many measurements of σ0 as it looks at."""
    return (stability.WINDOW + 1) * math.ceil(max(args.watch_steps / args.logging_steps, 1)) + 1


def measure_stability(run: Run) -> dict[str, float]:
    """
    On the first logged step after every `watch_steps`, writes all spectra to spectra.jsonl. Returns what the log gets:
    the largest σ0 of each network, and how many of the watched pictures the discriminator takes for real.
    """
    steps, logging = run.args.watch_steps, run.args.logging_steps
    if not steps or run.global_step // steps == (run.global_step - logging) // steps:
        return {}
    spectra = {name: spectra.measure() for name, spectra in run.spectra.items()}
    append_line(run.output_dir / SPECTRA, {"step": run.global_step, **spectra})
    values = {f"{network}_sigma0": max(s[0] for s in sigmas.values()) for network, sigmas in spectra.items() if sigmas}
    for name, pictures in run.watched.items():
        values[f"{name}_accuracy"] = stability.share_taken_for_real(run.players.bare_discriminator, pictures)
    return values


def periodically(run: Run) -> None:
    """The main process writes checkpoints and sheets of samples; every process takes part in evaluations."""
    if run.is_main and run.compile_cache is not None:
        run.compile_cache.keep_once()  # the first step has compiled all
    # The checkpoint comes before the rest: nothing that fails afterwards can cost the steps so far.
    if run.is_main and run.is_due(run.args.checkpointing_steps):
        run.checkpoint()
    if run.is_due(run.args.evaluation_steps):
        evaluate(run)
    if run.is_main and run.is_due(run.args.sample_steps):
        draw_samples(run)
    if run.is_main and run.is_due(run.args.push_to_hub_every):
        publish_step(run, sheet_of(run))


def make_up(run: Run) -> None:
    """What was due at the step of the checkpoint from which a run goes on, and what a kill after it has prevented."""
    if run.global_step and run.is_due(run.args.evaluation_steps):
        lines = read_lines(run.output_dir / EVALUATIONS) if run.is_main else []
        if from_main(all(line["step"] != run.global_step for line in lines)):
            evaluate(run)
    if run.global_step and run.is_main and run.is_due(run.args.sample_steps) and not sheet_of(run).exists():
        draw_samples(run)


def sheet_of(run: Run) -> Path:
    return run.output_dir / "samples" / f"step-{run.global_step:07d}.png"


def draw_samples(run: Run) -> None:
    """Writes a sheet of samples of the average, and the curves."""
    try:
        caption = f"step {run.global_step:,}, no truncation, seed {run.args.seed}"
        sheet = sample_sheet(run.ema, seed=run.args.seed, caption=caption)
    except NotFiniteError as error:  # the watch decides what becomes of the run
        tqdm.write(f"no sheet of samples at step {run.global_step}: {error}")
        return
    sheet_of(run).parent.mkdir(exist_ok=True)
    with write_file(sheet_of(run)) as unfinished:
        sheet.save(unfinished)
    track_sheet(run.accelerator, sheet, run.global_step)
    draw_curves(run.output_dir)


def evaluate(run: Run) -> None:
    """Measures the average, logs the numbers by their labels, and keeps the best model apart."""
    assert run.quality is not None
    try:
        values = run.quality.measure(run.ema)
    except NotFiniteError as error:  # in every process alike
        if run.is_main:
            tqdm.write(f"no evaluation at step {run.global_step}: {error}")
        return
    named = {f"eval_{label}": value for label, value in values.items()}
    if run.is_main:
        # The line comes last: where there is one, the best is kept.
        keep_if_best(run.output_dir, run.global_step, values, run.ema, run.players.bare_discriminator)
        append_line(run.output_dir / EVALUATIONS, {"step": run.global_step, **named})
    run.accelerator.log(named, run.global_step)


# The end


def end(run: Run, stop: int) -> Path | None:
    """Leaves the finished model and returns its folder. An interrupted run leaves a checkpoint instead."""
    run.accelerator.wait_for_everyone()
    folder = run.output_dir if stop in FINISHED else None
    is_unfinished = Stop.HUNG_UP <= stop <= Stop.LAUNCHER_IS_GONE
    if run.is_main and run.compile_cache is not None:
        run.compile_cache.keep()
    if run.is_main and folder is not None:
        finish(run, folder)
    elif run.is_main and is_unfinished:
        saved = run.checkpoint()
        draw_curves(run.output_dir)
        steps = f"{run.global_step:,} of {run.args.max_train_steps:,} steps"
        tqdm.write(f"unfinished: {steps}; --resume_from_checkpoint latest goes on from {saved}")
    run.uploads.finish(LITTLE_PATIENCE if folder is None else PATIENCE)
    run.exit_status = exit_status(stop) if is_unfinished else 0
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return folder


def finish(run: Run, folder: Path) -> None:
    """Writes the finished model: the averaged generator, `discriminator/`, the card and a sheet of samples."""
    if run.global_step < run.args.max_train_steps:
        tqdm.write(f"time is up at step {run.global_step} of {run.args.max_train_steps}")
    if run.args.checkpointing_steps and run.global_step % run.args.checkpointing_steps:
        run.checkpoint()  # a longer run can go on from here
    with staged_folder(folder) as staging:
        merged(run.ema).save_pretrained(staging, global_step=run.global_step)
        discriminator = run.players.bare_discriminator
        merged(discriminator).save_pretrained(staging / "discriminator", global_step=run.global_step)
        if run.args.lora_rank:
            save_adapter(run.ema, staging / FOLDER, run.base_model)
            save_adapter(discriminator, staging / FOLDER / "discriminator", run.base_model)
            write_adapter_card(staging / FOLDER, run.base_model)
        write_sheets(run.ema, staging, run.args.seed)
    write_card(run)
    draw_curves(folder)
    if run.args.push_to_hub:
        publish(run)
