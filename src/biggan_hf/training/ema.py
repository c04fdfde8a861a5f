"""The moving average of the generator's weights: the model that a run leaves (paper, appendix C)."""

import torch

from ..modeling_biggan import BigGANModel


@torch.no_grad()
def update_ema(ema: BigGANModel, model: BigGANModel, decay: float) -> None:
    """
    ema ← decay · ema + (1 - decay) · model, in place. `decay=0` copies.

    Buffers are averaged as the parameters are, as in BigGAN-PyTorch: averaged weights need averaged statistics.
    """
    averaged, current = ema.state_dict(), model.state_dict()
    if decay == 0:
        torch._foreach_copy_(list(averaged.values()), [current[name] for name in averaged])
    else:
        torch._foreach_lerp_(list(averaged.values()), [current[name] for name in averaged], 1 - decay)
