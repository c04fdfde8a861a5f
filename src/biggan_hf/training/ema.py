"""The moving average of the generator's weights, which is the model that one keeps (paper, appendix C)."""

import torch

from ..modeling_biggan import BigGANModel


@torch.no_grad()
def update_ema(ema: BigGANModel, model: BigGANModel, decay: float) -> None:
    """
    ema ← decay · ema + (1 - decay) · model, over parameters and floating-point buffers alike, as in BigGAN-PyTorch:
    the averaged weights go with averaged batch-norm statistics. `decay=0` copies.

    Args:
        ema: The average, changed in place; kept in float32 and outside any wrapper.
        model: The unwrapped generator.
        decay: In [0, 1).
    """
    averaged, current = ema.state_dict(), model.state_dict()
    if decay == 0:
        torch._foreach_copy_(list(averaged.values()), [current[name] for name in averaged])
    else:
        torch._foreach_lerp_(list(averaged.values()), [current[name] for name in averaged], 1 - decay)
