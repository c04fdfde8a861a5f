"""Which of several candidates a discriminator takes for the most real one."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .modeling_biggan import BigGANDiscriminator
from .spectral_norm import folded_weights, in_eval_mode


@torch.no_grad()
def most_real(
    discriminator: BigGANDiscriminator, batches: Iterable[Tensor], labels: Tensor | None, best_of: int
) -> Tensor:
    """
    Chooses one of each `best_of` images that follow each other: the one with the highest logit.

    At its optimum, the logit of a discriminator grows with the ratio of the densities of real and generated images
    (discriminator rejection sampling, arXiv:1810.06758, section 3.1).

    Args:
        discriminator: Of the same classes and picture size as the generator.
        batches: All images, (n, C, H, W) in [-1, 1] at a time.
        labels: int64, of all images; `None` for an unconditional model.
        best_of: Candidates for an image.

    Returns:
        int64 (number of images / best_of,): the places of the chosen ones among all images.
    """
    logits, done = [], 0
    network = in_eval_mode(discriminator)
    with folded_weights(network):
        for images in batches:
            own = None if labels is None else labels[done : done + len(images)].to(network.device)
            logits.append(network(images.to(network.device), own).logits.float())
            done += len(images)
    rows = torch.cat(logits).view(-1, best_of)
    return rows.argmax(1).cpu() + torch.arange(len(rows)) * best_of
