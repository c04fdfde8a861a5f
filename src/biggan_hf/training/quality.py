"""Evaluation during training, and the best model so far, which is kept apart."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import LabelledImages
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from .checkpoints import free_name


if TYPE_CHECKING:
    from ..evaluation import FeatureExtractor

BEST, NOTE = "best", "best.json"


@dataclass(frozen=True)
class Quality:
    """
    Measures the average against the training pictures.

    Args:
        images: The real side.
        extractor: As `biggan_hf.evaluation.load_extractor` gives it.
        num_images: Samples; the real side is all pictures.
        allow_few_images: Measures on fewer than the features are wide.
        cache_dir: Keeps the real side's statistics from one time to the next.

    Raises:
        ValueError: Fewer images than the features are wide, at the start of a run and not in its midst.
    """

    images: LabelledImages
    extractor: "FeatureExtractor"
    num_images: int
    allow_few_images: bool
    cache_dir: Path

    def __post_init__(self) -> None:
        number, width = min(self.num_images, len(self.images)), self.extractor.num_features
        if number < width and not self.allow_few_images:
            raise ValueError(
                f"evaluations would be of {number} images, fewer than the {width} features of {self.extractor.name}, "
                f"whose covariance they do not determine: raise evaluation_images (there are {len(self.images)} "
                f"pictures), or allow it with evaluation_allow_few_images"
            )

    def measure(self, model: BigGANModel) -> dict[str, float]:
        """The Fréchet distance by its label, "FID" with the standard Inception alone; every process calls this."""
        from ..evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate

        settings = EvaluationSettings(
            metrics=("fid",), allow_few_images=self.allow_few_images, cache_dir=self.cache_dir
        )
        samples, reference = GeneratedImages(model, self.num_images), RealImages(self.images)
        return evaluate(samples, reference, self.extractor, settings).values


def keep_if_best(
    folder: Path, step: int, values: dict[str, float], ema: BigGANModel, discriminator: BigGANDiscriminator
) -> bool:
    """
    Writes `best/`, a model folder with `best.json` in it, if the first value is a number below that of the one that
    is there. A value of another name, as of another extractor, compares with none and begins anew.

    Returns:
        Whether it is the best so far.
    """
    label, value = next(iter(values.items()))
    best, previous, unfinished = folder / BEST, folder / f"previous-{BEST}", folder / f"unfinished-{BEST}"
    if previous.exists() and not best.exists():  # a run was killed between the two renames below
        previous.rename(best)
    if not math.isfinite(value) or not _is_better(label, value, best / NOTE):
        return False
    for leftover in (previous, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    ema.save_pretrained(unfinished)
    discriminator.save_pretrained(unfinished / "discriminator")
    note = {"step": step, "label": label, "value": value}
    (unfinished / NOTE).write_text(json.dumps(note), encoding="utf-8")
    # At any moment one of them is whole.
    if best.exists():
        best.rename(previous)
    unfinished.rename(best)
    shutil.rmtree(previous, ignore_errors=True)
    return True


def set_best_aside(folder: Path, step: int) -> Path | None:
    """Renames a best model from after a step, to which a run has gone back; where it is now, if there was one."""
    best = folder / BEST
    if not best.exists() or json.loads((best / NOTE).read_text(encoding="utf-8"))["step"] <= step:
        return None
    return best.rename(free_name(folder / f"abandoned-{BEST}"))


def _is_better(label: str, value: float, note: Path) -> bool:
    if not note.exists():
        return True
    best = json.loads(note.read_text(encoding="utf-8"))
    return best["label"] != label or value < best["value"]
