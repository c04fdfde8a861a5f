#!/usr/bin/env bash
# peft 0.21.2: merging an adapter into a layer with spectral or weight norm loses what the adapter has learnt.
#
# The guess: `merge_and_unload()` gives a network that answers as the one with adapters, as for any other layer. Nothing
# else fails: such layers take adapters, which train.
# What happens: torch computes the weight of such a layer anew, from other parameters, for each forward: in a hook
# (`torch.nn.utils.spectral_norm`, `weight_norm`) or a parametrization (`torch.nn.utils.parametrizations`). peft adds to
# this computed weight, which is thrown away, also with `safe_merge=True`, and nothing is raised. In eval mode, as here,
# the vectors of spectral norm rest, and the merged network answers as the one before the training, to the bit. (Where
# they move, it is that of the moved vectors.)
# Seen with: peft 0.21.2, torch 2.13.0, transformers 5.23.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings
from collections import OrderedDict

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations

warnings.simplefilter("ignore", FutureWarning)  # nn.utils.weight_norm is deprecated, and still in use
norms = {
    "no norm": lambda layer: layer,
    "utils.spectral_norm": nn.utils.spectral_norm,
    "utils.weight_norm": nn.utils.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "parametrizations.weight_norm": parametrizations.weight_norm,
}
as_guessed = []
for name, norm in norms.items():
    torch.manual_seed(0)
    network = nn.Sequential(OrderedDict(first=norm(nn.Linear(16, 16)), act=nn.ReLU(), last=nn.Linear(16, 4))).eval()
    inputs, goal = torch.randn(64, 16), torch.randn(64, 4)
    before = network(inputs).detach()

    tuned = get_peft_model(network, LoraConfig(r=4, target_modules=["first"]))
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    for _ in range(50):
        (tuned(inputs) - goal).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.eval()
    learnt = tuned(inputs).detach()
    merged = tuned.merge_and_unload(safe_merge=True).eval()(inputs).detach()

    print(f"{name}: learnt {(learnt - before).abs().max():.3f}, in the merged network {(merged - before).abs().max():.3f}")
    assert not torch.equal(learnt, before)
    as_guessed.append(torch.allclose(merged, learnt, atol=1e-5))
    assert as_guessed[-1] or torch.equal(merged, before)
sys.exit(as_guessed != [True, False, False, False, False])
PYTHON
