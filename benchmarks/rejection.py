"""Compares two ways to trade variety for quality: truncation, and choice among candidates by the discriminator.

    python benchmarks/rejection.py my-biggan --dataset_name pictures --output rejection.png

Each way has a curve of precision against recall and of the Fréchet distance against recall. The discriminator must
lie with the model. "best of" draws one of so many candidates with a probability proportional to exp(logit), which at
the optimum of the discriminator is a draw from the real distribution (discriminator rejection sampling,
arXiv:1810.06758, section 3.1). "highest logit" takes the candidate that looks most real to it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from biggan_hf import BigGANDiscriminator, BigGANPipeline
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import EvaluationSettings, ImageArray, RealImages, evaluate_all, load_extractor
from biggan_hf.files import write_file, write_text


WAYS = ("truncation", "best of", "highest logit")


def samples(
    pipe: BigGANPipeline, discriminator: BigGANDiscriminator, way: str, strength: float, number: int
) -> ImageArray:
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "output_type": "uint8"}
    if way == "truncation":
        images = pipe(num_images_per_prompt=number, truncation=strength, **options).images
    else:
        labels = torch.randint(len(pipe.id2label), (number,), generator=options["generator"])
        drawn = pipe(labels, num_images_per_prompt=int(strength), **options)
        images = drawn.images[chosen(discriminator, drawn.images, drawn.class_labels, number, way == "best of")]
    return ImageArray(torch.from_numpy(images).permute(0, 3, 1, 2), name=f"{way} {strength:g}")


@torch.no_grad()
def chosen(
    discriminator: BigGANDiscriminator, images: np.ndarray, labels: Tensor, number: int, by_chance: bool
) -> Tensor:
    """The place of one candidate for each of `number` images, among all candidates, uint8 (N, H, W, C)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    pairs = zip(pixels.split(256), labels.split(256), strict=True)
    logits = torch.cat([discriminator(some, ids).logits for some, ids in pairs]).view(number, -1)
    generator = torch.Generator().manual_seed(1)
    best = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0] if by_chance else logits.argmax(1)
    return best + torch.arange(number) * logits.shape[1]


def curves(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """By way, the numbers at each strength."""
    pipe = BigGANPipeline.from_pretrained(args.model)
    discriminator = BigGANDiscriminator.from_pretrained(args.model).eval()
    config = pipe.model.config
    pictures = load_labelled_images(
        args.dataset_name, image_size=config.image_size, num_channels=config.num_channels, split=args.dataset_split
    )
    extractor = load_extractor(args.extractor, image_size=config.image_size)
    settings = EvaluationSettings(("fid", "prdc"), intervals=False, allow_few_images=True)
    strengths = {WAYS[0]: args.truncations, WAYS[1]: args.best_of, WAYS[2]: args.best_of[1:]}
    sets = [
        samples(pipe, discriminator, way, strength, args.num_images) for way in WAYS for strength in strengths[way]
    ]
    real = RealImages(pictures, args.num_images, name=args.dataset_name)
    reports = iter(evaluate_all(sets, real, extractor, settings))
    return {way: [{"strength": strength, **next(reports).values} for strength in strengths[way]] for way in WAYS}


def draw(found: dict[str, list[dict[str, float]]], number: int) -> Figure:
    figure = Figure(figsize=(6.8, 3), layout="constrained")
    distance = next(name for name in found[WAYS[0]][0] if name.startswith("F"))
    names = [name for name in found[WAYS[0]][0] if name.lower().startswith("precision")]
    recall = next(name for name in found[WAYS[0]][0] if name.lower().startswith("recall"))
    for axis, key in zip(figure.subplots(1, 2), [*names, distance], strict=True):
        for way, marker in zip(WAYS, "os^", strict=True):
            points = found[way]
            axis.plot([p[recall] for p in points], [p[key] for p in points], marker=marker, markersize=3, label=way)
        for point in [*found[WAYS[0]], *found[WAYS[1]]]:
            axis.annotate(f"{point['strength']:g}", (point[recall], point[key]), fontsize=6)
        axis.set(xlabel=f"{recall}, N = {number:,}", ylabel=key)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with discriminator/")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_split", default="train")
    parser.add_argument("--extractor", default="lite0")
    parser.add_argument("--num_images", type=int, default=5_000)
    parser.add_argument("--truncations", type=float, nargs="+", default=[2, 1, 0.7, 0.5, 0.3])
    parser.add_argument("--best_of", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--output", type=Path, required=True, help="a .png; a .json beside it has the numbers")
    args = parser.parse_args()
    found = curves(args)
    write_text(args.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    with write_file(args.output) as unfinished:
        draw(found, args.num_images).savefig(unfinished, format="png", dpi=150)
    for way, points in found.items():
        for point in points:
            print(way, *(f"{name} {value:.4g}" for name, value in point.items()), sep="  ")


if __name__ == "__main__":
    main()
