"""Evaluation during training, and the best model so far, which is kept apart."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import LabelledImages
from ..files import free_name, replaced_folder, restore_replaced
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


if TYPE_CHECKING:
    from ..evaluation import FeatureExtractor

BEST, NOTE = "best", "best.json"


@dataclass(frozen=True)
class Quality:
    """
    Measures the average against the training pictures.

    Args:
        images: The training pictures. All of them are compared with.
        extractor: As `biggan_hf.evaluation.load_extractor` returns it.
        num_images: The number of samples.
        allow_few_images: Measures even where there are fewer images than features.
        cache_dir: Keeps the statistics of the training pictures from one evaluation to the next.

    Raises:
        ValueError: There are fewer images than features. This is found at the start of a run, not in its middle.
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
        """The Fréchet distance by its label: "FID" with the standard Inception only. Every process calls this."""
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
    Writes `best/`, a model folder with a `best.json`, if the first value is a number below that of the one that is
    there. A value with another label, as of another extractor, replaces it without a comparison.

    Returns:
        Whether it is the best so far.
    """
    label, value = next(iter(values.items()))
    restore_replaced(folder)
    if not math.isfinite(value) or not _is_better(label, value, folder / BEST / NOTE):
        return False
    with replaced_folder(folder / BEST) as best:
        ema.save_pretrained(best)
        discriminator.save_pretrained(best / "discriminator")
        (best / NOTE).write_text(json.dumps({"step": step, "label": label, "value": value}), encoding="utf-8")
    return True


def set_best_aside(folder: Path, step: int) -> Path | None:
    """Renames a best model from after the step to which a run goes back. Returns its new place, if there was one."""
    best = folder / BEST
    if not best.exists() or json.loads((best / NOTE).read_text(encoding="utf-8"))["step"] <= step:
        return None
    return best.rename(free_name(folder / f"abandoned-{BEST}"))


def _is_better(label: str, value: float, note: Path) -> bool:
    if not note.exists():
        return True
    best = json.loads(note.read_text(encoding="utf-8"))
    return best["label"] != label or value < best["value"]
