#!/usr/bin/env bash
# diffusers 0.42.1: `EMAModel(use_ema_warmup=False)`, the default, warms up, so that the decay that was asked for comes late.
#
# The guess: without warm-up the average has the decay that was asked for, from the first step: with 0.999, weights of
# 5,000 steps ago count for 0.7 % of it.
# What happens: `use_ema_warmup` chooses between two warm-ups. Without it the decay is (1 + n) / (10 + n) after n steps
# until that is more than `decay`: 0.999 comes after 8,990 steps, 0.9999 after 89,990. A run of 5,000 steps averages its
# last tenth or so, whatever was asked for. `min_decay` of the same value turns it off, but for the first step.
# Seen with: diffusers 0.42.1, torch 2.13.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 diffusers==0.42.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers.training_utils import EMAModel

STEPS, DECAY = 5_000, 0.9999


def age(**options):
    """How many steps old what the average holds is, in the mean: a parameter that is the step tells."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = EMAModel([parameter], decay=DECAY, **options)
    for step in range(1, STEPS + 1):
        parameter.data.fill_(step)
        average.step([parameter])
    return STEPS - average.shadow_params[0].item(), average.cur_decay_value


expected = STEPS - sum((1 - DECAY) * DECAY ** (STEPS - step) * step for step in range(1, STEPS + 1))
(without, decay), (constant, _) = age(use_ema_warmup=False), age(use_ema_warmup=False, min_decay=DECAY)
print(f"decay {DECAY}, {STEPS} steps: a plain average holds weights {expected:.0f} steps old, in the mean")
print(f"use_ema_warmup=False: {without:.0f} steps old, and its decay is {decay:.4f}")
print(f"with min_decay={DECAY} as well: {constant:.0f} steps old")
sys.exit(not (without < 0.25 * expected and decay < 0.9983 and constant > 0.9 * expected))
PYTHON
