"""Show the pictures of a data set that are closest to samples.

Shows whether the model has memorised pictures. Generates a sheet with a sample a row; right of it stand the pictures
of a data set that are closest to it, in pixels or in the features of a network.

examples:
  biggan-hf neighbours user/biggan --dataset_name uoft-cs/cifar10 --output neighbours.png
  biggan-hf neighbours user/biggan --dataset_name path/to/pictures --extractor lite0 --output tigers.png
"""

import argparse

from ..evaluation import load_extractor
from ..exploring import closest_pictures, uint8_images
from . import common


NEIGHBOURS = 5  # pictures a row: they fit a page beside the sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    common.add_dataset_arguments(parser.add_argument_group("the data set"), required=True)
    group = parser.add_argument_group("the samples")
    common.add_classes_argument(group, "the first 10")
    common.add_images_per_class_argument(group, 1, "samples a class; without classes, samples")
    common.add_drawing_arguments(group)
    group.add_argument(
        "--extractor",
        metavar="NAME",
        help="compare features: lite0, lite2, inception, inception-torchvision, a TorchScript file or module:function "
        "(default: the pixels)",
    )
    group = common.add_output_arguments(parser, "FILE.png", "where the sheet goes")
    common.add_scale_argument(group)


def run(args: argparse.Namespace) -> None:
    pipe = common.checked_pipeline(args, ".png")
    size, extractor = pipe.model.config.image_size, None
    if args.extractor is not None:
        extractor = load_extractor(args.extractor, pipe.device, image_size=size)
    data_set = common.load_pictures(args, pipe.model.config)
    classes, number = common.classes_to_sample(pipe, args.classes), args.images_per_class
    options = common.drawing_options(args)
    samples = uint8_images(pipe, classes, num_images_per_prompt=number, progress_bar=True, **options)
    features = None if extractor is None else lambda images: extractor(images)[0]
    sheet, found = closest_pictures(samples, data_set, NEIGHBOURS, features)
    labels = common.class_names(pipe, classes, number) or None
    titles = ["sample", *map(str, range(1, sheet.shape[1]))]
    common.save_sheet(pipe, args, sheet.flatten(0, 1), len(titles), labels, column_labels=titles)
    print(args.output)
    unit = "in grey levels of 255" if extractor is None else f"of the features of {extractor.name}"
    nearest = ", ".join(f"{distance:.3g}" for distance in found.distances[:, 0].tolist())
    print(f"Root mean square differences to the nearest, {unit}: {nearest}")
