import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from common import seeded

from biggan_hf import sample_latents
from biggan_hf.latents import interpolation_path


def normal_within(t: float) -> float:
    """The probability that |z| ≤ t."""
    return math.erf(t / math.sqrt(2))


def truncated_variance(t: float) -> float:
    """1 - 2tφ(t) / (2Φ(t) - 1), the variance of N(0, 1) conditioned on |z| ≤ t."""
    return 1 - 2 * t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi) / normal_within(t)


@pytest.mark.parametrize("truncation", [0.02, 0.5, 1.0, 2.0])
def test_resampling_is_the_truncated_normal(truncation: float) -> None:
    latents = sample_latents(2000, 100, truncation, generator=seeded(0))
    assert latents.shape == (2000, 100) and latents.dtype == torch.float32
    assert latents.abs().max() <= truncation
    assert latents.mean().item() == pytest.approx(0, abs=0.01 * truncation)
    assert latents.var().item() == pytest.approx(truncated_variance(truncation), rel=0.02)
    inner = (latents.abs() <= truncation / 2).float().mean().item()
    assert inner == pytest.approx(normal_within(truncation / 2) / normal_within(truncation), abs=0.01)


@pytest.mark.parametrize(
    ("mode", "threshold", "factor"), [("resample", 0.02, 1), ("resample", 8, 1), ("scale", 2, 0.3)]
)
def test_the_distribution_function_is_inverted_in_double_precision(mode: Any, threshold: float, factor: float) -> None:
    truncation = factor if mode == "scale" else threshold
    latents = sample_latents(100, 10, truncation, mode, seeded(0))
    normal = NormalDist()
    below = normal.cdf(-threshold)
    uniform = torch.rand(100, 10, generator=seeded(0), dtype=torch.float64)
    expected = [factor * normal.inv_cdf(below + u * (1 - 2 * below)) for u in uniform.flatten().tolist()]
    # Single precision rounds by up to 6e-8, at the end, and by as much again where it is scaled.
    torch.testing.assert_close(latents.flatten(), torch.tensor(expected), rtol=2e-7, atol=1e-9 * truncation)


def test_scaling_is_t_times_a_normal_cut_at_two() -> None:
    latents = sample_latents(2000, 100, 0.5, mode="scale", generator=seeded(0))
    assert 0.99 < latents.abs().max() <= 1
    assert latents.var().item() == pytest.approx(0.25 * truncated_variance(2), rel=0.02)


def test_normal_mode_is_t_times_the_normal() -> None:
    plain, smaller = (sample_latents(200, 100, t, mode="normal", generator=seeded(0)) for t in (None, 0.5))
    assert torch.equal(smaller, 0.5 * plain)


@pytest.mark.parametrize("mode", ["resample", "scale", "normal"])
def test_no_truncation_is_the_normal(mode: Any) -> None:
    latents = sample_latents(2000, 100, mode=mode, generator=seeded(0))
    assert latents.abs().max() > 4
    assert latents.var().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("truncation", [1e-30, 1e6, 1, np.float32(0.5), np.int64(1)])
def test_thresholds_of_all_sizes_and_kinds(truncation: float) -> None:
    latents = sample_latents(1000, 100, truncation, generator=seeded(0))
    assert latents.isfinite().all() and latents.abs().max() <= truncation and latents.std() > 0
    assert sample_latents(0, 8, truncation).shape == (0, 8)


@pytest.mark.parametrize("truncation", [0.02, 0.3, 2.0, 20.0])
def test_bound_is_hard(truncation: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lowest number that torch.rand may draw, whose latent rounding and erf⁻¹(-1) = -∞ could carry too far.
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.zeros(shape, dtype=dtype))
    assert torch.equal(sample_latents(1, 1, truncation), torch.full((1, 1), -truncation))


@pytest.mark.parametrize(
    "arguments", [{}, *({"truncation": 0.5, "mode": mode} for mode in ("resample", "scale", "normal"))]
)
def test_generators_make_it_reproducible(arguments: dict[str, Any]) -> None:
    def draw(generator: Any, num_samples: int = 3) -> torch.Tensor:
        return sample_latents(num_samples, 8, generator=generator, **arguments)

    assert torch.equal(draw(seeded(1)), draw(seeded(1)))
    assert not torch.equal(draw(seeded(1)), draw(seeded(2)))
    generator = seeded(1)
    assert not torch.equal(draw(generator), draw(generator))  # it moves on
    state = torch.get_rng_state()
    draw(seeded(1))
    assert torch.equal(torch.get_rng_state(), state)  # the global one does not

    # One a sample: the sample is the same wherever it stands.
    together = draw([seeded(5), seeded(6), seeded(7)])
    assert torch.equal(together, torch.cat([draw([seeded(seed)], 1) for seed in (5, 6, 7)]))
    assert torch.equal(together.flip(0), draw((seeded(7), seeded(6), seeded(5))))


@pytest.mark.parametrize("truncation", [0, -0.5, math.nan, math.inf, True, "0.5", [0.5]])
def test_truncation_is_a_positive_number(truncation: Any) -> None:
    with pytest.raises(ValueError, match="truncation must be a positive number or None, got") as caught:
        sample_latents(2, 8, truncation)
    assert repr(truncation) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "cut"}, ValueError, "must be one of resample, scale, normal, got 'cut'"),
        ({"generator": [seeded(0)]}, ValueError, "2 samples need 2 generators, got 1"),
        ({"generator": []}, ValueError, "2 samples need 2 generators, got 0"),
        ({"generator": 0}, TypeError, "must be a torch.Generator or one a sample, got 0"),
        ({"generator": [0, 1]}, TypeError, "must be a torch.Generator or one a sample, got 0"),
        ({"num_samples": -1}, ValueError, r"got \(-1, 8\)"),
        ({"z_dim": 0}, ValueError, r"got \(2, 0\)"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample_latents(**{"num_samples": 2, "z_dim": 8, "truncation": 0.5, **arguments})


# Paths


@pytest.mark.parametrize("spherical", [False, True])
def test_a_path_passes_through_its_points(spherical: bool) -> None:
    points = torch.randn(4, 50, generator=seeded(0))
    path = interpolation_path(points, 5, spherical=spherical)
    assert path.shape == (16, 50) and torch.equal(path[::5], points)
    loop = interpolation_path(points, 5, spherical=spherical, closed=True)
    assert loop.shape == (20, 50) and torch.equal(loop[:15], path[:15])
    back = interpolation_path(points[[3, 0]], 5, spherical=spherical)
    torch.testing.assert_close(loop[15:], back[:5])
    assert torch.equal(interpolation_path(points, 1, spherical=spherical), points)


def test_straight_and_round() -> None:
    start, end = torch.zeros(2, 64).index_put_((torch.tensor([0, 1]), torch.tensor([0, 1])), torch.tensor([2.0, 4.0]))
    straight, round_ = (interpolation_path(torch.stack([start, end]), 4, spherical=s) for s in (False, True))
    torch.testing.assert_close(straight[2], (start + end) / 2)
    # A right angle in four equal turns, the norm growing evenly from 2 to 4.
    torch.testing.assert_close(round_.norm(dim=1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    angles = torch.atan2(round_[:, 1], round_[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))


def test_a_small_angle_is_still_an_arc() -> None:
    angle = 0.01
    points = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    path = interpolation_path(points, 2, spherical=True)
    expected = torch.tensor([math.cos(angle / 2), math.sin(angle / 2)], dtype=torch.float64)
    torch.testing.assert_close(path[1], expected, atol=1e-10, rtol=0)  # a straight line's middle is off by 1.25e-5


def test_no_arc_between_parallel_points() -> None:
    point = torch.randn(1, 8, generator=seeded(0))
    for other in (point, 2 * point, -point):
        path = interpolation_path(torch.cat([point, other]), 4, spherical=True)
        torch.testing.assert_close(path, interpolation_path(torch.cat([point, other]), 4), atol=1e-3, rtol=1e-3)
    to_zero = interpolation_path(torch.cat([point, torch.zeros_like(point)]), 4, spherical=True)
    assert to_zero.isfinite().all() and torch.equal(to_zero[-1], torch.zeros(8))


@pytest.mark.parametrize(("points", "steps", "message"), [(1, 4, r"got \(1, 8\)"), (2, 0, "at least 1, got 0")])
def test_bad_paths(points: int, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolation_path(torch.zeros(points, 8), steps)
