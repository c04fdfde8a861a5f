"""What helps a GAN that has few pictures: one run, one change at a time, measured on pictures that it was not shown.

    python benchmarks/small_data.py train --output RUNS --dataset_name PICTURES --held_out_split test --pictures 300
    python benchmarks/small_data.py table RUNS

Every run of a row has the same first weights, latents and order of pictures. The pictures of all classes are as many,
and those of a smaller set are among those of a larger one. A run that is there is passed over, one that was killed
begins anew. The table has distances of the samples to new pictures, and two signs that pictures are learnt by heart:
"nearest" is how far samples are from the training pictures, over how far new pictures are (medians, in pixels; far
below 1 where samples repeat training pictures), "real, shown / new" the shares that the discriminator takes for real.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from measuring import environment, positive, run
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from biggan_hf import BigGANModel
from biggan_hf.data import LabelledImages, load_labelled_images
from biggan_hf.evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate, load_extractor
from biggan_hf.exploring import nearest_neighbours
from biggan_hf.files import append_line, replaced_folder
from biggan_hf.training import parse_arguments, set_up, steps
from biggan_hf.training.augment import _color, _cutout, diff_augment, shift
from biggan_hf.training.loop import train_step
from biggan_hf.training.losses import LOSSES
from biggan_hf.training.stability import share_taken_for_real


HELD_OUT = 2_000  # pictures that no run trains on
NEAREST = 500  # samples, and new pictures, whose nearest training pictures are looked for
RESULTS = "results.jsonl"
RELATIVISTIC = ["--loss", "relativistic", "--r1_gamma", "0.1", "--r2_gamma", "0.1", "--r1_interval", "4"]
METRICS = ("fid", "kid", "mind", "fwd", "prdc")
CONSISTENT = ["--consistency", "10"]
HINGE = LOSSES["hinge"]


# The changes


@dataclass
class Game:
    """What the discriminator sees, and minimises beside its usual loss, in the place of functions of steps.py."""

    augmentation: str = "none"  # "always": DiffAugment; "adaptive": each of its steps with a probability that moves
    lecam: float = 0.0  # weight of LeCam (Tseng et al. 2021, arXiv:2104.03310, equation 3)
    words: Sequence[str] = ()  # for train.py, of what it can do by itself
    updates: int = 1_000  # of the run
    probability: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    overfitting: Tensor = field(default_factory=lambda: torch.tensor(0.0))  # E[sign D(x)], moving average
    averages: Tensor = field(default_factory=lambda: torch.zeros(2))  # of the logits of real and generated pictures
    count: int = 0

    @contextmanager
    def played(self) -> Iterator[None]:
        with (
            patch.object(steps, "diff_augment", self.augment),
            patch.dict(LOSSES, {"hinge": HINGE._replace(of_discriminator=self.loss)}),
        ):
            yield

    def augment(self, images: Tensor) -> Tensor:
        if self.augmentation == "none":
            return images
        if self.augmentation == "always":
            return diff_augment(images)
        for change in (_color, shift, _cutout):
            chosen = torch.rand(len(images), 1, 1, 1) < self.probability
            images = torch.where(chosen, change(images), images)
        return images

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        penalty, self.count = 0.0, self.count + 1
        if self.lecam and self.count > self.updates // 10:  # the published program waits for 1,000 of its updates
            of_real, of_fake = self.averages
            distances = (real - of_fake).relu().square().mean() + (of_real - fake).relu().square().mean()
            penalty = penalty + self.lecam * distances
        with torch.no_grad():
            self.averages.lerp_(torch.stack([real.mean(), fake.mean()]), 0.01)
            self.overfitting.lerp_(real.sign().mean(), 0.25)
            if self.augmentation == "adaptive":  # from 0 to 1 in a fifth of the run
                step = 5 / self.updates * (self.overfitting - 0.6).sign()
                self.probability.add_(step).clamp_(0, 1)
        return HINGE.of_discriminator(real, fake) + penalty


GAMES: dict[str, dict[str, Any]] = {
    "none": {},
    "diff_augment": {"augmentation": "always"},
    "ada": {"augmentation": "adaptive"},
    "lecam": {"lecam": 0.3},
    "bcr": {"words": CONSISTENT},
    "diff_augment+lecam": {"augmentation": "always", "lecam": 0.3},
    "diff_augment+bcr": {"augmentation": "always", "words": CONSISTENT},
    "relativistic": {"words": RELATIVISTIC},
    "diff_augment+relativistic": {"augmentation": "always", "words": RELATIVISTIC},
}


# The pictures


def write_pictures(options: argparse.Namespace, folder: Path, number: int) -> Path:
    """A folder `train/` of so many pictures, as many of each class, and `test/` of those that are held back."""
    if folder.is_dir():
        return folder
    source = load_labelled_images(options.dataset_name, image_size=32, num_channels=options.channels, split="train")
    held_out, order = source, shuffled(source)
    if options.held_out_split is None:
        order, rest = order[:-HELD_OUT], order[-HELD_OUT:]
    else:
        held_out = load_labelled_images(
            options.dataset_name, image_size=32, num_channels=options.channels, split=options.held_out_split
        )
        rest = shuffled(held_out)[:HELD_OUT]
    assert source.labels is not None
    classes = len(source.class_names)
    of_classes = [[row for row in order if source.labels[row] == label] for label in range(classes)]
    if min(map(len, of_classes)) < number // classes:
        raise ValueError(f"{number} pictures were asked for, and a class has {min(map(len, of_classes))}")
    rows = [row for one in of_classes for row in one[: number // classes]]
    with replaced_folder(folder) as unfinished:
        for images, chosen, split in ((source, rows, "train"), (held_out, rest, "test")):
            write_split(images, chosen, unfinished / split)
    return folder


def shuffled(images: LabelledImages) -> list[int]:
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()


def write_split(images: LabelledImages, rows: list[int], folder: Path) -> None:
    batch = images.__getitems__(rows)
    assert batch["class_labels"] is not None
    for number, (pixels, label) in enumerate(zip(batch["pixel_values"], batch["class_labels"].tolist(), strict=True)):
        path = folder / images.class_names[label].replace("/", "-") / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(path)


# The runs


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    for number in options.pictures:
        pictures = write_pictures(options, options.output / "pictures" / f"{options.name}-{number}", number)
        for seed in options.seeds:
            for variant in options.variants:
                folder = options.output / "runs" / f"{options.name}-{number}-{variant}-{seed}-{max(options.steps)}"
                train_one(folder, pictures, variant, seed, options)
                measure(folder, pictures, options)
        print(table(read(options.output)), flush=True)


def train_one(folder: Path, pictures: Path, variant: str, seed: int, options: argparse.Namespace) -> None:
    """Leaves the average and what was seen of the run, at each of the steps that are asked for."""
    last = max(options.steps)
    if all((folder / str(step)).is_dir() for step in options.steps):
        return
    game = Game(**GAMES[variant], updates=last)
    words = [
        "--preset",
        "demo",
        "--dataset_name",
        str(pictures),
        "--output_dir",
        str(folder / "run"),
        "--diff_augment",
    ]
    # A relativistic discriminator takes no picture for real or not.
    words += game.words if game.words == RELATIVISTIC else [*game.words, "--held_out_split", "test"]
    words += ["--seed", str(seed), "--max_train_steps", str(last), "--cuda_graphs", "off"]
    words += ["--config_overrides", f"num_channels={options.channels}"]
    words += ["--resume_from_checkpoint", "latest"]  # of which there is none: it begins anew in its folder
    training, seconds = set_up(*parse_arguments(words)), 0.0
    with game.played():
        for step in range(1, last + 1):
            start = time.process_time()
            train_step(training)
            seconds += time.process_time() - start
            if step in options.steps:
                write_snapshot(folder / str(step), training, game, seconds)
    print(f"{folder.name}: {seconds:.0f} s of CPU", flush=True)


def write_snapshot(folder: Path, training: Any, game: Game, seconds: float) -> None:
    taken = {
        name: round(share_taken_for_real(training.players.bare_discriminator, pictures), 4)
        for name, pictures in training.watched.items()
    }
    told = {"cpu_seconds": round(seconds, 1), "taken_for_real": taken, "p": round(float(game.probability), 3)}
    with replaced_folder(folder) as unfinished:
        training.ema.save_pretrained(unfinished)
        (unfinished / "told.json").write_text(json.dumps(told), encoding="utf-8")


def measure(folder: Path, pictures: Path, options: argparse.Namespace) -> None:
    """Adds a line to the results for each snapshot and extractor that has none."""
    name, number, variant, seed, length = folder.name.rsplit("-", 4)
    done = {(line["run"], line["step"], line["extractor"], line["samples"]) for line in read(options.output)}
    for extractor_name in options.extractors:
        for step in options.steps:
            if (folder.name, step, extractor_name, options.samples) in done:
                continue
            told = json.loads((folder / str(step) / "told.json").read_text(encoding="utf-8"))
            line = {"run": folder.name, "set": name, "pictures": int(number), "variant": variant, "seed": int(seed)}
            line |= {"length": int(length), "step": step, "extractor": extractor_name, "samples": options.samples}
            line |= told | measure_one(folder / str(step), pictures, extractor_name, options)
            line |= environment(torch.device("cpu"), ["transformers", "datasets"])
            del line["command"]  # it names folders of this machine
            append_line(options.output / RESULTS, line)
            print({key: line[key] for key in ("run", "step", "kid", "fid", "fwd", "recall", "nearest")}, flush=True)


def measure_one(snapshot: Path, pictures: Path, extractor: str, options: argparse.Namespace) -> dict[str, float]:
    split = {"image_size": 32, "num_channels": options.channels}
    held_out = load_labelled_images(str(pictures), split="test", **split)
    shown = load_labelled_images(str(pictures), split="train", **split)
    samples = GeneratedImages(BigGANModel.from_pretrained(snapshot), options.samples, seed=1)
    settings = EvaluationSettings(
        METRICS, allow_few_images=True, intervals=False, cache_dir=options.output / "features", kid_subset_size=500
    )
    report = evaluate(samples, RealImages(held_out), load_extractor(extractor, "cpu"), settings)
    with samples.generating() as generated:
        batches = [generated.__getitems__(rows) for rows in torch.arange(min(NEAREST, len(samples))).split(100)]
    images = torch.cat([batch["pixel_values"] for batch in batches])
    shown_pixels = [shown.__getitems__(range(len(shown)))["pixel_values"]]
    some_new = RealImages(held_out, min(NEAREST, len(held_out)))
    new = some_new.__getitems__(range(len(some_new)))["pixel_values"]
    near, usual = (nearest_neighbours(some, shown_pixels, 1).distances.median() for some in (images, new))
    return {one.key: one.value for one in report.measures} | {"nearest": float(near / usual)}


# The table


def read(output: Path) -> list[dict[str, Any]]:
    path = output / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row a variant and step, the means over seeds, and half of the range where there are several."""
    head = ["set", "pictures", "run", "step", "ruler", "N", "variant", "seeds", "KD", "FD", "FWD", "recall",
            "nearest", "real, shown / new", "p", "CPU s"]  # fmt: skip
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("set", "pictures", "length", "step", "extractor", "samples", "variant"))
        rows.setdefault(key, []).append(line)

    def number(of: list[dict[str, Any]], key: str) -> str:
        values = [line[key] for line in of]
        spread = f" ± {(max(values) - min(values)) / 2:.2g}" if len(values) > 1 else ""
        return f"{mean(values):.3g}{spread}"

    order = [*GAMES]
    text = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, of in sorted(rows.items(), key=lambda item: (*item[0][:-1], order.index(item[0][-1]))):
        taken = [line["taken_for_real"] for line in of if line["taken_for_real"]]
        shown, new = (f"{mean(one[name] for one in taken):.2f}" if taken else "" for name in ("training", "held_out"))
        cells = [*map(str, key), str(len(of)), number(of, "kid"), number(of, "fid"), number(of, "fwd")]
        cells += [number(of, "recall"), number(of, "nearest"), f"{shown} / {new}"]
        text.append(f"| {' | '.join([*cells, number(of, 'p'), number(of, 'cpu_seconds')])} |")
    places = {f"{line['device']}, {line['threads']} thread, {line['versions']}, {line['date']}" for line in lines}
    return "\n".join([*text, *sorted(places)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    usual: Any = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    runs = verbs.add_parser("train", help="train and measure what is not there yet", **usual)
    runs.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    runs.add_argument("--dataset_name", required=True)
    runs.add_argument("--name", default="pictures", help="of the set, for the table")
    runs.add_argument("--held_out_split", help="default: 2,000 of the training split are held back")
    runs.add_argument("--channels", type=int, choices=(1, 3), default=1)
    runs.add_argument("--pictures", type=positive, nargs="+", default=[300, 1_000, 5_000])
    runs.add_argument("--variants", nargs="+", choices=GAMES, default=[*GAMES])
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument("--steps", type=positive, nargs="+", default=[500, 1_000, 1_500], help="at which to measure")
    runs.add_argument("--samples", type=positive, default=2_000)
    runs.add_argument("--extractors", nargs="+", default=["lite0", "lite2"])
    runs.add_argument("--threads", type=positive, default=1)
    runs.set_defaults(verb=train)
    page = verbs.add_parser("table", help="print the table")
    page.add_argument("output", type=Path, metavar="FOLDER")
    page.set_defaults(verb=lambda options: print(table(read(options.output))))
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    options.verb(options)


if __name__ == "__main__":
    run(main)
