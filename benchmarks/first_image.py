"""Prints the seconds from a checkpoint on disk to the first image, after all imports, and writes that image.

`sampling.py` runs it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from measuring import device_name, positive, run, synchronize, tensor_float32
from peers import draw, import_checkout, load_biggan_pytorch, sample_biggan_hf, sample_biggan_pytorch
from torch import Tensor

from biggan_hf import BigGANConfig, BigGANModel


@torch.no_grad()
def first_image(
    source: Path, checkout: Path | None, config: BigGANConfig, device: torch.device
) -> tuple[float, Tensor]:
    """
    The seconds and the image (1, 3, H, W).

    Args:
        source: The converted model's folder, or with a checkout the checkpoint's.
        checkout: Of BigGAN-PyTorch, to measure that program.
        config: Of the model, to draw the input.
        device: Already woken up, as an import is no part of the work.
    """
    latents, labels = draw(config, 1, device)
    if checkout is not None:
        import_checkout(checkout, "BigGAN")
    synchronize(device)
    start = time.perf_counter()
    if checkout is not None:
        network: Any = load_biggan_pytorch(checkout, source).to(device)
        image = sample_biggan_pytorch(network, latents, labels)
    else:
        network = BigGANModel.from_pretrained(source)
        image = sample_biggan_hf(network.to(device), latents, labels)
    synchronize(device)
    return time.perf_counter() - start, image.cpu()


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("source", type=Path, help="checkpoint folder")
    arguments.add_argument("--config", type=Path, required=True, help="folder with the model's config.json")
    arguments.add_argument("--biggan_pytorch", type=Path, help="checkout of BigGAN-PyTorch, to measure that")
    arguments.add_argument("--output", type=Path, required=True, help="file for the image's tensor")
    arguments.add_argument("--device", type=device_name, default="cpu")
    arguments.add_argument("--threads", type=positive, required=True)
    arguments.add_argument("--tf32", action="store_true")
    args = arguments.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # the same latents for both programs
    config = BigGANConfig.from_pretrained(args.config)
    with tensor_float32(args.tf32):
        seconds, image = first_image(args.source, args.biggan_pytorch, config, torch.device(args.device))
    torch.save(image, args.output)
    print(seconds)


if __name__ == "__main__":
    run(main)
