"""The measures: functions of moments and features. torchmetrics computes the kernel distance."""

import warnings

import torch
from torch import Tensor, nn


NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
DENSITY_NEIGHBOURS = 5  # of density and coverage (Naeem et al. 2020)
BLOCK = 1024  # rows of a matrix of distances that are in memory at a time


# Fewer images have no such number.
LEAST = {"fid": 2, "intra_class_fid": 2, "kid": 2, "is": 2, "prdc": DENSITY_NEIGHBOURS + 1}
IN_WORDS = {"prdc": "precision, recall, density and coverage", "intra_class_fid": "intra-class FID"}


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
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
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
    centre = real.double().mean(0)
    real, fake = real.double() - centre, fake.double() - centre
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
