"""Makes the same draws at four truncations: `python examples/truncation_sweep.py` writes truncation_sweep.png."""

import torch

from biggan_hf import BigGANPipeline
from biggan_hf.exploring import truncation_sweep
from biggan_hf.images import image_grid


pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
names, truncations = ["Trouser", "Dress", "Sandal", "Bag"], [2.0, 1.0, 0.5, 0.04]
images = truncation_sweep(pipe, names, truncations, torch.Generator().manual_seed(0))
titles = [f"{truncation:g}" for truncation in truncations]
image_grid(images.flatten(0, 1), columns=4, row_labels=names, column_labels=titles).save("truncation_sweep.png")
