"""Shows which distance tells a degradation from chance with a few hundred pictures, and puts its strengths in order.

    python benchmarks/rulers.py --dataset_name uoft-cs/cifar10 --extractors lite0 lite2

Sets of real pictures are compared with other real ones: this is the floor, with a mean and a deviation. Then one of
the sets is compared with worse and worse pictures. The table has each distance above the floor, in the floor's
deviations.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import (
    EvaluationSettings,
    FeatureExtractor,
    ImageArray,
    Measurements,
    evaluate,
    load_extractor,
    measure,
)
from biggan_hf.evaluation.comparing import score


METRICS = ("fid", "kid", "mind", "fwd")
FLOORS = 10  # pairs of sets, whose deviation is then known to 24 %
CLEAR = 5.0  # deviations above the floor that are no chance


def degradations(images: Tensor, labels: Tensor, number: int) -> dict[str, list[tuple[str, Tensor]]]:
    """By kind, from the weakest to the strongest, named sets of so many of the images, uint8 (N, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    some = images[:number].float()

    def noisy(levels: float) -> Tensor:
        return some + levels * torch.randn(some.shape, generator=generator)

    def blurred(deviation: float) -> Tensor:
        weights = torch.exp(-((torch.arange(-3, 4) / deviation) ** 2) / 2)
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        channels = some.shape[1]
        padded = F.pad(some, (3, 3, 3, 3), mode="reflect")
        return F.conv2d(padded, kernel.expand(channels, 1, 7, 7), groups=channels)

    def of_classes(classes: int) -> Tensor:
        rows = (labels < classes).nonzero().squeeze(1)
        return images[rows[torch.randperm(len(rows), generator=generator)[:number]]]

    def repeated(pictures: int) -> Tensor:
        return images[:pictures].repeat(-(-number // pictures), 1, 1, 1)[:number]

    kinds: dict[str, tuple[Sequence[float], str, Callable[..., Tensor]]] = {
        "noise": ((2, 4, 8), "noise of {} grey levels", noisy),
        "blur": ((0.5, 0.7, 1.0), "blur, deviation {} px", blurred),
        "missing classes": ((5, 3, 2), "{} of the classes", of_classes),
        "collapse": ((100, 50, 25), "{} pictures, repeated", repeated),
    }
    return {
        kind: [
            (words.format(strength), make(strength).round().clamp(0, 255).to(torch.uint8)) for strength in strengths
        ]
        for kind, (strengths, words, make) in kinds.items()
    }


def distances(
    real: Tensor, others: Tensor, labels: Tensor, extractor: FeatureExtractor, number: int
) -> tuple[list[dict[str, float]], dict[str, list[tuple[str, dict[str, float]]]]]:
    """Distances by key: of each pair of the floor, and of the degraded sets by kind, with their names."""
    settings = EvaluationSettings(METRICS, intervals=False, allow_few_images=True)

    references = [measure(ImageArray(images), extractor, **settings.pass_options) for images in real.split(number)]

    def compare(reference: Measurements, images: Tensor) -> dict[str, float]:
        report = evaluate(ImageArray(images), reference, extractor, settings)
        return {key: report[key] for key in METRICS}

    floors = [compare(*pair) for pair in zip(references, others.split(number), strict=True)]
    mean = {key: sum(floor[key] for floor in floors) / len(floors) for key in METRICS}
    kinds = {
        kind: [(name, compare(references[0], images)) for name, images in sets]
        for kind, sets in degradations(others, labels, number).items()
    }
    for values in [*floors, *(values for sets in kinds.values() for _, values in sets)]:
        values["score"] = score(values, mean)
    return floors, kinds


def above_floor(
    floors: list[dict[str, float]], kinds: Mapping[str, list[tuple[str, dict[str, float]]]]
) -> dict[str, dict[str, list[float]]]:
    """By key and kind, the distances above the floor in its deviations, from the weakest degradation on."""
    result: dict[str, dict[str, list[float]]] = {}
    for key in floors[0]:
        floor = torch.tensor([values[key] for values in floors], dtype=torch.float64)
        result[key] = {
            kind: [(values[key] - float(floor.mean())) / float(floor.std()) for _, values in sets]
            for kind, sets in kinds.items()
        }
    return result


def table(
    name: str,
    floors: list[dict[str, float]],
    kinds: Mapping[str, list[tuple[str, dict[str, float]]]],
) -> str:
    """Markdown. What is not clear of the floor is in brackets, what is below a weaker degradation has a star."""
    labels = {"fid": f"FD-{name}", "kid": f"KD-{name}", "mind": f"MIND-{name}", "fwd": "FWD", "score": "score"}
    above = above_floor(floors, kinds)
    lines = ["| set | " + " | ".join(labels.values()) + " |", "|---" * (len(labels) + 1) + "|"]
    spread = [torch.tensor([values[key] for values in floors], dtype=torch.float64) for key in labels]
    lines.append("| *real, the floor* | " + " | ".join(f"*{x.mean():.4g} ± {x.std():.2g}*" for x in spread) + " |")
    for kind, sets in kinds.items():
        for row, (words, _) in enumerate(sets):
            cells = []
            for key in labels:
                value, weaker = above[key][kind][row], above[key][kind][:row]
                text = f"{value:.1f}" + ("*" if any(value <= other for other in weaker) else "")
                cells.append(text if value >= CLEAR else f"({text})")
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load(dataset_name: str, split: str, number: int) -> tuple[Tensor, Tensor]:
    """So many random pictures of 32 px and their labels."""
    images = load_labelled_images(dataset_name, image_size=32, split=split)
    assert images.labels is not None, f"{dataset_name} has no labels"
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:number]
    return images.__getitems__(rows.tolist())["pixel_values"], images.labels[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="uoft-cs/cifar10")
    parser.add_argument("--splits", nargs=2, default=["train", "test"], help="of the reference, and of all others")
    parser.add_argument("--extractors", nargs="+", default=["lite0", "lite2"])
    parser.add_argument("--num_images", type=int, default=500, help="N, of each set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    real, _ = load(args.dataset_name, args.splits[0], FLOORS * args.num_images)
    others, labels = load(args.dataset_name, args.splits[1], FLOORS * args.num_images)
    found = {}
    for name in args.extractors:
        extractor = load_extractor(name, args.device)
        found[extractor.name] = distances(real, others, labels, extractor, args.num_images)
        print(f"\nN = {args.num_images}\n\n{table(extractor.name, *found[extractor.name])}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
