"""
From a trained model to one that comes with the package: half of the size, with statistics for truncations.

    python docs/recipes/embedded_model.py fashion-biggan embedded
"""

import sys
from pathlib import Path

import torch

from biggan_hf import BigGANModel, collect_standing_statistics


TRUNCATIONS = [0.04, 0.5, 0.7, 1.0, 2.0]
PASSES = 50  # of 64 samples, for each truncation


@torch.no_grad()
def write_model(source: Path, output: Path) -> None:
    """
    Writes the generator with weights in bfloat16, half of their size, and with statistics in float32, which are
    measured with these weights. A load makes everything float32.
    """
    model = BigGANModel.from_pretrained(source, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    for truncations in (None, TRUNCATIONS):
        generator = torch.Generator().manual_seed(0)
        collect_standing_statistics(model, truncations, num_batches=PASSES, generator=generator)
    halved = {name for name, _ in model.named_parameters()}
    weights = {name: value.bfloat16() if name in halved else value for name, value in model.state_dict().items()}
    model.save_pretrained(output, state_dict=weights, global_step=model.saved_step)


if __name__ == "__main__":
    write_model(*map(Path, sys.argv[1:]))
