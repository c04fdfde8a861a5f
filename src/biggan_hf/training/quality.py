"""Evaluation during training, and the best model so far, which is kept apart."""

import json
import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Quality:
    """Measures the average against all training pictures. It refuses too few images, at the start of a run."""

    images: LabelledImages
    extractor: "FeatureExtractor"
    num_images: int  # samples
    allow_few_images: bool  # measures even where there are fewer images than features
    cache_dir: Path  # keeps the statistics of the training pictures

    def __post_init__(self) -> None:
        number, width = min(self.num_images, len(self.images)), self.extractor.num_features
        if number < 2:
            raise ValueError(
                f"evaluations would be of {number} image, which has no covariance: raise evaluation_images"
            )
        if number < width and not self.allow_few_images:
            raise ValueError(
                f"evaluations would be of {number} images, fewer than the {width} features of {self.extractor.name}, "
                f"whose covariance they do not determine: raise evaluation_images (there are {len(self.images)} "
                f"pictures), or allow it with evaluation_allow_few_images"
            )

    def measure(self, model: BigGANModel) -> dict[str, float]:
        """The Fréchet distance by its label: "FID" with the standard Inception only. Every process calls this."""
        from ..evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate

        settings = EvaluationSettings(
            metrics=("fid",), allow_few_images=self.allow_few_images, cache_dir=self.cache_dir
        )
        filled = self.images.contents.filled_classes
        classes = filled if 0 < len(filled) < (model.config.num_labels or 0) else None
        samples, reference = GeneratedImages(model, self.num_images, classes=classes), RealImages(self.images)
        return evaluate(samples, reference, self.extractor, settings).values


def keep_if_best(
    folder: Path, step: int, values: dict[str, float], ema: BigGANModel, discriminator: BigGANDiscriminator
) -> bool:
    """
    Writes `best/`, a model folder with a `best.json`, if the first value is a number below that of the one that is
    there. A value with another label, as of another extractor, replaces it without a comparison. Returns whether it
    wrote.
    """
    label, value = next(iter(values.items()))
    restore_replaced(folder)
    best = _read_note(folder)
    if not math.isfinite(value) or (best is not None and best["label"] == label and value >= best["value"]):
        return False
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
