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
from .checkpoints import warn


# The losses, the singular values of every weight, what evaluations measured, and the collapses, in a run's folder.
LOG, SPECTRA, EVALUATIONS, COLLAPSES = "log.jsonl", "spectra.jsonl", "evaluations.jsonl", "collapses.jsonl"
CURVES = "curves.png"
NETWORKS = ("generator", "discriminator")


# Lines


def fetch(accelerator: Accelerator, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, each the mean over all processes. It waits for the device."""
    means = accelerator.reduce(torch.stack([value.float() for value in metrics.values()]), "mean")
    return {name: round(value, 5) for name, value in zip(metrics, means.tolist(), strict=True)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if there is no such file."""
    return _lines(path, path.read_bytes()) if path.exists() else []


def last_lines(path: Path, number: int) -> list[dict[str, Any]]:
    """The last lines of a file, so many at least if it has them. Reads no more of a long file than it needs."""
    size, length = path.stat().st_size, 2**15
    with path.open("rb") as file:
        while True:
            file.seek(max(size - length, 0))
            tail = file.read()
            if length >= size:
                return _lines(path, tail)
            if tail.count(b"\n") > number:
                return _lines(path, tail.partition(b"\n")[2])
            length *= 4


def _lines(path: Path, content: bytes) -> list[dict[str, Any]]:
    # A power cut may leave zeros, and a kill half a line.
    lines: list[dict[str, Any]] = []
    damaged = 0
    for line in content.splitlines():
        try:
            values = json.loads(line)  # UTF-8, or `UnicodeDecodeError`, which is a `ValueError`
        except (ValueError, RecursionError):
            values = None
        if _is_line(path.name, values):
            lines.append(values)
        else:
            damaged += 1
    if damaged:
        warn(f"{str(path)!r} has {damaged} lines that can't be read; they are passed over")
    return lines


def _is_line(log: str, values: Any) -> bool:
    """Whether a line of a log holds what its readers look for: a step, and what the log tells of it."""
    if not isinstance(values, dict) or not isinstance(values.get("step"), int) or len(values) == 1:
        return False
    if log != SPECTRA:
        needed = PANELS["losses"] if log == LOG else []
        return all(isinstance(value, int | float) for value in [*values.values(), *map(values.get, needed)])
    networks = [values.get(network) for network in NETWORKS]
    sigmas = [sigma for weights in networks if isinstance(weights, dict) for sigma in weights.values()]
    are_sigmas = all(isinstance(s, list) and s and isinstance(s[0], int | float) for s in sigmas)
    return are_sigmas and all(isinstance(weights, dict) for weights in networks)


def cut_logs(folder: Path, step: int) -> None:
    """Removes from the logs what came after a step, from which the run goes on."""
    for log in (folder / name for name in (LOG, SPECTRA, EVALUATIONS)):
        if log.exists():
            kept = [values for values in read_lines(log) if values["step"] <= step]
            write_text(log, "".join(json.dumps(values) + "\n" for values in kept))


def track_sheet(accelerator: Accelerator, sheet: Image.Image, step: int) -> None:
    """Sends a sheet of samples to the trackers that take pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(sheet)[None]}, step, dataformats="NHWC")
        elif tracker.name == "trackio":  # which takes pictures, though accelerate's tracker of it has no method
            import trackio

            tracker.tracker.log({"samples": trackio.Image(sheet)}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [sheet]}, step)


def track_collapse(accelerator: Accelerator, why: str, step: int) -> None:
    """Tells of a collapse by an alert of trackio, which may go on to a chat (TRACKIO_WEBHOOK_URL)."""
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":
            import trackio

            tracker.tracker.alert("collapse", why, level=trackio.AlertLevel.ERROR, step=step)


# Curves

# The panels: their titles, and the columns of the log that they show.
PANELS = {
    "losses": ["discriminator_loss", "generator_loss"],
    "share told right by the discriminator": [f"{n}_accuracy" for n in ("real", "fake", "training", "held_out")],
    "gradient norms": ["discriminator_gradient", "generator_gradient"],
}


def draw_curves(folder: Path) -> None:
    """
    Writes curves.png: the panels, what evaluations measured, and the σ0 of every weight, over the steps. A panel
    without points is left out; a run without any has no file.
    """
    from matplotlib.figure import Figure  # here, so that sampling needs no plotting library

    panels = _curves(folder)
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    for number, (title, curves) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(rows, 2, number, title=title, xlabel="step")
        for name, points in curves.items():
            marker = "o" if len(points) == 1 else ""  # of which no line can be drawn
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, marker=marker)
        if not title.startswith("σ0"):
            axis.legend(fontsize="small")
    with write_file(folder / CURVES) as path:
        figure.savefig(path, dpi=110)


def _curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """For each panel, by its title, its curves: the points of each. No panel and no curve is empty."""
    log, spectra, evaluations = (read_lines(folder / name) for name in (LOG, SPECTRA, EVALUATIONS))
    measured = {name.removeprefix("eval_"): [name] for line in evaluations for name in line if name != "step"}
    lines = [*log, *evaluations]
    panels = {title: {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
              for title, names in {**PANELS, **measured}.items()}  # fmt: skip
    for network in NETWORKS:  # one curve for each weight, as in the paper's figure 3
        weights = spectra[0][network] if spectra else ()
        panels[f"σ0 of the {network}'s weights"] = {
            name: [(line["step"], line[network][name][0]) for line in spectra if name in line[network]]
            for name in weights
        }
    some = {title: {name: points for name, points in curves.items() if points} for title, curves in panels.items()}
    return {title: curves for title, curves in some.items() if curves}
