"""
The pictures for docs/recipes/fashion-mnist.yaml, and from the model that it trained the one that is in the package.

    python docs/recipes/fashion_mnist.py pictures /usr/share/datasets/fashion-mnist fashion-pictures
    python train.py docs/recipes/fashion-mnist.yaml --dataset_name fashion-pictures --output_dir fashion-biggan
    python docs/recipes/fashion_mnist.py model fashion-biggan embedded

The pictures are Zalando's (MIT license), as Debian's package `dataset-fashion-mnist` has them: 60,000 to train, 10,000
to test. They get a margin of two black pixels: 28 px become 32 without resampling.
"""

import gzip
import io
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from biggan_hf import BigGANModel, collect_standing_statistics


NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
TRUNCATIONS = [0.04, 0.5, 0.7, 1.0, 2.0]
PASSES = 50  # of 64 samples, for each truncation


def write_pictures(source: Path, output: Path) -> None:
    """Writes the data set as `train.py` reads it: a file of parquet a split."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _read(source / f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        labels = _read(source / f"{prefix}-labels-idx1-ubyte.gz", header=8)
        cells = [_png(picture) for picture in np.pad(pixels, ((0, 0), (2, 2), (2, 2)))]
        table = datasets.Dataset.from_dict({"image": cells, "label": labels.tolist()}, features=features)
        table.to_parquet(output / f"{split}-00000-of-00001.parquet")


def _read(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _png(picture: np.ndarray) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return {"bytes": file.getvalue()}


@torch.no_grad()
def write_model(source: Path, output: Path) -> None:
    """
    Writes the generator with weights in bfloat16, half of their size, and with statistics in float32, which are
    measured with these weights. A load makes everything float32.
    """
    model = BigGANModel.from_pretrained(source, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    for truncations in (None, TRUNCATIONS):
        generator = torch.Generator().manual_seed(0)
        collect_standing_statistics(model, truncations, num_batches=PASSES, generator=generator)
    halved = {name for name, _ in model.named_parameters()}
    weights = {name: value.bfloat16() if name in halved else value for name, value in model.state_dict().items()}
    model.save_pretrained(output, state_dict=weights, global_step=model.saved_step)


if __name__ == "__main__":
    what, *places = sys.argv[1:]
    {"pictures": write_pictures, "model": write_model}[what](*map(Path, places))
