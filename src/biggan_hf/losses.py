"""The adversarial objective: pure functions of logits."""

from torch import Tensor
from torch.nn import functional as F


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], a scalar; logits of any shape (paper, appendix C)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))], a scalar."""
    return -fake_logits.mean()
