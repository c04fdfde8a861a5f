"""This project's training beside BigGAN-PyTorch's: how far the averages of both are from real pictures as they learn.

    python benchmarks/quality.py train ours --seed 0 --output RUNS --dataset_name CIFAR10 --biggan_pytorch PATH
    python benchmarks/quality.py train theirs --seed 0 --output RUNS --dataset_name CIFAR10 --biggan_pytorch PATH
    python benchmarks/quality.py measure RUNS/* --dataset_name CIFAR10
    python benchmarks/quality.py report RUNS --page docs/results.md

A leg is one program with one seed, in a process and a folder of its own. After a kill the same command goes on with
it. Legs of one seed have the same first weights, which BigGAN-PyTorch draws, and the same pictures, mirrored alike, in
the same order: both are fed by this project's loader, which decodes all pictures before the clock starts. (The
original's loader needs torchvision.) "Images" are the real ones that the discriminator was shown. The clock stands
still while a snapshot and a checkpoint are written.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from legs import LOG, Program, load_pictures, open_leg, read_log, read_settings, snapshot, write_snapshot
from measuring import device_name, positive, run, set_up, synchronize, tensor_float32
from peers import BIGGAN_PYTORCH
from results import COLUMNS, IDENTITY, MEASURED, NAMES, read_rows, write_page, write_rows
from transformers.utils import logging

from biggan_hf import BigGANModel
from biggan_hf.evaluation import (
    EvaluationSettings,
    FeatureExtractor,
    GeneratedImages,
    RealImages,
    Report,
    evaluate,
    load_extractor,
)
from biggan_hf.evaluation.extractors import EXTRACTORS
from biggan_hf.evaluation.settings import METRICS
from biggan_hf.files import LOCK, append_line, locked_folder, write_text


LOG_STEPS = 50
# The others have no floor, are no distances of all samples from all real pictures, or (saturation) are not better the
# less they are.
RULERS = tuple(metric for metric in METRICS if metric not in ("is", "prdc", "intra_class_fid", "saturation"))


def train(options: argparse.Namespace) -> None:
    device = set_up(options)
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    leg = options.output / f"{options.whose}-{options.seed}"
    with locked_folder(leg), tensor_float32(options.tf32):
        go_on(leg, open_leg(leg, options, device), options, device)


def go_on(leg: Path, program: Program, options: argparse.Namespace, device: torch.device) -> None:
    """Trains up to the number of images, or until the time is up, with a snapshot and a checkpoint every so often."""
    first, began = program.images, time.monotonic()
    lines = [line for line in read_log(leg) if line["images"] <= first]  # a kill may have come before the checkpoint
    write_text(leg / LOG, "".join(f"{json.dumps(line)}\n" for line in lines))
    before = lines[-1]["seconds"] if lines else 0.0
    seconds, steps, start, is_over = 0.0, 0, time.perf_counter(), first >= options.images
    while not is_over:
        last = program.images
        losses, steps = program.step(), steps + 1
        is_over = program.images >= options.images or time.monotonic() - began >= 60 * options.minutes
        is_due = is_over or last // options.snapshot_images != program.images // options.snapshot_images
        if steps % LOG_STEPS and not is_due:
            continue
        synchronize(device)
        now = seconds + time.perf_counter() - start
        line = {"images": program.images, "seconds": round(before + now, 3)}
        line |= {name: round(float(losses[name]), 4) for name in ("discriminator_loss", "generator_loss")}
        line |= {"legs": len([*options.output.glob(f"*/{LOCK}")]), "load": round(os.getloadavg()[0], 1)}
        append_line(leg / LOG, {**line, "snapshot": is_due})
        left = (options.images - program.images) * now / (program.images - first) / 60
        told = f"D {line['discriminator_loss']:.3f}, G {line['generator_loss']:.3f}, {left:.1f} min left"
        print(f"{leg.name}: {program.images:,} of {options.images:,} images, {told}", flush=True)
        if is_due:
            write_snapshot(leg, program)
            seconds, start = now, time.perf_counter()


def measure(options: argparse.Namespace) -> None:
    """Adds to `measured.csv` of each leg what all rulers say of its snapshots and have not said yet."""
    device, images = set_up(options), load_pictures(options.dataset_name)
    real = RealImages(images, options.reference_images)
    pictures = real, real.rest(options.samples)
    if len(pictures[1]) < options.samples:
        raise ValueError(
            f"{len(pictures[1]):,} pictures are left for the floor, fewer than --samples {options.samples}"
        )
    settings = EvaluationSettings(RULERS, allow_few_images=True, cache_dir=options.legs[0] / "features")
    with tensor_float32(False):
        for extractor in (load_extractor(name, device) for name in options.extractors):
            for leg in options.legs:
                measure_leg(leg, extractor, options.samples, pictures, settings)


def measure_leg(
    leg: Path,
    extractor: FeatureExtractor,
    samples: int,
    pictures: tuple[RealImages, RealImages],
    settings: EvaluationSettings,
) -> None:
    real, floor = pictures
    rows = {tuple(row[name] for name in IDENTITY): row for row in read_rows(leg / MEASURED)}
    told = read_settings(leg)["settings"]
    for line in read_log(leg):
        where = (told["whose"], told["seed"], line["images"], samples, len(real), extractor.name)
        wanted = {(*where, metric) for metric in settings.metrics}
        folder = snapshot(leg, line["images"])
        if not line["snapshot"] or not folder.is_dir() or wanted <= rows.keys():
            continue
        print(f"{leg.name}, {line['images']:,} images, {extractor.name}", flush=True)
        model = BigGANModel.from_pretrained(folder, dtype=torch.float32).to(extractor.device)
        measured = evaluate(GeneratedImages(model, samples), real, extractor, settings, floor)
        for key, numbers in distances(measured).items():
            rows[*where, key] = dict(zip(COLUMNS, (*where, key, line["seconds"], *numbers), strict=True))
        write_rows(leg / MEASURED, (row for _, row in sorted(rows.items())))


def distances(report: Report) -> dict[str, tuple[str, float, float, float | None, float | None]]:
    """By key, of what is less for better samples: label, value, floor, and the ends of the interval."""
    floors = {one.key.removeprefix("floor_"): one.value for one in report.measures if one.key.startswith("floor_")}
    found = {}
    for one in report.measures:
        low, high = one.interval or (None, None)
        if one.key in floors:
            found[one.key] = (one.label, one.value, floors[one.key], low, high)
        elif one.key == "score":  # a mean of ratios to the floor
            found[one.key] = (one.label, one.value, 1.0, low, high)
        elif one.key == "accuracy":
            found[one.key] = (f"1 - {one.label}", 1 - one.value, 1 - report["reference_accuracy"], None, None)
    return found


def report(options: argparse.Namespace) -> None:
    write_page(options.sets, options.page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    usual: Any = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    leg = verbs.add_parser("train", help="train a leg, or go on with it", **usual)
    leg.add_argument("whose", choices=[*NAMES])
    leg.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the folder of all legs")
    leg.add_argument("--biggan_pytorch", type=Path, metavar="FOLDER", help=f"a checkout of {BIGGAN_PYTORCH}")
    leg.add_argument("--seed", type=int, default=0, help="of the weights, the draws and the pictures' order")
    leg.add_argument("--images", type=positive, default=400_000, help="real ones that the discriminator is shown")
    leg.add_argument("--minutes", type=float, default=math.inf, help="end after this time")
    leg.add_argument("--snapshot_images", type=positive, default=50_000, help="images from one snapshot to the next")
    leg.add_argument("--channels", type=positive, help="base width (default: the preset's)")
    leg.add_argument("--batch_size", type=positive, help="pictures in an update (default: the preset's)")
    leg.add_argument("--ema_decay", type=float, help="default: the preset's, which is made for 125,000 steps")
    leg.add_argument("--ema_start_step", type=int, help="default: the preset's")
    leg.add_argument("--tf32", action="store_true", help="TF32 on NVIDIA GPUs, for both programs")
    leg.add_argument("--mixed_precision", choices=["no", "bf16"], default="no", help="of our side")
    leg.add_argument("--compile", action="store_true", help="compile our networks")
    leg.add_argument("--channels_last", action="store_true", help="our convolutions in channels-last layout")
    leg.set_defaults(verb=train)
    ruler = verbs.add_parser("measure", help="measure those snapshots that are not measured yet", **usual)
    ruler.add_argument("legs", type=Path, nargs="+", metavar="LEG", help="the folder of a leg")
    ruler.add_argument("--samples", type=positive, default=5_000, help="of each snapshot")
    ruler.add_argument("--reference_images", type=positive, default=10_000, help="real ones to compare with")
    no_download = [name for name in EXTRACTORS if not name.startswith("inception")]
    ruler.add_argument("--extractors", nargs="+", default=no_download, help="networks of the rulers")
    ruler.set_defaults(verb=measure)
    page = verbs.add_parser("report", help="write a page with tables and figures, from legs or their kept logs")
    page.add_argument("sets", type=Path, nargs="+", metavar="FOLDER", help="a folder of legs")
    page.add_argument("--page", type=Path, required=True, metavar="FILE.md", help="logs and figures go beside it")
    page.set_defaults(verb=report)
    for timed in (leg, ruler):
        timed.add_argument("--dataset_name", required=True, help="CIFAR-10: a folder or a Hub id")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        timed.add_argument("--device", type=device_name, default=device, help="cpu or cuda")
        timed.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(argv, argparse.Namespace(json=None))
    logging.disable_progress_bar()
    options.verb(options)


if __name__ == "__main__":
    run(main)
