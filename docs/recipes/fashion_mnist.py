"""
The pictures for docs/recipes/fashion-mnist.yaml.

    python docs/recipes/fashion_mnist.py /usr/share/datasets/fashion-mnist fashion-pictures
    python train.py docs/recipes/fashion-mnist.yaml --dataset_name fashion-pictures --output_dir fashion-biggan
    python docs/recipes/embedded_model.py fashion-biggan embedded

The pictures are Zalando's (MIT license), as Debian's package `dataset-fashion-mnist` has them: 60,000 to train, 10,000
to test. They get a margin of two black pixels: 28 px become 32 without resampling.
"""

import gzip
import io
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


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


if __name__ == "__main__":
    write_pictures(*map(Path, sys.argv[1:]))
