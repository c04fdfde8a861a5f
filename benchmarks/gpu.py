"""Asks a GPU that is lent for a quarter of an hour: row by row in the order of worth, each in a process of its own.

    python benchmarks/gpu.py --biggan_pytorch PATH --dataset_name FOLDER --output gpu --minutes 12 --speedrun 3

A row is in `rows.jsonl` and `rows.md` of the output folder the moment it is there, and what it printed in `log.txt`.
The same command goes on with the rows that are missing; to repeat a row, take its line out of `rows.jsonl`. This
script imports nothing of what it starts, so that an error or a kill costs one row.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]

DONE, FAILED, TOO_LONG, OUT_OF_TIME = "done", "failed", "past its limit", "out of time"
# Seconds of a speedrun beside its training: imports, the table of pictures, the last sheet, the model.
AROUND_TRAINING = 50
COLUMNS = ("row", "what", "images", "ours", "images/s", "theirs", "images/s", "ratio (range)", "peak memory", "took")

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """
    Args:
        name: Section, and after a slash what is special.
        words: Of the command, after `python`.
        seconds: That it takes, as a guess. It is not started with less, and is ended after `patience` times as long.
        patience: A factor.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    patience: float = 2

    @property
    def limit(self) -> float:
        return self.patience * self.seconds

    def is_of(self, section: str) -> bool:
        return f"{self.name}/".startswith(f"{section}/")


def rows(options: argparse.Namespace) -> list[Row]:
    """All of them, in the order of worth; what compiles comes late, as it takes minutes."""
    tiny: bool = options.rehearse
    peer = f"--biggan_pytorch {shlex.quote(str(options.biggan_pytorch))}"
    graphs, compiled = "--cuda_graphs", "--compile"
    cifar10 = f"training.py {peer} --preset cifar10 {'--batch_size 2' if tiny else ''}"
    large = f"training.py {peer} --image_size {'32 --batch_size 2' if tiny else '128 --batch_size 64 --repeats 3'}"
    beside = f"sampling.py {peer} --image_size {32 if tiny else 128} --peers BigGAN-PyTorch --batch_sizes 1"
    deep = "sampling.py --peers pytorch-pretrained-biggan --batch_sizes 1"
    many, bf16, fast = "2" if tiny else "64", "--mixed_precision bf16", "--dtype bfloat16 --compile"
    settings = "" if options.settings is None else f"--settings {shlex.quote(str(options.settings))}"
    ours = f"speedrun.py ours {bf16} {settings}"
    training = f"--minutes MINUTES --dataset_name {shlex.quote(options.dataset_name)} {'--channels 4' if tiny else ''}"
    asked = [
        ("cifar10/float32", 50, cifar10),
        ("cifar10/tf32", 40, f"{cifar10} --tf32"),
        ("cifar10/bf16-graphs", 40, f"{cifar10} {bf16} {graphs}"),
        ("cifar10/bf16-graphs-channels_last", 40, f"{cifar10} {bf16} {graphs} --channels_last"),
        ("cifar10/tf32-graphs", 40, f"{cifar10} --tf32 {graphs}"),
        ("128px/bf16-graphs", 70, f"{large} {bf16} {graphs} --channels_last"),
        ("cifar10/bf16-compile-graphs", 120, f"{cifar10} {bf16} {graphs} {compiled}"),
        ("sampling/128px", 90, f"{beside} {many} {fast}"),
        ("sampling/deep-128px", 110, f"{deep} {many} {fast}"),
        ("128px/bf16-compile-graphs", 120, f"{large} {bf16} {graphs} {compiled}"),
        ("cifar10/bf16-compile", 80, f"{cifar10} {bf16} {compiled}"),
        ("first-image", 120, f"{beside} --first_image {'' if tiny else '--repeats 2'}"),
        ("speedrun/ours", AROUND_TRAINING, f"{ours} {training}"),
        ("speedrun/theirs", AROUND_TRAINING, f"speedrun.py theirs {peer} {training}"),
    ]
    small = "--channels 4 --repeats 1 --device cpu --threads 1".split()
    tests = shlex.split("-m pytest -n 4 -v --tb=short -p no:cacheprovider tests/test_cuda.py")
    patience = 10 if tiny else 2
    found = [Row("tests", tuple(tests), 60, patience)]
    if tiny:
        found.insert(0, Row("planned/failure", ("-c", "raise SystemExit('it fails')"), 30))
        waiting = "import os, time; print('it waits:', os.getpid(), flush=True); time.sleep(60)"
        found.insert(1, Row("planned/limit", ("-c", waiting), 1))
    for name, seconds, line in asked:
        script, *words = shlex.split(line)
        if script == "speedrun.py":
            words += ["--output", str(options.output / f"{name.replace('/', '-')}.zip")]
        elif tiny:  # a CPU has no graphs, and compiles for minutes
            words = [word for word in words if word not in (graphs, compiled)] + small
        found.append(Row(name, (f"benchmarks/{script}", *words), seconds, patience))
    return found


def chosen(options: argparse.Namespace) -> list[Row]:
    """Those that are asked for, in the order of asking; raises `ValueError` for one that there is not."""
    every = rows(options)
    if options.only is None:
        return [row for row in every if options.speedrun or not row.is_of("speedrun")]
    found = {asked: [row for row in every if row.is_of(asked)] for asked in options.only}
    for asked in (asked for asked, some in found.items() if not some):
        raise ValueError(f"there is no row {asked!r}; there are {', '.join(row.name for row in every)}")
    return list(dict.fromkeys(row for some in found.values() for row in some))


class Records:
    """The rows that are there, in two files that are whole at every moment."""

    def __init__(self, folder: Path):
        self._folder = folder
        path = folder / "rows.jsonl"
        self.all: list[Record] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add(self, record: Record) -> None:
        self.all = [each for each in self.all if each["row"] != record["row"]] + [record]
        self._write("rows.jsonl", "".join(json.dumps(each) + "\n" for each in self.all))
        head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
        self._write("rows.md", head + "".join(map(lines_of, self.all)))

    def are_there(self, row: Row) -> bool:
        """Except for what the end of the minutes stopped."""
        return any(record["row"] == row.name and record["status"] != OUT_OF_TIME for record in self.all)

    def _write(self, name: str, text: str) -> None:
        unfinished = self._folder / f".{name}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self._folder / name)


def lines_of(record: Record) -> str:
    """Of the table: one for each result, or one for what went wrong."""
    last, took = "".join(record["last_lines"][-1:])[:300].replace("|", "/"), f"{record['seconds']:.0f} s"
    parts = [[f"{record['status']}: {last}", *[""] * (len(COLUMNS) - 3)]]
    if record["report"]:
        parts = [cells(result) for result in record["report"]["results"]]
    return "".join(f"| {' | '.join([record['row'], *part, took])} |\n" for part in parts)


def cells(result: Record) -> list[str]:
    sides = [result["ours"], result["theirs"]]
    programs = [[f"{side['program']}: {side['setting']}", f"{side['images_per_second']:.4g}"] for side in sides]
    held = [side["peak_memory_bytes"] for side in sides]
    memory = "" if None in held else f"{held[0] / 2**30:.2f}, {held[1] / 2**30:.2f} GiB"
    low, high = result["ratio_range"]
    ratio = f"**{result['ratio']:.2f}** ({low:.2f}–{high:.2f})"
    return [result["what"], str(result["images"]), *programs[0], *programs[1], ratio, memory]


def run_row(row: Row, output: Path, left: float) -> Record:
    """Runs it until its end, its limit or the end of the minutes, whatever it does."""
    limit, start = min(row.limit, left), time.monotonic()
    report, log = output / "work" / "report.json", output / "log.txt"
    report.unlink(missing_ok=True)
    is_measured = row.words[0].endswith(("training.py", "sampling.py"))
    command = [sys.executable, *row.words, *(["--json", str(report)] if is_measured else [])]
    # What one row has compiled, the next one finds.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(output / "work" / "inductor"), "TQDM_DISABLE": "1"}
    with log.open("ab") as printed:
        printed.write(f"\n===== {row.name}: {shlex.join(command)}\n".encode())
        printed.flush()
        begin = printed.tell()
        streams: dict[str, Any] = {"stdout": printed, "stderr": printed}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
        try:
            status = DONE if process.wait(limit) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = TOO_LONG if limit < left else OUT_OF_TIME
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()
    lines = [line for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
    seconds, content = time.monotonic() - start, None
    with suppress(OSError, ValueError):  # it may be missing or half of it; it may be there when the end does not come
        content = json.loads(report.read_text(encoding="utf-8"))
    command = ["python", *row.words]
    told = {"command": shlex.join(command), "last_lines": lines[-15:], "report": content}
    return {"row": row.name, "status": status, "seconds": seconds, **told}


def speedrun(row: Row, ahead: int, left: float, records: Sequence[Record], options: argparse.Namespace) -> Row:
    """The row with its minutes: as many as the other program had, or an equal part of what is left."""
    minutes = (left / ahead - AROUND_TRAINING) / 60
    had = [record["command"] for record in records if record["row"] == "speedrun/ours" and record["status"] == DONE]
    if options.rehearse:
        minutes = min(minutes, options.speedrun)
    elif had and row.is_of("speedrun/theirs"):
        words = shlex.split(had[0])
        minutes = min(minutes, float(words[words.index("--minutes") + 1]))
    words = [f"{minutes:.3f}" if word == "MINUTES" else word for word in row.words]
    words += best_flags(records, options.speedrun_compile) if row.is_of("speedrun/ours") else []
    return replace(row, words=tuple(words), seconds=60 * minutes + AROUND_TRAINING)


def best_flags(records: Sequence[Record], compiles: bool) -> list[str]:
    """
    Those of the fastest iteration in bf16; what compiles counts only where it may, as it takes minutes itself. CUDA
    graphs are train.py's own choice, but where no row could use them.
    """
    seconds, failed = {}, False
    for record in (record for record in records if record["row"].startswith("cifar10/bf16-")):
        words = record["command"].split()
        flags = tuple(name for name in ("channels_last", "compile") if f"--{name}" in words)
        if record["report"] and (compiles or "compile" not in flags):
            seconds[flags] = record["report"]["results"][0]["ours"]["median_seconds"]
        failed |= record["status"] == FAILED and "--cuda_graphs" in words
    best = min(seconds, key=lambda flags: seconds[flags], default=())
    graphs = ["--cuda_graphs", "off"] if failed and not seconds else []
    return [*(f"--{'' if name in best else 'no_'}{name}" for name in ("channels_last", "compile")), *graphs]


def measure(options: argparse.Namespace) -> None:
    end_of_minutes = time.monotonic() + 60 * options.minutes
    records = Records(options.output)
    missing = [row for row in chosen(options) if not records.are_there(row)]
    for index, row in enumerate(missing):
        left = end_of_minutes - time.monotonic()
        ahead = sum(each.is_of("speedrun") for each in missing[index:])
        if row.is_of("speedrun"):
            row = speedrun(row, ahead, left, records.all, options)
        else:
            left -= ahead * (60 * options.speedrun + AROUND_TRAINING)
        can_start = row.seconds <= left and (row.seconds > AROUND_TRAINING or not row.is_of("speedrun"))
        takes = f"has {min(row.limit, left):.0f} s at most" if can_start else "is not started"
        print(f"{left:.0f} s are left: {row.name}, which may take {row.seconds:.0f} s, {takes}", flush=True)
        if can_start:
            records.add(run_row(row, options.output, left))
            print(lines_of(records.all[-1]), end="", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for the rows, old and new")
    parser.add_argument("--biggan_pytorch", type=Path, required=True, metavar="FOLDER", help="a checkout of it")
    parser.add_argument("--minutes", type=float, default=12, help="after them all ends (default: 12)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows or sections, in this order (default: all)")
    shared = "at last, each program trains cifar10 for an equal part of what is left, at least so long; 0: not at all"
    parser.add_argument("--speedrun", type=float, default=0, metavar="MINUTES", help=shared)
    parser.add_argument("--speedrun_compile", action="store_true", help="ours compiles there, if that was faster")
    parser.add_argument("--settings", type=Path, metavar="FILE.yaml", help="train.py's, of our speedrun")
    parser.add_argument("--dataset_name", default="uoft-cs/cifar10", help="of the speedrun, as for train.py")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU, with a failure and a row without end")
    options = parser.parse_args(argv)
    for name in ("output", "biggan_pytorch", "settings"):
        path = getattr(options, name)
        setattr(options, name, path and path.absolute())
    if Path(options.dataset_name).exists():
        options.dataset_name = str(Path(options.dataset_name).absolute())
    try:
        chosen(options)
        if not (options.biggan_pytorch / "BigGAN.py").is_file():
            raise ValueError(f"--biggan_pytorch must be a checkout of BigGAN-PyTorch, got {options.biggan_pytorch}")
    except ValueError as error:
        parser.error(str(error))
    (options.output / "work").mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: the same command goes on"))
    measure(options)


if __name__ == "__main__":
    main()
