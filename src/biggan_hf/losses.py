"""The adversarial objectives and the regularisers: pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


# Objectives, scalars of logits of any shape


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (paper, appendix C)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake_logits.mean()


def discriminator_logistic_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log s(D(x))] - E[log(1 - s(D(G(z))))], s the logistic function (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_logistic_loss(fake_logits: Tensor) -> Tensor:
    """-E[log s(D(G(z)))], which does not saturate."""
    return F.softplus(-fake_logits).mean()


def discriminator_least_squares_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ E[(D(x) - 1)²] + ½ E[D(G(z))²] (Mao et al. 2017, arXiv:1611.04076)."""
    return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2


def generator_least_squares_loss(fake_logits: Tensor) -> Tensor:
    """½ E[(D(G(z)) - 1)²]."""
    return (fake_logits - 1).square().mean() / 2


DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]

LOSSES: dict[str, tuple[DiscriminatorLoss, GeneratorLoss]] = {
    "hinge": (discriminator_hinge_loss, generator_hinge_loss),
    "logistic": (discriminator_logistic_loss, generator_logistic_loss),
    "least_squares": (discriminator_least_squares_loss, generator_least_squares_loss),
}


# Regularisers


def orthogonal_regularization(weight: Tensor, relaxed: bool = True) -> Tensor:
    """
    ½ ‖W Wᵀ ⊙ (1 - I)‖²_F for the rows W of a weight as a matrix (paper, section 3.1); not relaxed: ½ ‖W Wᵀ - I‖²_F.

    The ½ makes β times its gradient what BigGAN-PyTorch adds for the strength β.
    """
    return _gram_deviation(weight.flatten(1), relaxed).square().sum() / 2


@torch.no_grad()
def orthogonal_regularization_gradient(weight: Tensor, relaxed: bool = True) -> Tensor:
    """The gradient of `orthogonal_regularization`, 2 (W Wᵀ ⊙ (1 - I)) W, with one Gram matrix in memory."""
    rows = weight.flatten(1)
    return (2 * _gram_deviation(rows, relaxed) @ rows).view_as(weight)


def _gram_deviation(rows: Tensor, relaxed: bool) -> Tensor:
    gram = rows @ rows.t()
    # In place on the diagonal alone, so that there is no second matrix of this size.
    if relaxed:
        gram.diagonal().zero_()
    else:
        gram.diagonal().sub_(1)
    return gram


def r1_penalty(real_logits: Tensor, pixel_values: Tensor) -> Tensor:
    """½ E‖∇ₓ D(x)‖² on real pictures (Mescheder et al. 2018, arXiv:1801.04406), to be multiplied by γ; a scalar."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), pixel_values, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2
