"""Evaluation during training, and the best model so far, which is kept apart."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import LabelledImages
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


if TYPE_CHECKING:
    from ..evaluation import FeatureExtractor

BEST = "best"


@dataclass(frozen=True)
class Quality:
    """
    Measures the average against the training pictures.

    Args:
        images: The real side.
        extractor: As `biggan_hf.evaluation.load_extractor` gives it.
        num_images: Samples, and as many real pictures at most.
        allow_few_images: Measures on fewer than the features are wide.
        cache_dir: Keeps the real side's statistics from one time to the next.
    """

    images: LabelledImages
    extractor: "FeatureExtractor"
    num_images: int
    allow_few_images: bool
    cache_dir: Path

    def measure(self, model: BigGANModel) -> dict[str, float]:
        """The Fréchet distance by its label, "FID" with the standard Inception alone; every process calls this."""
        from ..evaluation import EvaluationSettings, evaluate_generator

        settings = EvaluationSettings(
            metrics=("fid",), allow_few_images=self.allow_few_images, cache_dir=self.cache_dir
        )
        return evaluate_generator(model, self.images, self.extractor, num_images=self.num_images, settings=settings)


def keep_if_best(
    folder: Path, step: int, values: dict[str, float], ema: BigGANModel, discriminator: BigGANDiscriminator
) -> bool:
    """
    Writes `best/`, a model folder with `best.json` in it, if the first value is below that of the one that is there.

    Returns:
        Whether it is the best so far.
    """
    label, value = next(iter(values.items()))
    note = folder / BEST / "best.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8"))["value"] <= value:
        return False
    unfinished = folder / f"unfinished-{BEST}"
    shutil.rmtree(unfinished, ignore_errors=True)
    ema.save_pretrained(unfinished)
    discriminator.save_pretrained(unfinished / "discriminator")
    best = {"step": step, "label": label, "value": value}
    (unfinished / "best.json").write_text(json.dumps(best), encoding="utf-8")
    shutil.rmtree(folder / BEST, ignore_errors=True)
    unfinished.rename(folder / BEST)
    return True
