"""Draws the same pictures faster on a CPU: `python examples/engine.py` writes fashion-openvino/ and engine.png."""

import torch

from biggan_hf import BigGANPipeline


BigGANPipeline.from_pretrained("biggan_hf:fashion").export("fashion-openvino", engine="openvino")
pipe = BigGANPipeline.from_pretrained("fashion-openvino", engine="openvino")  # needs torch's weights no more
pipe("Ankle boot", truncation=0.7, generator=torch.Generator().manual_seed(0)).images[0].save("engine.png")
