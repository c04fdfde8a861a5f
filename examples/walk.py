"""Films a walk in a circle, through latents and classes at once: `python examples/walk.py` writes walk.gif."""

from pathlib import Path

import torch

from biggan_hf import BigGANPipeline, sample_latents
from biggan_hf.exploring import interpolate
from biggan_hf.images import image_grid
from biggan_hf.media import save_gif


pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")
classes = pipe.embed_classes(["Ankle boot", "Sneaker", "Bag", "Dress"])
latents = sample_latents(len(classes), pipe.model.config.z_dim, 0.7, generator=torch.Generator().manual_seed(0))
images = interpolate(pipe, latents, classes, num_steps=12, spherical=True, closed=True, truncation=0.7)
save_gif([image_grid(image[None], columns=1, padding=0, scale=4) for image in images], Path("walk.gif"), 12)
