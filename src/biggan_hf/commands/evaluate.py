"""Measure a model against real images.

Measures FID, KID, MIND, IS, precision and more of a model's samples, and reports all that these numbers depend on.

examples:
  biggan-hf evaluate user/biggan --dataset_name uoft-cs/cifar10 --output cifar10.json
  biggan-hf evaluate user/biggan --dataset_name user/photos --extractor lite0 --truncations 0.4 1 --output curve.json
"""

import argparse
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from ..class_names import match_classes, names_of
from ..devices import check_device, device_or_best
from ..evaluation import GeneratedImages, ImageArray, ImageSource, Measurements, RealImages, Report
from ..evaluation.curves import FIGURES, marked_points, plot_curve, truncation_in_words, write_csv
from ..evaluation.extractors import load_extractor
from ..evaluation.measuring import evaluate_all, foreign_classes, in_words, measure_real
from ..evaluation.reports import add_to_card, read_card, write_eval_results, write_json
from ..evaluation.settings import METRICS, EvaluationSettings
from ..evaluation.statistics import read_moments, write_moments
from ..processes import is_main_process, joined
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser, f"{common.MODEL}, or an .npz of samples", engines=True)
    _add_reference(parser.add_argument_group("the real images"))
    _add_samples(parser.add_argument_group("the samples"))
    _add_measures(parser.add_argument_group("the measures"))
    text = "where the numbers and their protocol go; a curve beside it"
    group = common.add_output_arguments(parser, "FILE.json", text, required=False)
    group.add_argument(
        "--update_card", action="store_true", help="add the numbers to MODEL/README.md and .eval_results/"
    )
    text = "keeps statistics of real images and unfinished passes"
    group.add_argument(
        "--cache_dir", type=Path, default=Path(HF_HOME) / "biggan_hf" / "evaluation", metavar="FOLDER", help=text
    )


def _add_reference(group: common.Group) -> None:
    common.add_dataset_arguments(group, required=False)
    group.add_argument("--label_column", metavar="NAME", help="default: found by its type")
    common.add_number(group, "--reference_images", None, "a random choice (default: all)")
    text = "crop, resize and turn to grey or RGB what is unlike the samples"
    group.add_argument("--convert", action="store_true", help=text)
    text = "mu and sigma of the real images, in place of --dataset_name"
    group.add_argument("--moments", type=Path, metavar="FILE.npz", help=text)
    group.add_argument("--save_moments", type=Path, metavar="FILE.npz", help="write mu and sigma of the real images")
    text = "also real images against real images: another split, or 'rest' of the same one; a curve marks its IS"
    group.add_argument("--floor", metavar="SPLIT", help=text)
    common.add_number(group, "--num_workers", 0, "processes that decode real images", least=0)


def _add_samples(group: common.Group) -> None:
    common.add_number(group, "--num_images", 50_000, "samples")
    group.add_argument("--weights", choices=["ema", "live"], default="ema", help="of a checkpoint (default: ema)")
    text = "numbers or 'none'; several give a curve, .csv and .png (default: none)"
    group.add_argument("--truncations", nargs="+", type=_truncation, default=[None], metavar="T", help=text)
    common.add_truncation_mode_argument(group)
    common.add_seed_argument(group)
    common.add_number(group, "--batch_size", 64, "images at a time")


def _add_measures(group: common.Group) -> None:
    text = "inception, inception-torchvision (BigGAN-PyTorch's), lite0, lite2, a TorchScript file or module:function"
    group.add_argument("--extractor", default="inception", metavar="NAME", help=f"{text} (default: %(default)s)")
    default = list(EvaluationSettings.metrics)
    text = f"of {', '.join(METRICS)} (default: {' '.join(default)})"
    group.add_argument("--metrics", nargs="+", choices=METRICS, default=default, metavar="NAME", help=text)
    text = "allow fewer images than FID, FWD and IS need"
    group.add_argument("--allow_few_images", action="store_true", help=text)


def run(args: argparse.Namespace) -> None:
    args.truncations = list(dict.fromkeys(args.truncations))
    settings = EvaluationSettings(
        metrics=tuple(args.metrics),
        batch_size=args.batch_size,
        allow_few_images=args.allow_few_images,
        cache_dir=args.cache_dir,
    )
    _check_samples(args)
    _check_reference(args)
    _check_written(args)
    check_device(args.device)
    device = device_or_best(args.device)
    with joined(device.startswith("cuda")):
        samples = _samples(args)
        extractor = load_extractor(args.extractor, device, image_size=samples[0].image_shape[1])
        reference, floor = _reference(args, samples[0])
        if "intra_class_fid" not in settings.metrics:  # which needs pictures of all classes, or is refused
            samples = _of_classes_with_pictures(samples, reference)
        reports = evaluate_all(samples, reference, extractor, settings, floor)
        if args.save_moments is not None:  # after all that may be refused; with a cache, this is no second pass
            moments = measure_real(reference, extractor, settings)
            if is_main_process():
                write_moments(moments, args.save_moments)
        if is_main_process():
            _write(args, reports)


def _samples(args: argparse.Namespace) -> list[ImageSource]:
    """A source for each truncation."""
    if args.model.endswith(".npz"):
        return [ImageArray.from_npz(args.model, args.num_images)]
    folder = args.model if args.weights == "ema" else str(Path(args.model) / "generator")
    model = common.load_pipeline(args, folder).model
    options = {"name": args.model, "weights": args.weights, "truncation_mode": args.truncation_mode}
    options["global_step"] = model.saved_step
    return [GeneratedImages(model, args.num_images, args.seed, t, **options) for t in args.truncations]


def _reference(
    args: argparse.Namespace, samples: ImageSource
) -> tuple[ImageSource | Measurements, ImageSource | None]:
    """The real images, or their moments, and other real images for the floor."""
    if args.moments is not None:
        return read_moments(args.moments), None
    reference = _open(args, samples, args.dataset_split, args.reference_images)
    if is_main_process():
        _tell(reference, samples)
    floor = None
    if args.floor == "rest":
        floor = reference.rest(args.num_images)
    elif args.floor is not None:
        floor = _open(args, samples, args.floor, args.num_images, at_most=True)
    for real in (reference, floor):
        if real is not None and not args.convert:
            real.check_stored()
    return reference, floor


def _open(
    args: argparse.Namespace, samples: ImageSource, split: str, number: int | None, at_most: bool = False
) -> RealImages:
    """
    So many real images (default all) of the samples' size and channels; with `at_most`, fewer where there are no more.
    """
    from ..data import load_labelled_images

    channels, size, width = samples.image_shape
    if width != size:
        raise ValueError(
            f"the samples are {in_words(samples.image_shape)}, and real images are read as squares: crop the samples "
            f"to squares, or measure them against --moments"
        )
    images = load_labelled_images(
        args.dataset_name,
        image_size=size,
        num_channels=channels,
        dataset_config_name=args.dataset_config_name,
        split=split,
        image_column=args.image_column,
        label_column=args.label_column,
        on_unreadable_image="error",  # a picture that stands in for another would be counted twice
    )
    if number is not None and at_most:
        number = min(number, len(images))
    real = RealImages(images, number, name=args.dataset_name, split=split, num_workers=args.num_workers)
    if real.conversion is not None and not args.convert:
        raise ValueError(
            f"the samples are {in_words(samples.image_shape)}, {args.dataset_name} holds {real.stored_in_words}: "
            f"--convert makes them alike ({real.conversion})"
        )
    return real


def _tell(reference: RealImages, samples: ImageSource) -> None:
    """What was found in the data set, as a training says it."""
    from ..data.describing import found_rows, found_unusual, lines_of, printable

    rows = [row._replace(text=printable(row.text)) for row in found_rows(reference.images, reference.name) if row.text]
    unusual = [printable(sentence) for sentence in found_unusual(reference.images)]
    if foreign := foreign_classes(samples, reference):
        unusual.append(printable(f"{foreign}. These images count too."))
    print("\n".join([*lines_of(rows, unusual, most=2), ""]))


def _of_classes_with_pictures(samples: list[ImageSource], reference: ImageSource | Measurements) -> list[ImageSource]:
    """The samples without the classes of which the reference has no picture; as they are if no class matches."""
    generated = [source for source in samples if isinstance(source, GeneratedImages)]
    if not generated or not isinstance(reference, RealImages) or generated[0].labels is None:
        return samples
    there, here = reference.images.class_names, names_of(generated[0].model.config.id2label)
    filled = set(reference.images.contents.filled_classes)
    classes = [label for label, row in enumerate(match_classes(there, here).rows) if row in filled]
    if there and not classes and is_main_process():
        print(f"warning: {reference.name} has pictures of none of the model's {len(here)} classes, by their names")
    if not 0 < len(classes) < len(here):
        return samples
    if is_main_process():
        pictures = f"{reference.name} has pictures of {len(classes)} of the model's {len(here)} classes"
        print(f"{pictures}: the samples are of these")
    return [replace(source, classes=classes) for source in generated]


def _write(args: argparse.Namespace, reports: list[Report]) -> None:
    for report in reports:
        print(report.table() + "\n")
    if args.output is not None:
        write_json(reports, args.output)
    if args.update_card:
        add_to_card(reports[0], Path(args.model) / "README.md", Path(args.model).resolve().name)
        write_eval_results(reports[0], Path(args.model))
    if len(reports) > 1:
        write_csv(reports, args.output.with_suffix(".csv"))
        plot_curve(reports, args.output.with_suffix(".png"))
        for name, index in marked_points(reports).items():
            print(f"{name}: truncation {truncation_in_words(reports[index])}")
    if args.output is not None:
        print(args.output)


# Mistakes in the arguments, which are reported before the work


def _check_samples(args: argparse.Namespace) -> None:
    several = len(args.truncations) > 1
    if args.model.endswith(".npz") and (args.truncations != [None] or args.weights != "ema" or args.update_card):
        raise ValueError(f"{args.model!r} holds images: --truncations, --weights and --update_card have no meaning")
    if args.model.endswith(".npz") and (args.engine or args.precision):
        raise ValueError(f"{args.model!r} holds images: --engine and --precision have no meaning")
    if args.weights == "live" and not (Path(args.model) / "generator").is_dir():
        raise FileNotFoundError(
            f"--weights live: {args.model!r} is no folder with a folder 'generator', as a training checkpoint is"
        )
    if several and (args.output is None or args.update_card):
        raise ValueError("several truncations give a curve: they need --output and exclude --update_card")
    if several and find_spec("matplotlib") is None:
        raise ImportError('a curve needs matplotlib: pip install "biggan_hf[eval]"')


def _check_reference(args: argparse.Namespace) -> None:
    if (args.dataset_name is None) == (args.moments is None):
        raise ValueError("name the real images with --dataset_name, or their moments with --moments")
    if args.moments is not None and (args.floor or args.save_moments):
        raise ValueError("--floor and --save_moments need --dataset_name: a file of moments holds no images")
    if args.floor is not None and args.floor == args.dataset_split:
        raise ValueError(
            f"--floor {args.floor} holds the real images themselves: --floor rest measures those that are left of them"
        )
    if args.save_moments is not None and "fid" not in args.metrics:
        raise ValueError(f"--save_moments needs the metric 'fid', got {', '.join(args.metrics)}")


def _check_written(args: argparse.Namespace) -> None:
    if args.output is not None:
        common.check_output(args.output, [".json"], args.overwrite)
        for suffix in (".csv", *FIGURES) if len(args.truncations) > 1 else ():
            common.check_output(args.output.with_suffix(suffix), [suffix], args.overwrite)
    if args.save_moments is not None:
        common.check_output(args.save_moments, [args.save_moments.suffix.lower()], args.overwrite)
    if args.update_card:
        card = Path(args.model) / "README.md"
        if not card.is_file():
            raise FileNotFoundError(f"--update_card: {args.model!r} is no local folder with a README.md")
        read_card(card)


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
