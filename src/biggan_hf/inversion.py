"""Inversion: the latents and the class embedding with which a generator comes closest to a given picture."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .bars import open_bar
from .class_labels import check_class_labels
from .eval_mode import in_eval_mode
from .latents import sample_latents
from .modeling_biggan import BigGANModel


@dataclass
class Inversion:
    """
    The result of `invert`.

    Args:
        latents: (N, z_dim).
        class_embeddings: (N, class_embedding_dim); `None` for an unconditional model.
        images: (N, num_channels, H, W) in [-1, 1], generated from these.
        starts: Images at the start of the search.
        errors: (N,), mean square differences of pixels in [-1, 1].
        moved: (N,), root mean square of the change of latents and embeddings.
    """

    latents: Tensor
    class_embeddings: Tensor | None
    images: Tensor
    starts: Tensor
    errors: Tensor
    moved: Tensor


def invert(
    model: BigGANModel,
    images: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 300,
    learning_rate: float = 0.1,
    num_candidates: int = 64,
    path_weight: float = 0.01,
    truncation: float | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 16,
    progress_bar: bool = True,
) -> Inversion:
    """
    Finds latents and class embeddings from which the generator comes close to given pictures.

    Each picture starts at the closest of some random samples. Adam, with a cosine decay, then lowers the mean square
    difference of the pixels plus `path_weight` times the mean squares of the changes of latents and of embeddings. The
    second term keeps both near values that the generator was trained on. Pictures do not influence each other.

    Args:
        model: The generator.
        images: (N, num_channels, image_size, image_size) in [-1, 1].
        class_labels: int64 (N,), the class at which each search starts. Default: that of the closest sample.
        num_steps: Steps of Adam.
        learning_rate: Learning rate of the first step.
        num_candidates: Random samples of which each picture takes the closest.
        path_weight: Strength of the second term.
        truncation: Truncation of the candidates and of the standing statistics.
        generator: Draws the candidates.
        batch_size: The largest number of candidates, or of pictures, at a time.
        progress_bar: Shows the steps done and the mean error.

    Returns:
        An `Inversion`: `latents` (N, z_dim); `class_embeddings` (N, class_embedding_dim), `None` for an unconditional
        model; the `images` of these and those at the start of the search, `starts`, both (N, num_channels, H, W) in
        [-1, 1]; `errors` (N,), mean square differences of pixels; `moved` (N,), how far latents and embeddings went.

    Raises:
        ValueError: Images or labels of another shape or range, an option out of range.
    """
    _check(model, images, class_labels, num_steps, num_candidates, batch_size)
    images = images.to(model.device, torch.float32)
    number_of_batches = math.ceil(len(images) / batch_size)
    model = in_eval_mode(model)
    starts = _best_candidates(model, images, class_labels, num_candidates, truncation, generator, batch_size)
    with open_bar(total=number_of_batches * num_steps, disable=not progress_bar, unit="step") as bar:
        ends = [
            _descend(model, own, batch, num_steps, learning_rate, path_weight, truncation, bar)
            for own, *batch in _batches([images, *starts], batch_size)
        ]
    points = [torch.cat(each) for each in zip(*ends, strict=True)]
    first, last = (_generate_all(model, x, truncation, batch_size) for x in (starts, points))
    return Inversion(
        latents=points[0],
        class_embeddings=points[1] if len(points) > 1 else None,
        images=last,
        starts=first,
        errors=_mean_square(last - images),
        moved=_mean_square(torch.cat(points, dim=1) - torch.cat(starts, dim=1)).sqrt(),
    )


def _check(
    model: BigGANModel,
    images: Tensor,
    class_labels: Tensor | None,
    num_steps: int,
    num_candidates: int,
    batch_size: int,
) -> None:
    expected = (model.config.num_channels, model.config.image_size, model.config.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images must be (N, {', '.join(map(str, expected))}) floats in [-1, 1], got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if not images.abs().max() <= 1:  # NaN fails this test
        raise ValueError(f"images must lie in [-1, 1], got {images.min():.3g} to {images.max():.3g}")
    if class_labels is not None:
        check_class_labels(class_labels, len(images), model.config.id2label)
    if num_steps < 0 or num_candidates < 1 or batch_size < 1:
        raise ValueError(
            f"expected num_steps ≥ 0, num_candidates ≥ 1 and batch_size ≥ 1, got {num_steps}, {num_candidates} and "
            f"{batch_size}"
        )


def _best_candidates(
    model: BigGANModel,
    images: Tensor,
    class_labels: Tensor | None,
    number: int,
    truncation: float | None,
    generator: torch.Generator | None,
    batch_size: int,
) -> list[Tensor]:
    """For each picture, latents (N, z_dim) and, with classes, embeddings (N, width) of the closest of the samples."""
    mode = model.config.truncation_mode
    latents = sample_latents(number, model.config.z_dim, truncation, mode, generator, model.device)
    drawn = model._labels_to_sample(None, number, generator)
    if drawn is None or class_labels is None:
        return _closest(model, images, latents, drawn, truncation, batch_size)
    of_class = {
        label: _closest(model, images, latents, torch.full_like(drawn, label), truncation, batch_size)
        for label in set(class_labels.tolist())
    }
    own = [[x[index] for x in of_class[label]] for index, label in enumerate(class_labels.tolist())]
    return [torch.stack(each) for each in zip(*own, strict=True)]


@torch.no_grad()
def _closest(
    model: BigGANModel,
    images: Tensor,
    latents: Tensor,
    labels: Tensor | None,
    truncation: float | None,
    batch_size: int,
) -> list[Tensor]:
    """For each picture, the closest candidate. Each candidate is generated once."""
    points = [latents] if labels is None else [latents, model.class_embedding(labels).float()]
    with model.folded_weights():
        errors = [
            torch.stack([_mean_square(candidates - image) for image in images])
            for candidates in (_generate(model, batch, truncation) for batch in _batches(points, batch_size))
        ]
    closest = torch.cat(errors, dim=1).argmin(dim=1)
    return [x[closest] for x in points]


def _descend(
    model: BigGANModel,
    images: Tensor,
    starts: list[Tensor],
    num_steps: int,
    learning_rate: float,
    path_weight: float,
    truncation: float | None,
    bar: tqdm,
) -> list[Tensor]:
    points = [start.clone().requires_grad_() for start in starts]
    optimizer = torch.optim.Adam(points, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    with torch.enable_grad():
        for _ in range(num_steps):
            errors = _mean_square(_generate(model, points, truncation) - images)
            way = sum(_mean_square(x - start) for x, start in zip(points, starts, strict=True))
            # The gradient of a sum: each picture gets only its own. Weights get no gradient.
            gradients = torch.autograd.grad((errors + path_weight * way).sum(), points)
            for point, gradient in zip(points, gradients, strict=True):
                point.grad = gradient
            optimizer.step()
            schedule.step()
            bar.set_postfix(error=f"{errors.mean().item():.4f}", refresh=False)
            bar.update()
    return [x.detach() for x in points]


def _batches(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    return map(list, zip(*(x.split(size) for x in tensors), strict=True))


@torch.no_grad()
def _generate_all(model: BigGANModel, points: list[Tensor], truncation: float | None, batch_size: int) -> Tensor:
    return torch.cat([_generate(model, batch, truncation) for batch in _batches(points, batch_size)])


def _generate(model: BigGANModel, points: list[Tensor], truncation: float | None) -> Tensor:
    embeddings = points[1] if len(points) > 1 else None
    return model(points[0], class_embeddings=embeddings, truncation=truncation).images.float()


def _mean_square(differences: Tensor) -> Tensor:
    return differences.square().flatten(1).mean(dim=1)
