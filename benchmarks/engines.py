"""Sampling in ONNX Runtime and OpenVINO, beside the original programs in torch and their graphs in the same engines.

    python benchmarks/engines.py --biggan_pytorch BigGAN-PyTorch --work FOLDER --threads 2 --repeats 5 --busy 4

Each program runs in a process of its own, by turns with the others. All have the same random weights. Weights and
graphs stay in the folder: after a change of the package remove `ours/onnx` and `ours/openvino`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peers
import torch
from graphs import PROGRAMS, Program, config_of, load, prepare
from measuring import Result, Worker, alternate, environment, parser, positive, ratio, require_same, run, set_up, write
from torch import Tensor
from transformers.utils import logging

from biggan_hf import BigGANConfig


HERE = Path(__file__).resolve()

# From the first program's images in [-1, 1]: the largest difference, and the mean squared one over their variance. The
# second tells a rounded graph from a broken one. How good its images are, an export's own check says.
TOLERANCE = {"fp32": 1e-4, "bf16": 2.0, "int8": 2.0}
ROUNDING = 0.05

# Speed: the architecture, and images a run. What a user waits for and pays is measured of "biggan", without theirs.
SPEED = {"batch-1": ("biggan", 1), "batch-8": ("biggan", 8), "deep-8": ("biggan-deep", 8)}
FROM_START = {"first-image": 1, "memory": 8}
ROWS = [*SPEED, *FROM_START]

# For each condition, "idle" or "busy", the values of each program.
Measured = dict[str, list[list[float]]]


# One program in a process of its own


@torch.no_grad()
def work(program: Program, folder: Path, args: argparse.Namespace) -> None:
    """Reads a batch size and a file's name a line, samples, writes the images to the file, prints the seconds."""
    sample = load(program, folder, args)
    config = BigGANConfig.from_pretrained(folder / "ours")
    for line in sys.stdin:
        number, file = line.split()
        torch.manual_seed(0)
        inputs = peers.draw(config, int(number))
        start = time.perf_counter()
        images = sample(*inputs)
        seconds = time.perf_counter() - start
        torch.save(images, file)
        print(seconds, flush=True)


def start(program: Program, folder: Path, args: argparse.Namespace) -> Worker:
    command = [sys.executable, str(HERE), "--worker", str(program), "--work", str(folder)]
    command += ["--threads", str(torch.get_num_threads()), "--biggan_pytorch", str(args.biggan_pytorch)]
    return Worker(str(program), command)


def from_start(program: Program, folder: Path, latents: Path, images: Path, asks: bool = False) -> list[float]:
    """
    A program that loads a pipeline and makes images, from the start of its process.

    Returns:
        The seconds until the images are there; with `asks` also the most bytes that it held in memory, since its start
        and while it sampled.
    """
    _, engine, precision = program
    command = [sys.executable, str(HERE.with_name("from_start.py")), str(folder / "ours"), engine, precision]
    threads = {name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    began = time.perf_counter()
    with Worker(str(program), [*command, str(latents), str(images)], threads) as worker:
        worker.answer()
        seconds = time.perf_counter() - began
        return [seconds, *(map(float, worker.ask("its memory").split()) if asks else ())]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes count as fast as they can."""
    with ExitStack() as stack:
        for _ in range(processes):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        yield


# Measuring


def differences(programs: Sequence[Program], images: Sequence[Tensor]) -> list[float]:
    """The largest of each program's images from the first's; raises `ValueError` where one is another function."""
    found, first = [], images[0].double()
    for program, own in zip(programs, images, strict=True):
        what = f"the images of {program} and {programs[0]}"
        found.append(require_same(own, first, what, TOLERANCE[program.precision]))
        error = ((own.double() - first).square().mean() / first.var()).item()
        if not error <= ROUNDING:
            raise ValueError(f"{what} differ by {error:.2g} of their variance, expected at most {ROUNDING:g}")
    return found


def measure(what: str, runs: Sequence[Callable[[], float]], args: argparse.Namespace) -> Measured:
    """By turns: on the machine as it is, and while others are busy where that is asked."""
    measured = {"idle": alternate(runs, args.repeats, what)}
    if args.busy:
        with busy(args.busy):
            measured["busy"] = alternate(runs, args.busy_repeats, f"{what}, busy")
    return measured


def results_of(
    what: str, unit: str, programs: Sequence[Program], found: Sequence[float], measured: Measured
) -> list[Result]:
    """A result a program."""
    results = []
    for program, difference in zip(programs, found, strict=True):
        result = {"what": what, "unit": unit, "program": str(program), "largest_difference": difference}
        results.append(result | {name: _laid_beside(program, programs, values) for name, values in measured.items()})
    return results


def _laid_beside(program: Program, programs: Sequence[Program], values: Sequence[list[float]]) -> dict[str, Any]:
    """The program's values, and what the first program and the original's same graph have of them."""
    own, by_program = values[programs.index(program)], dict(zip(programs, values, strict=True))
    is_graph = program.side == "ours" and program.engine != "torch"
    same = by_program.get(program._replace(side="theirs")) if is_graph else None
    return {
        "values": own,
        "median": median(own),
        "beside_first": ratio(own, values[0]),
        "beside_same_graph": ratio(own, same) if same else None,
    }


def measure_speed(rows: Sequence[str], architecture: str, args: argparse.Namespace) -> Iterator[list[Result]]:
    folder, programs = prepare(architecture, args)
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [stack.enter_context(start(program, folder, args)) for program in programs]
        files = [temporary / f"{index}.pt" for index in range(len(programs))]
        for row in rows:
            number = SPEED[row][1]
            sides = zip(workers, files, strict=True)
            runs = [lambda w=w, f=f, n=number: float(w.ask(f"{n} {f}")) / n for w, f in sides]
            for run_once in runs:
                run_once()
            found = differences(programs, [torch.load(file) for file in files])
            measured = measure(row, runs, args)
            yield results_of(f"{folder.name}, batch {number}", "s an image", programs, found, measured)


def measure_from_start(row: str, args: argparse.Namespace) -> Iterator[list[Result]]:
    folder, programs = prepare("biggan", args)
    programs = [program for program in programs if program.side == "ours"]
    config, number = BigGANConfig.from_pretrained(folder / "ours"), FROM_START[row]
    with tempfile.TemporaryDirectory() as temporary:
        latents, images = Path(temporary, "latents.npy"), Path(temporary, "images.npy")
        np.save(latents, peers.draw(config, number)[0].numpy())
        told, pictures = [], []
        for program in programs:
            told.append(from_start(program, folder, latents, images, asks=True))
            pictures.append(2 * torch.from_numpy(np.load(images)) - 1)
        found = differences(programs, pictures)
        if row == "first-image":
            runs = [lambda program=program: from_start(program, folder, latents, images)[0] for program in programs]
            measured = measure(row, runs, args)
            yield results_of(f"{folder.name}, start to first image", "s", programs, found, measured)
            return
    for index, when in ((2, "while sampling"), (1, "to the first images")):
        what = f"{folder.name}, memory {when}, batch {number}"
        yield results_of(what, "bytes", programs, found, {"idle": [[values[index]] for values in told]})


# The report

COLUMNS = ["what", "program", "value", "ratio (range)", "beside their graph (range)"]
BUSY_COLUMNS = ["busy: value", "ratio (range)", "beside their graph (range)", "busy / idle"]


def table(results: Sequence[Result]) -> str:
    """A row a program. A ratio is the first program's value over its own, so that more is better."""
    is_busy = "busy" in results[0]
    columns = [*COLUMNS, *(BUSY_COLUMNS if is_busy else []), "largest difference"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        cells = [result["what"], result["program"], *_cells(result["idle"], result["unit"])]
        if is_busy:
            slower = result["busy"]["median"] / result["idle"]["median"]
            cells += [*_cells(result["busy"], result["unit"]), f"{slower:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {result['largest_difference']:.1e} |")
    return "\n".join(lines)


def _cells(condition: dict[str, Any], unit: str) -> list[str]:
    scale, written = (2**-20, "MiB") if unit == "bytes" else (1000, f"m{unit}")
    pairs = [condition["beside_first"], condition["beside_same_graph"]]
    ratios = ("–" if pair is None else f"**{pair[0]:.2f}** ({pair[1]:.2f}–{pair[2]:.2f})" for pair in pairs)
    return [f"{condition['median'] * scale:.1f} {written}", *ratios]


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for weights and graphs")
    arguments.add_argument("--biggan_pytorch", type=Path, metavar="FOLDER", help="a checkout of BigGAN-PyTorch")
    arguments.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="what to measure")
    arguments.add_argument("--busy", type=int, default=0, metavar="N", help="measure again while N processes count")
    arguments.add_argument("--busy_repeats", type=positive, default=3, help="runs of each program meanwhile")
    arguments.add_argument("--image_size", type=int, default=128, help="pixels")
    arguments.add_argument("--channels", type=positive, help="base width (default: 96, and 128 in the deep model)")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    arguments.set_defaults(device="cpu")
    args = arguments.parse_args(argv)
    device = set_up(args)
    if device.type != "cpu":
        raise ValueError(f"engines compute on the CPU, got --device {args.device}")
    if args.worker:
        return work(Program(*args.worker.split()), args.work, args)
    logging.disable_progress_bar()
    groups: list[Iterator[list[Result]]] = []
    for architecture in PROGRAMS:
        rows = [row for row in SPEED if row in args.rows and SPEED[row][0] == architecture]
        if rows:
            config_of(architecture, args)  # whatever is missing is told before anything is measured
            groups.append(measure_speed(rows, architecture, args))
    groups += [measure_from_start(row, args) for row in FROM_START if row in args.rows]
    where = environment(device, ("onnx", "onnxruntime", "openvino", "nncf", peers.PRETRAINED_BIGGAN))
    results: list[Result] = []
    for group in groups:
        for found in group:
            print(f"{table(found)}\n", flush=True)
            results += found
            write("engines", results, where, args.json)
    print(f"{where['device']}, {where['threads']} threads, {where['versions']}, {where['date']}\n{where['command']}")


if __name__ == "__main__":
    run(main)
