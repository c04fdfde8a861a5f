"""Decode a data set once, so that every pass over it is fast.

Writes the pictures of a data set, cropped and resized, into a folder that --dataset_name takes for the data set. A
call that was stopped goes on; a call on a finished folder checks every file, and mends what is missing or has changed.

examples:
  biggan-hf prepare imagenet-1k --image_size 128 --output imagenet-128
  biggan-hf prepare pictures --image_size 64 128 --dataset_split train validation --output prepared
  biggan-hf prepare ILSVRC128.hdf5 --image_size 128 --output imagenet-128
"""

import argparse

from ..before_torch import usable_cores
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a folder, a Hub id, BigGAN-PyTorch's .hdf5, or what else --dataset_name takes"
    parser.add_argument("source", metavar="SOURCE", help=what)
    group = parser.add_argument_group("the pictures")
    text = "px; several are made from one reading"
    group.add_argument("--image_size", type=int, nargs="+", required=True, metavar="N", help=text)
    text = "3 for RGB or 1 for grey (default: %(default)s)"
    group.add_argument("--num_channels", type=int, choices=[1, 3], default=3, help=text)
    group.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a data set that has several")
    text = "whole splits (default: train)"
    group.add_argument("--dataset_split", nargs="+", default=["train"], metavar="SPLIT", help=text)
    group.add_argument("--image_column", metavar="NAME", help="default: the only column of images")
    group.add_argument("--label_column", metavar="NAME", help="default: found by its type; 'none' for no labels")
    text = "leave out and name a picture that can't be read, or stop (default: %(default)s)"
    group.add_argument("--on_unreadable_image", choices=["skip", "error"], default="skip", help=text)
    common.add_number(group, "--num_workers", usable_cores(), "processes that decode and write", least=0)
    group = common.add_output_arguments(parser, "FOLDER", "where the pictures go")
    text = "take the folder over from a process that is dead, which the lock does not show"
    group.add_argument("--force_unlock", action="store_true", help=text)


def run(args: argparse.Namespace) -> None:
    from ..data import prepare  # `datasets` is slow to import, and the other commands do without

    prepare(
        args.source,
        args.output,
        args.image_size,
        num_channels=args.num_channels,
        splits=args.dataset_split,
        dataset_config_name=args.dataset_config_name,
        image_column=args.image_column,
        label_column=args.label_column,
        on_unreadable_image=args.on_unreadable_image,
        num_workers=args.num_workers,
        overwrite=args.overwrite,
        force_unlock=args.force_unlock,
    )
    print(f"{args.output}\nUse them: --dataset_name {args.output}")
