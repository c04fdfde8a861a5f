"""What an image costs this project, sampled and trained on, against image size, batch, width and processes.

    python benchmarks/scaling.py --image_sizes 64 32 128 --batch_sizes 8 1 16 --channels 32 16 64 --num_processes 1 2

The first value of each list is the base, from which one quantity at a time goes through the others.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from measuring import (
    Result,
    check_new,
    environment,
    gibibytes,
    output_of,
    parser,
    positive,
    run,
    set_up,
    tensor_float32,
    timed,
    weigh,
    write,
)
from peers import draw
from tqdm import tqdm
from training import Game, train_once
from transformers.utils import logging

from biggan_hf import BigGANConfig, BigGANModel
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.graphs import Graphs
from biggan_hf.training.players import build_players


QUANTITIES = {
    "image_size": "image size, pixels",
    "batch_size": "batch of a process",
    "channels": "base width",
    "num_processes": "processes",
}
WHAT = ("sampling", "training")


@dataclass(frozen=True)
class Point:
    """A place where the cost is measured."""

    what: str
    image_size: int
    batch_size: int
    channels: int
    num_processes: int


def points(options: argparse.Namespace) -> list[Point]:
    """The base, and what differs from it in one quantity."""
    values = {
        "image_size": options.image_sizes,
        "batch_size": options.batch_sizes,
        "channels": options.channels,
        "num_processes": options.num_processes,
    }
    base = {name: column[0] for name, column in values.items()}
    rows = [base] + [{**base, name: value} for name, column in values.items() for value in column[1:]]
    return [Point(what, **row) for what in options.what for row in rows]


# One point


def architecture(point: Point) -> BigGANConfig:
    """Raises `ValueError` where there is none of the size or the width."""
    return BigGANConfig.preset(
        f"biggan-{point.image_size}",
        generator_base_channels=point.channels,
        discriminator_base_channels=point.channels,
        initializer="normal",
    )


def prepare(point: Point, accelerator: Accelerator) -> Callable[[], object]:
    """A batch of samples, or a training iteration of one update of each network, on the accelerator's device."""
    config, device = architecture(point), accelerator.device
    if point.what == "sampling":
        model = BigGANModel(config).eval()
        model.to(device=device)
        inputs = draw(config, point.batch_size, device)
        return lambda: model.sample(inputs[1], latents=inputs[0])
    args = TrainingArguments(
        per_device_batch_size=point.batch_size, num_discriminator_steps=1, generator_orthogonality=0.0
    )
    players, ema = build_players(accelerator, config, args, None, None)
    game = Game(config, args, None, Path(), device)
    pictures, latents = game.pictures(), game.latents()
    return lambda: train_once(players, ema, args, pictures, latents, Graphs())


def measure(point: Point, accelerator: Accelerator, repeats: int) -> Result:
    """Seconds an image in all processes together, which start each run together; memory of one."""
    if accelerator.num_processes != point.num_processes:
        raise ValueError(f"{point.num_processes} processes were asked for, and {accelerator.num_processes} started")
    work, memory = weigh(lambda: prepare(point, accelerator), accelerator.device)
    seconds = []
    for _ in range(repeats):
        accelerator.wait_for_everyone()
        seconds.append(timed(work, accelerator.device)())
    accelerator.free_memory()
    images = point.batch_size * point.num_processes
    return {
        **asdict(point),
        "seconds": seconds,
        "seconds_per_image": statistics.median(seconds) / images,
        "images_per_second": images / statistics.median(seconds),
        "peak_memory_bytes": memory,
    }


def measure_all(places: Sequence[Point], options: argparse.Namespace, device: torch.device) -> list[Result]:
    """A row a point, in their order."""
    rows: dict[Point, Result] = {}
    accelerator = Accelerator(cpu=device.type == "cpu")
    with tqdm(total=len(places), desc="points", leave=False) as progress:
        for number in sorted({point.num_processes for point in places}):
            chosen = [point for point in places if point.num_processes == number]
            if number > 1:
                rows |= zip(chosen, launched(chosen, options), strict=True)
                progress.update(len(chosen))
            for point in chosen if number == 1 else ():
                rows[point] = measure(point, accelerator, options.repeats)
                progress.update()
    return [rows[point] for point in places]


def launched(points: Sequence[Point], options: argparse.Namespace) -> list[Result]:
    """The same in several processes: this script once more, under `accelerate launch`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        number = points[0].num_processes
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(number)]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        # With --cpu instead, one process would start.
        on_cpu = {"ACCELERATE_USE_CPU": "true"} if options.device == "cpu" else None
        arguments = ["--device", options.device, "--repeats", str(options.repeats), "--json", str(path)]
        arguments += ["--tf32"] if options.tf32 else []
        arguments += ["--threads", str(max(torch.get_num_threads() // number, 1))]  # they share the machine
        arguments += ["--worker", json.dumps([asdict(point) for point in points])]
        output_of("accelerate launch", [sys.executable, *launcher, __file__, *arguments], on_cpu)
        return json.loads(path.read_text(encoding="utf-8"))


# Reports


def table(rows: Sequence[Result]) -> str:
    """Markdown, a row a point."""
    lines = [
        "| | px | batch a process | ch | processes | seconds an image | images/s | peak memory a process |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        place = " | ".join(str(row[name]) for name in ("what", *QUANTITIES))
        rate = f"{row['seconds_per_image']:.3g} | {row['images_per_second']:.3g}"
        lines.append(f"| {place} | {rate} | {gibibytes(row['peak_memory_bytes'])} |")
    return "\n".join(lines)


def plot(rows: Sequence[Result], path: Path) -> None:
    """Writes a PNG: seconds an image against each quantity, the others at the base, which is the first row."""
    from matplotlib.figure import Figure  # of the extra `train`

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axis, (name, label) in zip(figure.subplots(1, 4, sharey=True), QUANTITIES.items(), strict=True):
        others = [other for other in QUANTITIES if other != name]
        for what in dict.fromkeys(row["what"] for row in rows):
            line = [r for r in rows if r["what"] == what and all(r[other] == rows[0][other] for other in others)]
            pairs = sorted((row[name], row["seconds_per_image"]) for row in line)
            axis.plot(*zip(*pairs, strict=True), marker="o", label=what)
        axis.set(xlabel=label, xscale="log", yscale="log")
        values = sorted({row[name] for row in rows})
        axis.set_xticks(values, [str(value) for value in values], minor=False)
        axis.minorticks_off()
    figure.axes[0].set_ylabel("seconds an image")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def work(options: argparse.Namespace, device: torch.device) -> None:
    """One of several processes; the first one writes the rows."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    rows = [measure(Point(**row), accelerator, options.repeats) for row in options.worker]
    if accelerator.is_main_process:
        options.json.write_text(json.dumps(rows), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--image_sizes", type=positive, nargs="+", default=[64, 32, 128], help="pixels")
    arguments.add_argument("--batch_sizes", type=positive, nargs="+", default=[8, 1, 2, 4, 16], help="a process's")
    arguments.add_argument("--channels", type=positive, nargs="+", default=[32, 16, 64], help="base widths")
    arguments.add_argument("--num_processes", type=positive, nargs="+", default=[1], help="under accelerate launch")
    arguments.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="what to measure")
    arguments.add_argument("--plot", type=Path, metavar="FILE.png", help="write a picture of the curves")
    arguments.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = arguments.parse_args(argv)
    device = set_up(options)
    check_new(options.plot, ".png")
    logging.disable_progress_bar()
    with tensor_float32(options.tf32):
        if options.worker is not None:
            return work(options, device)
        places = points(options)
        for point in places:
            architecture(point)  # raises before anything is measured
        rows = measure_all(places, options, device)
    print(table(rows))
    write("scaling", rows, environment(device, ["accelerate"]), options.json)
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    run(main)
