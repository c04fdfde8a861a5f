"""From samples, real images and an extractor to a report."""

import datetime
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..latents import TruncationMode
from .extractors import FeatureExtractor
from .metrics import DENSITY_NEIGHBOURS, NEIGHBOURS, frechet_distance, kernel_distance, manifold_scores
from .reports import Measure, Report
from .sources import GeneratedImages, ImageSource, RealImages
from .statistics import Measurements, measure, num_processes, process_rank


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
    _check(samples, reference, floor, extractor, settings)
    real = measure_real(reference, extractor, settings)
    fake = measure(
        samples,
        extractor,
        num_kept=settings.num_kept,
        num_splits=settings.is_splits,
        batch_size=settings.batch_size,
        cache_dir=settings.cache_dir,
        keep_cached=False,
        title="samples",
    )
    other = None if floor is None else measure_real(floor, extractor, settings, "floor")
    within = _class_distances(samples, reference, extractor, settings)
    protocol = _protocol(real, fake, extractor, settings)
    if other is not None:
        protocol["floor"] = other.description
    return _from_main(lambda: Report([*_compare(real, fake, other, extractor, settings), *within], protocol))


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
    return measure(
        source,
        extractor,
        num_kept=settings.num_kept,
        num_splits=settings.is_splits,
        batch_size=settings.batch_size,
        cache_dir=settings.cache_dir,
        title=title,
    )


# Measures


def _compare(
    real: Measurements,
    fake: Measurements,
    floor: Measurements | None,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> list[Measure]:
    measures = _distances(real, fake, extractor, settings)
    if "is" in settings.metrics:
        measures.append(_inception_score(fake, "is", label("is", extractor)))
        if real.class_scores is not None:
            measures.append(_inception_score(real, "reference_is", f"{label('is', extractor)} of the real images"))
    if "prdc" in settings.metrics:
        assert real.kept is not None and fake.kept is not None
        scores = manifold_scores(real.kept, fake.kept)
        measures += [Measure(key, label(key, extractor), value) for key, value in scores.items()]
    if floor is not None:
        measures += [
            replace(distance, key=f"floor_{distance.key}", label=f"{distance.label}, real against real")
            for distance in _distances(real, floor, extractor, settings)
        ]
    return measures


def _distances(
    real: Measurements, fake: Measurements, extractor: FeatureExtractor, settings: EvaluationSettings
) -> list[Measure]:
    measures = []
    if "fid" in settings.metrics:
        distance = frechet_distance(fake.mean, fake.covariance, real.mean.to(fake.mean), real.covariance.to(fake.mean))
        measures.append(Measure("fid", label("fid", extractor), distance))
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
) -> list[Measure]:
    """Class by class, so that the moments of only one class are in memory; as many samples as real images."""
    if "intra_class_fid" not in settings.metrics:
        return []
    assert isinstance(samples, GeneratedImages)
    options: dict[str, Any] = {"num_kept": 0, "num_splits": 1, "batch_size": settings.batch_size}
    distances = []
    for class_label, images in enumerate(_real_classes(samples, reference)):
        generated = samples.of_class(class_label, len(images))
        fake = measure(generated, extractor, title=f"samples of class {class_label}", **options)
        real = measure(images, extractor, title=f"real images of class {class_label}", **options)
        if process_rank() == 0:
            distances.append(frechet_distance(fake.mean, fake.covariance, real.mean, real.covariance))
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


def label(key: str, extractor: FeatureExtractor) -> str:
    """How a number is called. FID, KID and IS are defined by one network; with another they bear its name."""
    short = {"fid": "FD", "kid": "KD", "is": "IS", "intra_class_fid": "intra-class FD"}
    if key not in short:
        return f"{key}-{extractor.name}"  # no network defines precision, recall, density and coverage
    if extractor.is_standard:
        return {"intra_class_fid": "intra-class FID"}.get(key, key.upper())
    return f"{short[key]}-{extractor.name}"


# Protocol


def _protocol(
    real: Measurements, fake: Measurements, extractor: FeatureExtractor, settings: EvaluationSettings
) -> dict[str, Any]:
    on_gpu = extractor.device.type == "cuda"
    protocol: dict[str, Any] = {
        "samples": fake.description,
        "reference": real.description,
        "extractor": {
            "name": extractor.name,
            "sha256": extractor.digest[:16],
            "resize": extractor.resize,
            "grey": "repeated to RGB" if fake.image_shape is not None and fake.image_shape[0] == 1 else None,
            "precision": "float32, sums in float64",
            "tf32_convolutions": on_gpu and torch.backends.cudnn.allow_tf32,
        },
    }
    if "kid" in settings.metrics:
        size = min(settings.kid_subset_size, *(len(kept) for kept in (real.kept, fake.kept) if kept is not None))
        protocol["kid"] = f"{settings.kid_subsets} subsets of {size}"
    if "is" in settings.metrics:
        protocol["is"] = f"{settings.is_splits} splits"
    if "prdc" in settings.metrics:
        protocol["prdc"] = f"{NEIGHBOURS} neighbours for precision and recall, {DENSITY_NEIGHBOURS} for the others"
    if {"kid", "prdc"} & set(settings.metrics):
        kept = [0 if measured.kept is None else len(measured.kept) for measured in (real, fake)]
        protocol["features_of"] = f"{kept[0]} real images and {kept[1]} samples, for all but FID and IS"
    if "intra_class_fid" in settings.metrics:
        protocol["intra_class_fid"] = "all real images of each class, and as many samples"
    protocol["software"] = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    protocol["device"] = torch.cuda.get_device_name(extractor.device) if on_gpu else extractor.device.type
    protocol["processes"] = num_processes()
    protocol["date"] = datetime.date.today().isoformat()
    return protocol


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)  # torch's with its build, ours from a checkout
    try:
        return str(loaded or version(package))
    except PackageNotFoundError:
        return None


def _from_main(compute: Callable[[], Report]) -> Report:
    """Computed by the main process, had by all."""
    if num_processes() == 1:
        return compute()
    reports: list[Any] = [compute() if process_rank() == 0 else None]
    dist.broadcast_object_list(reports, 0)
    return reports[0]


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
    if isinstance(reference, Measurements):
        _check_measurements(reference, extractor, settings)
    named: list[tuple[str, ImageSource | Measurements | None]] = [("samples", samples), ("reference", reference)]
    for name, source in [*named, ("floor", floor)]:
        if source is None:
            continue
        if "fid" in settings.metrics:
            number = source.num_images if isinstance(source, Measurements) else len(source)
            _check_number(number, f"the {name}", extractor, settings)
        if source.image_shape not in (samples.image_shape, None):
            raise ValueError(
                f"the samples are {_in_words(samples.image_shape)}, the {name} {_in_words(source.image_shape)}: "
                f"load the real images like the samples"
            )


def _check_measurements(measurements: Measurements, extractor: FeatureExtractor, settings: EvaluationSettings) -> None:
    width = len(measurements.mean)
    if width != extractor.num_features:
        raise ValueError(
            f"the reference has features of width {width}, extractor {extractor.name!r} of {extractor.num_features}: "
            f"it was measured with another one"
        )
    if measurements.kept is None and {"kid", "prdc"} & set(settings.metrics):
        raise ValueError("a file of moments gives only 'fid', and 'is' of the samples, not 'kid' or 'prdc'")


def _check_number(number: int | None, what: str, extractor: FeatureExtractor, settings: EvaluationSettings) -> None:
    if number is not None and number < extractor.num_features and not settings.allow_few_images:
        raise ValueError(
            f"{what}: {number} images are fewer than the {extractor.num_features} dimensions of {extractor.name}, "
            f"whose covariance they do not determine; take more, or allow it with --allow_few_images"
        )


def _in_words(shape: tuple[int, int, int] | None) -> str:
    assert shape is not None
    channels, height, width = shape
    return f"{'grey' if channels == 1 else 'RGB'} images of {height}×{width} px"
