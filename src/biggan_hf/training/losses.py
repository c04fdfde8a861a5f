"""The adversarial objectives and the regularisers: pure functions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class AdversarialLoss(NamedTuple):
    """
    What D minimises, of its logits D(x) of real and D(G(z)) of generated pictures, and what G minimises, of D(G(z))
    and D(x). Logits have any shape; a loss is a scalar.
    """

    of_discriminator: Callable[[Tensor, Tensor], Tensor]
    of_generator: Callable[..., Tensor]  # may be called without D(x), unless it is relative
    is_relative: bool = False  # it compares each D(G(z)) with the D(x) in its place; neither means anything alone


LOSSES = {
    # E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], and -E[D(G(z))] (paper, section 3, after Lim and Ye 2017,
    # arXiv:1705.02894).
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda fake, *_: -fake.mean(),
    ),
    # -E[log s(D(x))] - E[log(1 - s(D(G(z))))] with the logistic function s, and the form that does not saturate,
    # -E[log s(D(G(z)))] (Goodfellow et al. 2014).
    "logistic": AdversarialLoss(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake, *_: F.softplus(-fake).mean(),
    ),
    # ½ E[(D(x) - 1)²] + ½ E[D(G(z))²], and ½ E[(D(G(z)) - 1)²] (Mao et al. 2017, arXiv:1611.04076).
    "least_squares": AdversarialLoss(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake, *_: (fake - 1).square().mean() / 2,
    ),
    # -E[log s(D(x) - D(G(z)))], and -E[log s(D(G(z)) - D(x))] (Jolicoeur-Martineau 2018, arXiv:1807.00734; with R1 and
    # R2 as in R3GAN, Huang et al. 2024, arXiv:2501.05441).
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda fake, real: F.softplus(real - fake).mean(),
        is_relative=True,
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


def consistency_penalty(logits: Sequence[Tensor], logits_of_shifted: Sequence[Tensor]) -> Tensor:
    """
    Σ E[(D(x) - D(T(x)))²] over kinds of pictures x and the same ones shifted, a scalar: balanced consistency, if the
    kinds are real and generated ones (bCR, Zhao et al. 2020, arXiv:2002.04724, algorithm 1).
    """
    pairs = zip(logits, logits_of_shifted, strict=True)
    return torch.stack([(one - shifted).square().mean() for one, shifted in pairs]).sum()


def gradient_penalties(logits: Sequence[Tensor], pixel_values: Sequence[Tensor]) -> list[Tensor]:
    """
    ½ E‖∇ₓ D(x)‖², a scalar for each kind of pictures: R1 of real ones (paper, section 4.2, after Mescheder et al.
    2018, arXiv:1801.04406), R2 of generated ones. In D no picture sees another: one derivative of all logits will do.
    """
    gradients = torch.autograd.grad([each.sum() for each in logits], list(pixel_values), create_graph=True)
    return [gradient.square().flatten(1).sum(dim=1).mean() / 2 for gradient in gradients]
