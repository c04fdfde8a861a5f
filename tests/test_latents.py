import math
from typing import Any

import numpy as np
import pytest
import torch

from biggan_hf import sample_latents
from biggan_hf.latents import check_truncation


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_scaling_is_t_times_a_normal_cut_at_two() -> None:
    latents = sample_latents(2000, 100, 0.5, mode="scale", generator=seeded(0))
    assert latents.abs().max() <= 1
    assert latents.abs().max() > 0.99
    assert latents.var().item() == pytest.approx(0.25 * truncated_variance(2), rel=0.02)


def test_clamping_moves_what_lies_beyond() -> None:
    plain, clamped = (sample_latents(200, 100, t, mode="clamp", generator=seeded(0)) for t in (None, 0.5))
    assert torch.equal(clamped, plain.clamp(-0.5, 0.5))


def test_normal_mode_is_t_times_the_normal() -> None:
    plain, smaller = (sample_latents(200, 100, t, mode="normal", generator=seeded(0)) for t in (None, 0.5))
    assert torch.equal(smaller, 0.5 * plain)


@pytest.mark.parametrize("mode", ["resample", "scale", "clamp", "normal"])
def test_no_truncation_is_the_normal(mode: Any) -> None:
    latents = sample_latents(2000, 100, mode=mode, generator=seeded(0))
    assert latents.abs().max() > 4
    assert latents.var().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("truncation", [1e-30, 1e6])
def test_extreme_thresholds(truncation: float) -> None:
    latents = sample_latents(1000, 100, truncation, generator=seeded(0))
    assert latents.isfinite().all() and latents.abs().max() <= truncation and latents.std() > 0


@pytest.mark.parametrize("truncation", [0.02, 0.3, 2.0, 20.0])
def test_bound_is_hard(truncation: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lowest number that torch.rand may draw, whose latent rounding and erf⁻¹(-1) = -∞ could carry too far.
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.zeros(shape, dtype=dtype))
    assert torch.equal(sample_latents(1, 1, truncation), torch.full((1, 1), -truncation))


@pytest.mark.parametrize(
    "arguments", [{}, *({"truncation": 0.5, "mode": mode} for mode in ("resample", "scale", "clamp", "normal"))]
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


def test_no_samples() -> None:
    assert sample_latents(0, 8, 0.5).shape == (0, 8)


@pytest.mark.parametrize("truncation", [0, -0.5, math.nan, math.inf, True, "0.5", [0.5]])
def test_truncation_is_a_positive_number(truncation: Any) -> None:
    with pytest.raises(ValueError, match="truncation must be a positive number or None, got") as caught:
        sample_latents(2, 8, truncation)
    assert repr(truncation) in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    check_truncation(None)
    numbers: list[Any] = [1, np.float32(0.5), np.float64(0.5), np.int64(1)]
    for truncation in numbers:
        check_truncation(truncation)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "cut"}, ValueError, "must be one of resample, scale, clamp, normal, got 'cut'"),
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
