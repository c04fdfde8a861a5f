"""The Fréchet distance as a loss: its gradient in closed form beside autograd's, and what a map does."""

import torch
from torch import Tensor

from biggan_hf.evaluation import frechet_distance
from biggan_hf.evaluation.loss import Target, moments_of, with_classes


def features(number: int, seed: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(number, width, generator=generator, dtype=torch.float64) @ mix + seed


def root_trace(a: Tensor, b: Tensor) -> Tensor:
    """tr (A B)^½ with gradients: the eigenvalues of A B are those of the symmetric A^½ B A^½."""
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.sqrt() @ vectors.T
    return torch.linalg.eigvalsh(root @ b @ root).sqrt().sum()


def test_the_gradient_is_that_of_the_distance() -> None:
    real, generated = features(500, 1), features(400, 2).requires_grad_(True)
    target = moments_of(real)
    mean, covariance = generated.mean(0), torch.cov(generated.T)
    distance = (mean - target.mean).square().sum() + covariance.trace() + target.covariance.trace()
    distance = distance - 2 * root_trace(target.covariance, covariance)
    distance.backward()
    with torch.no_grad():
        found = Target(target).map_from(moments_of(generated))
        gradient = 2 * (generated - found.targets(generated))
    expected = frechet_distance(*moments_of(generated.detach()), *target)
    assert abs(found.distance - expected) < 1e-3 * expected
    assert generated.grad is not None
    # torch.cov divides by N - 1, which the closed form leaves out
    torch.testing.assert_close(gradient / len(generated), generated.grad, rtol=5e-3, atol=1e-4)


def test_steps_to_the_targets_reach_the_real_moments() -> None:
    real, generated = features(2_000, 1), features(2_000, 2)
    target = Target(moments_of(real))
    before = target.map_from(moments_of(generated)).distance
    for _ in range(20):
        generated = generated.lerp(target.map_from(moments_of(generated)).targets(generated), 0.5)
    assert target.map_from(moments_of(generated)).distance < 1e-3 * before


def test_the_joint_distance_sees_wrong_classes() -> None:
    labels = torch.arange(600) % 3
    real = features(600, 1) + 5 * labels[:, None]
    target = Target(moments_of(with_classes(real, labels, 3, length=2.0)))
    right, wrong = (
        target.map_from(moments_of(with_classes(real, given, 3, length=2.0))).distance
        for given in (labels, labels.roll(1))
    )
    assert right < 1e-2 < 1 < wrong
    assert torch.equal(with_classes(real, None, 0, 1.0), real)
