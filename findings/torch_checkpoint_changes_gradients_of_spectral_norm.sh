#!/usr/bin/env bash
# torch 2.13.0: activation checkpointing of layers with spectral norm gives other gradients, without a word.
#
# The guess: `torch.utils.checkpoint` computes activations anew in the backward pass and changes nothing but time and memory.
# Where a layer draws at random it restores the generator's state, and `determinism_check` looks for what differs.
# What happens: in train mode each access of a weight under `parametrizations.spectral_norm` takes a step of the power
# iteration. The second forward takes another, and divides the weight by another σ: the gradients are those of a network
# that was not the one of the loss, here by more than a percent in three layers. The check compares shapes, types
# and devices, which are the same. u and v move twice a step as well. Hold σ in the second forward
# (`context_fn` of checkpoint), or take the step outside of the forward.
# Seen with: torch 2.13.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

torch.set_num_threads(1)


def gradients(mode, is_checkpointed, normed=spectral_norm):
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(normed(nn.Linear(64, 64)), nn.Tanh()) for _ in range(3)))
    network.train(mode == "train")
    inputs = torch.randn(8, 64)
    output = checkpoint(network, inputs, use_reentrant=False) if is_checkpointed else network(inputs)
    output.square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).double()


differences = []
for name, mode, normed in (
    ("spectral norm, train mode", "train", spectral_norm),
    ("spectral norm, eval mode", "eval", spectral_norm),
    ("no norm, train mode", "train", lambda layer: layer),
):
    usual, checkpointed = (gradients(mode, is_checkpointed, normed) for is_checkpointed in (False, True))
    differences.append(((usual - checkpointed).norm() / usual.norm()).item())
    print(f"{name}: the gradient differs by {differences[-1]:.1e} of its length")
sys.exit([difference > 0.01 for difference in differences] != [True, False, False])
PYTHON
