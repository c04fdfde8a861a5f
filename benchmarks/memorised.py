"""
Whether generators remember pictures: how many samples lie nearer to a picture that they learnt from than to any other.

    python benchmarks/memorised.py biggan_hf:fashion polished --dataset_name pictures --others test

Equally many pictures of two splits stand beside each sample, in the features of an encoder. Who has learnt the
distribution and no picture is nearer to either in half of the cases. The row of real pictures shows chance.
"""

import argparse
from typing import Any

import torch
from measuring import environment, positive, run
from torch import Tensor

from biggan_hf import BigGANPipeline
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import FeatureExtractor, GeneratedImages, ImageSource, RealImages, load_extractor, measure


def features(source: ImageSource, extractor: FeatureExtractor, title: str) -> Tensor:
    """(N, num_features) float32."""
    kept = measure(source, extractor, num_kept=len(source), num_splits=1, covariance=False, title=title).kept
    assert kept is not None  # as many as there are were asked for
    return kept


def nearest(samples: Tensor, pictures: Tensor) -> Tensor:
    """The distance of each sample to the picture that is nearest to it."""
    return torch.cat([torch.cdist(some, pictures).amin(1) for some in samples.split(500)])


def row(name: str, samples: Tensor, learnt: Tensor, others: Tensor) -> str:
    to_learnt, to_others = nearest(samples, learnt), nearest(samples, others)
    share = float((to_learnt < to_others).double().mean())
    error = (share * (1 - share) / len(samples)) ** 0.5
    medians = (float(distances.median()) for distances in (to_learnt, to_others))
    return f"| {name} | {share:.3f} ± {error:.3f} | {' | '.join(f'{median:.2f}' for median in medians)} |"


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    arguments.add_argument("models", nargs="+", metavar="MODEL")
    arguments.add_argument("--dataset_name", required=True, metavar="NAME")
    arguments.add_argument("--learnt", default="train", metavar="SPLIT", help="that the models learnt from")
    arguments.add_argument("--others", default="test", metavar="SPLIT", help="that no model has seen")
    arguments.add_argument("--pictures", type=positive, default=5_000, help="of each split")
    arguments.add_argument("--num_images", type=positive, default=2_000, help="samples of each model")
    arguments.add_argument("--extractor", default="lite0", metavar="NAME")
    args = arguments.parse_args(argv)
    pipes = {name: BigGANPipeline.from_pretrained(name) for name in args.models}
    config = next(iter(pipes.values())).model.config
    extractor = load_extractor(args.extractor, image_size=config.image_size)
    shape: dict[str, Any] = {"image_size": config.image_size, "num_channels": config.num_channels}
    learnt, others = (
        RealImages(load_labelled_images(args.dataset_name, split=split, **shape), args.pictures)
        for split in (args.learnt, args.others)
    )
    of_learnt, of_others = features(learnt, extractor, args.learnt), features(others, extractor, args.others)
    print(environment(torch.device("cpu")))
    print(f"| N = {args.num_images:,}, {args.extractor} | nearer to what was learnt from | median distance to it "
          f"| to the others |\n|---|---|---|---|")  # fmt: skip
    rest = features(others.rest(args.num_images), extractor, "real pictures")
    print(row(f"other pictures of {args.others}", rest, of_learnt, of_others))
    for name, pipe in pipes.items():
        samples = GeneratedImages(pipe.model, args.num_images)
        print(row(name, features(samples, extractor, name), of_learnt, of_others), flush=True)


if __name__ == "__main__":
    run(main)
