"""Find the latents that come closest to a picture.

Searches for the latents and the class embedding that generate given pictures. A row of the sheet shows a picture, the
random sample that was closest to it, and what the search found from there.

examples:
  biggan-hf invert user/biggan cat.png --output inverted.png
  biggan-hf invert user/biggan cat.png dog.png --classes cat dog --latents found.npz --output inverted.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import write_file
from ..pictures import decode_picture, open_picture
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="of the model's own size")
    text = "take the centre square of pictures of another size, and resize it, as training does"
    parser.add_argument("--convert", action="store_true", help=text)
    group = parser.add_argument_group("the search")
    text = "a name or id for each picture, to start from (default: any)"
    group.add_argument("--classes", nargs="+", metavar="CLASS", help=text)
    common.add_number(group, "--steps", 300, "of descent")
    common.add_seed_argument(group)
    common.add_number(group, "--batch_size", 16, "most pictures or samples at a time")
    group = common.add_output_arguments(parser, "FILE.png", "where the sheet goes")
    common.add_scale_argument(group)
    text = "also write latents, class_embeddings and errors"
    group.add_argument("--latents", type=Path, metavar="FILE.npz", help=text)


def run(args: argparse.Namespace) -> None:
    common.check_output(args.output, [".png"], args.overwrite)
    if args.latents:
        common.check_output(args.latents, [".npz"], args.overwrite)
    if args.classes and len(args.classes) != len(args.pictures):
        raise ValueError(
            f"--classes takes a class for each picture, got {len(args.classes)} for {len(args.pictures)} pictures"
        )
    for path in args.pictures:
        if not path.is_file():
            raise FileNotFoundError(f"there is no picture {str(path)!r}")
    pipe = common.load_pipeline(args)
    config = pipe.model.config
    pictures = torch.stack(
        [_read(path, config.image_size, config.num_channels, args.convert) for path in args.pictures]
    )
    from ..inversion import invert  # here: it brings the networks

    found = invert(
        pipe.model,
        pictures,
        None if args.classes is None else torch.tensor(common.class_ids(pipe, args.classes)),
        num_steps=args.steps,
        generator=torch.Generator().manual_seed(args.seed),
        batch_size=args.batch_size,
    )
    if args.latents:
        arrays = {"latents": found.latents, "class_embeddings": found.class_embeddings, "errors": found.errors}
        given: dict[str, Any] = {name: x.cpu().numpy() for name, x in arrays.items() if x is not None}
        with write_file(args.latents) as unfinished:
            np.savez(unfinished, **given)
        print(args.latents)
    sheet = torch.stack([pictures, found.starts.cpu(), found.images.cpu()], dim=1).flatten(0, 1)
    labels = [path.stem for path in args.pictures]
    common.save_sheet(pipe, args, sheet, 3, labels, column_labels=["picture", "start", "found"])
    print(args.output)


def _read(path: Path, size: int, num_channels: int, convert: bool) -> Tensor:
    """(C, H, W) in [-1, 1], read as for training."""
    cell = {"bytes": path.read_bytes(), "path": None}
    try:
        width, height = open_picture(cell, num_channels).size
        pixels = decode_picture(cell, size, num_channels)
    except ValueError as error:
        raise ValueError(f"unreadable picture {str(path)!r}: {error}") from error
    if (width, height) != (size, size) and not convert:
        raise ValueError(
            f"{str(path)!r} is {width}×{height}, this model's pictures {size}×{size}: --convert takes the centre "
            f"square and resizes it"
        )
    return pixels / 127.5 - 1
