"""What is measured: sets of images in a fixed order, generated, real or from another program's file."""

import copy
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..eval_mode import in_eval_mode
from ..finite import check_images
from ..images import to_uint8
from ..latents import TruncationMode, sample_latents
from ..pictures import encoded_bytes, stored_shape


if TYPE_CHECKING:  # `datasets` is slow to import, and samples do not need it
    from ..data import ImageBatch, LabelledImages


# Fields of a configuration that a save or a load fills in, and that change no image: a resumed run must find the pass
# that it was killed in. (The precision is in the description.)
OF_A_SAVE = ("_name_or_path", "architectures", "dtype", "transformers_version")


class ImageSource(Protocol):
    """
    Images in a fixed order: the image at an index does not depend on the batch or on the process that asks for it.

    `description` goes into the report: what the images are, in words and numbers. `fingerprint` changes with every
    pixel. A source that decodes pictures may do so in `num_workers` processes.
    """

    num_workers: int

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> "ImageBatch": ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def description(self) -> dict[str, Any]: ...


@dataclass(eq=False)
class GeneratedImages:
    """Samples of a generator. All latents and labels, uniform over classes, are drawn beforehand from one seed."""

    model: Any  # a `BigGANModel`, on the device where it is to run, or an `EngineModel`
    num_images: int
    seed: int = 0
    truncation: float | None = None  # as for `BigGANModel.sample`
    truncation_mode: TruncationMode | None = None  # default the model's own
    class_label: int | None = None  # only images of this class
    classes: list[int] | None = None  # only images of these classes; default of all
    name: str = "model"  # for the report
    weights: str = "ema"  # or "live", for the report
    global_step: int | None = None  # of the training, for the report
    num_workers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")
        config = self.model.config
        mode: TruncationMode = self.model._truncation_mode(self.truncation, self.truncation_mode)
        self.truncation_mode = mode
        generator = torch.Generator().manual_seed(self.seed)
        self.latents = sample_latents(self.num_images, config.z_dim, self.truncation, mode, generator)
        self.labels: Tensor | None = None
        if self.class_label is not None:
            self.labels = torch.full((self.num_images,), self.class_label)
        elif config.num_labels:
            number = config.num_labels if self.classes is None else len(self.classes)
            self.labels = torch.randint(number, (self.num_images,), generator=generator)
            if self.classes is not None:
                self.labels = torch.tensor(self.classes)[self.labels]

    def of_class(self, label: int, num_images: int) -> "GeneratedImages":
        """Samples of one class, from latents of their own."""
        seed = int(np.random.SeedSequence([self.seed, label]).generate_state(1)[0])
        return replace(self, num_images=num_images, seed=seed, class_label=label)

    @contextmanager
    def generating(self) -> Iterator["GeneratedImages"]:
        """Yields the same images of a generator in eval mode, whose normalised weights all batches share."""
        images = copy.copy(self)
        images.model = self.model if self._is_an_engines else in_eval_mode(self.model)
        with images.model.folded_weights():
            yield images

    def __len__(self) -> int:
        return self.num_images

    def __getitems__(self, indices: Sequence[int]) -> "ImageBatch":
        rows = torch.as_tensor(indices)
        labels = None if self.labels is None else self.labels[rows]
        repeats = len(rows) if labels is None else 1
        images = self.model.sample(labels, repeats, truncation=self.truncation, latents=self.latents[rows])
        return {"pixel_values": to_uint8(check_images(images, self.model, waits=True)), "class_labels": labels}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.model.config
        return config.num_channels, config.image_size, config.image_size

    @cached_property
    def fingerprint(self) -> str:
        description = json.dumps(self.description, sort_keys=True)
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in OF_A_SAVE}
        return digest_of(description, json.dumps(config, sort_keys=True, default=str), self._checksum)

    @property
    def _is_an_engines(self) -> bool:
        return not isinstance(self.model, nn.Module)

    @cached_property
    def _checksum(self) -> str:
        if self._is_an_engines:
            return digest_of(json.dumps(self.model.entry, sort_keys=True))  # with a checksum of each of its files
        return digest_of_weights(self.model)

    @property
    def description(self) -> dict[str, Any]:
        config = self.model.config
        standing = bool(config.standing_truncations) and self.truncation is not None
        uniform = f"uniform over {config.num_labels} classes"
        if self.classes is not None:
            some = ", ".join(map(str, self.classes))
            uniform = f"uniform over {len(self.classes)} of {config.num_labels} classes: {some}"
        labels = uniform if self.class_label is None else f"class {self.class_label}"
        return {
            "source": self.name,
            "num_images": self.num_images,
            "weights": self.weights,
            "global_step": self.global_step,
            "checksum": self._checksum[:8],
            "statistics": f"standing, at truncation {self.truncation}" if standing else "running",
            "truncation": self.truncation,
            "truncation_mode": None if self.truncation is None else self.truncation_mode,
            "labels": labels if config.num_labels else "none",
            "seed": self.seed,
            "precision": self._precision(),
            "image_size": config.image_size,
            "num_channels": config.num_channels,
        }

    def _precision(self) -> str:
        if self._is_an_engines:
            return self.model.computes
        device = self.model.device.type
        if torch.is_autocast_enabled(device):
            return f"autocast to {_name(torch.get_autocast_dtype(device))}"
        library: Any = torch.backends.cudnn if device == "cuda" else torch.backends.mkldnn
        of_float32 = library.conv.fp32_precision
        is_exact = self.model.dtype != torch.float32 or of_float32 in ("none", "ieee")
        return _name(self.model.dtype) + ("" if is_exact else f" ({of_float32.upper()} convolutions)")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(eq=False)
class RealImages:
    """Pictures of a data set: all of them, or a random choice."""

    images: "LabelledImages"
    num_images: int | None = None  # default all
    seed: int = 0  # of the choice
    name: str = "images"  # of the data set, for the report
    split: str | None = None  # of the data set, for the report; default as `datasets` knows it
    num_workers: int = 0  # processes that decode
    rows: Tensor = None  # type: ignore[assignment]  # indices into `images`; default a choice

    def __post_init__(self) -> None:
        if self.rows is None:
            self.rows = _choose(len(self.images), self.num_images, self.seed, self.name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> "ImageBatch":
        return self.images.__getitems__(self.rows[torch.as_tensor(indices)].tolist())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.num_channels, self.images.image_size, self.images.image_size

    @cached_property
    def fingerprint(self) -> str:
        parts = [PIL.__version__, self.images.on_unreadable_image, *self.image_shape]
        return digest_of("|".join(map(str, parts)), self.rows, *self._digests())

    def _digests(self) -> Iterator[str]:
        """
        Of the encoded pictures, all bytes of all of them: times and sizes of files may stay when pixels change. This
        costs little beside decoding. Each picture is read once as long as the data set is open.
        """
        known = _DIGESTS.setdefault(self.images, {})
        progress = tqdm(total=len(self), desc=f"reading {self.name}", unit="img", delay=5, dynamic_ncols=True)
        with progress:
            for rows in self.rows.split(1000):
                missing = [row for row in rows.tolist() if row not in known]
                cells = self.images.pictures[missing]["image"] if missing else []
                known |= {row: _digest_of_cell(cell) for row, cell in zip(missing, cells, strict=True)}
                yield from (known[row] for row in rows.tolist())
                progress.update(len(rows))

    def check_stored(self) -> None:
        """Raises `ValueError` at the first picture that would be converted: `conversion` knows of 16 of them."""
        from ..data.pixels import StoredPixels  # here, as above

        if isinstance(self.images.pictures, StoredPixels):  # all have one shape
            return
        progress = tqdm(total=len(self), desc=f"sizes of {self.name}", unit="img", delay=5, dynamic_ncols=True)
        with progress:
            for rows in self.rows.split(1000):
                cells = self.images.pictures[rows.tolist()]["image"]
                for row, cell in zip(rows.tolist(), cells, strict=True):
                    self._check_shape(row, cell)
                progress.update(len(rows))

    def _check_shape(self, row: int, cell: Mapping[str, Any] | None) -> None:
        if cell is None or (shape := stored_shape(cell)) is None or shape == self.image_shape:
            return  # what can't be read is told when it is decoded
        where = f"{cell['path']} (row {row})" if cell["path"] else f"in row {row}"
        stored, expected = (
            f"{'grey' if channels == 1 else 'RGB'} of {height}×{width} px"
            for channels, height, width in (shape, self.image_shape)
        )
        raise ValueError(
            f"picture {where} is {stored}, expected {expected} as the samples are: --convert makes them alike"
        )

    @property
    def stored_in_words(self) -> str:
        kind = " and ".join("grey" if number == 1 else "RGB" for number in self._stored_channels)
        sizes = [f"{height}×{width}" for height, width in dict.fromkeys(self.images.stored_sizes())]
        return f"{kind} images of {' to '.join(sizes)} px"

    @property
    def _stored_channels(self) -> list[int]:
        return sorted({picture.channels for picture in self.images.probed})

    @property
    def conversion(self) -> str | None:
        """What is done to the stored pictures before they are measured; `None` for nothing."""
        number, size, _ = self.image_shape
        is_fit = {*self.images.stored_sizes()} == {(size, size)}
        steps = [] if is_fit else [f"centre square, Lanczos to {size} px"]
        if self._stored_channels != [number]:
            steps.append("to grey" if number == 1 else "grey repeated to RGB")
        return ", ".join(steps) or None

    @property
    def description(self) -> dict[str, Any]:
        channels, size, _ = self.image_shape
        return {
            "source": self.name,
            "split": self.split or (self.images.pictures.split and str(self.images.pictures.split)),
            "num_images": len(self),
            "chosen": "all" if len(self) == len(self.images) else f"at random, seed {self.seed}",
            "stored": self.stored_in_words,
            "conversion": self.conversion,
            "image_size": size,
            "num_channels": channels,
        }

    def of_class(self, label: int) -> "RealImages":
        """The pictures of one class."""
        if self.images.labels is None:
            raise ValueError(f"{self.name} has no labels, which intra-class FID needs")
        rows = self.rows[self.images.labels[self.rows] == label]
        if not len(rows):
            names = self.images.class_names
            class_name = names[label] if label < len(names) else "no name"
            raise ValueError(f"{self.name} has no picture of class {label} ({class_name}): it has no intra-class FID")
        return replace(self, rows=rows)

    def rest(self, num_images: int | None = None) -> "RealImages":
        """Pictures of the data set that are not among these, at random at most `num_images`."""
        is_left = torch.ones(len(self.images), dtype=torch.bool)
        is_left[self.rows] = False
        rows = is_left.nonzero().squeeze(1)
        if not len(rows):
            raise ValueError(f"all images of {self.name} are in use, none is left: use fewer, or another split")
        number = len(rows) if num_images is None else min(num_images, len(rows))
        return replace(self, rows=rows[_choose(len(rows), number, self.seed, self.name)])


def _choose(available: int, wanted: int | None, seed: int, name: str) -> Tensor:
    """Sorted indices."""
    if wanted is None or wanted == available:
        return torch.arange(available)
    if not 1 <= wanted <= available:
        raise ValueError(f"{name} has {available} images, {wanted} were asked for: ask for 1 to {available}")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values


@dataclass(eq=False)
class ImageArray:
    """Images in memory, for example another program's samples."""

    pixel_values: Tensor  # uint8 (N, C, H, W)
    name: str = "array"  # for the report
    num_workers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.pixel_values.shape), self.pixel_values.dtype
        if dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or not shape[0]:
            raise ValueError(f"{self.name} must hold uint8 images (N, 1 or 3, H, W), got {dtype} of shape {shape}")

    @classmethod
    def from_npz(cls, path: str | Path, num_images: int | None = None) -> "ImageArray":
        """
        The first images of an `.npz` file as BigGAN-PyTorch's `sample.py` writes it: array `x`, uint8, NCHW or NHWC.
        """
        arrays = load_npz(path)
        if "x" not in arrays:
            raise ValueError(f"{str(path)!r} has no array 'x' of images, it has {', '.join(arrays) or 'none'}")
        images = torch.from_numpy(arrays["x"])
        if images.ndim == 4 and images.shape[1] not in (1, 3):
            images = images.permute(0, 3, 1, 2)
        if num_images is not None and len(images) < num_images:
            raise ValueError(
                f"{str(path)!r} holds {len(images)} images, {num_images} were asked for: take them all with "
                f"--num_images {len(images)}"
            )
        return cls(images[:num_images], str(path))

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitems__(self, indices: Sequence[int]) -> "ImageBatch":
        return {"pixel_values": self.pixel_values[torch.as_tensor(indices)], "class_labels": None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.pixel_values.shape
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        return digest_of(str(tuple(self.pixel_values.shape)), self.pixel_values)

    @property
    def description(self) -> dict[str, Any]:
        channels, height, _ = self.image_shape
        return {"source": self.name, "num_images": len(self), "image_size": height, "num_channels": channels}


# By data set and row.
_DIGESTS: WeakKeyDictionary["LabelledImages", dict[int, str]] = WeakKeyDictionary()


def _digest_of_cell(cell: Mapping[str, Any] | None) -> str:
    """A picture that cannot be read is told when it is decoded."""
    with suppress(OSError):
        return hashlib.sha256(encoded_bytes(cell)).hexdigest() if cell is not None else "none"
    return "missing"


def digest_of_weights(model: nn.Module) -> str:
    return digest_of(*(part for item in sorted(model.state_dict().items()) for part in item))


def digest_of(*parts: str | Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(part.encode())
    return digest.hexdigest()


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file; code in it is refused, not run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
    except (ValueError, OSError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(path)!r} is no .npz file of arrays, or damaged") from error
