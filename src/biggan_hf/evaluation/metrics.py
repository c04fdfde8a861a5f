"""The measures: functions of moments and features. torchmetrics computes the kernel distance."""

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..devices import in_float64


NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
DENSITY_NEIGHBOURS = 5  # of density and coverage (Naeem et al. 2020)
BLOCK = 1024  # rows of a matrix of distances that are in memory at a time
PROJECTIONS = 1000  # of MIND, as torch-fidelity takes them; with others of this number its value moves by 2 %
DIRECTIONS = 100  # of these in memory at a time
SATURATED = 2  # bytes at each end of their range: |x| > 0.99 in [-1, 1], which a byte does not tell from 1
NO_DISTANCE = 1e-6  # what a smaller distance counts as: the kernel distance of a perfect model is 0 on average


# Fewer images have no such number.
LEAST = dict.fromkeys(["fid", "intra_class_fid", "kid", "mind", "fwd", "is"], 2)
LEAST |= {"prdc": DENSITY_NEIGHBOURS + 1, "accuracy": 4, "saturation": 1}
IN_WORDS = {"prdc": "precision, recall, density and coverage"}
IN_WORDS |= {"intra_class_fid": "intra-class FID", "accuracy": "accuracy"}


def check_enough(metric: str, number: int, what: str) -> None:
    if number < LEAST[metric]:
        name = IN_WORDS.get(metric, metric.upper())
        raise ValueError(f"{what}: {name} needs at least {LEAST[metric]} images, got {number}")


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """
    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½): the squared 2-Wasserstein distance of two Gaussians. It is FID where they
    are fitted to Inception features (Heusel et al. 2017, arXiv:1706.08500).

    With Σa = A Aᵀ, the trace of the root is Σ √λ(Aᵀ Σb A), which takes symmetric eigendecompositions only. A has no
    columns for directions in which the first set does not vary: by rounding, each would count √ε. The distance is
    symmetric but for rounding; the set with fewer images goes first. All is float64.
    """
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"the features differ in width, {len(mean_a)} and {len(mean_b)}: two extractors?")
    variances, directions = torch.linalg.eigh(covariance_a)
    varies = variances > variances.max() * len(variances) * torch.finfo(variances.dtype).eps
    a = directions[:, varies] * variances[varies].sqrt()
    root_trace = torch.linalg.eigvalsh(a.T @ covariance_b @ a).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * root_trace
    return float(distance)


def frechet_distance_of_features(a: Tensor, b: Tensor) -> float:
    """
    [`frechet_distance`] of the Gaussians fitted to features (N, d) and (M, d), float64. Of fewer images than
    dimensions it needs no covariance: the trace of the root is the sum of the singular values of A Bᵀ, with A and B
    the centred features over √(N - 1) and √(M - 1).
    """
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    centred_a, centred_b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    root_trace = torch.linalg.matrix_norm(centred_a @ centred_b.T, "nuc")
    variances = centred_a.square().sum() + centred_b.square().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + variances - 2 * root_trace)


def wavelet_distance(means_a: Tensor, covariances_a: Tensor, means_b: Tensor, covariances_b: Tensor) -> float:
    """
    The mean of the packets' Fréchet distances (Veeramacheneni et al. 2025, arXiv:2312.15289), from the means (P, d)
    and the covariances (P, d, d) of two sets' packets (`wavelets.py`).
    """
    moments = (x.cpu().double() for x in (means_a, covariances_a, means_b, covariances_b))  # many small matrices
    distances = [frechet_distance(*packet) for packet in zip(*moments, strict=True)]
    return sum(distances) / len(distances)


def moments_of(packets: Tensor) -> tuple[Tensor, Tensor]:
    """The means (P, d) and the covariances (P, d, d) of the packets (N, P, d) of N images."""
    means = packets.mean(0)
    centred = (packets - means).transpose(0, 1)
    return means, centred.transpose(1, 2) @ centred / (len(packets) - 1)


def monge_distance(real: Tensor, fake: Tensor, seed: int = 0) -> float:
    """
    The sliced 2-Wasserstein distance of two sets of features, squared: on a random line, sorted projections are
    paired in order, and the mean square of their differences is the distance there. It is the mean over lines, times
    3 d. With Inception features it is MIND (Berthet et al. 2026, arXiv:2605.06797). Sets of N and M images are
    compared by as many random images as the smaller has.

    The directions and the choice are those of torch-fidelity with this seed.
    """
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"the features differ in width, {fake.shape[1]} and {real.shape[1]}: two extractors?")
    for features in (real, fake):
        check_enough("mind", len(features), "a set")
    generator, number, width = torch.Generator().manual_seed(seed), min(len(real), len(fake)), real.shape[1]

    def some_of(features: Tensor) -> Tensor:
        if len(features) == number:
            return in_float64(features)
        rows = torch.randperm(len(features), generator=generator)[:number]
        return in_float64(features[rows.to(features.device)])

    first, second = some_of(fake), some_of(real)
    directions = torch.randn(PROJECTIONS, width, generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(first)
    total = 0.0
    for some in directions.split(DIRECTIONS):
        differences = (first @ some.T).sort(0).values - (second @ some.T).sort(0).values
        total += float(differences.square().sum())
    return 3 * width * total / (PROJECTIONS * number)


def saturated_shares(images: Tensor) -> Tensor:
    """For each of uint8 (N, C, H, W) the shares of its pixel values that are black and that are white: (N, 2)."""
    values = images.flatten(1)
    ends = values < SATURATED, values > 255 - SATURATED
    return torch.stack([end.float().mean(1) for end in ends], 1)


def saturation(real: Tensor, fake: Tensor) -> float:
    """
    By how much the share of saturated pixel values is above that of real images, from the shares (N, 2) and (M, 2) of
    both sets. Real pictures have black or white backgrounds, too. Each end counts by itself, and only what is above: a
    background that is not black enough does not make up for white spots.
    """
    return float((in_float64(fake).mean(0).cpu() - in_float64(real).mean(0).cpu()).clamp_min(0).sum())


def kernel_distance(
    real: Tensor, fake: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """
    The unbiased squared maximum mean discrepancy with the kernel (xᵀy / d + 1)³: its mean and deviation over random
    subsets, of as many images of each set, or of all where there are fewer. If a subset is all of both sets, there is
    one, and no deviation. It is KID on Inception features (Bińkowski et al. 2018, arXiv:1801.01401).
    """
    for features in (real, fake):
        check_enough("kid", len(features), "a set")
    from torchmetrics.image.kid import KernelInceptionDistance  # slow to import, and of the extra `eval`

    # torchmetrics draws from the global generator, which a training may be using.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # it warns that it keeps the features
        torch.default_generator.manual_seed(seed)
        size = min(subset_size, len(real), len(fake))
        is_all = size == len(real) == len(fake)
        metric = KernelInceptionDistance(nn.Identity(), 1 if is_all else num_subsets, size, sync_on_compute=False)
        metric.update(in_float64(real), real=True)
        metric.update(in_float64(fake), real=False)
        mean, deviation = metric.compute()
    return float(mean), None if is_all or num_subsets == 1 else float(deviation)


def manifold_scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    """
    Each image has a ball around it that reaches to its k-th neighbour in its own set.

    precision: the share of fakes in the ball of a real image; recall: the share of reals in the ball of a fake
    (k = 3; Kynkäänniemi et al. 2019, arXiv:1904.06991, whose balls include their border). density: how many balls of
    reals a fake is in, over k; coverage: the share of reals with a fake in their ball (k = 5; Naeem et al. 2020,
    arXiv:2002.09797, whose program `prdc` leaves the border out: the density of a set in itself is 1).
    """
    for features in (real, fake):
        check_enough("prdc", len(features), "a set")
    # Around the origin, rounding costs squared distances the least.
    real, fake = in_float64(real), in_float64(fake)
    centre = real.mean(0)
    real, fake = real - centre, fake - centre
    real_radii, wide_real_radii = _squared_radii(real)
    fake_radii, _ = _squared_radii(fake)
    # A point on the border is inside for precision and recall, outside for the others. It is there but for rounding,
    # which the largest norm bounds.
    rounding = 1e-12 * max(real.square().sum(1).max(), fake.square().sum(1).max())
    real_radii, fake_radii, open_radii = real_radii + rounding, fake_radii + rounding, wide_real_radii - rounding
    num_precise, num_balls = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    nearest = torch.full_like(real_radii, torch.inf)
    for block, radii in zip(fake.split(BLOCK), fake_radii.split(BLOCK), strict=True):
        distances = _squared_distances(block, real)
        num_precise += int((distances <= real_radii).any(1).sum())
        num_balls += int((distances < open_radii).sum())
        recalled |= (distances <= radii[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return {
        "precision": num_precise / len(fake),
        "recall": float(recalled.double().mean()),
        "density": num_balls / (DENSITY_NEIGHBOURS * len(fake)),
        "coverage": float((nearest < open_radii).double().mean()),
    }


def _squared_radii(points: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (N,) to the third and the fifth neighbour; the nearest point is the point itself."""
    nearest = torch.cat(
        [
            _squared_distances(block, points).topk(DENSITY_NEIGHBOURS + 1, largest=False).values
            for block in points.split(BLOCK)
        ]
    )
    return nearest[:, NEIGHBOURS], nearest[:, DENSITY_NEIGHBOURS]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def joint_distance(distances: Iterable[float]) -> float:
    """Several distances as one number, by which models are compared: their geometric mean."""
    values = [max(distance, NO_DISTANCE) for distance in distances]
    return math.prod(values) ** (1 / len(values))
