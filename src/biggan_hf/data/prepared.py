"""
A prepared folder: pictures as `prepare` writes them, decoded once, at one or several sizes.

`prepared.json` says all of it. The pixels of split "train" at 128 px lie in `train-128-000.npy`, `train-128-001.npy`
and so on, uint8 (N, C, S, S) in NumPy's format, in the order of the source; its labels, int64 (N,), in
`train-labels.npy`. A picture that cannot be read keeps its row, black, and is named: so every row is that of the
source, and a run sees the same pictures in the same order on both.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL
import torch
from torch import Tensor

from ..files import sha256_of_file
from ..pictures import Stored
from .labelled_images import LabelledImages, Unreadable, UnreadablePictureError, spread_rows
from .labels import NO_LABELS, Labels
from .opening import UNLABELLED, Contents, Opened, read_parts, used_splits, with_counts
from .pixels import HEADER, Shards


MANIFEST, PLAN = "prepared.json", "unfinished.json"
VERSION = 1
MOST_SHARDS, FEWEST_PICTURES = 256, 64  # of a split; in a file
MENDS = "the same `biggan-hf prepare` mends it from the source"
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")


# What the manifest says


@dataclass(frozen=True)
class Shard:
    """The same pictures in a file for each size."""

    pictures: int
    sha256: dict[str, str]  # size → of the whole file
    unreadable: list[tuple[int, str | None, str]] = field(default_factory=list)  # row of the split, name, reason


@dataclass(frozen=True)
class Split:
    num_pictures: int
    fingerprint: str  # `LabelledImages.fingerprint` of the source
    class_names: list[str]
    class_values: list[Any]
    label_source: str
    left_out: dict[str, list[str]]
    remarks: list[str]
    probed: list[Stored]
    labels_sha256: str | None  # `None` for unlabelled pictures
    shards: list[Shard] = field(default_factory=list)
    spread_sha256: dict[str, str] = field(default_factory=dict)  # size → of the pixels of 16 rows from all over

    @property
    def shard_lengths(self) -> list[int]:
        """At most 256 files, of any size: so that all of them can be open, and many processes have some to do."""
        length = max(FEWEST_PICTURES, math.ceil(self.num_pictures / MOST_SHARDS))
        return [min(length, self.num_pictures - first) for first in range(0, self.num_pictures, length)]


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds. The names of its files follow from it."""

    source: str  # as others may read it
    image_sizes: list[int]
    num_channels: int
    named: dict[str, str | None]  # dataset_config_name, image_column, label_column
    splits: dict[str, Split]
    crop: str = "centre square"
    resampling: str = "Lanczos"
    pillow: str = PIL.__version__
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `ValueError` where this is no manifest of ours."""
        try:
            fields = json.loads(text)
            if isinstance(fields["version"], int) and fields["version"] > VERSION:
                raise NewerError(f"it is of a later version of this package, which writes {fields['version']}")
            manifest = cls(**fields | {"splits": {name: _split(split) for name, split in fields["splits"].items()}})
            manifest._check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = str(error) if isinstance(error, NewerError) else f"it is damaged ({type(error).__name__}: {error})"
            raise ValueError(why) from error
        return manifest

    def _check(self) -> None:
        sizes = all(type(size) is int and size > 0 for size in self.image_sizes) and self.image_sizes
        if not sizes or self.num_channels not in (1, 3) or not self.splits:
            raise ValueError("sizes, channels or splits are missing")
        for name, split in self.splits.items():
            lengths = [shard.pictures for shard in split.shards]
            if not SPLIT_NAME.fullmatch(name) or split.num_pictures < 1 or lengths not in ([], split.shard_lengths):
                raise ValueError(f"split {name!r} has other numbers of pictures than its files")
            if len(split.class_names) != len(split.class_values) or not all(
                isinstance(class_name, str) for class_name in split.class_names
            ):
                raise ValueError(f"split {name!r} has no names of classes")

    def shape(self, size: int) -> tuple[int, int, int]:
        return self.num_channels, size, size

    def num_bytes(self) -> int:
        """Of all pixels."""
        pictures = sum(split.num_pictures for split in self.splits.values())
        return pictures * sum(math.prod(self.shape(size)) for size in self.image_sizes)

    def files(self, folder: Path, split: str, size: int) -> list[tuple[Path, int]]:
        """The files of a split at a size, with the number of pictures in each."""
        lengths = self.splits[split].shard_lengths
        return [(folder / f"{split}-{size}-{number:03}.npy", length) for number, length in enumerate(lengths)]

    def file_bytes(self, size: int, pictures: int) -> int:
        return HEADER + pictures * math.prod(self.shape(size))


class NewerError(ValueError):
    pass


def _split(fields: Mapping[str, Any]) -> Split:
    shards = [shard_of(shard) for shard in fields["shards"]]
    return Split(**{**fields, "shards": shards, "probed": [Stored(*stored) for stored in fields["probed"]]})


def shard_of(fields: Mapping[str, Any]) -> Shard:
    return Shard(**{**fields, "unreadable": [(int(row), name, str(why)) for row, name, why in fields["unreadable"]]})


def labels_file(folder: Path, split: str) -> Path:
    return folder / f"{split}-labels.npy"


def spread_digest(pixels: Shards) -> str:
    """Of 16 pictures from all over a split: all of them may be much to read at each start."""
    return hashlib.sha256(pixels.read(spread_rows(len(pixels))).numpy().tobytes()).hexdigest()


# Reading


@dataclass(frozen=True, eq=False)
class PreparedImages(LabelledImages):
    """Pictures of a prepared folder: batches are read from the files, or taken from memory where all fit."""

    pictures: Shards
    source_fingerprint: str | None = None  # `None` where rows or labels are not those of a whole split of the source
    source_probed: list[Stored] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """That of the source where all pictures of one of its splits are here; or else of pixels."""
        return self.source_fingerprint or super().fingerprint

    @cached_property
    def probed(self) -> list[Stored]:
        return self.source_probed

    def with_classes(self, names: list[str]) -> Self:
        return replace(super().with_classes(names), source_fingerprint=None)

    def _pixels(self, indices: Any) -> tuple[list[int], Tensor]:
        rows = [self._readable(index) for index in indices] if self.unreadable else list(indices)
        if self.cache is None:
            return rows, self.pictures.read(rows)
        return rows, self.cache.index_select(0, torch.tensor(rows, dtype=torch.int64))


def find_prepared(name: str) -> Path | None:
    """The folder of this name, if it is a prepared one; raises `ValueError` if that is unfinished."""
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        return folder
    if (folder / PLAN).is_file():
        raise ValueError(f"{name!r} is not yet prepared: the same `biggan-hf prepare` goes on where it was stopped")
    return None


def open_prepared(
    folder: Path,
    shape: tuple[int, int, int],
    spec: str,
    named: Mapping[str, str | None],
    on_unreadable_image: str,
    max_cache_bytes: int,
) -> PreparedImages:
    """
    See `load_labelled_images`. Compares with the manifest all files' sizes, the labels, and the pictures: all of a
    split that fits `max_cache_bytes`, or else 16 from all over it; `prepare` compares all.

    Args:
        spec: The split.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_asked(manifest, shape, named)
        images = _open(folder, manifest, shape[1], spec, named["label_column"] != NO_LABELS, max_cache_bytes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the prepared folder {str(folder)!r}: {error}") from error
    if on_unreadable_image == "error" and images.unreadable:
        first = next(iter(images.unreadable.values()))
        raise UnreadablePictureError(
            f"{len(images.unreadable)} pictures could not be read when {str(folder)!r} was prepared, first: {first}; "
            f"no other picture takes its place here: mend them in the source, and prepare it anew"
        )
    fits = math.prod(shape) * len(images) <= max_cache_bytes
    cache = images.pictures.read(range(len(images))) if fits else None
    return replace(images, on_unreadable_image=on_unreadable_image, cache=cache)


def _check_asked(manifest: Manifest, shape: tuple[int, int, int], named: Mapping[str, str | None]) -> None:
    channels, size, _ = shape
    if size not in manifest.image_sizes or channels != manifest.num_channels:
        sizes = " and ".join(map(str, manifest.image_sizes))
        raise ValueError(
            f"it holds pictures of {sizes} px in {_colours(manifest.num_channels)}, and {size} px in "
            f"{_colours(channels)} are asked for: prepare them into a folder of their own"
        )
    for what, value in named.items():
        known = manifest.named.get(what)
        if value not in (None, known) and (what, value) != ("label_column", NO_LABELS):
            raise ValueError(f"it was prepared with {what} {known!r}, got {value!r}")


def _colours(channels: int) -> str:
    return "RGB" if channels == 3 else "grey"


def _open(
    folder: Path, manifest: Manifest, size: int, spec: str, with_labels: bool, max_cache_bytes: int
) -> PreparedImages:
    used, chosen = _rows(manifest, spec)
    for name in used:
        check_files(folder, manifest, name, size, max_cache_bytes)
    first = manifest.splits[used[0]]
    if any(manifest.splits[name].class_names != first.class_names for name in used):
        raise ValueError(f"the splits {', '.join(used)} have not the same classes: take one of them")
    files = [file for name in used for file in manifest.files(folder, name, size)]
    pixels = Shards(files, manifest.shape(size), chosen)
    pixels.split = used[0] if len(used) == 1 else None
    labels = None
    if first.class_names and with_labels:
        rows = torch.from_numpy(np.concatenate([read_labels(folder, manifest, name) for name in used]))
        labels = Labels(rows if chosen is None else rows[chosen], first.class_names, first.class_values)
    contents = _contents(manifest, used, spec, UNLABELLED if labels is None else first.label_source)
    source = with_counts(Opened(pixels, labels, contents))
    return PreparedImages(
        pictures=pixels,
        labels=None if labels is None else labels.rows,
        class_names=[] if labels is None else labels.names,
        class_values=[] if labels is None else labels.values,
        contents=source.contents,
        image_size=size,
        num_channels=manifest.num_channels,
        on_unreadable_image="skip",
        cache=None,
        unreadable=_unreadable(manifest, used, chosen),
        source_fingerprint=first.fingerprint if chosen is None and (labels or not first.class_names) else None,
        source_probed=first.probed,
    ).without_unreadable()


def _rows(manifest: Manifest, spec: str) -> tuple[list[str], np.ndarray | None]:
    """The splits that are read, and the rows of them that count; `None` for all of one split."""
    lengths = {name: split.num_pictures for name, split in manifest.splits.items()}
    used = used_splits(spec, list(lengths))
    starts = dict(zip(used, np.cumsum([0, *(lengths[name] for name in used)]), strict=False))
    parts = read_parts(spec, lengths)
    chosen = np.concatenate([starts[name] + np.arange(low, high) for name, low, high in parts])
    if not len(chosen):
        raise ValueError(f"split {spec!r} is empty")
    is_all = len(used) == 1 and np.array_equal(chosen, np.arange(lengths[used[0]]))
    return used, None if is_all else chosen


def _contents(manifest: Manifest, used: list[str], spec: str, label_source: str) -> Contents:
    ignored: dict[str, int | None] = {
        name: split.num_pictures for name, split in manifest.splits.items() if name not in used
    }
    left_out: dict[str, list[str]] = {}
    for name in used:
        for reason, names in manifest.splits[name].left_out.items():
            left_out[reason] = list(dict.fromkeys([*left_out.get(reason, []), *names]))
    remarks = list(dict.fromkeys(remark for name in used for remark in manifest.splits[name].remarks))
    return Contents(spec, ignored, left_out, label_source=label_source, remarks=remarks)


def _unreadable(manifest: Manifest, used: list[str], chosen: np.ndarray | None) -> dict[int, Unreadable]:
    """By row of what is read."""
    start = 0
    broken: dict[int, tuple[str | None, str]] = {}
    for name in used:
        for shard in manifest.splits[name].shards:
            broken |= {start + row: (picture, reason) for row, picture, reason in shard.unreadable}
        start += manifest.splits[name].num_pictures
    if not broken:
        return {}
    rows = enumerate(range(start) if chosen is None else chosen.tolist())
    return {place: Unreadable(broken[row][0], place, broken[row][1]) for place, row in rows if row in broken}


# Checks


def check_files(folder: Path, manifest: Manifest, split: str, size: int, most_bytes: int) -> None:
    """
    Raises `ValueError` where a file of a split is missing, cut off or changed. Of files of more than `most_bytes`
    together, 16 pictures are compared.
    """
    files = manifest.files(folder, split, size)
    for path, pictures in files:
        expected = manifest.file_bytes(size, pictures)
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise ValueError(f"{path.name} is missing; {MENDS}")
        if found != expected:
            raise ValueError(f"{path.name} has {found:,} bytes, expected {expected:,}; {MENDS}")
    if spread_digest(Shards(files, manifest.shape(size))) != manifest.splits[split].spread_sha256.get(str(size)):
        raise ValueError(f"pictures of split {split!r} at {size} px have changed since; {MENDS}")
    if manifest.splits[split].num_pictures * math.prod(manifest.shape(size)) <= most_bytes:
        for (path, _), shard in zip(files, manifest.splits[split].shards, strict=True):
            if sha256_of_file(path) != shard.sha256.get(str(size)):
                raise ValueError(f"{path.name} has changed since; {MENDS}")


def read_labels(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    """int64 (N,)"""
    path, known = labels_file(folder, split), manifest.splits[split]
    if not path.is_file() or sha256_of_file(path) != known.labels_sha256:
        raise ValueError(f"{path.name} is missing or has changed; {MENDS}")
    labels = np.load(path, allow_pickle=False).astype(np.int64)
    if labels.shape != (known.num_pictures,) or labels.min() < 0 or labels.max() >= len(known.class_names):
        raise ValueError(f"{path.name} does not fit {known.num_pictures} pictures of {len(known.class_names)} classes")
    return labels


def in_words(manifest: Manifest) -> str:
    """The pictures and sizes, in one line."""
    numbers = {name: split.num_pictures for name, split in manifest.splits.items()}
    pictures = ", ".join(f"{number:,} pictures of split {name!r}" for name, number in numbers.items())
    return f"{pictures}, at {' and '.join(map(str, manifest.image_sizes))} px"
