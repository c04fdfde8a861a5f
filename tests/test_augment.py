"""Differentiable augmentation: what it changes, what it keeps, and that gradients pass."""

import torch

from biggan_hf.training.augment import diff_augment


def test_each_picture_is_augmented_in_its_own_way() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1) * 2 - 1
    augmented = diff_augment(images)
    assert augmented.shape == images.shape and torch.isfinite(augmented).all()
    assert all(not torch.equal(augmented[0], other) for other in augmented[1:])
    torch.manual_seed(0)
    torch.rand(1, 3, 16, 16)
    assert torch.equal(diff_augment(images), augmented)


def test_a_picture_is_shifted_by_an_eighth_at_most_and_has_a_hole() -> None:
    torch.manual_seed(0)
    images = torch.ones(64, 1, 16, 16)  # no saturation or contrast: brightness, shift and hole alone
    augmented = diff_augment(images)
    for picture in augmented[:, 0]:
        seen = (picture != 0).nonzero()
        values = picture[picture != 0].unique()
        assert len(values) == 1 and 0.5 <= values[0] <= 1.5  # brightness moves by a half at most
        assert len(seen) >= 14 * 14 - 8 * 8  # what a shift by 2 and a hole of 8 leave
        assert len(seen) < 16 * 16
    holes = augmented[:, 0, 2:-2, 2:-2] == 0  # where no shift reaches: half the size, cut at the edges
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert heights.max() == widths.max() == 8 > min(heights.min(), widths.min())
    assert torch.equal(holes.sum(dim=(1, 2)), heights * widths)
    rows = (augmented[:, 0] != 0).any(dim=2).float().mean(dim=0)
    assert rows[8] > 0.8 and rows[0] < 1  # the edge is sometimes shifted out


def test_gradients_pass_to_the_pixels_that_are_seen() -> None:
    torch.manual_seed(0)
    images = (torch.rand(4, 3, 16, 16) * 2 - 1).requires_grad_()
    diff_augment(images).square().sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    share = (images.grad != 0).float().mean()
    assert share > 0.5
