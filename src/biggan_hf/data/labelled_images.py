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
from typing import Any, NamedTuple, NotRequired, Self, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..class_names import match_classes
from ..pictures import Stored, describe_stored, encoded_bytes, open_picture, square_of
from ..words import abbreviated
from .opening import Contents
from .pixels import PictureTable


logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 2**30  # up to this size all pixels of a set stay in memory once decoded
NUM_PROBES = 16  # pictures from all over a set that say what its pictures are
BUFFER = 10_000  # places by which the order of a stream moves a picture at the most
SECONDS_AWAY = 5  # a disk of the network may be away for a while


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

    Another readable row of its class takes the place of an unreadable picture; of any class, if its own has none; of a
    stream, one of the same row group. It comes with its own label. Which one is fixed, and as good as random: many
    unreadable pictures have many replacements. The order of the others stays. So which pictures come depends on the
    source alone, and not on what was found so far. With `DataLoader(num_workers > 0)` each worker process fills a
    `cache` and an `unreadable` of its own.
    """

    pictures: PictureTable  # with a column "image" of undecoded {"bytes", "path"} cells
    labels: Tensor | None  # int64 (N,)
    class_names: list[str]  # empty if unlabelled
    class_values: list[Any]  # the classes as the source has them: numbers, names, dates
    contents: Contents
    image_size: int  # S, px
    num_channels: int  # C, 3 for RGB or 1 for grey
    on_unreadable_image: str  # "skip" or "error"
    cache: Tensor | None  # uint8 (N, C, S, S)
    reduced_jpeg: bool = False  # as for `load_labelled_images`
    cached_rows: set[int] = field(default_factory=set)  # those that were decoded so far
    unreadable: dict[int, Unreadable] = field(default_factory=dict)  # by row, those found so far

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def runs(self) -> list[int] | None:
        """Of a stream, the numbers of rows, one after the other, that are fetched together."""
        return getattr(self.pictures, "runs", None)

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
        for row in spread_rows(len(self)):
            cell = self.pictures[row]["image"]
            with suppress(OSError):  # a picture that is missing is reported when it is read
                digest.update(encoded_bytes(cell) if cell else b"")
        return digest.hexdigest()

    @cached_property
    def probed(self) -> list[Stored]:
        """What up to 16 pictures from all over the source are in their files; without those that can't be read."""
        found = []
        for row in spread_rows(len(self)):
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

    def at(self, image_size: int, num_channels: int, max_cache_bytes: int = MAX_CACHE_BYTES) -> Self:
        """The same pictures, decoded anew: px, and 3 for RGB or 1 for grey. Up to so many bytes stay in memory."""
        shape = (len(self), num_channels, image_size, image_size)
        # torch.empty takes address space only: memory is used as rows are filled.
        cache = torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= max_cache_bytes else None
        return replace(self, image_size=image_size, num_channels=num_channels, cache=cache, cached_rows=set())

    def left_out(self) -> dict[str, list[str]]:
        """What was left out when the source was opened, and the pictures known to be unreadable: reasons and names."""
        reasons = {reason: [*names] for reason, names in self.contents.left_out.items()}
        for _, picture in sorted(self.unreadable.items()):
            reason = f"unreadable, {picture.reason.partition(' (')[0]}"  # without a number of bytes
            reasons.setdefault(reason, []).append(picture.public_name)
        return reasons

    def with_classes(self, names: list[str]) -> Self:
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

    def without_unreadable(self) -> Self:
        """The same pictures, where those known to be unreadable do not count to their classes."""
        contents = self.contents
        if self.labels is None:
            return self
        broken = torch.bincount(self.labels[[*self.unreadable]], minlength=len(self.class_names))
        counts = [count - int(fewer) for count, fewer in zip(contents.class_counts, broken, strict=True)]
        lost = [self.class_names[label] for label in contents.filled_classes if not counts[label]]
        remark = f"No picture can be read of {'class' if len(lost) == 1 else 'the classes'} {abbreviated(lost)}."
        remarks = contents.remarks + [remark] * bool(lost)
        return replace(self, contents=replace(contents, class_counts=counts, remarks=remarks))

    def __getitems__(self, indices: Sequence[int | tuple[int, float]]) -> ImageBatch:
        """Of rows. A row may come with the place of its square along the longer side, as `square_of` takes it."""
        asked: Any = indices
        if len(asked) and isinstance(asked[0], tuple):
            asked, places = map(list, zip(*asked, strict=True))
            rows, pixel_values = self._decoded(asked, places, keep=False)
        else:
            rows, pixel_values = self._pixels(asked)
        labels = None if self.labels is None else self.labels[rows]
        unreadable = {row: self.unreadable[row] for row in asked if row in self.unreadable}
        return {"pixel_values": pixel_values, "class_labels": labels, "unreadable": unreadable}

    def _pixels(self, indices: Sequence[int]) -> tuple[list[int], Tensor]:
        """The rows that are taken for those that are asked for, and their pixels."""
        return self._decoded(indices, [None] * len(indices), keep=self.cache is not None)

    def _decoded(self, indices: Sequence[int], places: Sequence[float | None], keep: bool) -> tuple[list[int], Tensor]:
        """As `_pixels`. With `keep`, from memory where they were decoded before."""
        decoded: dict[tuple[int, float | None], Tensor] = {}
        rows = [self._readable(index) for index in indices]
        while missing := [
            square
            for square in dict.fromkeys(zip(rows, places, strict=True))
            if square not in decoded and not (keep and square[0] in self.cached_rows)
        ]:
            cells = self.pictures[[row for row, _ in missing]]["image"]
            for (row, place), cell in zip(missing, cells, strict=True):
                if (picture := self._decode(row, cell, place)) is not None:
                    decoded[row, place] = picture
            rows = [self._readable(index) for index in indices]
        if self.cache is None or not keep:
            return rows, torch.stack([decoded[square] for square in zip(rows, places, strict=True)])
        for (row, _), picture in decoded.items():
            self.cache[row] = picture
        self.cached_rows.update(row for row, _ in decoded)
        # `cache[rows]` takes ten times as long
        return rows, self.cache.index_select(0, torch.tensor(rows, dtype=torch.int64))

    def _came_back(self, error: ValueError) -> bool:
        """
        Whether pictures all over the set were away, as those on a disk of the network may be, and are there again.
        Raises `UnreadablePictureError` after `SECONDS_AWAY`. A file that alone is missing is an unreadable picture.
        """
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno is None:
            return False
        samples = [cell for cell in self.pictures[spread_rows(len(self))]["image"] if cell is not None]
        for waited in range(SECONDS_AWAY + 1):
            if any(map(_is_there, samples)):
                return waited > 0
            if waited == 0:
                logger.warning("the pictures are away (%s): waiting %s s at most", error, SECONDS_AWAY)
            time.sleep(1)
        raise UnreadablePictureError(f"the pictures have been away for {SECONDS_AWAY} s: {error}") from error

    def _readable(self, row: int) -> int:
        """
        The row, or the next one in the ring of its class not known to be unreadable. Where a class has none, that of
        the next row of all whose class has one.
        """
        if row not in self.unreadable:
            return row
        if len(self.unreadable) == len(self):
            last = next(reversed(self.unreadable.values()))
            raise UnreadablePictureError(f"none of the {len(self)} pictures can be read; the last: {last}")
        lost: list[int] = []  # rows of classes without a readable picture
        while (found := self._readable_of_class(row)) is None:
            lost.append(row)
            row = int(self._after_all[row])
        self._after_all[lost] = row  # no walk is repeated
        return found

    def _readable_of_class(self, row: int) -> int | None:
        passed: set[int] = set()
        while row in self.unreadable and row not in passed:
            passed.add(row)
            row = int(self._after_in_class[row])
        # No walk is repeated. A class without a readable picture becomes a short ring of its own.
        self._after_in_class[[*passed]] = row
        return None if row in self.unreadable else row

    @cached_property
    def _after_all(self) -> Tensor:
        """After each row the next one of all, in a ring. Rows that are passed over leave it."""
        return _rings([self._mixed], len(self))

    @cached_property
    def _after_in_class(self) -> Tensor:
        """After each row the next one of its class, in a ring; of a stream, of the run that is fetched with it."""
        kinds = self.labels
        if self.runs is not None:
            kinds = torch.arange(len(self.runs)).repeat_interleave(torch.tensor(self.runs))
        if kinds is None:
            return self._after_all.clone()
        by_kind = self._mixed[kinds[self._mixed].argsort(stable=True)]
        return _rings(by_kind.split(torch.bincount(kinds).tolist()), len(self))

    @property
    def _mixed(self) -> Tensor:
        """All rows, always in the same order: neighbours, such as a folder of broken files, are far apart."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(0))

    def is_readable(self, row: int) -> bool:
        return row not in self.unreadable and self._decode(row, self.pictures[row]["image"]) is not None

    def _decode(self, row: int, cell: Mapping[str, Any] | None, place: float | None = None) -> Tensor | None:
        """`None` for a picture that can't be read, which is noted."""
        picture = self.open_row(row, cell)
        return None if picture is None else square_of(picture, self.image_size, place)

    def open_row(self, row: int, cell: Mapping[str, Any] | None) -> Image.Image | None:
        """The whole picture of a row, of which `cell` is in the column "image"; as `_decode`."""
        try:
            return open_picture(cell, self.num_channels, self.image_size if self.reduced_jpeg else None)
        except ValueError as error:
            if self._came_back(error):
                return self.open_row(row, cell)
            picture = Unreadable(cell["path"] if cell else None, row, str(error))
            if self.on_unreadable_image == "error":
                way = "no other picture takes its place here: mend it, or move it away"
                raise UnreadablePictureError(f"{picture}; {way}") from error
        self.unreadable[row] = picture
        if torch.utils.data.get_worker_info() is None:  # or else each worker would log it
            logger.warning("%s; another one takes its place", picture)
        return None


def _rings(groups: Sequence[Tensor], number: int) -> Tensor:
    """After each of so many rows the next one of its group; after a group's last its first."""
    after = torch.empty(number, dtype=torch.int64)
    for members in groups:
        after[members] = members.roll(-1)
    return after


def _is_there(cell: Mapping[str, Any]) -> bool:
    with suppress(OSError):
        return encoded_bytes(cell) is not None
    return False


def spread_rows(number: int) -> list[int]:
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
        runs: Lengths of runs of samples that are fetched together. An epoch shuffles them, and then moves each sample
            by less than 10,000 places: so few runs are in use at a time.
        balanced: The class of each sample, int64 (num_samples,), where all classes shall come equally often: those of
            a small class come again within an epoch, and of a large one another choice comes in each epoch. Samples
            of class -1 do not come.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        runs: Sequence[int] | None = None,
        balanced: Tensor | None = None,
    ) -> None:
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"expected num_samples >= 1 and batch_size >= 1, got {num_samples} and {batch_size}")
        if seed < 0 or start < 0:
            raise ValueError(f"expected seed >= 0 and start >= 0, got {seed} and {start}")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank {rank} of {world_size}")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start, self.rank, self.world_size = start, rank, world_size
        self.runs, self.balanced = runs, balanced
        self._epoch, self._order = -1, torch.empty(0)

    def __iter__(self) -> Iterator[list[int]]:
        for position in itertools.count(self.start + self.rank * self.batch_size, self.batch_size * self.world_size):
            yield self._rows(position)

    def _rows(self, position: int) -> list[int]:
        """A batch from there on."""
        rows: list[int] = []
        while len(rows) < self.batch_size:
            epoch, offset = divmod(position + len(rows), self.num_samples)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, torch.empty(0)  # before the next one is made: a set may be large
                self._order = self.order(epoch)
            rows += self._order[offset : offset + self.batch_size - len(rows)].tolist()
        return rows

    def order(self, epoch: int) -> Tensor:
        """All samples in the order of an epoch."""
        # SeedSequence mixes the pair: seed + epoch would make neighbouring seeds share their epochs.
        mixed_seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed_seed)
        if self.balanced is not None:
            return _equally_often(self.balanced, generator)
        if self.runs is None:
            return torch.randperm(self.num_samples, generator=generator)
        runs = torch.arange(self.num_samples).split(list(self.runs))
        in_runs = torch.cat([runs[index] for index in torch.randperm(len(runs), generator=generator).tolist()])
        moved = torch.arange(self.num_samples) + BUFFER * torch.rand(
            self.num_samples, generator=generator, dtype=torch.float64
        )
        return in_runs[moved.argsort(stable=True)]


def _equally_often(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many rows as there are labels, of each class equally many: permutations of its rows, one after the other."""
    classes = [
        rows for rows in labels.argsort(stable=True).split(torch.bincount(labels + 1).tolist())[1:] if len(rows)
    ]
    longer = torch.randperm(len(classes), generator=generator) < len(labels) % len(classes)  # by one
    chosen = []
    for rows, is_longer in zip(classes, longer.tolist(), strict=True):
        number = len(labels) // len(classes) + is_longer
        passes = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-number // len(rows)))]
        chosen += [torch.cat(passes)[:number]] if passes else []
    mixed = torch.cat(chosen)
    return mixed[torch.randperm(len(mixed), generator=generator)]
