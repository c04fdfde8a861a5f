#!/usr/bin/env bash
# lightning 2.6.6: `EMAWeightAveraging(update_every_n_steps=10)` never updates for a GAN, and leaves the first weights.
#
# The guess: the average takes in the weights after every tenth step. That a GAN takes two optimiser steps in each
# batch, which `trainer.global_step` counts as two, makes it every fifth batch, or every tenth, but it is an average.
# What happens: the callback looks at the end of each batch whether `global_step - 1` is a multiple of
# `update_every_n_steps`. With two steps a batch that number is 1, 3, 5, …: always odd, and no multiple of 2, 4, 10 or
# any even number. So the average keeps the weights from before the first step. Validation runs with these, checkpoints
# hold them as `state_dict` (what was learnt is there as `current_model_state`), and when the training ends they are put
# into the model: what was learnt is gone from it, without a word. An odd number works, but for being every n batches.
# With k steps in each batch, no n does that has a divisor in common with k (but 1): five steps of the discriminator and
# one of the generator rule out all multiples of 2 and of 3. A model of one optimiser works as one guesses.
# `should_update` in a class of one's own, with a counter of batches, does for a GAN.
# Seen with: lightning 2.6.6, torch 2.13.0, Python 3.11, Linux, 2026-11-29. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 lightning==2.6.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec).*")
BATCHES = 60


class Gan(lightning.LightningModule):
    """The GAN of the documentation of manual optimisation, smaller."""

    def __init__(self, discriminator_steps):
        super().__init__()
        self.automatic_optimization = False
        self.generator = torch.nn.Linear(4, 4)
        self.discriminator = torch.nn.Linear(4, 1)
        self.discriminator_steps = discriminator_steps
        self.validated = []

    def configure_optimizers(self):
        return [torch.optim.Adam(network.parameters(), lr=0.01) for network in (self.generator, self.discriminator)]

    def training_step(self, real, index):
        g_opt, d_opt = self.optimizers()
        for _ in range(self.discriminator_steps):
            fake = self.generator(torch.randn(len(real), 4)).detach()
            loss = (1 - self.discriminator(real)).relu().mean() + (1 + self.discriminator(fake)).relu().mean()
            d_opt.zero_grad()
            self.manual_backward(loss)
            d_opt.step()
        loss = -self.discriminator(self.generator(torch.randn(len(real), 4))).mean()
        g_opt.zero_grad()
        self.manual_backward(loss)
        g_opt.step()

    def validation_step(self, real, index):
        self.validated.append(self.generator.weight.detach().clone())


class Classifier(lightning.LightningModule):
    """One optimiser, as most models have it."""

    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Linear(4, 4)  # named so only to be compared as the GAN's is
        self.validated = []

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, real, index):
        return self.generator(real).square().mean()

    def validation_step(self, real, index):
        self.validated.append(self.generator.weight.detach().clone())


class Learnt(Callback):
    """The weights as the optimiser left them."""

    def on_train_batch_end(self, trainer, module, *_):
        self.weight = module.generator.weight.detach().clone()


def train(name, model, every):
    """How often the average was updated, and whether the model, its validation and its checkpoint have moved."""
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(BATCHES * 8, 4) + 3, batch_size=8)
    first = model.generator.weight.detach().clone()
    learnt = Learnt()
    average = EMAWeightAveraging(decay=0.9, update_every_n_steps=every)
    checkpoint = ModelCheckpoint(dirpath=f"{name} {every}", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=1, callbacks=[learnt, average, checkpoint],
    )  # fmt: skip
    trainer.fit(model, data, data)
    saved = torch.load(checkpoint.last_model_path, weights_only=False)["state_dict"]["generator.weight"]
    assert not torch.equal(learnt.weight, first)
    moved = [not torch.equal(weight, first) for weight in (model.generator.weight, model.validated[-1], saved)]
    return int(average._average_model.n_averaged), *moved


print(f"lightning {version('lightning')}, torch {torch.__version__}, {BATCHES} batches")
seen = {}
for name, create, numbers in (
    ("one optimiser", Classifier, (1, 2, 10)),
    ("GAN", lambda: Gan(1), (1, 2, 3, 4, 5, 10)),
    ("GAN, five steps of the discriminator", lambda: Gan(5), (1, 2, 3, 5, 9, 10)),
):
    for every in numbers:
        updates, *moved = seen[name, every] = train(name, create(), every)
        places = zip(("model", "validation", "checkpoint"), moved, strict=True)
        words = ", ".join(f"{place} {'moved' if there else 'as at first'}" for place, there in places)
        print(f"{name}, update_every_n_steps={every}: {updates} updates; {words}")

never = {key for key, (updates, *moved) in seen.items() if updates == 0 and not any(moved)}
works = {key: updates for key, (updates, *moved) in seen.items() if all(moved)}
five = "GAN, five steps of the discriminator"
sys.exit(
    never != {("GAN", 2), ("GAN", 4), ("GAN", 10), (five, 2), (five, 3), (five, 9), (five, 10)}
    or works != {("one optimiser", 1): 60, ("one optimiser", 2): 30, ("one optimiser", 10): 6,
                 ("GAN", 1): 60, ("GAN", 3): 20, ("GAN", 5): 12, (five, 1): 60, (five, 5): 12}
)  # fmt: skip
PYTHON
