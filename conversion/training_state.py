"""Turns the optimisers and counters of BigGAN-PyTorch into those of a checkpoint of `train.py`."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biggan_hf.conversion.reading import State, load


# The file and its keys are those of `biggan_hf.training`, which is not imported here because it needs accelerate. The
# number of pictures is `None`, since a converted checkpoint does not know its data set.
STATE_FILE = "training_state.pt"


def counters(settings: dict[str, Any], itr: int) -> dict[str, Any]:
    """The number of steps, and of the pictures that the discriminator saw in them."""
    defaults = {"num_D_steps": 2, "num_D_accumulations": 1, "batch_size": 64}  # those of the program
    pictures_per_step = math.prod(settings.get(name, default) for name, default in defaults.items())
    return {"global_step": itr, "samples_seen": itr * pictures_per_step, "rollbacks": 0, "num_pictures": None}


def adam_state(path: Path, renamed: State, network: nn.Module) -> dict[str, Any]:
    """
    The state of `torch.optim.Adam` for the network's parameters.

    Args:
        path: `G_optim.pth` or `D_optim.pth`. It holds the moments in the order of the original's parameters.
        renamed: The original's state dict under this project's names. It has the order of the original's parameters.
        network: The converted network.

    Raises:
        ValueError: The optimiser belongs to other parameters.
    """
    saved = load(path)
    (group,) = saved["param_groups"]
    ours = dict(network.named_parameters())
    names = [name for name in renamed if name in ours]
    if len(names) != len(group["params"]):
        raise ValueError(f"{str(path)!r} has {len(group['params'])} parameters, the network {len(names)}")
    moments = dict(zip(names, (saved["state"].get(place) for place in group["params"]), strict=True))
    betas = (float(group["betas"][0]), float(group["betas"][1]))
    adam = torch.optim.Adam(ours.values(), float(group["lr"]), betas, float(group["eps"]), fused=True).state_dict()
    adam["state"] = {
        place: _moments(moments[name], parameter, f"{path.name}: {name}")
        for place, (name, parameter) in enumerate(ours.items())
        if moments[name] is not None
    }
    return adam


def _moments(saved: Any, parameter: Tensor, name: str) -> dict[str, Tensor]:
    if saved["exp_avg"].numel() != parameter.numel():
        raise ValueError(
            f"{name}: moments of the shape {tuple(saved['exp_avg'].shape)}, expected {tuple(parameter.shape)}"
        )
    moments = {key: saved[key].float().reshape(parameter.shape) for key in ("exp_avg", "exp_avg_sq")}
    for key, value in moments.items():
        if not value.isfinite().all():
            raise ValueError(f"{name}: {key} holds NaN or infinity")
    return {"step": torch.tensor(float(saved["step"])), **moments}
