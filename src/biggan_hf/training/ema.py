"""The moving average of the generator's weights: the model that a run leaves (paper, appendix C)."""

import torch
from torch.autograd.graph import increment_version

from ..modeling_biggan import BigGANModel


@torch.no_grad()
def update_ema(ema: BigGANModel, model: BigGANModel, decay: float) -> None:
    """
    ema ← decay · ema + (1 - decay) · model, in place. `decay=0` copies.

    Buffers are averaged as the parameters are, as in BigGAN-PyTorch: averaged weights need averaged statistics.
    """
    averaged, current = ema.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    moving = [name for name in averaged if averaged[name] is not current[name]]  # beside adapters, both share the rest
    pairs = [averaged[name] for name in moving], [current[name] for name in moving]
    if decay == 0:
        torch._foreach_copy_(*pairs)
    else:
        torch._foreach_lerp_(*pairs, 1 - decay)
    increment_version(pairs[0])  # on a GPU, torch (2.11) counts no writes of such functions: folded weights would stay
