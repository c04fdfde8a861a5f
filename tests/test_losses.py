"""Objectives against values worked out by hand, regularisers against automatic differentiation."""

import math

import pytest
import torch

from biggan_hf.training.losses import (
    LOSSES,
    consistency_penalty,
    gradient_penalties,
    orthogonal_regularization_gradient,
)


@pytest.mark.parametrize(
    ("name", "real", "fake", "discriminator", "generator"),
    [
        # Hinges 0, 0.5 and 2 of the real, and 0, 0.5 and 2 of the generated pictures.
        ("hinge", [2.0, 0.5, -1.0], [-3.0, -0.5, 1.0], 2.5 / 3 + 2.5 / 3, 2.5 / 3),
        ("hinge", [1.0], [-1.0], 0.0, 1.0),
        (
            *("logistic", [2.0], [0.5]),
            *(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-0.5))),
        ),
        ("least_squares", [2.0], [0.5], ((2 - 1) ** 2 + 0.5**2) / 2, (0.5 - 1) ** 2 / 2),
        ("relativistic", [2.0], [0.5], math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))),
    ],
)
def test_objectives(name: str, real: list[float], fake: list[float], discriminator: float, generator: float) -> None:
    of_d, of_g, _ = LOSSES[name]
    logits = torch.tensor(real), torch.tensor(fake)
    losses = of_d(*logits), of_g(*reversed(logits))
    torch.testing.assert_close(torch.stack(losses), torch.tensor([discriminator, generator]))


@pytest.mark.parametrize("number", [4, 30], ids=["wide", "tall"])  # rows of 12 values
def test_gradient_of_the_orthogonal_regularization(number: int) -> None:
    weight = torch.randn(number, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    rows = weight.flatten(1)
    regularizer = (rows @ rows.t() * (1 - torch.eye(number))).square().sum() / 2
    (gradient,) = torch.autograd.grad(regularizer, weight)
    torch.testing.assert_close(orthogonal_regularization_gradient(weight.detach()), gradient)


def test_consistency_is_a_mean_of_squares_for_each_kind_of_pictures() -> None:
    logits = torch.tensor([1.0, -2.0]), torch.tensor([3.0])
    of_shifted = torch.tensor([1.0, 1.0]), torch.tensor([1.0])
    assert consistency_penalty(logits, of_shifted) == 9 / 2 + 4


def test_penalty_of_a_linear_discriminator_is_half_its_squared_norm() -> None:
    slopes = torch.randn(2, 1, 2, 3)
    kinds = [torch.randn(number, 1, 2, 3, requires_grad=True) for number in (5, 4)]
    logits = [(pixels * slope).flatten(1).sum(1, keepdim=True) for pixels, slope in zip(kinds, slopes, strict=True)]
    penalties = gradient_penalties(logits, kinds)
    torch.testing.assert_close(torch.stack(penalties), slopes.square().sum(dim=(1, 2, 3)) / 2)
