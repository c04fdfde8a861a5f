"""What a run writes down as it goes: files of JSON lines, and the curves that are drawn from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..files import write_file, write_text


# The losses, the singular values of every weight, what evaluations measured, and the collapses, in a run's folder.
LOG, SPECTRA, EVALUATIONS, COLLAPSES = "log.jsonl", "spectra.jsonl", "evaluations.jsonl", "collapses.jsonl"
CURVES = "curves.png"


# Lines


def fetch(accelerator: Accelerator, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, each the mean over all processes. It waits for the device."""
    means = accelerator.reduce(torch.stack([value.float() for value in metrics.values()]), "mean")
    return {name: round(value, 5) for name, value in zip(metrics, means.tolist(), strict=True)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut_logs(folder: Path, step: int) -> None:
    """Removes from the logs what came after a step, from which the run goes on."""
    for log in (folder / name for name in (LOG, SPECTRA, EVALUATIONS)):
        if log.exists():
            kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(log, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    """The step of a line. A line that a kill cut off is after all others."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")


def track_sheet(accelerator: Accelerator, sheet: Image.Image, step: int) -> None:
    """Sends a sheet of samples to the trackers that take pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(sheet)[None]}, step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [sheet]}, step)


# Curves

# The panels: their titles, and the columns of the log that they show.
PANELS = {
    "losses": ["discriminator_loss", "generator_loss"],
    "share told right by the discriminator": [f"{n}_accuracy" for n in ("real", "fake", "training", "held_out")],
    "gradient norms": ["discriminator_gradient", "generator_gradient"],
}


def draw_curves(folder: Path) -> None:
    """Writes curves.png: the panels, what evaluations measured, and the σ0 of every weight, over the steps."""
    from matplotlib.figure import Figure  # here, so that sampling needs no plotting library

    log, spectra, evaluations = (read_lines(folder / name) for name in (LOG, SPECTRA, EVALUATIONS))
    measured = {name.removeprefix("eval_"): [name] for line in evaluations for name in line if name != "step"}
    panels = {**PANELS, **measured}
    rows = (len(panels) + 3) // 2  # two more panels show the spectra
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in [*log, *evaluations] if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize="small") if axis.lines else None
    for axis, network in zip(axes[len(panels) :], ("generator", "discriminator"), strict=False):
        # One line for each weight, as in the paper's figure 3.
        for name in spectra[0][network] if spectra else ():
            points = [(line["step"], line[network][name][0]) for line in spectra]
            axis.plot(*zip(*points, strict=True), linewidth=0.7)
        axis.set(title=f"σ0 of the {network}'s weights", xlabel="step")
    for axis in axes[len(panels) + 2 :]:
        axis.set_visible(False)
    with write_file(folder / CURVES) as path:
        figure.savefig(path, dpi=110)
