"""Truncation curves: how the measures trade variety for quality, as a CSV file and a figure."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_file, write_text
from .reports import Report


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = ("fid", "kid", "mind", "fwd", "is", "precision", "recall", "intra_class_fid")


def write_csv(reports: list[Report], path: Path) -> None:
    """
    Writes a row for each truncation, with a column for each number and one for the names of the marked points. An
    empty first cell stands for no truncation.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truncation", *reports[0].values, "marked"])
    points = marked_points(reports)
    for row, report in enumerate(reports):
        truncation = _truncation(report)
        marked = "; ".join(name for name, index in points.items() if index == row)
        writer.writerow(["" if truncation is None else truncation, *report.values.values(), marked])
    write_text(path, text.getvalue())


def marked_points(reports: list[Report]) -> dict[str, int]:
    """
    The points that the paper's tables name, where they were measured: the least FID, the IS closest to that of real
    images, and the greatest IS. The real images are those of the floor (in the paper the validation split), or else
    the reference. The answer is an index into `reports` by name.
    """
    points, rows = {}, range(len(reports))
    if "fid" in reports[0]:
        points[f"min {_label(reports, 'fid')}"] = min(rows, key=lambda row: reports[row]["fid"])
    if "is" in reports[0]:
        real = next((key for key in ("floor_is", "reference_is") if key in reports[0]), None)
        if real is not None:
            points[_label(reports, real)] = min(rows, key=lambda row: abs(reports[row]["is"] - reports[row][real]))
        points[f"max {_label(reports, 'is')}"] = max(rows, key=lambda row: reports[row]["is"])
    return points


def plot_curve(reports: list[Report], path: Path) -> None:
    with write_file(path) as unfinished:
        draw_curve(reports).savefig(unfinished, dpi=150)


def draw_curve(reports: list[Report]) -> "Figure":
    """Each measure against the truncation, and FID against IS with the marked points, where they were measured."""
    from matplotlib.figure import Figure  # of the extra `eval`

    reports = sorted(reports, key=lambda report: _truncation(report) or math.inf)
    keys = [key for key in PANELS if key in reports[0]]
    trade = "fid" in keys and "is" in keys
    panels = len(keys) + trade
    figure = Figure(figsize=(3.4 * panels, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=False):
        # At equal distances, since "none" has no place on a scale.
        _draw(axis, list(range(len(reports))), [report[key] for report in reports])
        axis.set_xticks(range(len(reports)), [truncation_in_words(report) for report in reports], fontsize=7)
        axis.set(xlabel="truncation", ylabel=_label(reports, key))
    if trade:
        _draw_trade(axes[-1], reports)
    return figure


def _draw(axis: Any, x: Sequence[float], y: Sequence[float]) -> None:
    axis.plot(x, y, marker="o", markersize=3, linewidth=1, color="0.2")
    axis.grid(alpha=0.3)


def _draw_trade(axis: Any, reports: list[Report]) -> None:
    """FID against IS, as in the paper."""
    _draw(axis, [report["is"] for report in reports], [report["fid"] for report in reports])
    # Hollow markers of three sizes, since they may fall on one point.
    for marker, size, (name, index) in zip("os^", (13, 10, 7), marked_points(reports).items(), strict=False):
        report, text = reports[index], f"{name}: t = {truncation_in_words(reports[index])}"
        axis.plot(report["is"], report["fid"], marker, markersize=size, fillstyle="none", label=text)
    axis.set(xlabel=_label(reports, "is"), ylabel=_label(reports, "fid"))
    axis.legend(fontsize=6)


def _label(reports: list[Report], key: str) -> str:
    return next(measure.label for measure in reports[0].measures if measure.key == key)


def _truncation(report: Report) -> float | None:
    return report.protocol["samples"]["truncation"]


def truncation_in_words(report: Report) -> str:
    truncation = _truncation(report)
    return "none" if truncation is None else f"{truncation:g}"
