"""Compares two ways to trade variety for quality: truncation, and choice by the discriminator.

    python benchmarks/rejection.py my-biggan --dataset_name pictures --output rejection.png

Both get a curve of precision against recall and of the Fréchet distance against recall. The discriminator must lie
with the model. A second curve of the choice takes candidates with a probability that grows with their logit (as
discriminator rejection sampling does, arXiv:1810.06758) in place of the one with the highest.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from biggan_hf import BigGANDiscriminator, BigGANPipeline
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import EvaluationSettings, ImageArray, RealImages, evaluate_all, load_extractor
from biggan_hf.files import write_file, write_text


WAYS = ("truncation", "best of", "by probability")


def samples(pipe: BigGANPipeline, judge: BigGANDiscriminator, way: str, strength: float, number: int) -> ImageArray:
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "output_type": "uint8"}
    if way == "truncation":
        images = pipe(num_images_per_prompt=number, truncation=strength, **options).images
    elif way == "best of":
        images = pipe(num_images_per_prompt=number, best_of=int(strength), **options).images
    else:
        images = by_probability(pipe, judge, int(strength), number, options)
    return ImageArray(torch.from_numpy(images).permute(0, 3, 1, 2), name=f"{way} {strength:g}")


@torch.no_grad()
def by_probability(pipe: BigGANPipeline, judge: BigGANDiscriminator, of: int, number: int, options: Any) -> Any:
    labels = torch.randint(len(pipe.id2label), (number,), generator=options["generator"])
    drawn = pipe(labels, num_images_per_prompt=of, **options | {"output_type": "pt"})
    logits = torch.cat(
        [judge(x * 2 - 1, y).logits for x, y in zip(drawn.images.split(64), drawn.class_labels.split(64), strict=True)]
    )
    chosen = torch.multinomial(logits.view(number, of).softmax(1), 1, generator=options["generator"])
    images = drawn.images.view(number, of, *drawn.images.shape[1:])[torch.arange(number), chosen[:, 0]]
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def curves(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """By way, the numbers at each strength."""
    pipe = BigGANPipeline.from_pretrained(args.model)
    judge = BigGANDiscriminator.from_pretrained(args.model).eval()
    config = pipe.model.config
    pictures = load_labelled_images(
        args.dataset_name, image_size=config.image_size, num_channels=config.num_channels, split=args.dataset_split
    )
    extractor = load_extractor(args.extractor, image_size=config.image_size)
    settings = EvaluationSettings(("fid", "prdc"), intervals=False, allow_few_images=True)
    strengths = {WAYS[0]: args.truncations, WAYS[1]: args.best_of, WAYS[2]: args.best_of[1:]}
    sets = [samples(pipe, judge, way, strength, args.num_images) for way in WAYS for strength in strengths[way]]
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
