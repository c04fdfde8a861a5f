"""From samples, real images and an extractor to a report."""

import datetime
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..latents import TruncationMode
from ..processes import from_main, is_main_process, num_processes
from .extractors import FeatureExtractor
from .metrics import DENSITY_NEIGHBOURS, NEIGHBOURS, frechet_distance, kernel_distance, manifold_scores
from .reports import Measure, Report
from .sources import GeneratedImages, ImageSource, RealImages
from .statistics import Measurements, forget, measure


if TYPE_CHECKING:
    from ..data import LabelledImages

METRICS = ("fid", "kid", "is", "prdc", "intra_class_fid")
PACKAGES = ("biggan_hf", "torch", "torchmetrics", "numpy", "pillow", "datasets")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    Args:
        metrics: Of `"fid"`, `"kid"`, `"is"`, `"prdc"` (precision, recall, density, coverage) and `"intra_class_fid"`
            (FID within each class, the mean over classes; a pass of its own).
        batch_size: Images at a time.
        num_kept: Images of each set whose features are kept, for KID and precision to coverage.
        kid_subsets: Draws of KID.
        kid_subset_size: Images in each.
        is_splits: Parts of the set for each of which there is an IS.
        allow_few_images: Measures a Fréchet distance on fewer images than the features are wide.
        cache_dir: Keeps the real side's statistics, and lets an interrupted evaluation go on. `None` for neither.

    What no metric needs is not gathered: products of features serve the Fréchet distances, single ones KID and
    precision to coverage.
    """

    metrics: tuple[str, ...] = ("fid", "kid", "is", "prdc")
    batch_size: int = 64
    num_kept: int = 10_000
    kid_subsets: int = 100
    kid_subset_size: int = 1_000
    is_splits: int = 10
    allow_few_images: bool = False
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; expected {', '.join(METRICS)}")
        if not self.metrics:
            raise ValueError(f"no metric was asked for; expected some of {', '.join(METRICS)}")
        for name in ("batch_size", "num_kept", "kid_subsets", "kid_subset_size", "is_splits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_kept", "kid_subset_size") if "kid" in self.metrics else ():
            if getattr(self, name) < 2:
                raise ValueError(f"KID needs pairs of images: {name} must be at least 2, got {getattr(self, name)}")
        for folder in [] if self.cache_dir is None else [self.cache_dir, *self.cache_dir.parents]:
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"the cache {str(self.cache_dir)!r}: {str(folder)!r} is a file, expected a folder")

    @property
    def keeps_features(self) -> bool:
        return not {"kid", "prdc"}.isdisjoint(self.metrics)

    @property
    def takes_whole_sets(self) -> bool:
        """Whether a pass over all images is needed, and not only one over each class."""
        return set(self.metrics) != {"intra_class_fid"}

    @property
    def pass_options(self) -> dict[str, Any]:
        """For `measure`."""
        return {
            "num_kept": self.num_kept if self.keeps_features else 0,
            "num_splits": self.is_splits,
            "covariance": "fid" in self.metrics,
            "batch_size": self.batch_size,
            "cache_dir": self.cache_dir,
        }


def evaluate(
    samples: ImageSource,
    reference: ImageSource | Measurements,
    extractor: FeatureExtractor,
    settings: EvaluationSettings = EvaluationSettings(),  # noqa: B008  # frozen
    floor: ImageSource | None = None,
) -> Report:
    """
    Measures samples against real images. Under `torch.distributed` (which `accelerate` initialises) every process
    calls this; each image is counted once, and all get the report.

    Args:
        samples: A `GeneratedImages`, or an `ImageArray` of another program's samples.
        reference: A `RealImages`, or what `measure` or `read_moments` made of one before.
        extractor: As `load_extractor` gives it.
        settings: What is measured and how.
        floor: Other real images, measured against the reference like the samples: no generator can be expected below.

    Raises:
        ValueError: Too few images, grey against RGB, another size, NaN, a measure that the extractor or the reference
            can't give.
        ImportError: torchmetrics is missing, for KID.
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
    As [`evaluate`], for several sets of samples such as those of a truncation curve: the real side is measured once,
    and with a `cache_dir` finished passes are kept until all sets are measured.
    """
    for source in samples:
        _check(source, reference, floor, extractor, settings)
    real = measure_real(reference, extractor, settings) if settings.takes_whole_sets else None
    other = None if floor is None else measure_real(floor, extractor, settings, "floor")
    reports, files = [], list[Path | None]()
    for source in samples:
        protocol = _protocol(source, reference, floor, extractor, settings)
        fake = None
        if real is not None:
            fake = measure(source, extractor, **settings.pass_options, title="samples")
            files.append(fake.file)
        within = _class_distances(source, reference, extractor, settings, files)
        reports.append(_report(real, fake, other, within, protocol, extractor, settings))
    forget(file for file in files if file is not None)
    return reports


def evaluate_generator(
    model: Any,
    images: "LabelledImages",
    extractor: FeatureExtractor,
    *,
    num_images: int = 10_000,
    seed: int = 0,
    truncation: float | None = None,
    truncation_mode: TruncationMode | None = None,
    settings: EvaluationSettings = EvaluationSettings(metrics=("fid",)),  # noqa: B008  # frozen
) -> dict[str, float]:
    """
    The numbers of a generator by their labels, for a training loop; every process calls it.

    Args:
        model (`BigGANModel`): In whatever mode; it is sampled in eval mode.
        images: The real side.
        extractor: On the model's device; load it once.
        num_images: Samples.
        seed: Of latents and labels, the same each time.
        truncation: As for `BigGANModel.sample`.
        truncation_mode: As for `BigGANModel.sample`.
        settings: As for [`evaluate`]; with a `cache_dir` the real images are measured once.
    """
    samples = GeneratedImages(model, num_images, seed, truncation, truncation_mode)
    return evaluate(samples, RealImages(images), extractor, settings).values


def measure_real(
    source: ImageSource | Measurements,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
    title: str = "real images",
) -> Measurements:
    """The real side, from the cache where it is there."""
    if isinstance(source, Measurements):
        return source
    return measure(source, extractor, **settings.pass_options, title=title)


# Measures


def _report(
    real: Measurements | None,
    fake: Measurements | None,
    floor: Measurements | None,
    within: list[Measure],
    protocol: dict[str, Any],
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> Report:
    """The first process computes it; all processes get it."""
    measures = within
    if is_main_process() and real is not None and fake is not None:
        measures = [*_compare(real, fake, floor, extractor, settings), *within]
    return from_main(Report(measures, protocol))


def _compare(
    real: Measurements,
    fake: Measurements,
    floor: Measurements | None,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> list[Measure]:
    measures = _distances(real, fake, extractor, settings)
    if "is" in settings.metrics:
        name = label("is", extractor)
        measures.append(_inception_score(fake, "is", name))
        for key, what, others in (("reference_is", "real images", real), ("floor_is", "floor", floor)):
            if others is not None and others.class_scores is not None:
                split = others.description.get("split") or others.description["source"]
                number = "" if others.num_images == fake.num_images else f", {others.num_images} images"
                measures.append(_inception_score(others, key, f"{name} of the {what} ({split}{number})"))
    if "prdc" in settings.metrics:
        assert real.kept is not None and fake.kept is not None
        scores = manifold_scores(real.kept, fake.kept)
        measures += [Measure(key, label(key, extractor), value) for key, value in scores.items()]
    if floor is not None:
        number = "" if floor.num_images == fake.num_images else f" with {floor.num_images} images"
        measures += [
            replace(distance, key=f"floor_{distance.key}", label=f"{distance.label}, real against real{number}")
            for distance in _distances(real, floor, extractor, settings)
        ]
    return measures


def _distances(
    real: Measurements, fake: Measurements, extractor: FeatureExtractor, settings: EvaluationSettings
) -> list[Measure]:
    measures = []
    if "fid" in settings.metrics:
        assert real.covariance is not None and fake.covariance is not None
        distance = frechet_distance(fake.mean, fake.covariance, real.mean.to(fake.mean), real.covariance.to(fake.mean))
        measures.append(Measure("fid", label("fid", extractor, real.extractor is not None), distance))
    if "kid" in settings.metrics:
        assert real.kept is not None and fake.kept is not None
        mean, deviation = kernel_distance(real.kept, fake.kept, settings.kid_subsets, settings.kid_subset_size)
        measures.append(Measure("kid", label("kid", extractor), mean, deviation))
    return measures


def _inception_score(measured: Measurements, key: str, name: str) -> Measure:
    assert measured.class_scores is not None
    scores = measured.class_scores
    return Measure(key, name, float(scores.mean()), float(scores.std(correction=0)))


def _class_distances(
    samples: ImageSource,
    reference: ImageSource | Measurements,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
    files: list[Path | None],
) -> list[Measure]:
    """
    Class by class, so that the moments of only one class are in memory; as many samples as real images. Adds to
    `files` where the finished passes over samples are stored.
    """
    if "intra_class_fid" not in settings.metrics:
        return []
    assert isinstance(samples, GeneratedImages)
    moments = replace(settings, metrics=("fid",))
    distances = []
    for class_label, images in enumerate(_real_classes(samples, reference)):
        real = measure_real(images, extractor, moments, f"real images of class {class_label}")
        generated = samples.of_class(class_label, len(images))
        fake = measure(generated, extractor, **moments.pass_options, title=f"samples of class {class_label}")
        files.append(fake.file)
        if is_main_process():
            distances.append(_distances(real, fake, extractor, moments)[0].value)
    values = torch.tensor(distances or [torch.nan], dtype=torch.float64)
    name = label("intra_class_fid", extractor)
    return [Measure("intra_class_fid", name, float(values.mean()), float(values.std(correction=0)))]


def _real_classes(samples: ImageSource, reference: ImageSource | Measurements) -> list[RealImages]:
    """The real images of each of the model's classes; raises `ValueError` where there are no such."""
    if not isinstance(samples, GeneratedImages) or samples.labels is None:
        raise ValueError("intra-class FID needs a generator with classes")
    if not isinstance(reference, RealImages):
        raise ValueError("intra-class FID needs a data set with labels as its reference, not a file of moments")
    num_labels, names = samples.model.config.num_labels, reference.images.class_names
    if len(names) != num_labels:
        raise ValueError(f"the model has {num_labels} classes, {reference.name} has {len(names)}")
    return [reference.of_class(class_label) for class_label in range(num_labels)]


def label(key: str, extractor: FeatureExtractor, is_reference_known: bool = True) -> str:
    """
    How a number is called. FID, KID and IS are defined by one network; with another, or against moments that another
    may have measured, they bear its name.
    """
    short = {"fid": "FD", "kid": "KD", "is": "IS", "intra_class_fid": "intra-class FD"}
    if key not in short:
        return f"{key}-{extractor.name}"  # no network defines precision, recall, density and coverage
    if not is_reference_known:
        return f"{short[key]}-{extractor.name} (reference of an unknown extractor)"
    if extractor.is_standard:
        return {"intra_class_fid": "intra-class FID"}.get(key, key.upper())
    return f"{short[key]}-{extractor.name}"


# Protocol


def _protocol(
    samples: ImageSource,
    reference: ImageSource | Measurements,
    floor: ImageSource | None,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "samples": samples.description,
        "reference": reference.description,
        "extractor": {
            **extractor.identity,
            "grey": "repeated to RGB" if samples.image_shape[0] == 1 else None,
            "precision": "float32 without TF32, sums in float64",
        },
    }
    if floor is not None:
        protocol["floor"] = floor.description
    kept = [min(settings.num_kept, _number(source) or 0) for source in (reference, samples)]
    if "kid" in settings.metrics:
        protocol["kid"] = f"{settings.kid_subsets} subsets of {min(settings.kid_subset_size, *kept)}"
    if "is" in settings.metrics:
        protocol["is"] = f"{settings.is_splits} splits"
    if "prdc" in settings.metrics:
        protocol["prdc"] = f"{NEIGHBOURS} neighbours for precision and recall, {DENSITY_NEIGHBOURS} for the others"
    if settings.keeps_features:
        protocol["features_of"] = f"{kept[0]} real images and {kept[1]} samples, for all but FID and IS"
    if "intra_class_fid" in settings.metrics:
        protocol["intra_class_fid"] = "all real images of each class, and as many samples"
    protocol["software"] = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    device = extractor.device
    protocol["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    protocol["processes"] = num_processes()
    protocol["date"] = datetime.date.today().isoformat()
    return protocol


def _number(source: ImageSource | Measurements) -> int | None:
    return source.num_images if isinstance(source, Measurements) else len(source)


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)  # torch's with its build, ours from a checkout
    try:
        return str(loaded or version(package))
    except PackageNotFoundError:
        return None


# What is refused, before the first image


def _check(
    samples: ImageSource,
    reference: ImageSource | Measurements,
    floor: ImageSource | None,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> None:
    if "kid" in settings.metrics and find_spec("torchmetrics") is None:
        raise ImportError("kernel distances need torchmetrics (pip install biggan_hf[eval]): or leave out 'kid'")
    if "is" in settings.metrics and not extractor.num_classes:
        raise ValueError(f"extractor {extractor.name!r} gives no logits, hence no Inception Score: leave out 'is'")
    if "intra_class_fid" in settings.metrics:
        for class_label, images in enumerate(_real_classes(samples, reference)):
            _check_number(len(images), f"class {class_label}", extractor, settings)
    if floor is not None and {"fid", "kid", "is"}.isdisjoint(settings.metrics):
        raise ValueError("a floor is one of 'fid', 'kid' and 'is': ask for one of them, or for no floor")
    if isinstance(reference, Measurements):
        _check_measurements(reference, extractor, settings)
    named: list[tuple[str, ImageSource | Measurements | None]] = [("samples", samples), ("reference", reference)]
    for name, source in [*named, ("floor", floor)]:
        if source is None:
            continue
        if "fid" in settings.metrics:
            _check_number(_number(source), f"the {name}", extractor, settings)
        if source.image_shape is not None and source.image_shape != samples.image_shape:
            raise ValueError(
                f"the samples are {in_words(samples.image_shape)}, the {name} {in_words(source.image_shape)}: "
                f"load the real images like the samples"
            )


def _check_measurements(measurements: Measurements, extractor: FeatureExtractor, settings: EvaluationSettings) -> None:
    width = len(measurements.mean)
    if width != extractor.num_features:
        raise ValueError(
            f"the reference has features of width {width}, extractor {extractor.name!r} of {extractor.num_features}: "
            f"it was measured with another one"
        )
    theirs = measurements.extractor
    if theirs is not None and not extractor.is_the_same(theirs):
        name, digest = theirs.get("name"), str(theirs.get("sha256"))
        raise ValueError(
            f"the reference was measured with extractor {name} (SHA-256 {digest[:8]}…), not with {extractor.name} "
            f"(SHA-256 {extractor.digest[:8]}…) as it is now: measure it anew"
        )
    if measurements.kept is None and settings.keeps_features:
        raise ValueError("a file of moments gives only 'fid', and 'is' of the samples, not 'kid' or 'prdc'")
    if measurements.covariance is None and "fid" in settings.metrics:
        raise ValueError("the reference has no covariance, which 'fid' needs")


def _check_number(number: int | None, what: str, extractor: FeatureExtractor, settings: EvaluationSettings) -> None:
    if number is not None and number < extractor.num_features and not settings.allow_few_images:
        raise ValueError(
            f"{what}: {number} images are fewer than the {extractor.num_features} dimensions of {extractor.name}, "
            f"whose covariance they do not determine; take more, or allow it with --allow_few_images"
        )


def in_words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{'grey' if channels == 1 else 'RGB'} images of {height}×{width} px"
