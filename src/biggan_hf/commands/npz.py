"""Write many images into one .npz file.

Generates images for metric tools: x, uint8 (N, H, W, channels), and y, int64 (N,).

examples:
  biggan-hf npz user/biggan --num_images 50000 --output samples.npz
  biggan-hf npz user/biggan --classes tiger goldfish --num_images 1000 --truncation 0.5 --output two-classes.npz
"""

import argparse
from collections.abc import Iterator

import numpy as np
from tqdm.auto import tqdm

from ..bars import open_bar
from ..media import save_npz
from ..pipeline_biggan import BigGANPipeline
from . import common


IMAGES_AT_A_TIME = 1024  # drawn and written together; a fixed number, so that no image depends on the batch size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, engines=True)
    group = parser.add_argument_group("the images")
    common.add_number(group, "--num_images", 50_000, "images in all")
    text = "names or ids, taken in turn (default: a random one each)"
    group.add_argument("--classes", nargs="+", metavar="CLASS", help=text)
    common.add_drawing_arguments(group, mode=True)
    common.add_output_arguments(parser, "FILE.npz", "where the images go")


def run(args: argparse.Namespace) -> None:
    pipe = common.checked_pipeline(args, ".npz")
    with open_bar(total=args.num_images, unit="image", delay=1) as bar:  # not before a mistake can be reported
        save_npz(_batches(pipe, args, bar), args.num_images, args.output)
    print(args.output)


def _batches(
    pipe: BigGANPipeline, args: argparse.Namespace, bar: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    options = {"output_type": "uint8", "progress_bar": False, **common.drawing_options(args)}
    classes = None if args.classes is None else common.class_ids(pipe, args.classes)
    for start in range(0, args.num_images, IMAGES_AT_A_TIME):
        images = range(args.num_images)[start : start + IMAGES_AT_A_TIME]
        if classes is None:
            output = pipe(num_images_per_prompt=len(images), **options)
        else:
            output = pipe([classes[i % len(classes)] for i in images], **options)
        yield output.images, None if output.class_labels is None else output.class_labels.cpu().numpy()
        bar.update(len(images))
