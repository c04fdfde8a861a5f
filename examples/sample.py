"""Draws four pictures of each of two classes: `python examples/sample.py` writes sample.png."""

import torch

from biggan_hf import BigGANPipeline
from biggan_hf.exploring import uint8_images
from biggan_hf.images import image_grid


pipe = BigGANPipeline.from_pretrained("biggan_hf:fashion")  # or a folder, or a repository on the Hub
names, generator = ["Sneaker", "Bag"], torch.Generator().manual_seed(0)
images = uint8_images(pipe, names, num_images_per_prompt=4, truncation=0.7, generator=generator)
image_grid(images, columns=4, row_labels=names).save("sample.png")
