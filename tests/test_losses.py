"""The hinge losses against values worked out by hand."""

import torch

from biggan_hf.losses import discriminator_hinge_loss, generator_hinge_loss


def test_discriminator_hinge_loss_stops_at_the_margin() -> None:
    real = torch.tensor([2.0, 0.5, -1.0])  # hinges 0, 0.5, 2
    fake = torch.tensor([-3.0, -0.5, 1.0])  # hinges 0, 0.5, 2
    torch.testing.assert_close(discriminator_hinge_loss(real, fake), torch.tensor(2.5 / 3 + 2.5 / 3))
    assert discriminator_hinge_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


def test_generator_hinge_loss_is_the_mean_logit_negated() -> None:
    assert generator_hinge_loss(torch.tensor([[1.0], [4.0]])) == -2.5
