"""Curves of a run, drawn from its log.jsonl and spectra.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# A panel: its title, and the columns of the log that it shows.
PANELS = (
    ("losses", ("discriminator_loss", "generator_loss")),
    (
        "share told right by the discriminator",
        ("real_accuracy", "fake_accuracy", "training_accuracy", "held_out_accuracy"),
    ),
    ("gradient norms", ("discriminator_gradient", "generator_gradient")),
)


Lines = Sequence[Mapping[str, Any]]


def plot_curves(log: Lines, spectra: Lines, evaluations: Lines, path: Path) -> None:
    """
    Writes one PNG: losses, accuracies, gradient norms, σ0 of every weight of both networks, and what evaluations
    measured, over the steps.

    Args:
        log: Lines of log.jsonl.
        spectra: Lines of spectra.jsonl.
        evaluations: Lines of evaluations.jsonl.
        path: Where the picture goes.
    """
    from matplotlib.figure import Figure  # here, so that sampling needs no plotting library

    measured = dict.fromkeys(name for line in evaluations for name in line if name != "step")
    panels = [*PANELS, *((name.removeprefix("eval_"), (name,)) for name in measured)]
    figure = Figure(figsize=(12, 3 * ((len(panels) + 3) // 2)), layout="constrained")
    axes = figure.subplots((len(panels) + 3) // 2, 2, squeeze=False).flatten()
    for axis, (title, names) in zip(axes, panels, strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in [*log, *evaluations] if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize="small") if axis.lines else None
    for axis, network in zip(axes[len(panels) :], ("generator", "discriminator"), strict=False):
        _plot_sigmas(axis, network, spectra)
    for axis in axes[len(panels) + 2 :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def _plot_sigmas(axis: Any, network: str, spectra: Lines) -> None:
    """One line a weight, as in the paper's figure 3."""
    for name in spectra[0][network] if spectra else ():
        axis.plot([line["step"] for line in spectra], [line[network][name][0] for line in spectra], linewidth=0.7)
    axis.set(title=f"σ0 of the {network}'s weights", xlabel="step")
