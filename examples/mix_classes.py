"""Mixes two classes, a row a mixture, a column a latent: `python examples/mix_classes.py` writes mix_classes.png."""

import torch

from biggan_hf import BigGANPipeline
from biggan_hf.exploring import class_grid
from biggan_hf.images import image_grid


pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
shares = [0.0, 0.25, 0.5, 0.75, 1.0]
mixtures = [{"Sneaker": 1 - share, "Ankle boot": share} for share in shares]
images = class_grid(pipe, mixtures, num_images=6, generator=torch.Generator().manual_seed(0), truncation=0.7)
labels = [f"{share:.0%} boot" for share in shares]
image_grid(images.flatten(0, 1), columns=6, row_labels=labels).save("mix_classes.png")
