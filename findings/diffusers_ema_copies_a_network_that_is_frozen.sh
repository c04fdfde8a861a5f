#!/usr/bin/env bash
# diffusers 0.42.1: `EMAModel.step` copies parameters without `requires_grad`, so a GAN's average may be no average.
#
# The guess: `ema.step(generator.parameters())` after each update of the generator moves the average by 1 - decay,
# whatever else the loop does with the generator. `requires_grad` is about gradients, and the average has none.
# What happens: for a parameter that does not require a gradient the step writes the parameter itself into the average.
# That is harmless for layers that never learn. But a GAN's loop freezes a network after its turn, as StyleGAN2's does
# (`requires_grad_(True)`, the update, `requires_grad_(False)`), so that the other's loss computes no gradients for it.
# If the step stands after that, or in a hook at the end of the iteration, each step throws the average away: it is the
# generator itself, to the bit, whatever `decay` and `min_decay` say, and `cur_decay_value` reports the decay as if it
# were used. A single such step, as the last one of the training, undoes all before. Only with `foreach=True` there is
# an error, of an empty list of tensors, and that only if all is frozen: with one layer left, the others are copied
# there too. Call `step` while the network is to be learnt, that is before it is frozen.
# Seen with: diffusers 0.42.1, torch 2.13.0, Python 3.11, 2026-11-29. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 diffusers==0.42.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from diffusers.training_utils import EMAModel

STEPS = 300
DECAY = 0.99


def train(when, foreach=False, frozen=lambda generator: generator):
    """How far diffusers' average is from the generator, and from the average by its formula; the decay it reports."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LeakyReLU(0.2), torch.nn.Linear(8, 8))
    discriminator = torch.nn.Linear(8, 1)
    g_opt, d_opt = (torch.optim.Adam(network.parameters(), lr=0.01) for network in (generator, discriminator))
    # `min_decay` turns off a warm-up of the decay that is another finding.
    ema = EMAModel(generator.parameters(), decay=DECAY, min_decay=DECAY, foreach=foreach)
    formula = None
    for step in range(STEPS):
        discriminator.requires_grad_(True)
        real, fake = torch.randn(16, 8) + 3, generator(torch.randn(16, 8))
        loss = (1 - discriminator(real)).relu().mean() + (1 + discriminator(fake)).relu().mean()
        d_opt.zero_grad()
        loss.backward()
        d_opt.step()
        discriminator.requires_grad_(False)

        generator.requires_grad_(True)
        loss = -discriminator(generator(torch.randn(16, 8))).mean()
        g_opt.zero_grad()
        loss.backward()
        g_opt.step()
        late = when == "after the freeze" or when == "after the freeze at the last step" and step == STEPS - 1
        if not late:
            ema.step(generator.parameters())
        frozen(generator).requires_grad_(False)
        if late:
            ema.step(generator.parameters())

        weight = generator[0].weight.detach()
        formula = weight.clone() if formula is None else DECAY * formula + (1 - DECAY) * weight
    average = ema.shadow_params[0]
    return (average - weight).abs().max().item(), (average - formula).abs().max().item(), ema.cur_decay_value


print(f"diffusers {version('diffusers')}, torch {torch.__version__}, {STEPS} steps, decay {DECAY}")
print("the largest difference of the first layer's average")
before, after = "before the freeze", "after the freeze"
seen = {
    before: train(before),
    after: train(after),
    f"{after} at the last step": train(f"{after} at the last step"),
    f"{before}, foreach": train(before, foreach=True),
    f"{after} of the first layer, foreach": train(after, foreach=True, frozen=lambda generator: generator[0]),
}
for when, (network, formula, decay) in seen.items():
    print(f"step {when}: {network:.4f} from the generator, {formula:.4f} from the formula, decay reported {decay}")
try:
    train(after, foreach=True)
    raised = None
except RuntimeError as error:
    raised = error
print(f"step {after}, foreach: {raised!r}")
as_described = raised is not None
for when, (network, formula, decay) in seen.items():
    if before in when:
        as_described &= network > 0.01 and formula < 1e-5
    else:
        as_described &= network == 0 and formula > 0.01 and decay == DECAY
sys.exit(not as_described)
PYTHON
