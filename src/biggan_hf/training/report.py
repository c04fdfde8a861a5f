"""What a run found before its first step, on one screen, and from its first steps how long it will take."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from ..cards import public_name
from ..class_names import names_of
from ..configuration_biggan import BigGANConfig
from ..data.describing import (
    Row,
    found_rows,
    found_unusual,
    lines_of,
    printable,
    splits_beside,
    splits_in_words,
    wrapped,
)
from ..devices import bfloat16_unit
from ..files import read_text, write_text
from ..words import counted
from .adapters import said_of
from .arguments import DataArguments
from .fine_tuning import map_classes
from .graphs import why_not
from .logs import LOG, read_lines
from .losses import LOSSES
from .stability import ROLLBACK_LEARNING_RATE_FACTOR


if TYPE_CHECKING:
    from .run import Run

REPORT, LINES = "report.txt", 24
_STARTS = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d), step \d+$", re.MULTILINE)  # as `write_report` writes them
FEW_PICTURES = 1_000  # below, the discriminator learns the pictures by heart (DiffAugment, Zhao et al. 2020)
MEASURED = 10.0  # seconds of steps, after the first one, from which the time of a run is estimated


@dataclass(frozen=True)
class Report:
    rows: list[Row]
    unusual: list[str]  # a sentence each
    private: dict[str, str]  # paths that a sentence may name, and what others read instead

    def screen(self) -> str:
        """At most 24 lines of at most 100 columns. Long rows are cut first, then the last sentences are left out."""
        for most in (4, 3, 2, 1):
            lines = lines_of(self.rows, self.unusual, most)
            if len(lines) <= LINES:
                return "\n".join(lines)
        shown = len(self.unusual)
        while shown and len(lines) >= LINES:
            shown -= 1
            lines = lines_of(self.rows, self.unusual[:shown], 1)
        left = len(self.unusual) - shown + len(lines[LINES - 1 :])
        return "\n".join([*lines[: LINES - 1], *wrapped("", f"and {left} more: see {REPORT}")])

    def text(self) -> str:
        """All of it, for the file."""
        return "\n".join(lines_of(self.rows, self.unusual))

    def public_rows(self) -> list[tuple[str, str]]:
        """The rows as others may read them."""
        unusual = " ".join(self.unusual)
        for path, name in self.private.items():
            unusual = unusual.replace(path, name)
        rows = [(row.title, row.text if row.public is None else row.public) for row in self.rows]
        return [(title, text) for title, text in [*rows, ("unusual", unusual)] if text]


def describe(run: "Run", data_args: DataArguments, resumed: Path | None, chosen: str = "") -> Report:
    """What the run is about to do, with what it found. `chosen`: why it has its preset."""
    args, size, images = run.args, run.config.image_size, run.batches.images
    data, processes = data_args.dataset_name, run.accelerator.num_processes
    batch = run.accumulation_steps * args.per_device_batch_size * processes
    product = f"{args.per_device_batch_size} × {counted(processes, 'process')} × {run.accumulation_steps} accumulated"
    rows = [
        *found_rows(images, data, data_args.held_out_split),
        Row("trained as", f"{size}×{size}, {'RGB' if run.config.num_channels == 3 else 'grey'}"),
        Row("chosen", chosen),
        _networks(run),
        _origin(run, resumed),
        Row("settings", _settings(run)),
        Row("trained", said_of(run.players.networks.values(), args.lora_rank) if args.lora_rank else ""),
        Row("device", _device(run)),
        Row("compiled", run.compile_cache.found if run.compile_cache is not None else "", ""),
        Row("batch", f"{batch:,} = {product}"),
        Row("training", _length(run, batch * args.num_discriminator_steps)),
        Row("written to", "nothing: this is a dry run" if args.dry_run else args.output_dir, ""),
    ]
    paths = [path for path in (run.settings["dataset_name"], data) if public_name(path) != path and "/" in path]
    shown = [Row(row.title, printable(row.text), row.public and printable(row.public)) for row in rows if row.text]
    unusual = [printable(text) for text in _unusual(run, data_args)]
    return Report(shown, unusual, {path: public_name(path) for path in paths})


def write_report(run: "Run") -> None:
    """Adds the report to report.txt; a run that begins anew begins the file anew."""
    assert run.report is not None
    path = run.output_dir / REPORT
    before = path.read_text(encoding="utf-8") + "\n" if path.exists() and run.global_step else ""
    now = datetime.now().isoformat(" ", "seconds")
    write_text(path, f"{before}{now}, step {run.global_step}\n{run.report.text()}\n")


# The rows


def _networks(run: "Run") -> Row:
    networks, model = run.players.networks.items(), run.settings["init_from"]
    sizes = [f"{name} {sum(w.numel() for w in network.parameters()):,} parameters" for name, network in networks]
    origins = [f"preset {run.settings['preset']}"] * 2
    if model is not None:
        origins = [f"architecture of {name}" for name in (model, public_name(model))]
    said, public = (", ".join([origin, *sizes]) for origin in origins)
    return Row("networks", said, public)


def _settings(run: "Run") -> str:
    """Where the settings of the training come from, if not from where the networks come from."""
    if run.settings["init_from"] is None:
        return ""
    return f"of preset {run.settings['preset']} where none were given; --preset names another"


def _origin(run: "Run", resumed: Path | None) -> Row:
    model = run.settings["init_from"]
    if resumed is not None:
        factor = ROLLBACK_LEARNING_RATE_FACTOR**run.rollbacks
        slower = f", after {counted(run.rollbacks, 'rollback')}: learning rates × {factor:g}" if run.rollbacks else ""
        return Row("weights", f"of step {run.global_step:,}, {resumed.name}{slower}")
    if model is None:
        return Row("weights", "new")
    there, here = names_of(_config_of_start(run).id2label), names_of(run.config.id2label)
    said, public = (map_classes(name, there, here).sentence or f"of {name}" for name in (model, public_name(model)))
    return Row("weights", said, public)


def _config_of_start(run: "Run") -> BigGANConfig:
    """Of the model that is fine-tuned; a run that goes on does not need it, and it may be gone."""
    return BigGANConfig.from_pretrained(run.settings["init_from"], revision=run.settings["revision"] or "main")


def device_in_words(device: torch.device, processes: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{processes} × {name}" if processes > 1 else name


def _device(run: "Run") -> str:
    device, processes = run.accelerator.device, run.accelerator.num_processes
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    precision, unit = str(run.accelerator.mixed_precision), bfloat16_unit(device)
    said = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(precision, precision)
    if precision == "no":
        faster = f"its {unit} would be faster in bfloat16: --mixed_precision auto"
        said += f" ({faster if unit else 'it has no fast bfloat16'})"
    elif precision == "bf16":
        said += f" ({unit})" if unit else ", which this device computes slowly"
    elif device.type == "cpu":
        said = "float32: a CPU does not train in float16"
    if device.type == "cuda":
        reason = "" if run.args.cuda_graphs == "off" else why_not(run.args, run.accelerator)
        said += ", CUDA graphs" if reason is None else f", no CUDA graphs{reason and ': '}{reason}"
    return f"{device.type}{name}, {counted(processes, 'process')}, {said}"


def _length(run: "Run", pictures_a_step: int) -> str:
    steps = max(run.args.max_train_steps - run.global_step, 0)  # a run that goes on may be told to end before
    passes, limit = steps * pictures_a_step / run.batches.images.num_readable, run.args.max_train_minutes
    updates = counted(run.args.num_discriminator_steps, "update")
    said = f"{counted(steps, 'step')} with {updates} of the discriminator each, {steps * pictures_a_step:,} pictures, "
    return f"{said}{passes:,.1f} passes over the data{'' if limit is None else f', at most {limit:g} minutes'}"


# What is unusual


def _unusual(run: "Run", data_args: DataArguments) -> Iterator[str]:
    args, config, images = run.args, run.config, run.batches.images
    yield from found_unusual(images)
    if not images.class_names and data_args.label_column != "none":
        labels = "Labels are sub-folders or a --label_column."
        yield f"No labels were found, and the networks learn without classes. {labels}"
    are_coloured = any(picture.is_coloured for picture in images.probed)
    if are_coloured and config.num_channels == 1:
        yield "The pictures are coloured and the model is grey: --config_overrides num_channels=3."
    elif not are_coloured and config.num_channels == 3:
        yield "The pictures are grey and the model is coloured: --config_overrides num_channels=1."
    if images.num_readable < FEW_PICTURES and not (args.diff_augment or args.consistency):
        few = f"{images.num_readable:,} pictures are few, and nothing augments them"
        yield f"{few}: the discriminator learns them by heart. --diff_augment helps."
    if min(images.stored_sizes()[0]) < config.image_size:
        yield f"Pictures are smaller than the model's {config.image_size} pixels, and are enlarged."
    if unused := splits_beside(images, data_args.held_out_split)[1]:
        yield f"Not trained on: {splits_in_words(unused)}. --dataset_split names another split."
    if run.settings["init_from"] is not None and not run.global_step and not config.standing_truncations:
        if _config_of_start(run).standing_truncations:
            why = "The standing statistics of init_from are left out, for they hold for its weights"
            yield f"{why}: `biggan-hf stats` measures those of the new ones."
    is_relative = LOSSES[args.loss].is_relative  # then generated pictures have the labels of the real ones
    if (data_args.class_sampling, data_args.label_sampling) == ("balanced", "counts") and not is_relative:
        why = "--class_sampling counts for real pictures, --label_sampling for generated ones"
        yield f"Real pictures come from all classes equally often, generated ones do not: {why}."
    if is_relative and not (args.r1_gamma and args.r2_gamma):
        yield f"The {args.loss} loss is meant to have R1 and R2 (--r1_gamma, --r2_gamma), or it may never settle."
    if 0 < args.ema_decay and args.max_train_steps <= args.ema_start_step:
        begins = f"The average of the generator begins at step {args.ema_start_step:,}, after the last step"
        yield f"{begins}: the model will be the generator as it is trained. --ema_start_step lowers it."


# How long it takes


class Estimate:
    """
    Says how long the first step took, which also warms up, compiles and decodes the first pictures, and once, after
    some more steps, how long the run will take.
    """

    def __init__(self, run: "Run"):
        self.run = run
        self.begun = time.monotonic()
        self.said = not run.is_main
        self.start: tuple[float, int] | None = None

    def __call__(self) -> None:
        """To be called after each step."""
        if self.said:
            return
        if self.start is None:
            self.start = self._now(), self.run.global_step
            self._say("first step", f"done {self.start[0] - self.begun:.1f} s after the training began")
            return
        begun, steps = self.start[0], self.run.global_step - self.start[1]
        if time.monotonic() - begun < MEASURED or not steps:
            return
        self.said = True
        left = self.run.args.max_train_steps - self.run.global_step
        self._say("time", time_in_words((self._now() - begun) / steps, left, self.run.args.max_train_minutes))

    def _say(self, title: str, said: str) -> None:
        lines = "\n".join(wrapped(title, said))
        tqdm.write(lines)
        path = self.run.output_dir / REPORT
        write_text(path, f"{path.read_text(encoding='utf-8')}{lines}\n")

    def _now(self) -> float:
        if self.run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def time_in_words(seconds_a_step: float, steps: int, max_minutes: float | None = None) -> str:
    seconds = seconds_a_step * steps
    measured = f"({counted(steps, 'step')} of {seconds_a_step:.3g} s)"
    if max_minutes is not None and seconds > 60 * max_minutes:
        done = min(int(60 * max_minutes / seconds_a_step), steps)
        limit = f"the {max_minutes:g} minutes of max_train_minutes"
        return f"about {counted(done, 'step')} in {limit} on this device {measured}"
    advice = ": see docs/training.md" if seconds >= 86_400 else ""
    return f"about {in_units(seconds)} on this device{advice} {measured}"


def in_units(seconds: float) -> str:
    units = (("days", 86_400), ("hours", 3_600), ("minutes", 60))
    unit, length = next((unit for unit in units if seconds >= unit[1]), ("seconds", 1))
    return f"{seconds / length:.1f} {unit}"


def seconds_trained(folder: Path) -> float:
    """
    How long the steps of a run have taken: from each of its starts, which report.txt names, to the last line of the
    log before the next one. What was trained after a checkpoint to which the run went back is not in the log, and does
    not count. 0 where the two files do not tell.
    """
    starts = [datetime.fromisoformat(line).timestamp() for line in _STARTS.findall(read_text(folder / REPORT))]
    times = [line["time"] for line in read_lines(folder / LOG) if "time" in line]
    seconds = 0.0
    for start, end in zip(starts, [*starts[1:], math.inf], strict=False):
        seconds += max((time - start for time in times if start <= time < end), default=0.0)
    return seconds
