"""`biggan-hf npz`: many images in one file, for metric tools."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import common


if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from ..pipeline_biggan import BigGANPipeline


HELP = "many images in one .npz file"
DESCRIPTION = "Generates images for metric tools: x, uint8 (N, H, W, channels), and y, int64 (N,)."
EXAMPLES = """\
examples:
  biggan-hf npz user/biggan --num_images 50000 --output samples.npz
  biggan-hf npz user/biggan --classes tiger goldfish --num_images 1000 --truncation 0.5 --output two-classes.npz
"""

IMAGES_AT_A_TIME = 1024  # drawn and written together; a fixed number, so that no image depends on the batch size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    group = parser.add_argument_group("the images")
    common.add_number(group, "--num_images", 50_000, "images in all")
    group.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="names or ids, taken in turn (default: a random one each)"
    )
    common.add_drawing_arguments(group, mode=True)
    common.add_output_arguments(parser, "FILE.npz", "where the images go")


def run(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from ..media import save_npz

    pipe = common.checked_pipeline(args, ".npz")
    with tqdm(total=args.num_images, unit="image", delay=1) as bar:  # not before a mistake can be reported
        save_npz(_batches(pipe, args, bar), args.num_images, args.output)
    print(args.output)


def _batches(
    pipe: "BigGANPipeline", args: argparse.Namespace, bar: "tqdm"
) -> "Iterator[tuple[np.ndarray, np.ndarray | None]]":
    options = common.drawing_options(args)
    classes = None if args.classes is None else common.class_ids(pipe, args.classes)
    for start in range(0, args.num_images, IMAGES_AT_A_TIME):
        images = range(start, min(start + IMAGES_AT_A_TIME, args.num_images))
        output = pipe(
            None if classes is None else [classes[i % len(classes)] for i in images],
            num_images_per_prompt=len(images) if classes is None else 1,
            output_type="uint8",
            progress_bar=False,
            **options,
        )
        yield output.images, None if output.class_labels is None else output.class_labels.cpu().numpy()
        bar.update(len(images))
