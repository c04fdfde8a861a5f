"""From measured legs of `quality.py` to `docs/results.md`: tables, a CSV file and a figure for each set of legs."""

import csv
import io
import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap

import numpy as np
from legs import LOG, SETTINGS, Row, read_log, read_settings
from matplotlib.figure import Figure
from peers import BIGGAN_PYTORCH

from biggan_hf.files import write_file, write_text


MEASURED = "measured.csv"
KEPT = (SETTINGS, LOG, MEASURED)  # of a leg; its snapshots and checkpoints are large
IDENTITY = ("whose", "seed", "images", "samples", "real_images", "extractor", "metric")  # of a number
COLUMNS = (*IDENTITY, "seconds", "ruler", "value", "floor", "low", "high")  # its interval's ends
NAMES = {"ours": "biggan_hf", "theirs": BIGGAN_PYTORCH}
UNTOLD = ("whose", "seed", "pictures", "number", "start")  # settings that the table of legs leaves out

LEGS = ("leg", "images", "minutes", "images/s", "legs at once", "load", "settings", "device", "versions", "date")
RULERS = ("ruler", "images", "floor", *NAMES.values(), "above the floor", "the same, equal time", "time")
PAGE = """\
# Results

Beside the original. [The paper's choices in a small model](ablations.md) and [beyond the paper](beyond-the-paper.md)
have what else was trained here.

`benchmarks/quality.py report` has made this page from the logs in `results/`. Legs of one seed began with the same
weights and were fed the same pictures in the same order. N samples of the averaged generator are compared with real
pictures, and so are N other real ones, whose distance is the floor. (The floor of the score, a mean of ratios to
floors, is 1; that of a classifier's error, 1 - accuracy, is the error of one that learnt from real pictures.) Numbers
are means over seeds (least to most).

The last columns say how biggan_hf does beside BigGAN-PyTorch, and below 1 is better: its distance above the floor
after as many images; the same after as long, at the other's last snapshot; and the time until it has the distance of
that snapshot. Legs that ran at once ("legs at once") share a device: their times compare with each other, and are
longer than those of a leg alone."""


def read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) for name in COLUMNS[1:5]}
        row |= {name: float(row[name]) for name in ("seconds", "value", "floor")}
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class Curve:
    """What a ruler says of the snapshots of a leg, in the order of its training."""

    images: list[int]
    seconds: list[float]
    values: list[float]

    def after(self, seconds: float) -> float:
        """The distance at a time, on straight lines between the snapshots; after the last, its distance."""
        return float(np.interp(seconds, self.seconds, self.values))

    def time_to(self, distance: float) -> float:
        """Seconds until the distance is no larger for the first time; infinite where it never is."""
        if self.values[0] <= distance:
            return self.seconds[0]
        for (t, a), (u, b) in pairwise(zip(self.seconds, self.values, strict=True)):
            if b <= distance:
                return t + (u - t) * (a - distance) / (a - b)
        return math.inf


Curves = dict[str, dict[int, Curve]]  # by program and seed


def by_ruler(rows: Iterable[Row]) -> dict[str, tuple[float, Curves]]:
    """By ruler and number of samples: the floor, and the curves."""
    found: dict[str, tuple[float, Curves]] = {}
    for row in sorted(rows, key=lambda row: (row["ruler"], row["samples"], row["images"])):
        _, curves = found.setdefault(f"{row['ruler']}, N = {row['samples']:,}", (row["floor"], {}))
        curve = curves.setdefault(row["whose"], {}).setdefault(row["seed"], Curve([], [], []))
        if row["images"] in curve.images[-1:]:  # a ruler without an extractor was measured beside each of them
            continue
        for column, values in (("images", curve.images), ("seconds", curve.seconds), ("value", curve.values)):
            values.append(row[column])
    return found


def shared_images(curves: Curves) -> list[int]:
    """The numbers of images at which all legs were measured, ascending."""
    return sorted(set.intersection(*(set(curve.images) for side in curves.values() for curve in side.values())))


def compare(floor: float, curves: Curves) -> list[str]:
    """
    The cells of a ruler after its name: the distances at the last of the shared numbers of images (or, where there is
    none, of the last snapshots), and what ours has after as long as theirs took to its last snapshot.
    """
    ours, theirs, shared = curves["ours"], curves["theirs"], shared_images(curves)
    values = [
        [curve.values[curve.images.index(shared[-1]) if shared else -1] for curve in side.values()]
        for side in (ours, theirs)
    ]
    above, peer_above = (statistics.mean(side) - floor for side in values)
    at_equal_images = [ratio(above, peer_above)] if shared else []
    shares, times = [], []
    for seed in sorted(ours.keys() & theirs.keys()):
        seconds, value = theirs[seed].seconds[-1], theirs[seed].values[-1]
        shares.append(ratio(ours[seed].after(seconds) - floor, value - floor))
        times.append(ours[seed].time_to(value) / seconds)
    images = f"{shared[-1]:,}" if shared else "the last"
    cells = [images, f"{floor:.4g}", *(spread(side, ".4g") for side in values)]
    return [*cells, *(spread(numbers, ".2f") for numbers in (at_equal_images, shares, times))]


def ratio(above: float, peer_above: float) -> float:
    """Of distances above the floor; NaN where the peer is not above it."""
    return above / peer_above if peer_above > 0 else math.nan


def spread(values: Sequence[float], digits: str) -> str:
    """The mean, the least and the most, of those that are numbers."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    mean, least, most = (format(value, digits) for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})" if len(values) > 1 else mean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def describe(leg: Path) -> list[str]:
    content, lines = read_settings(leg), read_log(leg)
    where = content["environment"]
    settings = {k: v for k, v in content["settings"].items() if k not in UNTOLD and v not in (None, False, "no")}
    images, seconds = (lines[-1][name] if lines else 0 for name in ("images", "seconds"))
    others = (f"{statistics.mean(line[name] for line in lines or [{name: 0}]):.1f}" for name in ("legs", "load"))
    return [
        *(leg.name, f"{images:,}", f"{seconds / 60:.1f}", f"{images / max(seconds, 1e-9):.0f}", *others),
        ", ".join(name if value is True else f"{name} {value}" for name, value in settings.items()),
        f"{where['device']}, {where['threads']} CPU threads",
        ", ".join(f"{name} {number}" for name, number in where["versions"].items()),
        where["date"],
    ]


def draw(rulers: Mapping[str, tuple[float, Curves]]) -> Figure:
    """A ruler takes two panels, one above the other; up to four rulers stand side by side."""
    across, down = min(len(rulers), 4), math.ceil(len(rulers) / 4)
    figure = Figure(figsize=(3.4 * across, 5.6 * down), layout="constrained")
    for number, (name, (floor, curves)) in enumerate(rulers.items()):
        place = 2 * across * (number // across) + number % across + 1
        for quantity, index in (("thousand images", place), ("minutes", place + across)):
            axis = figure.add_subplot(2 * down, across, index)
            axis.axhline(floor, color="0.5", linestyle="--", label="floor")
            for side, colour in zip(NAMES, ("tab:blue", "tab:orange"), strict=True):
                for leg, curve in enumerate(curves[side].values()):
                    x = np.divide(curve.seconds, 60) if quantity == "minutes" else np.divide(curve.images, 1000)
                    name_of_side = "_" * (leg > 0) + NAMES[side]  # once in the legend
                    axis.plot(x, curve.values, "o-", markersize=3, color=colour, label=name_of_side)
            axis.set(xlabel=quantity)
            axis.set_title("\n".join(wrap(name, 38)) if index == place else "", fontsize=8)
            axis.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def section(folder: Path) -> str:
    """Of a set of legs. Writes the files that it shows, `quality.csv` and `quality.png`."""
    legs = sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))
    rows = [row for leg in legs for row in read_rows(leg / MEASURED)]
    rulers = {name: found for name, found in by_ruler(rows).items() if len(found[1]) == 2}
    if not rulers:
        raise ValueError(f"{str(folder)!r} has no ruler that has measured both programs")
    write_rows(folder / "quality.csv", rows)
    with write_file(folder / "quality.png") as unfinished:
        draw(rulers).savefig(unfinished, dpi=110)
    compared = table(RULERS, ([name, *compare(*found)] for name, found in rulers.items()))
    figure = f"![{folder.name}: distance against images and minutes](results/{folder.name}/quality.png)"
    return "\n\n".join([f"## {folder.name}", table(LEGS, map(describe, legs)), compared, figure])


def write_page(sets: Sequence[Path], page: Path) -> None:
    """Copies what is small of each set of legs beside the page, and makes the page from the copies."""
    kept = [page.with_suffix("") / folder.resolve().name for folder in sets]
    for source, folder in zip(sets, kept, strict=True):
        for file in [path for name in KEPT for path in source.glob(f"*/{name}")]:
            copy = folder / file.parent.name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.resolve() != copy.resolve():
                shutil.copy(file, copy)
    sections = [section(folder) for folder in kept]
    write_text(page, "\n\n".join([PAGE, *sections]) + "\n")
    print(*sections, sep="\n\n")
