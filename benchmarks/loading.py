"""Pictures a second, from the disk to batches of uint8: this project's ways beside others, by turns.

    python benchmarks/loading.py --image_size 128 --num_pictures 4000 --threads 1 --rounds 7
    python benchmarks/loading.py --source imagenet/train --image_size 128 --workers 2

All read the same pictures: what each gives first is looked for among the prepared ones, but for reduced JPEGs, which
are not quite the same. The streams read parquet files, in row groups of 100. BigGAN-PyTorch's loader is here as its
`datasets.py` has it: it opens the file for each picture. litdata is the specialised loader, where it is installed:
like a prepared folder it keeps pictures as they will be used, and unlike FFCV it needs no compiler.
"""

import argparse
import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import torch
from measuring import Result, alternate, check_new, environment, positive, ratio, run, write
from PIL import Image
from torch import Tensor

from biggan_hf.data import LabelledImages, ShuffledBatches, load_labelled_images, prepare


Batches = Iterator[Tensor]  # uint8 (N, 3, S, S), without end
Pixels = torch.utils.data.Dataset[Tensor]


def as_it_is(batch: Any) -> Any:
    return batch


# Ours


def ours(images: LabelledImages, options: argparse.Namespace) -> Batches:
    sampler = ShuffledBatches(len(images), options.batch_size, seed=0)
    loader = torch.utils.data.DataLoader(
        images, batch_sampler=sampler, collate_fn=as_it_is, num_workers=options.workers
    )
    return (batch["pixel_values"] for batch in loader)


def prepared(work: "Work", max_cache_bytes: int) -> Batches:
    size = work.options.image_size
    images = load_labelled_images(str(work.prepared), image_size=size, max_cache_bytes=max_cache_bytes)
    return ours(images, work.options)


def straight(work: "Work", **options: Any) -> Batches:
    source = work.parquet if options.get("streaming") else work.source
    size = work.options.image_size
    return ours(load_labelled_images(str(source), image_size=size, max_cache_bytes=0, **options), work.options)


# Others


def square(picture: Image.Image, size: int) -> Tensor:
    """As we crop and resize, with Pillow alone."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.convert("RGB").resize(
        (size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
    )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class Decoded(Pixels):
    """The usual data set for torch: a file, a picture."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.rglob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as picture:
            return square(picture, self.size)


class OfHDF5(Pixels):
    """BigGAN-PyTorch's `ILSVRC_HDF5`, but for the floats into which it turns the pixels."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        with h5py.File(self.path, "r") as file:
            return torch.from_numpy(file["imgs"][index])


def of_torch(pictures: Pixels, work: "Work") -> Batches:
    options = {"batch_size": work.options.batch_size, "num_workers": work.options.workers, "drop_last": True}
    while True:
        yield from torch.utils.data.DataLoader(pictures, shuffle=True, **options)


def of_datasets(work: "Work") -> Batches:
    """The shuffled stream of `datasets`, decoded by Pillow."""
    stream = datasets.load_dataset(str(work.parquet), split="train", streaming=True)
    for epoch in itertools.count():
        rows = stream.shuffle(seed=epoch, buffer_size=1000).iter(
            batch_size=work.options.batch_size, drop_last_batch=True
        )
        for row in rows:
            yield torch.stack([square(picture, work.options.image_size) for picture in row["image"]])


def of_litdata(work: "Work") -> Batches:
    import litdata

    folder = work.folder / "litdata"
    if not folder.exists():
        litdata.optimize(work.picture, list(range(len(work.images))), str(folder), chunk_bytes="64MB", num_workers=1)
    stream = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
    while True:
        yield from litdata.StreamingDataLoader(
            stream, batch_size=work.options.batch_size, num_workers=work.options.workers, drop_last=True
        )


# By turns


class Work:
    """The pictures in each of the forms that are read."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.source = options.source or write_pictures(folder / "source", options.num_pictures)
        datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
        self.parquet = folder / "parquet"
        table = datasets.load_dataset("imagefolder", data_dir=str(self.source), split="train")
        self.parquet.mkdir()
        table.to_parquet(self.parquet / "train.parquet", batch_size=100)
        self.prepared = folder / "prepared"
        prepare(str(self.source), self.prepared, [options.image_size], say=lambda text: None)
        self.images = load_labelled_images(str(self.prepared), image_size=options.image_size, max_cache_bytes=0)
        self.hdf5 = folder / "pictures.hdf5"
        shape = (3, options.image_size, options.image_size)
        with h5py.File(self.hdf5, "w") as file:  # as make_hdf5.py writes it
            chunk = min(500, len(self.images))
            file.create_dataset("imgs", (len(self.images), *shape), "uint8", chunks=(chunk, *shape))
            for first in range(0, len(self.images), 1000):
                pixels = torch.stack(list(self.thousand(first)))
                file["imgs"][first : first + len(pixels)] = pixels.numpy()

    def picture(self, row: int) -> Tensor:
        return self.images.__getitems__([row])["pixel_values"][0]

    def thousand(self, first: int) -> Iterator[Tensor]:
        rows = range(len(self.images))[first : first + 1000]
        yield from self.images.__getitems__(rows)["pixel_values"]


CONTESTANTS: dict[str, Callable[[Work], Batches]] = {
    "prepared, from the files": lambda work: prepared(work, 0),
    "prepared, from memory": lambda work: prepared(work, 2**40),
    "straight from the source": straight,
    "straight, reduced JPEGs": lambda work: straight(work, reduced_jpeg=True),
    "stream": lambda work: straight(work, streaming=True),
    "stream, reduced JPEGs": lambda work: straight(work, streaming=True, reduced_jpeg=True),
    "torch.utils.data and Pillow": lambda work: of_torch(Decoded(work.source, work.options.image_size), work),
    "BigGAN-PyTorch's HDF5": lambda work: of_torch(OfHDF5(work.hdf5, len(work.images)), work),
    "datasets, shuffled stream": of_datasets,
    "litdata": of_litdata,
}


def write_pictures(folder: Path, number: int) -> Path:
    """JPEGs of 500×375, as ImageNet's mostly are: noise of several scales, in ten classes."""
    noise = np.random.default_rng(0)
    for index in range(number):
        path = folder / f"class{index % 10}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = [noise.integers(0, 256, (3 * 2**k, 4 * 2**k, 3), np.uint8) for k in range(6)]
        scaled = [np.asarray(Image.fromarray(layer).resize((500, 375)), np.float32) for layer in layers]
        Image.fromarray(np.mean(scaled, 0).astype(np.uint8)).save(path, quality=90)
    return folder


def check_same(name: str, batch: Tensor, known: set[bytes], options: argparse.Namespace) -> None:
    """Raises `ValueError` unless the pictures are those that were prepared."""
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    if tuple(batch.shape) != shape or batch.dtype != torch.uint8:
        raise ValueError(f"{name} gives {batch.dtype} of shape {tuple(batch.shape)}, expected uint8 of {shape}")
    if "reduced" not in name and not {digest(picture) for picture in batch} <= known:
        raise ValueError(f"{name} gives other pictures: nothing is measured")


def digest(picture: Tensor) -> bytes:
    return hashlib.sha256(picture.contiguous().numpy().tobytes()).digest()


def measure(work: Work, names: Sequence[str]) -> list[Result]:
    options = work.options
    known = {digest(picture) for first in range(0, len(work.images), 1000) for picture in work.thousand(first)}
    batches = [CONTESTANTS[name](work) for name in names]
    for name, stream in zip(names, batches, strict=True):
        check_same(name, next(stream), known, options)

    def timed(stream: Batches) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            for _ in itertools.islice(stream, options.batches):
                pass
            return time.perf_counter() - start

        return seconds

    times = alternate([timed(stream) for stream in batches], options.rounds, "loading")
    pictures = options.batches * options.batch_size
    results = []
    for name, seconds in zip(names, times, strict=True):
        middle, least, greatest = ratio(times[0], seconds)
        rate = pictures / sorted(seconds)[len(seconds) // 2]
        ranges = {"ratio": middle, "ratio_range": [least, greatest]}
        results.append({"what": name, "images_per_second": rate, "seconds": seconds, **ranges})
    return results


def table(results: Sequence[Result]) -> str:
    rows = [f"| what | images/s | {results[0]['what']}: so many times faster (range) |", "|---|---|---|"]
    for result in results:
        middle, (low, high) = result["ratio"], result["ratio_range"]
        rows.append(f"| {result['what']} | {result['images_per_second']:,.0f} | {middle:.2f} ({low:.2f}–{high:.2f}) |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--source", type=Path, metavar="FOLDER", help="JPEGs (default: noise is written)")
    arguments.add_argument("--num_pictures", type=positive, default=2000, help="of noise")
    arguments.add_argument("--image_size", type=positive, default=128, help="px")
    arguments.add_argument("--batch_size", type=positive, default=256)
    arguments.add_argument("--batches", type=positive, default=4, help="in a run")
    arguments.add_argument("--rounds", type=positive, default=5, help="runs of each that count")
    arguments.add_argument("--workers", type=int, default=0, help="processes that load")
    arguments.add_argument("--threads", type=positive, default=1, help="CPU threads")
    arguments.add_argument("--only", nargs="+", choices=CONTESTANTS, help="the first one is what others are beside")
    arguments.add_argument("--json", type=Path, metavar="FILE.json", help="write all that was measured")
    options = arguments.parse_args(argv)
    check_new(options.json, ".json")
    torch.set_num_threads(options.threads)
    names = options.only or [name for name in CONTESTANTS if name != "litdata" or find_spec("litdata")]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Work(Path(folder), options), names)
    print(table(results))
    where = environment(torch.device("cpu"), ["datasets", "pillow", "h5py", "litdata"])
    print(f"{where['device']}, {where['threads']} threads, {where['versions']}, {where['date']}\n{where['command']}")
    write("loading", results, where, options.json)


if __name__ == "__main__":
    run(main)
