"""How much faster a training is with channels last: the iterations of two runs by turns, one in each memory format.

    python benchmarks/layouts.py --preset cifar10 --batch_size 16

An iteration is what `train.py` counts as a step. CPU seconds count, so that other programs matter little. The pictures
are noise, and are decoded before the first step.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import environment, positive, run
from PIL import Image
from torch import device
from transformers.utils import logging

from biggan_hf import BigGANConfig
from biggan_hf.presets import PRESETS
from biggan_hf.training import parse_arguments, set_up
from biggan_hf.training.loop import train_step


def measure(preset: str, batch_size: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds of each step after the first, by the value of `--channels_last`."""
    config = BigGANConfig.preset(preset)
    seconds: dict[str, list[float]] = {"True": [], "False": []}
    with tempfile.TemporaryDirectory() as name:
        pictures = write_noise(Path(name) / "pictures", batch_size, config.image_size)
        sizes = ["--per_device_batch_size", str(batch_size), "--global_batch_size", str(batch_size)]
        words = ["--preset", preset, *sizes, "--dataset_name", str(pictures)]
        words += ["--config_overrides", f"num_channels={config.num_channels}"]
        runs = {}
        for value in seconds:
            folder = Path(name) / value
            runs[value] = set_up(*parse_arguments([*words, "--output_dir", str(folder), "--channels_last", value]))
            runs[value].batches.start(runs[value].batch_seed, 0)
        for _ in range(steps + 1):
            for value, training in runs.items():
                start = time.process_time()
                train_step(training)
                seconds[value].append(time.process_time() - start)
    return {value: those[1:] for value, those in seconds.items()}


def write_noise(folder: Path, number: int, size: int) -> Path:
    random = np.random.default_rng(0)
    for index in range(number):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(path)
    return folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=[*PRESETS], default="cifar10")
    parser.add_argument("--batch_size", type=positive, default=16, help="pictures in an update")
    parser.add_argument("--steps", type=positive, default=3, help="of each run, after one that is not counted")
    options = parser.parse_args(argv)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    logging.disable_progress_bar()
    seconds = measure(options.preset, options.batch_size, options.steps)
    ratios = [plain / last for plain, last in zip(seconds["False"], seconds["True"], strict=True)]
    medians = {value: statistics.median(those) for value, those in seconds.items()}
    print(f"channels last {medians['True']:.3g} s, otherwise {medians['False']:.3g} s, CPU time of a step")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(environment(device("cpu"), ["accelerate"]))


if __name__ == "__main__":
    run(main)
