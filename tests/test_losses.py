"""Objectives against values worked out by hand, regularisers against automatic differentiation."""

import math

import pytest
import torch

from biggan_hf.training.losses import (
    LOSSES,
    discriminator_hinge_loss,
    generator_hinge_loss,
    orthogonal_regularization_gradient,
    r1_penalty,
)


def test_discriminator_hinge_loss_stops_at_the_margin() -> None:
    real = torch.tensor([2.0, 0.5, -1.0])  # hinges 0, 0.5, 2
    fake = torch.tensor([-3.0, -0.5, 1.0])  # hinges 0, 0.5, 2
    torch.testing.assert_close(discriminator_hinge_loss(real, fake), torch.tensor(2.5 / 3 + 2.5 / 3))
    assert discriminator_hinge_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


def test_generator_hinge_loss_is_the_mean_logit_negated() -> None:
    assert generator_hinge_loss(torch.tensor([[1.0], [4.0]])) == -2.5


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("logistic", math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-0.5))),
        ("least_squares", ((2 - 1) ** 2 + 0.5**2) / 2, (0.5 - 1) ** 2 / 2),
    ],
)
def test_other_objectives(name: str, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([0.5])
    losses = LOSSES[name]
    torch.testing.assert_close(losses[0](real, fake), torch.tensor(discriminator))
    torch.testing.assert_close(losses[1](fake), torch.tensor(generator))


def test_gradient_of_the_orthogonal_regularization() -> None:
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    rows = weight.flatten(1)
    regularizer = (rows @ rows.t() * (1 - torch.eye(4))).square().sum() / 2
    (gradient,) = torch.autograd.grad(regularizer, weight)
    torch.testing.assert_close(orthogonal_regularization_gradient(weight.detach()), gradient)


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm() -> None:
    slope = torch.randn(1, 2, 3)
    pixels = torch.randn(5, 1, 2, 3, requires_grad=True)
    penalty = r1_penalty((pixels * slope).flatten(1).sum(1, keepdim=True), pixels)
    torch.testing.assert_close(penalty, slope.square().sum() / 2)
