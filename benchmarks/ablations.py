"""Whether the paper's choices show in a small model: one run for each, with one setting changed, over several seeds.

    python benchmarks/ablations.py train --output RUNS --dataset_name PICTURES
    python benchmarks/ablations.py measure RUNS --dataset_name PICTURES
    python benchmarks/ablations.py report RUNS --page docs/ablations.md

The runs are those of train.py with the preset `demo`, and go on after a kill. Their averages are measured at each
checkpoint against a split that none has seen; the last ones of the plain run and of the one with orthogonal
regularisation also along the truncation, with running and with standing statistics.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring import environment, positive, run
from results import spread, table
from transformers.utils import logging

from biggan_hf import BigGANModel, collect_standing_statistics
from biggan_hf.cards import public_name
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate, load_extractor
from biggan_hf.files import append_line, checkpoint_folders, step_of, write_file, write_text


TRAIN = Path(__file__).parents[1] / "train.py"
BASELINE, ORTHOGONAL = "baseline", "orthogonal"
CHANGES: dict[str, tuple[str, list[str]]] = {  # in words, and for train.py
    BASELINE: ("as the preset", []),
    "batch_x4": ("a batch of 128, accumulated", ["--global_batch_size", "128"]),  # batch norm still sees 32
    "no_skip_z": ("no skip-z", ["--config_overrides", "hierarchical_latents=false"]),
    "own_embeddings": (  # which leave skip-z nothing to join its latents to
        "no skip-z, and an embedding in each layer",
        ["--config_overrides", "hierarchical_latents=false", "shared_class_embedding=false"],
    ),
    ORTHOGONAL: ("orthogonal regularisation, 1e-4", ["--generator_orthogonality", "1e-4"]),
}
TRUNCATED = (BASELINE, ORTHOGONAL)
TRUNCATIONS = (0.1, 0.5, 1.0)
RUNNING, STANDING, PASSES = "running", "standing", 100
METRICS = ("fid", "kid", "fwd", "saturation", "prdc")
COLOURS = ("black", "tab:orange", "tab:green", "tab:red", "tab:blue")
NO_TRUNCATION = 2.0  # its place on the axis: 4.6 % of the entries of plain N(0, 1) lie beyond 2

SETTINGS, LOG, MEASURED = "run.json", "log.jsonl", "measured.jsonl"
KEPT = (SETTINGS, LOG, MEASURED)  # of a run; its weights are large
PAGE = """\
# The paper's choices in a small model

`benchmarks/ablations.py report` has made this page from the logs in `ablations/`. Every run is the preset `demo` with
one choice changed, on {pictures}, one CPU thread. N = {samples:,} samples of the averaged generator are compared with
{reference:,} pictures of a split that no run has seen; so are as many others of it, whose distance is the floor
(FD {floor:.1f}). Numbers are means over seeds (least to most), where there are several. The last column is the
distance above the floor beside the preset's. One or two seeds can't tell a small difference from chance.

An embedding in each layer leaves skip-z nothing to join its latents to: compare that run with the one above it. In the
batch of 128, which comes in four parts, batch norm still sees 32 pictures; in the paper it sees all.

What a model of this size shows says little of one that is a thousand times as large. The paper's own numbers
(table 1, ImageNet, 128 px): FID 18.65 at a batch of 256, 12.39 at 2,048; then 9.54 with more channels, 9.18 with one
embedding for all layers, 8.73 with skip-z, 8.51 with orthogonal regularisation."""
ON_TRUNCATION = """\
After all steps. Saturation is the share of black and white values above that of the real pictures. The standing
statistics are those of 100 passes of 64 latents; "running" are the averages of the training."""
ON_RUNS = "Seconds are medians by the clock: beside other programs they are more."

Row = dict[str, Any]


# The runs


def train(options: argparse.Namespace) -> None:
    for seed, change in product(options.seeds, options.changes):
        folder = options.output / f"{change}-{seed}"
        if (folder / SETTINGS).is_file() and "status" in read_settings(folder):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"change": change, "seed": seed, "steps": options.steps, "words": CHANGES[change][1]}
        settings |= {"pictures": public_name(options.dataset_name)} | environment(torch.device("cpu"), ["accelerate"])
        del settings["command"]  # it names folders of this machine
        status = train_one(folder, seed, CHANGES[change][1], options)
        write_text(folder / SETTINGS, json.dumps({**settings, "threads": 1, "status": status}, indent=2) + "\n")


def train_one(folder: Path, seed: int, words: list[str], options: argparse.Namespace) -> int:
    """The exit status of the run, whose checkpoints stay. A run that is there goes on with its last one."""
    command = [sys.executable, str(TRAIN), "--preset", "demo", "--dataset_name", options.dataset_name]
    command += ["--output_dir", str(folder), "--resume_from_checkpoint", "latest", "--seed", str(seed)]
    command += ["--max_train_steps", str(options.steps), "--checkpointing_steps", str(options.steps // 4)]
    command += ["--checkpoints_total_limit", "4", *words]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


# What they are measured by


def measure(options: argparse.Namespace) -> None:
    """Adds to `measured.jsonl` of each run the snapshots and thresholds that are not in it yet."""
    torch.set_num_threads(1)
    extractor = load_extractor(options.extractor, "cpu")
    settings = EvaluationSettings(METRICS, intervals=False, allow_few_images=True, cache_dir=options.runs / "features")
    for folder in [path for path in run_folders(options.runs) if (path / "model.safetensors").is_file()]:
        last = read_lines(folder / LOG)[-1]
        of_step = last["samples_seen"] // last["step"]
        model = BigGANModel.from_pretrained(folder)
        shape: dict[str, Any] = {"image_size": model.config.image_size, "num_channels": model.config.num_channels}
        pictures = load_labelled_images(options.dataset_name, split=options.dataset_split, **shape)
        real = RealImages(pictures, options.reference_images)
        floor = real.rest(options.samples)
        done = {place(line) for line in read_lines(folder / MEASURED)}
        for where, images in wanted(folder, model, options, done):
            report = evaluate(images, real, extractor, settings, floor)
            line = where | {"pictures": where["step"] * of_step, "samples": len(images), "reference": len(real)}
            line |= {"extractor": extractor.name}
            line |= {one.key: one.value for one in report.measures}
            append_line(folder / MEASURED, line)
            print(folder.name, where, f"{report.measure('fid').label} {report['fid']:.1f}", flush=True)


def wanted(
    folder: Path, last: BigGANModel, options: argparse.Namespace, done: set[tuple[Any, ...]]
) -> Iterator[tuple[Row, GeneratedImages]]:
    """What a run is to be measured by, and has not been: the averages, then the last one along the truncation."""
    end, samples = read_lines(folder / LOG)[-1]["step"], options.samples
    regular = read_settings(folder)["steps"] // 4  # a run that was stopped has left a checkpoint there, too
    for step, path in {**{step_of(path): path for path in checkpoint_folders(folder)}, end: folder}.items():
        if (step, RUNNING, None) not in done and step % regular == 0 and step in (options.steps or [step]):
            yield told(step, RUNNING, None), GeneratedImages(BigGANModel.from_pretrained(path), samples)
    if read_settings(folder)["change"] not in TRUNCATED:
        return
    for t in [t for t in TRUNCATIONS if (end, RUNNING, t) not in done]:
        yield told(end, RUNNING, t), GeneratedImages(last, samples, truncation=t)
    left: list[float | None] = [t for t in (*TRUNCATIONS, None) if (end, STANDING, t) not in done]
    for thresholds in (None, TRUNCATIONS) if left else ():
        seed = torch.Generator().manual_seed(0)
        collect_standing_statistics(last, thresholds, num_batches=PASSES, generator=seed)
    for threshold in left:
        yield told(end, STANDING, threshold), GeneratedImages(last, samples, truncation=threshold)


def told(step: int, kind: str, truncation: float | None) -> Row:
    return {"step": step, "statistics": kind, "truncation": truncation}


def place(line: Row) -> tuple[Any, ...]:
    return line["step"], line["statistics"], line["truncation"]


def run_folders(runs: Path) -> list[Path]:
    """In the order of `CHANGES`, then of seeds."""
    order = [*CHANGES]
    folders = [path.parent for path in runs.glob(f"*/{SETTINGS}")]
    return sorted(folders, key=lambda path: (order.index(read_settings(path)["change"]), read_settings(path)["seed"]))


def read_settings(folder: Path) -> Row:
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


# The page

Lines = dict[str, list[Row]]  # by change, those of all seeds


def write_page(runs: Path, page: Path) -> str:
    """Copies what is small of each run beside the page, and makes the page and its figure from the copies."""
    kept = page.with_suffix("")
    for file in [path for name in KEPT for path in runs.glob(f"*/{name}")]:
        copy = kept / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.resolve() != copy.resolve():
            shutil.copy(file, copy)
    folders = run_folders(kept)
    lines: Lines = {}
    for folder in folders:
        if measured := read_lines(folder / MEASURED):
            lines.setdefault(read_settings(folder)["change"], []).extend(measured)
    if not lines.get(BASELINE):
        raise ValueError(f"{str(runs)!r} has no run of the preset that is measured")
    with write_file(kept / "ablations.png") as unfinished:
        draw(lines).savefig(unfinished, format="png", dpi=130)
    some, settings = lines[BASELINE][0], read_settings(folders[0])
    head = PAGE.format(samples=some["samples"], reference=some["reference"], floor=some["floor_fid"], **settings)
    parts = [head, of_changes(lines), f"![distances by picture, and along the truncation]({kept.name}/ablations.png)"]
    parts += ["## Truncation and standing statistics", ON_TRUNCATION, along_truncation(lines)]
    text = "\n\n".join([*parts, "## The runs", ON_RUNS, of_runs(folders)]) + "\n"
    write_text(page, text)
    return text


def of_changes(lines: Lines) -> str:
    """A row a change after all steps, and one where it had seen as many pictures as the preset, if that is earlier."""
    plain = at(lines[BASELINE], last_step(lines[BASELINE]))
    rows = []
    for change, measured in lines.items():
        steps = {last_step(measured)} | {line["step"] for line in measured if line["pictures"] == plain[0]["pictures"]}
        for step in sorted(steps, reverse=True):
            chosen = plain if change == BASELINE else at(measured, step)
            rows.append(of_change(CHANGES[change][0], chosen, plain))
    extractor = plain[0]["extractor"]
    head = ["run", "seeds", "steps", "pictures", f"FD-{extractor}", f"KD-{extractor}", "FWD", "precision", "recall"]
    return table([*head, "FD above the floor"], rows)


def of_change(title: str, measured: list[Row], plain: list[Row]) -> list[str]:
    cells = [title, str(len(measured)), f"{measured[0]['step']:,}", f"{measured[0]['pictures']:,}"]
    for key, digits in (("fid", ".0f"), ("kid", ".3f"), ("fwd", ".2f"), ("precision", ".2f"), ("recall", ".3f")):
        cells.append(spread([line[key] for line in measured], digits))
    return [*cells, "1" if measured is plain else beside(measured, plain)]


def beside(measured: list[Row], plain: list[Row]) -> str:
    ours, theirs = ([line["fid"] - line["floor_fid"] for line in side] for side in (measured, plain))
    return f"{statistics.mean(ours) / statistics.mean(theirs):.2f}"


def along_truncation(lines: Lines) -> str:
    rows = []
    for change, kind, t in product(TRUNCATED, (RUNNING, STANDING), (*TRUNCATIONS, None)):
        measured = at(lines.get(change, []), last_step(lines.get(change, [])), kind, t)
        if measured:
            cells = [CHANGES[change][0], kind, "none" if t is None else f"{t:g}"]
            for key, digits in (("fid", ".0f"), ("precision", ".2f"), ("recall", ".3f"), ("saturation", ".2%")):
                cells.append(spread([line[key] for line in measured], digits))
            rows.append(cells)
    return table(["run", "statistics", "truncation", "FD", "precision", "recall", "saturation"], rows)


def of_runs(folders: Sequence[Path]) -> str:
    rows = []
    for folder in folders:
        settings, log = read_settings(folder), read_lines(folder / LOG)
        versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
        ended = "whole" if settings["status"] == 0 else f"exit status {settings['status']}"
        cells = [folder.name, f"{log[-1]['step'] if log else 0:,}", ended, spread([seconds_of_a_step(log)], ".2f")]
        rows.append([*cells, settings["device"], versions, settings["date"]])
    return table(["run", "steps", "ended", "seconds a step", "device", "versions", "date"], rows)


def seconds_of_a_step(log: Sequence[Row]) -> float:
    """The median between lines of the log: a run may have been stopped. NaN if there is one line."""
    both = [(a, b) for a, b in pairwise(log) if b["step"] > a["step"]]
    return statistics.median((b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in both) if both else math.nan


def at(measured: Iterable[Row], step: int, kind: str = RUNNING, truncation: float | None = None) -> list[Row]:
    """A line a seed."""
    return [line for line in measured if place(line) == (step, kind, truncation)]


def last_step(measured: Iterable[Row]) -> int:
    return max((line["step"] for line in measured), default=0)


def draw(lines: Lines) -> Figure:
    """The distance as the runs learn; then that along the truncation, and what it buys: precision against recall."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    learning, along, trade = figure.subplots(1, 3)
    for (change, measured), colour in zip(lines.items(), COLOURS, strict=False):
        title, steps = CHANGES[change][0], sorted({line["step"] for line in measured})
        draw_means(learning, [at(measured, step) for step in steps], "pictures", "fid", color=colour, label=title)
        for kind, style in ((RUNNING, "--"), (STANDING, "-")) if change in TRUNCATED else ():
            points = [at(measured, steps[-1], kind, t) for t in (*TRUNCATIONS, None)]
            look = {"color": colour, "linestyle": style, "label": f"{title}, {kind} statistics"}
            draw_means(along, points, "truncation", "fid", **look)
            draw_means(trade, points, "recall", "precision", **look)
    floor = statistics.mean(line["floor_fid"] for line in lines[BASELINE])
    for axis in (learning, along):
        axis.axhline(floor, color="0.5", linestyle=":", label="floor")
        axis.set_ylabel(f"FD-{lines[BASELINE][0]['extractor']}")
    learning.set_xlabel("thousand pictures shown")
    learning.xaxis.set_major_formatter(lambda pictures, _: f"{pictures / 1000:g}")
    along.set_xlabel("truncation (none: at the right)")
    trade.set(xlabel="recall", ylabel="precision")
    for axis in (learning, along, trade):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    return figure


def draw_means(axis: Axes, points: list[list[Row]], x: str, y: str, **look: Any) -> None:
    """The mean over seeds at each point, with a bar from the least to the most."""
    points = [point for point in points if point]
    places = [statistics.mean(NO_TRUNCATION if line[x] is None else line[x] for line in point) for point in points]
    values = [[line[y] for line in point] for point in points]
    axis.plot(places, [statistics.mean(some) for some in values], marker="o", markersize=3, linewidth=1, **look)
    axis.vlines(
        places, [min(some) for some in values], [max(some) for some in values], colors=look["color"], alpha=0.3
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    usual: Any = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    runs = verbs.add_parser("train", help="train what has not ended yet", **usual)
    runs.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    runs.add_argument("--changes", nargs="+", choices=CHANGES, default=[*CHANGES])
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    runs.add_argument("--steps", type=positive, default=2_000)
    runs.set_defaults(verb=train)
    ruler = verbs.add_parser("measure", help="measure what is not measured yet", **usual)
    ruler.add_argument("runs", type=Path, metavar="FOLDER")
    ruler.add_argument("--dataset_split", default="test", metavar="SPLIT", help="that no run has seen")
    ruler.add_argument("--samples", type=positive, default=2_000)
    ruler.add_argument("--reference_images", type=positive, default=5_000)
    ruler.add_argument("--extractor", default="lite0")
    ruler.add_argument("--steps", type=positive, nargs="+", help="of the checkpoints to measure (default: of all)")
    ruler.set_defaults(verb=measure)
    for needs_pictures in (runs, ruler):
        needs_pictures.add_argument("--dataset_name", required=True)
    page = verbs.add_parser("report", help="write a page with tables and a figure, from runs or their kept logs")
    page.add_argument("runs", type=Path, metavar="FOLDER")
    page.add_argument("--page", type=Path, required=True, metavar="FILE.md", help="logs and the figure go beside it")
    page.set_defaults(verb=lambda options: print(write_page(options.runs, options.page)))
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    options.verb(options)


if __name__ == "__main__":
    run(main)
