"""The adversarial objectives and the regularisers: pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]

# The objectives: the discriminator's loss of its logits D(x) of real and D(G(z)) of generated pictures, and the
# generator's. Logits have any shape; a loss is a scalar.
LOSSES: dict[str, tuple[DiscriminatorLoss, GeneratorLoss]] = {
    # E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], and -E[D(G(z))] (paper, section 3, after Lim and Ye 2017,
    # arXiv:1705.02894).
    "hinge": (lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
    # -E[log s(D(x))] - E[log(1 - s(D(G(z))))] with the logistic function s, and the form that does not saturate,
    # -E[log s(D(G(z)))] (Goodfellow et al. 2014).
    "logistic": (
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: F.softplus(-fake).mean(),
    ),
    # ½ E[(D(x) - 1)²] + ½ E[D(G(z))²], and ½ E[(D(G(z)) - 1)²] (Mao et al. 2017, arXiv:1611.04076).
    "least_squares": (
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake: (fake - 1).square().mean() / 2,
    ),
}


# Regularisers


@torch.no_grad()
def orthogonal_regularization_gradient(weight: Tensor) -> Tensor:
    """
    The gradient 2 (W Wᵀ ⊙ (1 - I)) W of the regulariser ½ ‖W Wᵀ ⊙ (1 - I)‖²_F, for the rows W of a weight.

    This is the paper's relaxed form (section 3.1): it makes rows orthogonal and leaves their norms alone. The ½ makes
    β mean what it means in BigGAN-PyTorch. The gradient needs no graph, and the smaller one of two Gram matrices in
    memory: that of the 24,576 rows of `biggan-128`'s stem would be 2.4 GB.
    """
    rows = weight.flatten(1)
    if len(rows) > rows.shape[1]:  # the same, as W (Wᵀ W) without what each row has with itself
        own = rows.square().sum(dim=1, keepdim=True)
        return (2 * (rows @ (rows.t() @ rows) - own * rows)).view_as(weight)
    gram = rows @ rows.t()
    gram.diagonal().zero_()
    return (2 * gram @ rows).view_as(weight)


def r1_penalty(real_logits: Tensor, pixel_values: Tensor) -> Tensor:
    """½ E‖∇ₓ D(x)‖² on real pictures, a scalar (paper, section 4.2, after Mescheder et al. 2018, arXiv:1801.04406)."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), pixel_values, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2
