#!/usr/bin/env bash
# torch 2.13.0: an `AveragedModel` with `use_buffers=True` ruins a network with spectral norm.
#
# The guess: `AveragedModel(generator, use_buffers=True)` averages batch norm's running statistics beside the weights,
# which can only be smoother than those of the last step; all else works as without it.
# What happens: spectral norm keeps its singular vectors u and v in buffers, too. They turn as the network learns, and a
# mean of unit vectors that turn is shorter than 1 and points elsewhere. In eval mode the weight is divided by uᵀWv of
# these means, which is far too small: the largest singular value of the averaged weights, 1 by definition, is 13 here
# after 1,000 steps, and the loss 50 times that of the network. Nothing warns. `use_buffers=False` copies the buffers.
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
torch.set_num_threads(1)
network = nn.Sequential(spectral_norm(nn.Linear(64, 64)), nn.ReLU(), spectral_norm(nn.Linear(64, 64)))
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.99))
averages = {
    use_buffers: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=use_buffers)
    for use_buffers in (False, True)
}
goal = torch.randn(64, 4) @ torch.randn(4, 64) / 8
for _ in range(1000):
    inputs = torch.randn(32, 64)
    (network(inputs) - inputs @ goal).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    for average in averages.values():
        average.update_parameters(network)

inputs = torch.randn(1000, 64)
seen = {}
for name, chosen in {
    "the network": network,
    "its average, use_buffers=False": averages[False],
    "its average, use_buffers=True": averages[True],
}.items():
    chosen.eval()
    layers = chosen.module if isinstance(chosen, AveragedModel) else chosen
    largest = max(torch.linalg.matrix_norm(layers[index].weight.detach(), 2).item() for index in (0, 2))
    loss = (chosen(inputs) - inputs @ goal).square().mean().item()
    seen[name] = largest
    print(f"{name}: largest singular value {largest:.2f}, loss {loss:.2f}")
sys.exit([value > 2 for value in seen.values()] != [False, False, True])
PYTHON
