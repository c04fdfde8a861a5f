"""
Seconds that a person waits for the first picture of the page (`biggan-hf app`), by model and engine.

Starts the page as a user does, sends what the page sends, waits for the end of the event, fetches the first picture as
a browser does, and decodes it. "cold" is the first request after the start. A name of a preset stands for a model with
random weights.
"""

import argparse
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import environment, positive, run
from PIL import Image

from biggan_hf import BigGANConfig, BigGANModel, BigGANPipeline
from biggan_hf.app import Page
from biggan_hf.presets import PRESETS


COLUMNS = ("model", "engine", "pictures", "cold, s", "median, s", "most, s")


@contextlib.contextmanager
def started(model: str, engine: str, precision: str, log: Path) -> Iterator[str]:
    """The address of a page, which a process of its own serves."""
    words = ["app", model, "--engine", engine, "--precision", precision]
    with log.open("w") as file:
        page = subprocess.Popen([sys.executable, "-m", "biggan_hf", *words], stdout=file, stderr=subprocess.STDOUT)
    try:
        while (address := re.search(r"The page is at (\S+?)/? until", log.read_text())) is None:
            if page.poll() is not None:
                raise RuntimeError(f"the page did not start: {log.read_text()}")
            time.sleep(0.2)
        yield address[1]
    finally:
        page.terminate()
        page.wait()


def wait_for_picture(address: str, classes: Sequence[str], truncation: float, number: int, seed: int) -> float:
    """Seconds from the request to the first decoded picture."""
    data = [list(classes), False, truncation, seed, number, *[1] * 6]
    body = json.dumps({"data": data}).encode()
    call = urllib.request.Request(f"{address}/gradio_api/call/sample", body, {"Content-Type": "application/json"})
    begin = time.perf_counter()
    with urllib.request.urlopen(call, timeout=600) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/sample/{event}", timeout=600) as stream:
        told = stream.read().decode()  # until the event is over
    if (line := re.search(r"event: complete\s+data: (.*)", told)) is None:
        raise RuntimeError(f"the page gave no picture: {told[:500]}")
    with urllib.request.urlopen(json.loads(line[1])[0][0]["image"]["url"], timeout=60) as picture:
        Image.open(io.BytesIO(picture.read())).load()
    return time.perf_counter() - begin


def rows(model: str, engine: Any, precision: Any, repeats: int, folder: Path) -> Iterator[tuple[Any, ...]]:
    """For one picture, and for those that the page opens with."""
    pipe = BigGANPipeline.from_pretrained(model, engine=engine, precision=precision)
    opened = Page(pipe, "model").defaults  # the line before has exported, once, what the page takes from the cache
    with started(model, engine, precision, folder / "log") as address:
        for classes, number in ((opened["classes"][:1], 1), (opened["classes"], opened["number"])):
            cold, *others = (
                wait_for_picture(address, classes, opened["truncation"], number, seed) for seed in range(1 + repeats)
            )
            yield f"{engine} {precision}", number * len(classes), cold, statistics.median(others), max(others)


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    arguments.add_argument("--models", nargs="+", default=["biggan-128", "biggan-deep-128"], metavar="MODEL")
    arguments.add_argument("--engines", nargs="+", default=["openvino:fp32", "onnx:fp32"], metavar="ENGINE:PRECISION")
    arguments.add_argument("--repeats", type=positive, default=9)
    args = arguments.parse_args(argv)
    where = environment(torch.device("cpu"), ("openvino", "onnxruntime", "gradio"))
    print(json.dumps(where))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            source = f"{folder}/model" if model in PRESETS else model
            if model in PRESETS:
                BigGANModel(BigGANConfig.preset(model)).eval().save_pretrained(source)
            for engine, _, precision in (name.partition(":") for name in args.engines):
                for name, number, *times in rows(source, engine, precision or "fp32", args.repeats, Path(folder)):
                    print(f"| {model} | {name} | {number} | {' | '.join(f'{t:.2f}' for t in times)} |", flush=True)


if __name__ == "__main__":
    run(main)
