"""Draws labels and latents, and generates images: a mixin of the generator."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import logging

from .class_labels import as_labels, check_class_embeddings, check_class_labels
from .devices import check_not_offloaded
from .eval_mode import folded_weights, in_eval_mode
from .finite import check_images
from .keywords import answers_keywords
from .latents import (
    StandingRow,
    TruncationMode,
    check_generators,
    check_latents,
    check_truncation,
    check_truncation_mode,
    sample_latents,
    standing_row,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Network
else:  # a model that an engine runs samples as well, and is no module of torch
    _Network = object

logger = logging.get_logger(__name__)

Generators = torch.Generator | Sequence[torch.Generator]


class SamplingMixin(_Network):
    """The generator's methods for sampling."""

    @answers_keywords("model.sample", num_images_per_label="num_images_per_prompt")
    @torch.no_grad()
    def sample(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_images_per_prompt: int = 1,
        *,
        truncation: float | None = None,
        truncation_mode: TruncationMode | None = None,
        latents: Tensor | None = None,
        class_embeddings: Tensor | None = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """
        Draws latents and generates images, in eval mode, without gradients.

        Args:
            class_labels: Labels or names; `None` draws a random label for each image of a model with classes.
            num_images_per_prompt: Images of a label, one after the other; without labels, all images. Also called
                `num_images_per_label`.
            truncation: Threshold t > 0 of the truncation trick (paper, section 3.1); `None` for plain N(0, 1).
            truncation_mode: See `sample_latents`. Default: the model's own, with which its statistics were measured.
            latents: (number of images, z_dim) in place of drawing them.
            class_embeddings: In place of labels, as for `forward`; such as means of two classes' embeddings.
            generator: Makes the draw reproducible; one for all images, or one per image.

        Returns:
            (labels or embeddings · num_images_per_prompt, num_channels, image_size, image_size) in [-1, 1].

        Raises:
            ValueError: An unknown or ambiguous name; a label, a number of images or a truncation out of range; latents
                or embeddings of a wrong shape; labels and embeddings at once; a wrong number of generators; images
                that are not finite; weights that are offloaded layer by layer, as by accelerate's `cpu_offload`.
            TypeError: A label or a generator of another type.
        """
        check_not_offloaded(self)
        mode = self._truncation_mode(truncation, truncation_mode)
        # Labels first, then latents: the order in which a generator is read.
        labels, embeddings = self._classes_to_sample(class_labels, class_embeddings, num_images_per_prompt, generator)
        number = next((len(x) for x in (labels, embeddings) if x is not None), num_images_per_prompt)
        check_latents(latents, number, self.config.z_dim)
        if latents is None:
            latents = sample_latents(number, self.config.z_dim, truncation, mode, generator, self.device)
        return self._generate(latents, labels, embeddings, truncation)

    @torch.no_grad()
    def _generate(
        self, latents: Tensor, labels: Tensor | None, embeddings: Tensor | None, truncation: float | None
    ) -> Tensor:
        # In eval mode. A model in training stays in training: other threads may use it.
        model: Any = in_eval_mode(self)
        with folded_weights(model):
            images = model(latents.to(self.device), labels, embeddings, truncation=truncation).images
        # A copy: the next replay of a CUDA graph overwrites the output of a compiled model.
        return check_images(images, self).clone()

    def _classes_to_sample(
        self, labels: Any, embeddings: Tensor | None, repeats: int, generator: Generators | None
    ) -> tuple[Tensor | None, Tensor | None]:
        # For each image a label, given or drawn, or an embedding; neither for an unconditional model.
        if repeats < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {repeats}")
        if embeddings is None:
            return self._labels_to_sample(labels, repeats, generator), None
        if not isinstance(embeddings, Tensor):
            raise TypeError(f"class_embeddings must be a tensor, got {type(embeddings).__name__}")
        number = len(embeddings) if embeddings.ndim == 2 and len(embeddings) else 1
        check_class_embeddings(embeddings, labels, number, self.config.class_width)
        return None, embeddings.to(self.device).repeat_interleave(repeats, dim=0)

    def _labels_to_sample(
        self, labels: int | str | Sequence[int | str] | Tensor | None, repeats: int, generator: Generators | None
    ) -> Tensor | None:
        # One label per image, (number of images,), given or drawn; `None` for an unconditional model.
        if labels is not None:
            ids = as_labels(labels, self.config.id2label)
            ids = ids if ids.ndim else ids[None]
            check_class_labels(ids, len(ids), self.config.id2label)
            return ids.repeat_interleave(repeats).to(self.device)
        if not self.config.num_labels:
            return None
        check_generators(generator, repeats)
        generators, size = (generator, 1) if isinstance(generator, Sequence) else ([generator], repeats)
        drawn = [
            torch.randint(self.config.num_labels, (size,), generator=g, device=None if g is None else g.device)
            for g in generators
        ]
        return torch.cat(drawn).to(self.device)

    # Truncation: which latents are drawn, and which standing statistics belong to them

    def _truncation_mode(self, truncation: float | None, mode: TruncationMode | None) -> TruncationMode:
        # How latents are drawn. Refuses a truncation that is no number or lies outside the table of standing
        # statistics, and another mode than that in which these were measured.
        self._standing_row(truncation)
        own = self.config.truncation_mode
        if mode is not None:
            check_truncation_mode(mode)
        if truncation is not None and self.config.standing_truncations and mode not in (None, own):
            raise ValueError(
                f"this model's standing statistics were measured with truncation_mode={own!r}, got {mode!r}"
            )
        return mode or own

    def _standing_row(self, truncation: float | None) -> StandingRow | None:
        # The place of a truncation in the table of standing statistics; `None` for the running statistics.
        table, mirrored = list(self.config.standing_truncations), self.config.standing_interpolation == "mirrored"
        check_truncation(truncation)
        if truncation is not None and table:
            return standing_row(table, truncation, mirrored)
        if truncation is not None and not torch.compiler.is_compiling():
            logger.warning_once("This model has no standing statistics; truncated samples use the running ones.")
        return None
