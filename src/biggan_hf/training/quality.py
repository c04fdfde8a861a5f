"""Evaluation during training, and the best model so far, which is kept apart."""

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import LabelledImages
from ..files import free_name, replaced_folder, restore_replaced
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .adapters import merged
from .checkpoints import warn


if TYPE_CHECKING:
    from ..evaluation import FeatureExtractor

BEST, NOTE = "best", "best.json"


# Of the kernel distance: ten subsets of 1,000 use nearly all of 2,000 samples, and take seconds.
KID_SUBSETS = 10


@dataclass(frozen=True)
class Quality:
    """Measures the average against all training pictures. It refuses too few images, at the start of a run."""

    images: LabelledImages
    extractor: "FeatureExtractor"
    metrics: tuple[str, ...]  # distances, as `EvaluationSettings` names them
    num_images: int  # samples
    allow_few_images: bool  # measures a Fréchet distance even where there are fewer images than features
    cache_dir: Path  # keeps the statistics of the training pictures

    def __post_init__(self) -> None:
        number, width = min(self.num_images, len(self.images)), self.extractor.num_features
        if "kid" in self.metrics and find_spec("torchmetrics") is None:
            raise ImportError('evaluations by the kernel distance need torchmetrics: pip install "biggan_hf[eval]"')
        if number < 2:
            raise ValueError(
                f"evaluations would be of {number} image, which is at no distance: raise evaluation_images"
            )
        if "fid" in self.metrics and number < width and not self.allow_few_images:
            raise ValueError(
                f"evaluations would be of {number} images, fewer than the {width} features of {self.extractor.name}, "
                f"whose covariance they do not determine: raise evaluation_images (there are {len(self.images)} "
                f"pictures), or allow it with evaluation_allow_few_images"
            )

    def measure(self, model: BigGANModel) -> dict[str, float]:
        """The distances by their names, which say the ruler and N, as "KID N=2000". Every process calls this."""
        from ..evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate

        settings = EvaluationSettings(
            self.metrics,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(EvaluationSettings.kid_subset_size, self.num_images, len(self.images)),
            allow_few_images=self.allow_few_images,
            intervals=False,
            cache_dir=self.cache_dir,
        )
        filled = self.images.contents.filled_classes
        classes = filled if 0 < len(filled) < (model.config.num_labels or 0) else None
        samples, reference = GeneratedImages(model, self.num_images, classes=classes), RealImages(self.images)
        values = evaluate(samples, reference, self.extractor, settings).values
        return {f"{label} N={self.num_images}": value for label, value in values.items()}


def keep_if_best(
    folder: Path, step: int, values: dict[str, float], ema: BigGANModel, discriminator: BigGANDiscriminator
) -> bool:
    """
    Writes `best/`, a model folder with a `best.json`, if the geometric mean of the distances is below that of the one
    that is there. One of other rulers or another N, or of an earlier version's runs, is replaced without a comparison,
    and that is told. Returns whether it wrote.
    """
    from ..evaluation.metrics import joint_distance  # here, as above

    label = " and ".join(values)
    restore_replaced(folder)
    best = _read_note(folder)
    if not all(map(math.isfinite, values.values())):
        return False
    value = joint_distance(values.values())
    if best is not None and best["label"] == label and value >= best["value"]:
        return False
    if best is not None and best["label"] not in (label, None):
        warn(f"the best model so far was chosen by {best['label']}, not by {label}: this evaluation replaces it")
    with replaced_folder(folder / BEST) as unfinished:
        merged(ema).save_pretrained(unfinished, global_step=step)
        merged(discriminator).save_pretrained(unfinished / "discriminator", global_step=step)
        (unfinished / NOTE).write_text(json.dumps({"step": step, "label": label, "value": value}), encoding="utf-8")
    return True


def set_best_aside(folder: Path, step: int) -> Path | None:
    """Renames a best model from after the step to which a run goes back. Returns its new place, if there was one."""
    best = _read_note(folder)
    return (folder / BEST).rename(free_name(folder / f"abandoned-{BEST}")) if best and best["step"] > step else None


def _read_note(folder: Path) -> dict[str, Any] | None:
    """What is the best so far. If a power cut has emptied its note, the next one replaces it."""
    path = folder / BEST / NOTE
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"step": int(note["step"]), "label": str(note["label"]), "value": float(note["value"])}
    except (ValueError, KeyError, TypeError, OverflowError):
        warn(f"{str(path)!r} is damaged: the next evaluation replaces the best model")
        return {"step": math.inf, "label": None, "value": math.inf}
