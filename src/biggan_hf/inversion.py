"""Inversion: the latents and the class embedding with which a generator comes closest to a given picture."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .latents import sample_latents
from .modeling_biggan import BigGANModel


@dataclass
class Inversion:
    """
    Args:
        latents: (N, z_dim).
        class_embeddings: (N, class_embedding_dim); `None` for an unconditional model.
        images: (N, num_channels, H, W) in [-1, 1], what they generate.
        starts: As `images`, where the way began.
        errors: (N,), mean square differences of pixels in [-1, 1].
        moved: (N,), the length of the way: the root mean square of what latents and embeddings changed by.
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
    progress_bar: bool = True,
) -> Inversion:
    """
    Starts at the best of some random samples and descends from there, by Adam with a cosine decay, on the mean square
    difference of pixels plus `path_weight` times the mean square of the way gone. The second term keeps latents and
    embeddings where the generator was trained, close to a sample. A picture does not depend on those beside it.

    Args:
        model: The generator; it stays as it is.
        images: (N, num_channels, image_size, image_size) in [-1, 1].
        class_labels: int64 (N,), where each way begins; default the best candidate's class.
        num_steps: Steps of Adam.
        learning_rate: Of the first step.
        num_candidates: Random samples of which each picture takes the closest.
        path_weight: Strength of the second term.
        truncation: Of the candidates, and of the standing statistics.
        generator: Of the candidates.
        progress_bar: Shows the steps done and the mean error.

    Raises:
        ValueError: Images or labels of another shape or range, an option out of range.
    """
    _check(model, images, class_labels, num_steps, num_candidates)
    images = images.to(model.device, torch.float32)
    was_training = model.training
    model.eval()
    try:
        starts = _best_candidates(model, images, class_labels, num_candidates, truncation, generator)
        points = _descend(model, images, starts, num_steps, learning_rate, path_weight, truncation, progress_bar)
        with torch.no_grad():
            first, last = (_generate(model, x, truncation) for x in (starts, points))
    finally:
        model.train(was_training)
    return Inversion(
        latents=points[0],
        class_embeddings=points[1] if len(points) > 1 else None,
        images=last,
        starts=first,
        errors=_mean_square(last - images),
        moved=_mean_square(torch.cat(points, dim=1) - torch.cat(starts, dim=1)).sqrt(),
    )


def _check(
    model: BigGANModel, images: Tensor, class_labels: Tensor | None, num_steps: int, num_candidates: int
) -> None:
    expected = (model.config.num_channels, model.config.image_size, model.config.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images must be (N, {', '.join(map(str, expected))}) floats in [-1, 1], got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if not images.abs().max() <= 1:  # NaN is not
        raise ValueError(f"images must lie in [-1, 1], got {images.min():.3g} to {images.max():.3g}")
    if class_labels is not None:
        model._check_class_labels(class_labels, len(images))
    if num_steps < 0 or num_candidates < 1:
        raise ValueError(f"expected num_steps ≥ 0 and num_candidates ≥ 1, got {num_steps} and {num_candidates}")


@torch.no_grad()
def _best_candidates(
    model: BigGANModel,
    images: Tensor,
    class_labels: Tensor | None,
    number: int,
    truncation: float | None,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Latents (N, z_dim) and, with classes, embeddings (N, width): the closest to each picture of `number` samples."""
    mode = model.config.truncation_mode
    latents = sample_latents(number, model.config.z_dim, truncation, mode, generator, model.device)
    drawn = model._labels_to_sample(None, number, generator)
    best = []
    for index, image in enumerate(images):
        labels = drawn if class_labels is None else class_labels[index].expand(number).to(model.device)
        points = [latents] if labels is None else [latents, model.class_embedding(labels).float()]
        closest = _mean_square(_generate(model, points, truncation) - image).argmin()
        best.append([x[closest] for x in points])
    return [torch.stack(each) for each in zip(*best, strict=True)]


def _descend(
    model: BigGANModel,
    images: Tensor,
    starts: list[Tensor],
    num_steps: int,
    learning_rate: float,
    path_weight: float,
    truncation: float | None,
    progress_bar: bool,
) -> list[Tensor]:
    points = [start.clone().requires_grad_() for start in starts]
    optimizer = torch.optim.Adam(points, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    with torch.enable_grad(), tqdm(range(num_steps), disable=not progress_bar, unit="step") as bar:
        for _ in bar:
            errors = _mean_square(_generate(model, points, truncation) - images)
            way = sum(_mean_square(x - start) for x, start in zip(points, starts, strict=True))
            # A sum over pictures, none of which sees another's gradient; the weights get none.
            gradients = torch.autograd.grad((errors + path_weight * way).sum(), points)
            for point, gradient in zip(points, gradients, strict=True):
                point.grad = gradient
            optimizer.step()
            schedule.step()
            bar.set_postfix(error=f"{errors.mean().item():.4f}", refresh=False)
    return [x.detach() for x in points]


def _generate(model: BigGANModel, points: list[Tensor], truncation: float | None) -> Tensor:
    embeddings = points[1] if len(points) > 1 else None
    return model(points[0], class_embeddings=embeddings, truncation=truncation).images.float()


def _mean_square(differences: Tensor) -> Tensor:
    return differences.square().flatten(1).mean(dim=1)
