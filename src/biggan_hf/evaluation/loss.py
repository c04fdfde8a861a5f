"""
The Fréchet distance of features as a loss for a generator (after FD-loss, arXiv:2604.28190).

The distance belongs to a whole set of images, and a step sees a batch. But its gradient with respect to one image's
features x is known in closed form. With Gaussians N(μ, Σ) of the generated and N(μr, Σr) of the real features,

    N/2 · ∂FD/∂x = x - y(x),    y(x) = μr + T (x - μ),    T = Σr^½ (Σr^½ Σ Σr^½)^-½ Σr^½

where y is the optimal map from one Gaussian to the other: FD is the mean of |x - y(x)|². So the gradient pulls each
image to y(x), to where the real one in its place is, and a regression on y(x) as fixed targets begins with this
gradient and ends there. (The gradient of moments that are some hundred steps old went on past that: FD doubled.)
Moments and maps are float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import in_float64


# Variances count as at least this share of their mean: T divides by the roots of the generated ones.
LEAST_VARIANCE = 1e-4


class Moments(NamedTuple):
    mean: Tensor  # (d,) float64
    covariance: Tensor  # (d, d) float64


def moments_of(features: Tensor) -> Moments:
    """Of features (N, d), N ≥ 2."""
    features = in_float64(features)
    return Moments(features.mean(0), torch.cov(features.T))


def with_classes(features: Tensor, labels: Tensor | None, num_labels: int, length: float) -> Tensor:
    """
    Features (N, d) joined with one-hot labels of this length: (N, d + num_labels), float64. The Fréchet distance of
    these, FJD (arXiv:1907.08175), also sees features that are right for the set and wrong for the class.
    """
    if labels is None:
        return in_float64(features)
    return torch.cat([in_float64(features), length * in_float64(F.one_hot(labels, num_labels))], dim=1)


class Map(NamedTuple):
    """Where each of the generated images has to go."""

    mean: Tensor  # μ
    real_mean: Tensor  # μr
    matrix: Tensor  # T, (d, d)
    distance: float  # FD

    def targets(self, features: Tensor) -> Tensor:
        """y(x) of each of these (N, d), float64."""
        return self.real_mean + (features - self.mean) @ self.matrix


class Target:
    """
    The real images.

    Args:
        real: Their moments.
    """

    def __init__(self, real: Moments) -> None:
        self.real = real
        self.least = LEAST_VARIANCE * real.covariance.diagonal().mean()
        variances, directions = torch.linalg.eigh(real.covariance)
        self.root = directions * (variances.clamp_min(0) + self.least).sqrt() @ directions.T

    def map_from(self, generated: Moments) -> Map:
        """The map from generated images to the real ones, and their distance."""
        # Σr^½ Σ Σr^½: its eigenvalues are products of a generated and a real variance.
        products, directions = torch.linalg.eigh(self.root @ generated.covariance @ self.root)
        roots = (products.clamp_min(0) + self.least**2).sqrt()
        matrix = self.root @ (directions / roots @ directions.T) @ self.root
        away = (generated.mean - self.real.mean).square().sum()
        traces = generated.covariance.trace() + self.real.covariance.trace()
        return Map(generated.mean, self.real.mean, matrix, float(away + traces - 2 * roots.sum()))
