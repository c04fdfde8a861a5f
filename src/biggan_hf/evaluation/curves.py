"""Truncation curves: how the measures trade variety for quality, as a CSV file and a figure."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_file, write_text
from .reports import Report


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = ("fid", "kid", "mind", "fwd", "saturation", "is", "precision", "recall", "accuracy", "intra_class_fid")
FIGURES = (".png", ".pdf", ".svg")
COLUMN = 3.35  # inches, a column of a paper
LINE: dict[str, Any] = {"marker": "o", "markersize": 2.5, "linewidth": 1, "color": "0.2"}
STYLE: Any = {"font.size": 6, "legend.fontsize": 5, "axes.linewidth": 0.6}


def write_csv(reports: list[Report], path: Path) -> None:
    """
    Writes a row for each truncation, with a column for each number, and one of 0 and 1 for each of the marked points.
    No cell is empty: no truncation is a threshold of "inf".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    points = marked_points(reports)
    writer.writerow(["truncation", *reports[0].values, *(f"at {name}" for name in points)])
    for row, report in enumerate(reports):
        truncation = _truncation(report)
        marks = [int(index == row) for index in points.values()]
        writer.writerow(["inf" if truncation is None else truncation, *report.values.values(), *marks])
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


def plot_curve(reports: list[Report], path: Path) -> list[Path]:
    """Draws to `path`, and to the same name with the other of FIGURES. Returns all of them."""
    from matplotlib import rc_context

    paths, figure = [path.with_suffix(suffix) for suffix in FIGURES], draw_curve(reports)
    # Neither a date nor random names: the same numbers give the same bytes.
    dates: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    for each in paths:
        with write_file(each) as unfinished, rc_context({"svg.hashsalt": "biggan_hf"}):
            figure.savefig(unfinished, format=each.suffix[1:], dpi=300, metadata=dates.get(each.suffix))
    return paths


def draw_curve(reports: list[Report]) -> "Figure":
    """
    Each measure against the truncation, and FID against IS with the marked points, where they were measured: as wide
    as a column of a paper. Bars are intervals of 95 %, and a dashed line is the floor.
    """
    from matplotlib import rc_context  # of the extra `eval`
    from matplotlib.figure import Figure

    reports = sorted(reports, key=lambda report: _truncation(report) or math.inf)
    keys = [key for key in PANELS if key in reports[0]]
    panels = len(keys) + ("fid" in keys and "is" in keys)
    rows, columns = math.ceil(panels / 2), min(panels, 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 0.35 + rows * COLUMN / columns * 0.8), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, key in zip(axes, keys, strict=False):
            _draw(axis, reports, key)
        if panels > len(keys):
            _draw_trade(axes[panels - 1], reports)
        for axis in axes[panels:]:
            axis.remove()
        figure.suptitle(_title(reports), fontsize=7)
    return figure


def _title(reports: list[Report]) -> str:
    """What was measured, and the number of samples."""
    samples = reports[0].protocol["samples"]
    step = samples.get("global_step")
    name = f"{samples.get('source', 'samples')}{'' if step is None else f', step {step:,}'}"
    return name if "num_images" not in samples else f"{name}, N = {samples['num_images']:,}"


def _draw(axis: Any, reports: list[Report], key: str) -> None:
    # At equal distances, since "none" has no place on a scale.
    measures = [report.measure(key) for report in reports]
    for x, measure in enumerate(measures):
        if measure.interval is not None:
            axis.plot([x, x], measure.interval, linewidth=2, color="0.75", solid_capstyle="butt")
    axis.plot(range(len(measures)), [measure.value for measure in measures], **LINE)
    if f"floor_{key}" in reports[0]:
        axis.axhline(reports[0][f"floor_{key}"], linewidth=0.8, linestyle="--", color="0.5", label="floor")
        axis.legend()
    axis.set_xticks(range(len(reports)), [truncation_in_words(report) for report in reports])
    axis.set(xlabel="truncation", ylabel=_label(reports, key))
    axis.grid(alpha=0.3)


def _draw_trade(axis: Any, reports: list[Report]) -> None:
    """FID against IS, as in the paper."""
    axis.plot([report["is"] for report in reports], [report["fid"] for report in reports], **LINE)
    # Hollow markers of three sizes, since they may fall on one point.
    for marker, size, (name, index) in zip("os^", (9, 7, 5), marked_points(reports).items(), strict=False):
        report, text = reports[index], f"{name}: t = {truncation_in_words(reports[index])}"
        axis.plot(report["is"], report["fid"], marker, markersize=size, fillstyle="none", label=text)
    axis.set(xlabel=_label(reports, "is"), ylabel=_label(reports, "fid"))
    axis.grid(alpha=0.3)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center")


def _label(reports: list[Report], key: str) -> str:
    return reports[0].measure(key).label


def _truncation(report: Report) -> float | None:
    return report.protocol["samples"]["truncation"]


def truncation_in_words(report: Report) -> str:
    truncation = _truncation(report)
    return "none" if truncation is None else f"{truncation:g}"
