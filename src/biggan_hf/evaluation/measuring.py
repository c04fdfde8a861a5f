"""From samples, real images and an extractor to a report."""

import datetime
import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..class_names import has_no_names, match_classes, names_of
from ..processes import from_main, is_main_process, num_processes
from ..words import abbreviated, counted
from .classifying import accuracy_of_classifier
from .comparing import Comparison, frechet_distance_of, label, mean_and_deviation
from .extractors import FeatureExtractor
from .metrics import DENSITY_NEIGHBOURS, NEIGHBOURS, PROJECTIONS, check_enough
from .reports import Measure, Report
from .resampling import DRAWS, HALF, SIDE
from .settings import OF_CLASSES, OF_FEATURES, OF_FLOOR, EvaluationSettings
from .sources import GeneratedImages, ImageSource, RealImages
from .statistics import Measurements, forget, measure, splits_of
from .wavelets import packets_shape


logger = logging.getLogger(__name__)

PACKAGES = ("biggan_hf", "torch", "torchmetrics", "numpy", "pillow", "datasets")


def evaluate(
    samples: ImageSource,
    reference: ImageSource | Measurements,
    extractor: FeatureExtractor,
    settings: EvaluationSettings = EvaluationSettings(),  # noqa: B008  # frozen
    floor: ImageSource | None = None,
) -> Report:
    """
    Measures samples against real images. Under `torch.distributed` (which `accelerate` initialises) every process
    calls this; each image is counted once, and all processes get the report.

    Args:
        samples: A `GeneratedImages`, or an `ImageArray` of another program's samples.
        reference: A `RealImages`, or what `measure` or `read_moments` returned.
        extractor: What `load_extractor` returned: from uint8 images to features.
        settings: What is measured, and on how many images.
        floor: Other real images, measured against the reference like the samples. No generator can be expected to
            come below their distance.

    Returns:
        The numbers, each with its interval, and the protocol.

    Raises:
        ValueError: Samples and real images of different shapes or classes, or fewer images than a measure needs.
    """
    return evaluate_all([samples], reference, extractor, settings, floor)[0]


def evaluate_all(
    samples: Sequence[ImageSource],
    reference: ImageSource | Measurements,
    extractor: FeatureExtractor,
    settings: EvaluationSettings = EvaluationSettings(),  # noqa: B008  # frozen
    floor: ImageSource | None = None,
) -> list[Report]:
    """
    As `evaluate`, for several sets of samples such as those of a truncation curve. The real images are measured
    once; with a `cache_dir`, finished passes over samples are kept until all sets are measured.
    """
    evaluation = _Evaluation(reference, floor, extractor, settings)
    for source in samples:
        evaluation.check(source)
    real = other = None
    if set(settings.metrics) != {"intra_class_fid"}:
        real = measure_real(reference, extractor, settings)
    if floor is not None:
        other = measure_real(floor, extractor, settings, "floor")
    reports = [evaluation.report(source, real, other) for source in samples]
    forget(file for file in evaluation.files if file is not None)
    return reports


def measure_real(
    source: ImageSource | Measurements, extractor: FeatureExtractor, settings: EvaluationSettings, title: str = ""
) -> Measurements:
    """The statistics of real images, from the cache if they are there."""
    if isinstance(source, Measurements):
        return source
    return measure(source, extractor, **settings.pass_options, title=title or "real images")


@dataclass
class _Evaluation:
    """
    All but the samples, as for `evaluate`. `files` collects where finished passes over samples are stored, `told` what
    was warned of: the sets of a curve are as many, and the real images are the same ones.
    """

    reference: ImageSource | Measurements
    floor: ImageSource | None
    extractor: FeatureExtractor
    settings: EvaluationSettings
    files: list[Path | None] = field(default_factory=list)
    told: set[tuple[str, int]] = field(default_factory=set)

    # Measures

    def report(self, samples: ImageSource, real: Measurements | None, floor: Measurements | None) -> Report:
        """The first process computes it; all processes get it."""
        protocol, measures = self.protocol(samples), list[Measure]()
        if real is not None:
            fake = self._measure_samples(samples, self.settings, "samples")
            known = not isinstance(self.reference, Measurements) or self.reference.extractor is not None
            comparison = Comparison(self.settings, self.extractor, known)
            measures = comparison.measures(real, fake, floor) if is_main_process() else []
            if "accuracy" in self.settings.metrics and is_main_process():
                measures += self._accuracies(samples, real, fake)
        if "intra_class_fid" in self.settings.metrics:
            measures.append(self._intra_class_distance(samples))
        return from_main(Report(measures, protocol))

    def _measure_samples(self, samples: ImageSource, settings: EvaluationSettings, title: str) -> Measurements:
        measured = measure(samples, self.extractor, **settings.pass_options, title=title)
        self.files.append(measured.file)
        return measured

    def _accuracies(self, samples: ImageSource, real: Measurements, fake: Measurements) -> list[Measure]:
        """
        Of a classifier that learnt from samples, and of one that learnt from as many real images, on other real
        images of the model's classes: half of those whose features are kept.
        """
        assert isinstance(samples, GeneratedImages) and isinstance(self.reference, RealImages)
        assert samples.labels is not None and real.kept is not None and fake.kept is not None
        images, classes = self.reference.images, self._classes_of_reference(samples)[0]
        assert images.labels is not None
        of_model = torch.full((len(images.class_names),), -1)
        of_model[classes] = torch.arange(len(classes))
        labels = of_model[images.labels[self.reference.rows[real.kept_rows]]]
        known = (labels >= 0).nonzero().squeeze(1)
        known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]
        train, test = known.tensor_split(2)
        number = min(len(train), len(fake.kept))
        measures = []
        for key, name, features, its_labels in (
            ("accuracy", "trained on samples", fake.kept[:number], samples.labels[fake.kept_rows[:number]]),
            ("reference_accuracy", "trained on real images", real.kept[train[:number]], labels[train[:number]]),
        ):
            share = accuracy_of_classifier(features, its_labels, real.kept[test], labels[test], len(classes))
            side = SIDE * (share * (1 - share) / len(test)) ** 0.5  # of a share of so many pictures
            interval = (max(share - side, 0.0), min(share + side, 1.0)) if self.settings.intervals else None
            text = f"{label('accuracy', self.extractor)}, {name}"
            measures.append(Measure(key, text, share, interval=interval, num_images=number))
        return measures

    def _intra_class_distance(self, samples: ImageSource) -> Measure:
        """Class by class, so that memory holds the moments of one class; as many samples as real images of each."""
        assert isinstance(samples, GeneratedImages)
        # Without intervals: twenty more distances for each of a thousand classes would take days.
        moments = replace(self.settings, metrics=("fid",), intervals=False)
        distances = []
        for class_label, images in enumerate(self._real_classes(samples)):
            real = measure_real(images, self.extractor, moments, f"real images of class {class_label}")
            generated = samples.of_class(class_label, len(images))
            fake = self._measure_samples(generated, moments, f"samples of class {class_label}")
            distances.append(frechet_distance_of(real, fake) if is_main_process() else torch.nan)
        values = torch.tensor(distances, dtype=torch.float64)
        return Measure("intra_class_fid", label("intra_class_fid", self.extractor), *mean_and_deviation(values))

    def _real_classes(self, samples: ImageSource) -> list[RealImages]:
        """The real images of each of the model's classes; raises `ValueError` where there are none of one."""
        classes = self._classes_of_reference(samples)[0]
        assert isinstance(self.reference, RealImages)
        return [self.reference.of_class(class_label) for class_label in classes]

    def _classes_of_reference(self, samples: ImageSource) -> tuple[list[int], str]:
        """For each class of the model the label in the data set, and in words how they were matched."""
        what = next(name for metric, name in OF_CLASSES.items() if metric in self.settings.metrics)
        if not isinstance(samples, GeneratedImages) or samples.labels is None:
            raise ValueError(f"{what} needs a generator with classes")
        if not isinstance(self.reference, RealImages):
            raise ValueError(f"{what} needs a data set with labels as its reference, not a file of moments")
        name, there = self.reference.name, self.reference.images.class_names
        if self.reference.images.labels is None:
            raise ValueError(f"{name} has no labels, which {what} needs")
        here = names_of(samples.model.config.id2label)
        rows, how = match_classes(there, here)
        if how == "position" and len(here) != len(there):
            raise ValueError(
                f"the model has {counted(len(here), 'class')}, {name} has {len(there)}, and one of them no names"
            )
        if missing := [class_name for class_name, row in zip(here, rows, strict=True) if row is None]:
            raise ValueError(
                f"{name} has no class {missing[0]!r} and lacks {counted(len(missing), 'class')} of the model in all: "
                f"its classes are {abbreviated(there)}, the model's {abbreviated(here)}"
            )
        nameless = "the model" if has_no_names(here) else name
        in_words = f"{how}: {nameless} has no names" if how == "position" else how
        return [row for row in rows if row is not None], f"classes matched by {in_words}"

    # The protocol

    def protocol(self, samples: ImageSource) -> dict[str, Any]:
        settings, device = self.settings, self.extractor.device
        protocol: dict[str, Any] = {
            "samples": samples.description,
            "reference": self.reference.description,
            "extractor": {
                **self.extractor.identity,
                "grey": "repeated to RGB" if samples.image_shape[0] == 1 else None,
                "precision": "float32 without TF32, sums in float64",
            },
        }
        if self.floor is not None:
            protocol["floor"] = self.floor.description
        kept = [min(settings.num_kept, _number(source) or 0) for source in (self.reference, samples)]
        subset = min(settings.kid_subset_size, *kept)
        packets, width = packets_shape(samples.image_shape)
        settings_in_words = {
            "kid": f"{settings.kid_subsets} subsets of {subset}" if subset < max(kept) else f"all {subset} images",
            "mind": f"{PROJECTIONS} projections of {min(kept)} images",
            "fwd": f"{counted(packets, 'packet')} of {width} numbers, log(|coefficient| + 1/255)",
            "saturation": "bytes of 0, 1, 254 and 255, black and white each by itself",
            "is": _splits_in_words(splits_of(len(samples), settings.is_splits)),
            "prdc": f"{NEIGHBOURS} neighbours for precision and recall, {DENSITY_NEIGHBOURS} for the others",
        }
        protocol |= {metric: words for metric, words in settings_in_words.items() if metric in settings.metrics}
        if settings.keeps_features:
            protocol["features_of"] = f"{kept[0]} real images and {kept[1]} samples, for all but FID, FWD and IS"
        if settings.intervals:
            protocol["intervals"] = f"{DRAWS} random halves of each set, each of at most {HALF} images; normal"
        if "intra_class_fid" in settings.metrics:
            _, how = self._classes_of_reference(samples)
            protocol["intra_class_fid"] = f"all real images of each class, and as many samples; {how}"
        if "accuracy" in settings.metrics:
            _, how = self._classes_of_reference(samples)
            protocol["accuracy"] = f"logistic regression on features, tested on half of the real images; {how}"
        if foreign := foreign_classes(samples, self.reference):
            protocol["reference_classes"] = foreign
        protocol["software"] = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
        protocol["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        protocol["processes"] = num_processes()
        protocol["date"] = datetime.date.today().isoformat()
        return protocol

    # What is refused before the first image

    def check(self, samples: ImageSource) -> None:
        metrics = self.settings.metrics
        if "kid" in metrics and find_spec("torchmetrics") is None:
            raise ImportError('the metric kid needs torchmetrics: pip install "biggan_hf[eval]", or leave it out')
        if "is" in metrics and not self.extractor.num_classes:
            raise ValueError(f"extractor {self.extractor.name!r} gives no logits, which IS needs: leave out 'is'")
        if not OF_CLASSES.keys().isdisjoint(metrics):
            classes, _ = self._classes_of_reference(samples)
            assert isinstance(samples, GeneratedImages) and isinstance(self.reference, RealImages)
            assert self.reference.images.labels is not None
            labels = self.reference.images.labels[self.reference.rows]
            number = int(torch.isin(labels, torch.tensor(classes)).sum())
            check_enough("accuracy", number, "the reference, of the model's classes")
            rows = classes if samples.classes is None else [classes[label] for label in samples.classes]
            without = [row for row in rows if row not in labels]
            if "accuracy" in metrics and without:
                name, some = self.reference.name, self.reference.images.class_names[without[0]]
                raise ValueError(
                    f"accuracy needs real images of all classes of the samples, and those of {name} that are measured "
                    f"have none of {some!r}: they lack {counted(len(without), 'class')} in all"
                )
        if "intra_class_fid" in metrics:
            for class_label, images in enumerate(self._real_classes(samples)):
                check_enough("intra_class_fid", len(images), f"class {class_label}")
                self._check_covariance(len(images), f"class {class_label}")
        if self.floor is not None and set(OF_FLOOR).isdisjoint(metrics):
            raise ValueError(f"a floor is one of {', '.join(OF_FLOOR)}: ask for one of them, or for no floor")
        if isinstance(self.reference, Measurements):
            self._check_measurements(self.reference)
        for name, source in {"samples": samples, "reference": self.reference, "floor": self.floor}.items():
            if source is None:
                continue
            self._check_number(_number(source), f"the {name}", samples.image_shape)
            if source.image_shape is not None and source.image_shape != samples.image_shape:
                raise ValueError(
                    f"the samples are {in_words(samples.image_shape)}, the {name} {in_words(source.image_shape)}: "
                    f"load the real images like the samples"
                )

    def _check_measurements(self, measurements: Measurements) -> None:
        width, extractor, theirs = len(measurements.mean), self.extractor, measurements.extractor
        if width != extractor.num_features:
            raise ValueError(
                f"the reference has features of width {width}, extractor {extractor.name!r} of "
                f"{extractor.num_features}: it was measured with another one"
            )
        if theirs is not None and not extractor.is_the_same(theirs):
            name, digest = theirs.get("name"), str(theirs.get("sha256"))
            raise ValueError(
                f"the reference was measured with extractor {name} (SHA-256 {digest[:8]}…), not with {extractor.name} "
                f"(SHA-256 {extractor.digest[:8]}…) as it is now: measure it again"
            )
        if unknown := {
            *(OF_FEATURES.intersection(self.settings.metrics) if measurements.kept is None else ()),
            *({"fwd"}.intersection(self.settings.metrics) if measurements.packet_means is None else ()),
            *({"saturation"}.intersection(self.settings.metrics) if measurements.ends is None else ()),
        }:
            raise ValueError(
                f"a file of moments gives only 'fid', and 'is' of the samples, not {' or '.join(sorted(unknown))}"
            )
        if measurements.covariance is None and "fid" in self.settings.metrics:
            raise ValueError("the reference has no covariance, which 'fid' needs")

    def _check_number(self, number: int | None, what: str, shape: tuple[int, int, int]) -> None:
        metrics, classes = self.settings.metrics, self.extractor.num_classes
        if number is None:
            return
        for metric in metrics:
            if metric != "intra_class_fid" and (metric not in ("prdc", "accuracy") or what != "the floor"):
                check_enough(metric, number, what)
        if "fid" in metrics:
            self._check_covariance(number, what)
        if "fwd" in metrics:
            self._check_covariance(number, what, packets_shape(shape)[1], "the wavelet packets")
        if "is" in metrics and number < classes and not self.settings.allow_few_images:
            raise ValueError(
                f"{what}: {number} images are fewer than the {classes} classes of {self.extractor.name}, and bound "
                f"their IS; take more, or allow it with --allow_few_images"
            )
        # Few images do not bias it.
        subset = min(self.settings.kid_subset_size, self.settings.num_kept)
        if "kid" in metrics and number < subset and is_main_process() and (what, number) not in self.told:
            self.told.add((what, number))
            logger.warning("%s: KID of %d images is less exact than that of subsets of %d", what, number, subset)

    def _check_covariance(self, number: int, what: str, width: int = 0, features: str = "") -> None:
        width, features = width or self.extractor.num_features, features or self.extractor.name
        if number < width and not self.settings.allow_few_images:
            raise ValueError(
                f"{what}: {number} images are fewer than the {width} dimensions of {features}, and do not determine "
                f"their covariance; take more, or allow it with --allow_few_images"
            )


# Names and words


def foreign_classes(samples: ImageSource, reference: ImageSource | Measurements) -> str | None:
    """Says which classes with real images the model lacks, where both name their classes or number them."""
    if not isinstance(samples, GeneratedImages) or not isinstance(reference, RealImages) or samples.labels is None:
        return None
    images = reference.images
    rows, how = match_classes(names_of(samples.model.config.id2label), images.class_names)
    foreign = [images.class_names[label] for label in images.contents.filled_classes if rows[label] is None]
    if how == "position" or not foreign:
        return None
    return f"the real images include {counted(len(foreign), 'class')} that the model lacks: {abbreviated(foreign)}"


def in_words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{'grey' if channels == 1 else 'RGB'} images of {height}×{width} px"


def _splits_in_words(number: int) -> str:
    return f"{number} splits, drawn at random" if number > 1 else "1 split"


def _number(source: ImageSource | Measurements) -> int | None:
    return source.num_images if isinstance(source, Measurements) else len(source)


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)  # torch's with its build, ours from a checkout
    try:
        return str(loaded or version(package))
    except PackageNotFoundError:
        return None
