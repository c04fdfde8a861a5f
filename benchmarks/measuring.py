"""How two programs are laid side by side: alternating runs, medians, memory, work done, and where it was measured.

Nothing here knows BigGAN. The programs must have been shown to compute the same before their times mean anything:
`require_same`.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import biggan_hf


# Largest difference between outputs in [-1, 1] that float32 leaves between two orders of the same arithmetic.
TOLERANCE = 1e-4

# The side of the square matrices whose product is taken as what the device can do.
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}

# Runs of each program that do not count.
WARMUP = 1

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Result = dict[str, Any]
Run = TypeVar("Run", bound=Callable[[], object])


@dataclass(frozen=True)
class Contestant:
    """
    A program that is ready to run.

    Args:
        name: Of the program.
        setting: Precision and options, in words.
        run: One batch of samples, or one training iteration; returns the seconds that it took.
        images: That one run makes, or trains on.
        flops: Of one run, multiplications and additions counted separately; `None` if not counted.
        matrix_rate: Measures FLOP/s of this device in a matrix product of this precision; `None` without `flops`.
        peak_memory: Bytes on the GPU at the most, weights included; `None` if not measured.
    """

    name: str
    setting: str
    run: Callable[[], float]
    images: int
    flops: int | None = None
    matrix_rate: Callable[[], float] | None = None
    peak_memory: int | None = None


# One run


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """The run with a clock around it, which waits for the device on both sides."""

    def seconds() -> float:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        return time.perf_counter() - start

    return seconds


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """TF32 on NVIDIA GPUs, in matrix products and convolutions or in neither; torch's own default is half of it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of convolutions and matrix products in one run, which must not be compiled."""
    # Of attention only the plain kernel is counted on every device.
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def weigh(build: Callable[[], Run], device: torch.device) -> tuple[Run, int | None]:
    """
    Builds a program on the device and runs it twice: the first run compiles, tunes and makes the optimisers' state.

    Returns:
        The run, and the most bytes that the program has held on a GPU, without what was there before it. That counts
        from the start: what a CUDA graph holds is seen while it is recorded. On a CPU `None`: a process's size says
        more about the allocator than about the program.
    """
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = build()
    run()
    run()
    if device.type != "cuda":
        return run, None
    return run, torch.cuda.max_memory_allocated(device) - before


def matrix_product(device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """The product of two large square matrices, what is within reach here, as a run that returns FLOP/s."""
    size = MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = timed(lambda: left @ right, device)
    return lambda: 2 * size**3 / seconds()


# Two programs


def require_same(ours: Tensor, theirs: Tensor, what: str, tolerance: float = TOLERANCE) -> float:
    """
    The largest difference of two answers.

    Raises:
        ValueError: It is above the tolerance, the shapes differ, or the answers are constant and would hide one.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{what} have the shapes {tuple(ours.shape)} and {tuple(theirs.shape)}: nothing is measured")
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if theirs.std() < 10 * TOLERANCE:
        raise ValueError(f"{what} are constant to {theirs.std():.1g}, so comparing them shows nothing")
    difference = (ours - theirs).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(
            f"{what} differ by {difference:.2g}, expected at most {tolerance:g}: two functions, so nothing is measured"
        )
    return difference


def alternate(runs: Sequence[Callable[[], float]], repeats: int, title: str) -> list[list[float]]:
    """What each run returns, in the order A B A B …, so that whatever slows the machine slows all of them."""
    returned: list[list[float]] = [[] for _ in runs]
    for index in tqdm(range(-WARMUP, repeats), desc=title, leave=False):
        for run, kept in zip(runs, returned, strict=True):
            value = run()
            if index >= 0:
                kept.append(value)
    return returned


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Their median over ours: how many times faster we are; and the least and greatest of neighbouring runs."""
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(theirs) / statistics.median(ours), min(pairs), max(pairs)


def compare(what: str, ours: Contestant, theirs: Contestant, repeats: int, difference: float) -> Result:
    """Runs both by turns, and a matrix product between them; what was measured, in plain values."""
    title = f"{what}, {ours.images} image{'s' if ours.images > 1 else ''}"
    sides = (ours, theirs)
    runs = [*(side.run for side in sides), *(side.matrix_rate or _unknown for side in sides)]
    seconds, peer_seconds, *rates = alternate(runs, repeats, title)
    middle, least, greatest = ratio(seconds, peer_seconds)
    return {
        "what": what,
        "images": ours.images,
        "ratio": middle,
        "ratio_range": [least, greatest],
        "largest_difference": difference,
        "ours": figures(ours, seconds, rates[0]),
        "theirs": figures(theirs, peer_seconds, rates[1]),
    }


def _unknown() -> float:
    return float("nan")


def figures(contestant: Contestant, seconds: list[float], matrix_rates: list[float]) -> Result:
    """One program's column."""
    median = statistics.median(seconds)
    rate = None if contestant.flops is None else contestant.flops / median
    share = None if rate is None or contestant.matrix_rate is None else rate / statistics.median(matrix_rates)
    return {
        "program": contestant.name,
        "setting": contestant.setting,
        "seconds": seconds,
        "median_seconds": median,
        "images_per_second": contestant.images / median,
        "flops": contestant.flops,
        "tflops_per_second": None if rate is None else rate / 1e12,
        "share_of_matrix_rate": share,
        "peak_memory_bytes": contestant.peak_memory,
    }


def profile(contestant: Contestant, device: torch.device, rows: int = 12) -> str:
    """Where the time of one run goes: the operations that take most of it, and how often each is called."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        contestant.run()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=40)
    return f"{contestant.name}, {contestant.setting}, {contestant.images} images\n{table}"


# Where it was measured


def environment(device: torch.device, packages: Iterable[str] = ()) -> Result:
    """Device, versions, date and command line; all that a row needs to be repeated."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"biggan_hf": biggan_hf.__version__, "torch": torch.__version__}
        | {name: _version(name) for name in ("transformers", *packages)},
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Reports

COLUMNS = (
    "what",
    "images a run",
    "ours: setting",
    "images/s",
    "theirs: setting",
    "images/s",
    "ratio (range)",
    "largest difference",
    "TFLOP/s ours, theirs (share of a matrix product)",
    "peak memory ours, theirs",
    "device",
    "versions",
    "date",
    "command",
)


def markdown(results: Sequence[Result], where: Result, header: bool = True) -> str:
    """A row a result, with where it was measured."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"] if header else []
    return "\n".join(lines + [f"| {' | '.join(_cells(result, where))} |" for result in results])


def _cells(result: Result, where: Result) -> list[str]:
    ours, theirs = result["ours"], result["theirs"]
    low, high = result["ratio_range"]
    threads = "" if ours["peak_memory_bytes"] is not None else f", {where['threads']} threads"
    return [
        result["what"],
        str(result["images"]),
        ours["setting"],
        f"{ours['images_per_second']:.3g}",
        f"{theirs['program']}: {theirs['setting']}",
        f"{theirs['images_per_second']:.3g}",
        f"**{result['ratio']:.2f}** ({low:.2f}–{high:.2f})",
        f"{result['largest_difference']:.1e}",
        f"{_rate(ours)}, {_rate(theirs)}",
        f"{gibibytes(ours['peak_memory_bytes'])}, {gibibytes(theirs['peak_memory_bytes'])}",
        where["device"] + threads,
        ", ".join(f"{name} {number}" for name, number in where["versions"].items() if number),
        where["date"],
        f"`{where['command']}`",
    ]


def _rate(side: Result) -> str:
    rate, share = side["tflops_per_second"], side["share_of_matrix_rate"]
    return "–" if rate is None else f"{rate:.3g}" + ("" if share is None else f" ({share:.0%})")


def gibibytes(number: int | None) -> str:
    return "not measured" if number is None else f"{number / 2**30:.2f} GiB"


def report(benchmark: str, results: Sequence[Result], where: Result, path: Path | None) -> None:
    """Prints the rows, and writes a file where one is asked for."""
    print(markdown(results, where))
    write(benchmark, results, where, path)


def write(benchmark: str, results: Sequence[Result], where: Result, path: Path | None) -> None:
    """Everything that was measured, as JSON."""
    if path is not None:
        content = {"benchmark": benchmark, "environment": where, "results": list(results)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# The command line


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks share."""
    result = argparse.ArgumentParser(
        description=(description or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    result.add_argument("--device", type=device_name, default=usual, help="cpu or cuda")
    result.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    result.add_argument("--repeats", type=positive, default=7, help="runs of each program, of which the median counts")
    result.add_argument("--tf32", action="store_true", help="TF32 on NVIDIA GPUs, for every program")
    result.add_argument("--json", type=Path, metavar="FILE.json", help="write all that was measured")
    return result


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def device_name(text: str) -> str:
    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = None
    if kind not in MATRIX_SIZE:
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {text!r}")
    return text


def set_up(args: argparse.Namespace) -> torch.device:
    """Threads, TF32 and cuDNN's search as asked, for every program alike; and whether the report can be written."""
    check_new(args.json, ".json")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs an NVIDIA GPU, and torch sees none")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return device


def check_new(path: Path | None, suffix: str) -> None:
    """Raises where a file that was asked for has another kind's name, would replace another, or has no folder."""
    if path is None:
        return
    if path.suffix != suffix:
        raise ValueError(f"the output must be a {suffix} file, got {str(path)!r}")
    if path.exists():
        raise FileExistsError(f"{str(path)!r} exists already")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into")


class Worker:
    """
    Another process, which is asked with a line and answers with a line.

    Args:
        what: It is, in words.
        command: Starts it.
        environment: Is added to this process's.
    """

    def __init__(self, what: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.what = what
        own = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> str:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a process that has ended answers nothing
            print(question, file=self._process.stdin, flush=True)
        return self.answer(question)

    def answer(self, question: str = "its start") -> str:
        """The next line; raises `ValueError` if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self.what} ended without an answer to {question}")
        return line.strip()

    def close(self) -> None:
        """Lets the process end, which it does at the end of the questions."""
        with suppress(BrokenPipeError):
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def output_of(what: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What another script prints, with more in its environment; raises `ValueError` with its own last word."""
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        last = [f"exit status {done.returncode}", *done.stderr.split("\n")]
        raise ValueError(f"{what} failed: {[line.strip() for line in last if line.strip()][-1]}")
    return done.stdout


def run(main: Callable[[], None]) -> None:
    """Runs a script; what the user can put right ends in one line on stderr and exit status 2."""
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
