"""What the tests of the measuring share: an extractor that takes no time, and sets of images."""

from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from biggan_hf.evaluation import FeatureExtractor, ImageArray
from biggan_hf.images import to_pil


# As the file of a user's own extractor, `tiny_features:extract`.
TINY_SOURCE = """
import torch

def extract(images):
    generator = torch.Generator().manual_seed(0)
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
    features = (pooled @ torch.randn(pooled.shape[1], 12, generator=generator)).tanh()
    return features, features @ torch.randn(12, 5, generator=generator)
"""


def tiny_extractor(**changes: Any) -> FeatureExtractor:
    """12 features and 5 logits of an image."""
    scope: dict[str, Any] = {}
    exec(TINY_SOURCE, scope)
    settings: dict[str, Any] = {
        "name": "tiny",
        "function": scope["extract"],
        "digest": "tiny",
        "resize": "none",
        "device": torch.device("cpu"),
        "num_features": 12,
        "num_classes": 5,
    }
    return FeatureExtractor(**{**settings, **changes})


def noise(num_images: int, seed: int = 0, channels: int = 3, size: int = 16) -> Tensor:
    """uint8 (N, C, size, size), smooth enough that the images differ in what `tiny_extractor` sees."""
    coarse = torch.rand(num_images, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * torch.nn.functional.interpolate(coarse, size=(size, size))).round().to(torch.uint8)


def noise_source(num_images: int, seed: int = 0, **shape: int) -> ImageArray:
    return ImageArray(noise(num_images, seed, **shape), f"noise {seed}")


def save_pictures(folder: Path, num_images: int = 120, num_classes: int = 10) -> Path:
    """A labelled data set on disk: grey, 32 px, sorted by class."""
    columns = {
        "image": to_pil(noise(num_images, channels=1, size=32)),
        "label": [index * num_classes // num_images for index in range(num_images)],
    }
    names = [f"class {label}" for label in range(num_classes)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return folder
