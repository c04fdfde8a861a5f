"""What a generator has learnt: paths, truncation sweeps, grids of classes, directions, nearest neighbours."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .bars import open_bar
from .directions import MOST_DIRECTIONS, Directions
from .latents import interpolation_path, sample_latents
from .layers import ConditionalBatchNorm2d
from .pipeline_biggan import BigGANPipeline, ClassLabels


PICTURES_AT_A_TIME = 256  # of a data set that is searched

# In the search for directions: pairs of pictures for each of the latents, the pixels that are generated at a time, and
# the side to which larger pictures are averaged. Finer details have no part in the search.
PAIRS, PIXELS_AT_A_TIME, SIDE = 5, 2**16, 32
Method = Literal["ganspace", "sefa"]


def interpolate(
    pipe: BigGANPipeline,
    latents: Tensor,
    class_embeddings: Tensor | None = None,
    num_steps: int = 16,
    *,
    spherical: bool = False,
    closed: bool = False,
    **options: Any,
) -> Tensor:
    """
    Images along a path through latents, class embeddings, or both at once. One latent or one class stays the same
    along the path; several are its points.

    Args:
        pipe: Generates the images.
        latents: (K, z_dim), or (1, z_dim) to keep them.
        class_embeddings: As `pipe.embed_classes` gives them, K or 1; `None` for an unconditional model.
        num_steps: From a point to the next.
        spherical: Follows great circles instead of straight lines, see `interpolation_path`.
        closed: The last point leads back to the first, which is not repeated.
        **options: Of the pipeline: `truncation`, `batch_size`, `progress_bar`.

    Returns:
        uint8 ((K - 1) · num_steps + 1, num_channels, H, W), or (K · num_steps, …) if closed.

    Raises:
        ValueError: Fewer than two points, numbers of latents and classes that differ, or `num_steps` below 1.
    """
    latents, class_embeddings = path_of(latents, class_embeddings, num_steps, spherical=spherical, closed=closed)
    if class_embeddings is None:
        return uint8_images(pipe, num_images_per_prompt=len(latents), latents=latents, **options)
    return uint8_images(pipe, class_embeddings=class_embeddings, latents=latents, **options)


def path_of(
    latents: Tensor, class_embeddings: Tensor | None, num_steps: int, *, spherical: bool = False, closed: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The latents and class embeddings of all images along the path that `interpolate` follows, a row an image."""
    numbers = {len(latents), 1 if class_embeddings is None else len(class_embeddings)} - {1}
    if len(numbers) != 1 or 0 in numbers:
        given = f"{len(latents)} latents and {0 if class_embeddings is None else len(class_embeddings)} classes"
        raise ValueError(f"a path needs 2 or more points, as many latents as classes or one of them, got {given}")
    points = numbers.pop()
    num_frames = points * num_steps if closed else (points - 1) * num_steps + 1

    def along(through: Tensor) -> Tensor:
        if len(through) == 1:
            return through.expand(num_frames, -1)
        return interpolation_path(through, num_steps, spherical=spherical, closed=closed)

    return along(latents), None if class_embeddings is None else along(class_embeddings)


def class_grid(
    pipe: BigGANPipeline,
    class_labels: ClassLabels,
    num_images: int,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """
    Every class with the same latents, which shows what latents mean apart from the class.

    Args:
        pipe: Generates the images.
        class_labels: As for the pipeline.
        num_images: Latents, each of which every class gets.
        generator: Draws the latents.
        **options: Of the pipeline: `truncation`, `truncation_mode`, `batch_size`, `progress_bar`.

    Returns:
        uint8 (number of classes, num_images, num_channels, H, W).
    """
    num_classes = len(pipe._to_mixtures(class_labels))
    seeds = _draw_seeds(num_images, generator)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds * num_classes]
    images = uint8_images(pipe, class_labels, num_images_per_prompt=num_images, generator=generators, **options)
    return images.unflatten(0, (num_classes, num_images))


def truncation_sweep(
    pipe: BigGANPipeline,
    class_labels: ClassLabels | None,
    truncations: Sequence[float],
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """
    The same draws at each truncation, as in the paper's figure 2a: with it, every entry of the latents moves to 0.

    Args:
        pipe: Generates the images.
        class_labels: As for the pipeline, N images in all with `num_images_per_prompt`.
        truncations: T thresholds; a model with standing statistics must have them for each.
        generator: Draws the latents.
        **options: Of the pipeline: `num_images_per_prompt`, `truncation_mode`, `batch_size`, `progress_bar`.

    Returns:
        uint8 (N, T, num_channels, H, W).

    Raises:
        ValueError: A truncation that is not positive, or outside the model's standing statistics.
    """
    for truncation in truncations:
        pipe.model._standing_row(truncation)
    (seed,) = _draw_seeds(1, generator)
    columns = []
    for truncation in truncations:
        again = torch.Generator().manual_seed(seed)
        columns.append(uint8_images(pipe, class_labels, truncation=truncation, generator=again, **options))
    return torch.stack(columns, dim=1)


def _draw_seeds(number: int, generator: torch.Generator | None) -> list[int]:
    drawn_on = None if generator is None else generator.device
    return torch.randint(2**63 - 1, (number,), generator=generator, device=drawn_on).tolist()


def uint8_images(pipe: BigGANPipeline, *args: Any, **options: Any) -> Tensor:
    """The pipeline's images as uint8 (N, num_channels, H, W)."""
    images = pipe(*args, **{"progress_bar": False, **options}, output_type="uint8").images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# Directions


def find_directions(
    model: Any, number: int = 8, method: Method = "ganspace", generator: torch.Generator | None = None
) -> Directions:
    """
    The directions along which a generator changes most.

    Args:
        model: The generator.
        number: K.
        method: `"ganspace"`: along which its pictures change, after GANSpace (Härkönen et al. 2020, arXiv:2004.02546),
            which needs 10 pictures for each of the latents. `"sefa"`: along which the layers change that read latents
            (Shen & Zhou 2021, arXiv:2007.06600); for a model in torch.
        generator: Draws latents and classes for `"ganspace"`, on the CPU; by default the same ones at each call.

    Returns:
        K orthogonal directions, the strongest first, called "direction 1", "direction 2", … The largest entry of each
        is positive.

    Raises:
        ValueError: `number` is not from 1 to z_dim, or above 64; an unknown method, or `"sefa"` for an engine.
    """
    most = min(model.config.z_dim, MOST_DIRECTIONS)
    if not 1 <= number <= most:
        raise ValueError(f"this model has 1 to {most} directions, got {number}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if method == "sefa" and not isinstance(model, nn.Module):
        raise ValueError("sefa reads the weights of a model in torch, and an engine has none: take ganspace")
    drawn_by = generator or torch.Generator().manual_seed(0)
    change = layer_change(model) if method == "sefa" else picture_change(model, drawn_by)
    values, vectors = torch.linalg.eigh(change)  # in ascending order, a vector a column
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T[:number]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    shares = (values / values.sum())[:number].tolist()
    names = tuple(f"direction {place}" for place in range(1, number + 1))
    return Directions((vectors * largest.sign()).float(), names, tuple(shares))


def picture_change(model: Any, generator: torch.Generator) -> Tensor:
    """
    How much pictures change along a direction v: vᵀMv, with M = BBᵀ and picture ≈ zB + what depends on the class;
    float64 (z_dim, z_dim). Pictures of z and of -z have one class, so that it drops out of their difference.

    GANSpace takes the principal components of pictures (or of a layer) first, and then their regression on latents.
    Here the regression B comes first: the directions are orthogonal, and none follows what latents do not explain.
    """
    config, number = model.config, PAIRS * model.config.z_dim
    latents = torch.randn(number, config.z_dim, generator=generator)
    labels = torch.randint(config.num_labels, (number,), generator=generator) if config.num_labels else None
    at_a_time = max(PIXELS_AT_A_TIME // config.image_size**2, 1)
    changes = []
    for start in open_bar(range(0, number, at_a_time), unit="batch"):
        some = latents[start : start + at_a_time]
        drawn: tuple[Any, int] = (None, len(some)) if labels is None else (labels[start : start + at_a_time], 1)
        ahead, back = (model.sample(*drawn, latents=z.to(model.device)).float().cpu() for z in (some, -some))
        changes.append(nn.functional.adaptive_avg_pool2d((ahead - back) / 2, SIDE).flatten(1))
    slope = torch.linalg.lstsq(latents.double(), torch.cat(changes).double()).solution
    return slope @ slope.T


@torch.no_grad()
def layer_change(model: Any) -> Tensor:
    """
    How much the layers that read latents change along a direction v: vᵀMv, with M = Σ AᵀA over these layers, A the
    columns of W / σ(W) that read latents; float64 (z_dim, z_dim).
    """
    size = model.config.z_dim
    total = torch.zeros(size, size, dtype=torch.float64)
    for layer, entries in latent_readers(model):
        # Row i is what the i-th of these entries adds to the output. The layer is called: it may have an adapter.
        basis = torch.eye(entries.stop - entries.start, device=model.device, dtype=model.dtype)
        inputs = nn.functional.pad(basis, (layer.in_features - len(basis), 0, 1, 0))  # behind the class; zeros first
        outputs = layer(inputs).cpu().double()
        change = outputs[1:] - outputs[:1]
        total[entries, entries] += change @ change.T
    return total


def latent_readers(model: Any) -> Iterator[tuple[Any, slice]]:
    """
    The linear layers that read latents, each with the entries of the latents that it reads. These are the last
    columns of its weight; a class embedding has those before.
    """
    config, size = model.config, model.config.z_dim
    width = size // config.num_latent_chunks
    yield model.linear, slice(0, width)
    for place, stage in enumerate(model.stages, 1):
        norms = [norm for norm in stage.modules() if isinstance(norm, ConditionalBatchNorm2d)]
        start = 0 if config.is_deep else place * width
        for layer in [layer for norm in norms for layer in (norm.gain, norm.bias)]:
            # Without skip-z the norms of a plain network see the class alone.
            if config.is_deep or config.hierarchical_latents:
                yield layer, slice(start, start + width)


def direction_grid(
    pipe: BigGANPipeline,
    directions: Directions,
    class_labels: ClassLabels | None,
    strengths: Sequence[float],
    generator: torch.Generator | None = None,
    truncation: float | None = None,
    **options: Any,
) -> Tensor:
    """
    One draw, in each class, moved along each direction.

    Args:
        pipe: Generates the images.
        directions: K directions.
        class_labels: N, as for the pipeline; `None` for an unconditional model.
        strengths: S, how far; 0 is the draw.
        generator: Draws the latent.
        truncation: Of the draw, before it is moved.
        **options: Of the pipeline: `batch_size`, `progress_bar`.

    Returns:
        uint8 (K, N, S, num_channels, H, W).
    """
    config = pipe.model.config
    drawn = sample_latents(1, config.z_dim, truncation, config.truncation_mode, generator, pipe.device)
    moves = torch.tensor(strengths)[:, None] * directions.vectors[:, None, None]  # (K, 1, S, z_dim)
    embeddings = None if class_labels is None else pipe.embed_classes(class_labels)
    shape = len(moves), 1 if embeddings is None else len(embeddings), len(strengths)
    latents = (drawn + moves.to(drawn)).expand(*shape, -1).flatten(0, 2)
    rest: dict[str, Any] = {"latents": latents, "truncation": truncation, **options}
    if embeddings is None:
        images = uint8_images(pipe, num_images_per_prompt=len(latents), **rest)
    else:
        images = uint8_images(pipe, class_embeddings=embeddings[:, None].expand(*shape, -1).flatten(0, 2), **rest)
    return images.unflatten(0, shape)


# Neighbours


class Neighbours(NamedTuple):
    """
    Args:
        distances: (N, k), ascending: root mean square differences, of grey levels (0 to 255) or of the features.
        indices: int64 (N, k): where the pictures stand in the data set.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(
    images: Tensor, data_set: Iterable[Tensor], k: int = 5, features: Callable[[Tensor], Tensor] | None = None
) -> Neighbours:
    """
    The pictures of a data set that are closest to given images. A sample is memorised if it is much closer to a
    training picture than held-out pictures are.

    Args:
        images: uint8 (N, C, H, W).
        data_set: Batches of uint8 (B, C, H, W), in the data set's order; read once.
        k: Pictures for each image.
        features: From uint8 (B, C, H, W) to the vectors (B, D) that are compared; default the pixels.

    Returns:
        Their distances, ascending, and their numbers in the data set, both (N, k).

    Raises:
        ValueError: Images of another type or shape, or `k` above the number of pictures.
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    described = _described(images, features)
    distances, indices = torch.empty(len(images), 0), torch.empty(len(images), 0, dtype=torch.int64)
    seen = 0
    for pictures in data_set:
        if pictures.shape[1:] != images.shape[1:] or pictures.dtype != torch.uint8:
            got = f"{pictures.dtype} of {tuple(pictures.shape[1:])}"
            raise ValueError(f"pictures must be uint8 {tuple(images.shape[1:])}, got {got}")
        # Not by ‖a‖² + ‖b‖² - 2ab: its rounding is as large as the small distances that matter here.
        direct = "donot_use_mm_for_euclid_dist"
        new = torch.cdist(described, _described(pictures, features), compute_mode=direct)
        numbers = torch.arange(seen, seen + len(pictures)).expand(len(images), -1)
        distances, indices = torch.cat([distances, new], dim=1), torch.cat([indices, numbers], dim=1)
        distances, kept = distances.sort(dim=1, stable=True)
        distances, indices = distances[:, :k], indices.gather(1, kept[:, :k])
        seen += len(pictures)
    if not 1 <= k <= seen:
        raise ValueError(f"k must be from 1 to the {seen} pictures of the data set, got {k}")
    return Neighbours(distances / math.sqrt(described.shape[1]), indices)


def closest_pictures(
    samples: Tensor, data_set: Any, k: int, features: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Neighbours]:
    """
    Samples beside the pictures that are closest to them.

    Args:
        samples: uint8 (N, C, H, W).
        data_set: As `load_labelled_images` opens it, of pictures (C, H, W).
        k: Pictures beside each sample, fewer where the data set has fewer.
        features: As for `nearest_neighbours`.

    Returns:
        uint8 (N, 1 + k, C, H, W), a sample and its neighbours a row, and what was found.
    """
    rows = range(len(data_set))
    batches = (
        data_set.__getitems__(rows[start : start + PICTURES_AT_A_TIME])["pixel_values"]
        for start in open_bar(rows[::PICTURES_AT_A_TIME], unit="batch")
    )
    found = nearest_neighbours(samples, batches, min(k, len(data_set)), features)
    pictures = data_set.__getitems__(found.indices.flatten().tolist())["pixel_values"].unflatten(0, (len(samples), -1))
    return torch.cat([samples[:, None], pictures], dim=1), found


@torch.no_grad()
def _described(images: Tensor, features: Callable[[Tensor], Tensor] | None) -> Tensor:
    return (images if features is None else features(images)).flatten(1).float().cpu()
