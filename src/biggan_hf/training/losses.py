"""The adversarial objectives and the regularisers: pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


# Objectives: from logits of any shape to a scalar. x are real pictures, G(z) are generated ones.


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (paper, section 3, after Lim and Ye 2017, arXiv:1705.02894)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake_logits.mean()


def discriminator_logistic_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log s(D(x))] - E[log(1 - s(D(G(z))))] with the logistic function s (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_logistic_loss(fake_logits: Tensor) -> Tensor:
    """-E[log s(D(G(z)))], the form that does not saturate."""
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


@torch.no_grad()
def orthogonal_regularization_gradient(weight: Tensor) -> Tensor:
    """
    The gradient 2 (W Wᵀ ⊙ (1 - I)) W of the regulariser ½ ‖W Wᵀ ⊙ (1 - I)‖²_F, for the rows W of a weight.

    This is the paper's relaxed form (section 3.1): it makes rows orthogonal and leaves their norms alone. The ½ makes
    β mean what it means in BigGAN-PyTorch. The gradient needs no graph, and one Gram matrix in memory.
    """
    rows = weight.flatten(1)
    gram = rows @ rows.t()
    gram.diagonal().zero_()
    return (2 * gram @ rows).view_as(weight)


def r1_penalty(real_logits: Tensor, pixel_values: Tensor) -> Tensor:
    """½ E‖∇ₓ D(x)‖² on real pictures, a scalar (paper, section 4.2, after Mescheder et al. 2018, arXiv:1801.04406)."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), pixel_values, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2
