"""What autograd keeps of a training forward for its backward pass, beside BigGAN-PyTorch: the same on every device.

python benchmarks/saved_memory.py --biggan_pytorch PATH --channels 96 --batch_size 8
"""

import argparse
import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import positive, run
from peers import import_checkout
from torch import Tensor, nn

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel


def saved_bytes(network: nn.Module, forward: Callable[[], object]) -> int:
    """Of distinct tensors, parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in parameters)


def originals(args: argparse.Namespace, config: BigGANConfig) -> tuple[nn.Module, nn.Module]:
    """Both networks as the original's launch script for 128 pixels builds them."""
    (program,) = import_checkout(args.biggan_pytorch, "BigGAN")
    shared = {"resolution": config.image_size, "n_classes": config.num_labels, "skip_init": True, "no_optim": True}
    generator = {"G_ch": args.channels, "dim_z": config.z_dim, "G_attn": "64", "G_shared": True, "shared_dim": 128}
    with contextlib.redirect_stdout(io.StringIO()):
        return (
            program.Generator(**generator, hier=True, G_activation=nn.ReLU(inplace=True), **shared),
            program.Discriminator(D_ch=args.channels, D_attn="64", D_activation=nn.ReLU(inplace=True), **shared),
        )


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--biggan_pytorch", type=Path, metavar="FOLDER", help="a checkout of BigGAN-PyTorch")
    arguments.add_argument("--channels", type=positive, default=96, help="base width (default: 96)")
    arguments.add_argument("--batch_size", type=positive, default=8, help="images (default: 8)")
    args = arguments.parse_args(argv)
    widths = {"generator_base_channels": args.channels, "discriminator_base_channels": args.channels}
    config = BigGANConfig.preset("biggan-128", **widths)
    latents, labels = torch.randn(args.batch_size, config.z_dim), torch.arange(args.batch_size)
    pictures = torch.randn(args.batch_size, config.num_channels, config.image_size, config.image_size)
    for name, theirs, ours, inputs in zip(
        ("generator", "discriminator"),
        originals(args, config),
        (BigGANModel(config), BigGANDiscriminator(config)),
        (latents, pictures),
        strict=True,
    ):
        condition = theirs.get_submodule("shared")(labels) if name == "generator" else labels
        left = saved_bytes(theirs.train(), partial(theirs, inputs, condition)) / 2**20
        right = saved_bytes(ours.train(), partial(ours, inputs, labels)) / 2**20
        print(f"| {name} | {left:,.0f} | {right:,.0f} | {right / left:.2f} |")


if __name__ == "__main__":
    run(main)
