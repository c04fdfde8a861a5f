#!/usr/bin/env bash
# accelerate 1.15.0: two `accumulate` blocks in an iteration share one counter, so a GAN's discriminator does not learn.
#
# The guess: `with accelerator.accumulate(discriminator)` and then `with accelerator.accumulate(generator)` let each of the
# two networks gather the gradients of `gradient_accumulation_steps` batches, and then take a step.
# What happens: the `Accelerator` has one counter, which every block moves, whichever network it names. With two blocks in
# an iteration and an even number of steps, the first block always meets an odd count and the second an even one. So the
# discriminator's optimiser takes no step, and the generator's takes twice as many, of half as many batches. (A prepared
# data loader forces a step at the end of an epoch: then the discriminator takes one an epoch. Here there is no loader.)
# `optimizer.step()` and `zero_grad()` pass over the others without a word, and the losses look like a bad GAN's. An odd
# number of steps works as one guesses, but for its phase. One block that names both networks does it right.
# Seen with: accelerate 1.15.0, torch 2.13.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

ITERATIONS = 12


def train(accumulated, in_one_block):
    """How often the weights of each network changed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    networks = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    networks = accelerator.prepare(*networks)
    optimizers = accelerator.prepare(*(torch.optim.SGD(network.parameters(), lr=0.1) for network in networks))
    changes = [0, 0]

    def update(index):
        network, optimizer = networks[index], optimizers[index]
        before = network.weight.detach().clone()
        accelerator.backward(network(torch.randn(2, 4)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        changes[index] += not torch.equal(before, network.weight)

    for _ in range(ITERATIONS):
        if in_one_block:
            with accelerator.accumulate(*networks):
                update(0)
                update(1)
        else:
            for index, network in enumerate(networks):
                with accelerator.accumulate(network):
                    update(index)
    return changes


torch.manual_seed(0)
seen = {}
for accumulated in (2, 3, 4):
    for in_one_block in (False, True):
        seen[accumulated, in_one_block] = train(accumulated, in_one_block)
        blocks = "one block for both" if in_one_block else "a block for each"
        print(f"{ITERATIONS} iterations, {accumulated} accumulated, {blocks}: steps {seen[accumulated, in_one_block]}")
apart = {accumulated: seen[accumulated, False] for accumulated in (2, 3, 4)}
together = {accumulated: seen[accumulated, True] for accumulated in (2, 3, 4)}
sys.exit(apart != {2: [0, 12], 3: [4, 4], 4: [0, 6]} or together != {2: [6, 6], 3: [4, 4], 4: [3, 3]})
PYTHON
