"""Train a model.

`biggan-hf train --help` lists the options. `python train.py` is the same program.

examples:
  biggan-hf train --preset cifar10 --dataset_name uoft-cs/cifar10 --output_dir cifar10
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="the options of the training")


def run(args: argparse.Namespace) -> None:
    from ..training import program  # here: the other commands do without accelerate

    program(args.rest)
