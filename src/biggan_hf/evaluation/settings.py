"""What an evaluation measures, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


METRICS = ("fid", "kid", "mind", "fwd", "saturation", "is", "prdc", "accuracy", "intra_class_fid")
OF_FEATURES = {"kid", "mind", "prdc", "accuracy"}  # these need the features themselves
OF_CLASSES = {"accuracy": "accuracy", "intra_class_fid": "intra-class FID"}  # these need labels on both sides
OF_FLOOR = ("fid", "kid", "mind", "fwd", "saturation", "is")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    What is measured and how. "prdc" stands for precision, recall, density and coverage; "intra_class_fid" is FID
    within each class, the mean over classes, and takes a pass of its own; "fwd" is the distance of wavelets,
    "saturation" the share of saturated pixel values above that of the real images, and "accuracy" that of a classifier
    that learnt from the samples.
    """

    metrics: tuple[str, ...] = ("fid", "kid", "mind", "fwd", "saturation", "is", "prdc")  # of `METRICS`
    batch_size: int = 64
    num_kept: int = 10_000  # images of each set whose features are kept, for all but FID, FWD and IS
    kid_subsets: int = 100  # draws
    kid_subset_size: int = 1_000  # images in each
    is_splits: int = 10  # parts of the set; each has an IS. A small set is one part
    allow_few_images: bool = False  # allows FID and IS of fewer images than they need
    intervals: bool = True  # beside each number, for which FID too keeps features
    cache_dir: Path | None = None  # keeps statistics of real images, and lets an interrupted evaluation go on

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
        return not OF_FEATURES.isdisjoint(self.metrics) or (self.intervals and "fid" in self.metrics)

    @property
    def pass_options(self) -> dict[str, Any]:
        """For `measure`: only what a metric needs is summed and kept."""
        return {
            "num_kept": self.num_kept if self.keeps_features else 0,
            "num_splits": self.is_splits,
            "covariance": "fid" in self.metrics,
            "packets": "fwd" in self.metrics,
            "batch_size": self.batch_size,
            "cache_dir": self.cache_dir,
        }
