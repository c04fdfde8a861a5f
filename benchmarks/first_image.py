"""Prints the seconds from a checkpoint on disk to the first image, after all imports; `sampling.py` runs it."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from measuring import run, synchronize
from peers import draw, import_checkout, load_biggan_pytorch, sample_biggan_hf

from biggan_hf import BigGANConfig, BigGANModel


@torch.no_grad()
def first_image(source: Path, checkout: Path | None, config: BigGANConfig, device: torch.device) -> float:
    """
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
        network(latents, network.shared(labels))
    else:
        network = BigGANModel.from_pretrained(source)
        sample_biggan_hf(network.to(device), latents, labels)
    synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("source", type=Path, help="checkpoint folder")
    arguments.add_argument("--config", type=Path, required=True, help="folder with the model's config.json")
    arguments.add_argument("--biggan_pytorch", type=Path, help="checkout of BigGAN-PyTorch, to measure that")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--threads", type=int, required=True)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    config = BigGANConfig.from_pretrained(args.config)
    print(first_image(args.source, args.biggan_pytorch, config, torch.device(args.device)))


if __name__ == "__main__":
    run(main)
