"""From class names or ids to pictures, in the conventions of diffusers' pipelines."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from .images import to_pil
from .latents import TruncationMode, sample_latents
from .modeling_biggan import BigGANModel


ClassLabels = int | str | Sequence[int | str] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]
OutputType = Literal["pil", "np", "pt"]


@dataclass
class BigGANPipelineOutput(ModelOutput):
    """
    Args:
        images: N pictures: a list of PIL images of mode "RGB" or "L", or a numpy array (N, H, W, num_channels) or a
            tensor (N, num_channels, H, W), both float32 in [0, 1].
        class_labels: int64 (N,); `None` for an unconditional model.
        latents: float32 (N, z_dim) as drawn or as given.
    """

    # `| Any`: ModelOutput wants the default None, which no caller should have to rule out.
    images: Any = None
    class_labels: Tensor | Any = None
    latents: Tensor | Any = None


class BigGANPipeline:
    """
    Draws latents, generates and converts to pictures.

    Args:
        model: The generator.

    Example:
        ```python
        pipe = BigGANPipeline.from_pretrained("user/biggan").to("cuda")
        g = torch.Generator().manual_seed(0)
        images = pipe("golden retriever", truncation=0.4, num_images_per_prompt=4, generator=g).images
        images[0].save("golden-retriever.png")
        ```
    """

    def __init__(self, model: BigGANModel):
        self.model = model
        self.id2label = {int(label_id): label for label_id, label in (model.config.id2label or {}).items()}
        self._label_ids = _index_names(self.id2label)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a folder or a Hub repository; keywords (revision, token, …) as `BigGANModel.from_pretrained`."""
        return cls(BigGANModel.from_pretrained(pretrained_model_name_or_path, **kwargs))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes `config.json` and the weights; keywords as `BigGANModel.save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves or casts the model in place, as `torch.nn.Module.to`: a device, a dtype or both."""
        self.model.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    # Names of classes

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, each synonym an entry of its own; names that several classes share are left out."""
        return {
            name: label_id
            for label_id, label in self.id2label.items()
            for name in map(str.strip, label.split(","))
            if self._label_ids.get(_normalized(name)) == [label_id]
        }

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """
        Class ids of names.

        Args:
            names: One name or several: any comma-separated part of a label or the whole label, in any case.

        Raises:
            ValueError: A name that no class has, with the closest ones, or that several classes have, with their ids.
            TypeError: A name that is no string.
        """
        return [self._label_id(name) for name in ([names] if isinstance(names, str) else names)]

    def _label_id(self, name: str) -> int:
        if not isinstance(name, str):
            raise TypeError(f"a class name must be a string, and a class id an integer, got {name!r}")
        found = self._label_ids.get(_normalized(name), [])
        if len(found) == 1:
            return found[0]
        if found:
            classes = " and ".join(f"{label_id} ({self.id2label[label_id]!r})" for label_id in found)
            raise ValueError(f"class name {name!r} is shared by the classes {classes}; give an id")
        if not self.id2label:
            raise ValueError(f"this model is unconditional and has no classes, got {name!r}")
        close = difflib.get_close_matches(_normalized(name), self._label_ids, n=3)
        if not close:
            raise ValueError(f"unknown class name {name!r}; the ids are 0 to {len(self.id2label) - 1}")
        raise ValueError(f"unknown class name {name!r}; the closest are {', '.join(map(repr, close))}")

    # Generating

    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        *,
        num_images_per_prompt: int = 1,
        batch_size: int = 16,
        truncation: float | None = None,
        truncation_mode: TruncationMode | None = None,
        latents: Tensor | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        progress_bar: bool = True,
    ) -> BigGANPipelineOutput | Any:
        """
        Generates `num_images_per_prompt` images of each class, one class after the other.

        All latents are drawn before the first image is generated: the images do not depend on the batch size.

        Args:
            class_labels: Ids, names (see `get_label_ids`) or a list of both. `None`: a random class for each image,
                or none for an unconditional model.
            num_images_per_prompt: Images a class; without classes, the number of images.
            batch_size: Most images that are generated at a time.
            truncation: Threshold t > 0 of the truncation trick (paper, section 3.1): the smaller, the more typical
                and the less varied. `None` for plain N(0, 1).
            truncation_mode: `"resample"` or `"scale"`; default the model's own.
            latents: (number of images, z_dim) in place of drawing them; `truncation` then only chooses among the
                model's standing statistics.
            generator: Makes the draw reproducible. One for all images, or a list with one an image, which makes an
                image independent of the others. CPU generators give the same latents whatever the model's device.
            output_type: `"pil"`, `"np"` or `"pt"`, see `BigGANPipelineOutput`.
            return_dict: `False` for the tuple (images, class_labels, latents).
            progress_bar: Shows the batches done.

        Raises:
            ValueError: An unknown or ambiguous name, a label or an option out of range, latents of a wrong shape, a
                wrong number of generators.
            TypeError: A label or a generator of another type.
        """
        label_ids = None if class_labels is None else self._to_ids(class_labels)
        _check_positive("num_images_per_prompt", num_images_per_prompt)
        number = num_images_per_prompt * (1 if label_ids is None else len(label_ids))
        self._check_options(batch_size, truncation, truncation_mode, output_type)
        self._check_draw(number, latents, generator)

        # The model's own way of drawing: with the same generator, the images are those of `model.sample`.
        labels = self.model._labels_to_sample(label_ids, num_images_per_prompt, generator)
        if latents is None:
            mode = truncation_mode or self.model.config.truncation_mode
            latents = sample_latents(number, self.model.config.z_dim, truncation, mode, generator, self.device)
        batches = self._generate(latents, labels, truncation, batch_size, progress_bar)
        images = _join([_convert(batch, output_type) for batch in batches])
        if not return_dict:
            return images, labels, latents
        return BigGANPipelineOutput(images=images, class_labels=labels, latents=latents)

    def _generate(
        self, latents: Tensor, labels: Tensor | None, truncation: float | None, batch_size: int, progress_bar: bool
    ) -> Iterator[Tensor]:
        for start in tqdm(range(0, len(latents), batch_size), disable=not progress_bar, unit="batch"):
            batch = latents[start : start + batch_size]
            if labels is None:
                yield self.model.sample(num_images_per_label=len(batch), truncation=truncation, latents=batch)
            else:
                yield self.model.sample(labels[start : start + batch_size], truncation=truncation, latents=batch)

    def _to_ids(self, class_labels: ClassLabels) -> list[int] | Tensor:
        if isinstance(class_labels, Tensor):
            ids: list[int] | Tensor = class_labels.reshape(-1)
        elif isinstance(class_labels, Iterable) and not isinstance(class_labels, str):
            ids = [self._to_id(label) for label in class_labels]
        else:
            ids = [self._to_id(class_labels)]
        if not len(ids):
            raise ValueError("class_labels is empty; None draws a random class for each image")
        return ids

    def _to_id(self, label: Any) -> int:
        is_id = isinstance(label, Integral) and not isinstance(label, bool)
        return int(label) if is_id else self._label_id(label)

    def _check_options(
        self, batch_size: int, truncation: float | None, mode: TruncationMode | None, output_type: OutputType
    ) -> None:
        _check_positive("batch_size", batch_size)
        if mode is not None and mode not in get_args(TruncationMode):
            raise ValueError(f"truncation_mode must be 'resample', 'scale' or None, got {mode!r}")
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        self.model._standing_row(truncation)  # refuses a truncation that is no number or has no statistics

    def _check_draw(self, number: int, latents: Tensor | None, generator: Generators | None) -> None:
        if latents is not None and latents.shape != (number, self.model.config.z_dim):
            raise ValueError(f"latents must be ({number}, {self.model.config.z_dim}), got {tuple(latents.shape)}")
        generators = generator if isinstance(generator, Sequence) else [generator] * number
        for one in generators:
            if not isinstance(one, torch.Generator | None):
                raise TypeError(f"generator must be a torch.Generator or a list of them, got {one!r}")
        if len(generators) != number:
            raise ValueError(f"{number} images need one generator or a list of {number}, got {len(generators)}")


def _normalized(name: str) -> str:
    return " ".join(name.split()).casefold()


def _index_names(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """The ids of the classes that bear a name, for every synonym and every whole label."""
    index: dict[str, list[int]] = {}
    for label_id, label in id2label.items():
        for name in {_normalized(name) for name in [label, *label.split(",")]} - {""}:
            index.setdefault(name, []).append(label_id)
    return index


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _convert(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """(N, C, H, W) in [-1, 1] to what the caller asked for."""
    if output_type == "pil":
        return to_pil(images)
    images = (images.float() + 1) / 2
    return images.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else images


def _join(batches: list[Any]) -> list[Image.Image] | np.ndarray | Tensor:
    if isinstance(batches[0], list):
        return [image for batch in batches for image in batch]
    return torch.cat(batches) if isinstance(batches[0], Tensor) else np.concatenate(batches)
