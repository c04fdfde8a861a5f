"""Sampling by rejection: of several candidates for an image, a discriminator says which one stays."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .modeling_biggan import BigGANDiscriminator
from .spectral_norm import folded_weights, in_eval_mode


def draw_odds(number: int, best_of: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """(number, best_of) of Gumbel's distribution, from one generator or from one an image."""
    generators, rows = (generator, 1) if isinstance(generator, Sequence) else ([generator], number)
    uniform = [
        torch.rand(rows, best_of, generator=one, device=None if one is None else one.device).cpu()
        for one in generators
    ]
    tiny = torch.finfo(torch.float32).tiny
    return -(-torch.cat(uniform).clamp_min(tiny).log()).clamp_min(tiny).log()


@torch.no_grad()
def chosen_by(
    discriminator: BigGANDiscriminator, batches: Iterable[Tensor], labels: Tensor | None, odds: Tensor
) -> Tensor:
    """
    Chooses one candidate for each image, with a probability that is proportional to exp(logit).

    At its optimum, the logit of a discriminator is the logarithm of the ratio of the densities of real and of
    generated images, up to its scale. Choice in proportion to the ratio draws from the real distribution, as far as
    the candidates reach (discriminator rejection sampling, arXiv:1810.06758, section 3.1). The candidate with the
    highest logit is no such draw: it gives up variety (docs/sampling.md).

    Args:
        discriminator: Of the same classes and picture size as the generator.
        batches: All candidates, one image's after another's, (n, C, H, W) in [-1, 1] at a time.
        labels: int64, of all candidates; `None` for an unconditional model.
        odds: (number of images, candidates for each), as `draw_odds` gives them.

    Returns:
        int64 (number of images,): the places of the chosen ones among all candidates.
    """
    logits, done = [], 0
    network = in_eval_mode(discriminator)
    with folded_weights(network):
        for images in batches:
            own = None if labels is None else labels[done : done + len(images)].to(network.device)
            logits.append(network(images.to(network.device), own).logits.float().cpu())
            done += len(images)
    # The largest of logit + Gumbel noise is a draw from softmax(logits).
    best = (torch.cat(logits).view_as(odds) + odds).argmax(1)
    return best + torch.arange(len(odds)) * odds.shape[1]
