"""
How far a number would move with other images of the same kind: it is computed again from random halves of each set.

Halves, and not the bootstrap's sets with repetitions: an image that comes twice is a collapse that the distances see.
A half differs from its whole as a whole differs from all images that there might be, since 1/(N/2) - 1/N = 1/N.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..devices import in_float64
from .wavelets import log_packets


if TYPE_CHECKING:
    from .statistics import Measurements

DRAWS = 20  # so the deviation itself is known to 1 / √(2 · 19) = 16 %, at a cost of seconds
HALF = 500  # images at most: the cost grows with their square, and deviations of larger sets follow 1 / √N
OF_SUMS = ("fid", "fwd", "saturation")  # of all images; the others need features, which are kept of some
SIDE = 1.96  # deviations from a value to the ends of its interval: 95 % of a normal distribution lie between them


@dataclass(frozen=True)
class Pool:
    """The images of a set from which halves are drawn. `None` stands for what was not kept of them."""

    num_images: int  # of the whole set
    num_kept: int  # whose features are kept
    features: Tensor | None  # (K, d)
    packets: Tensor | None  # (K, P, w)
    ends: Tensor | None = None  # (K, 2)

    def __len__(self) -> int:
        return max(len(rows) for rows in (self.features, self.packets, self.ends) if rows is not None)

    def half(self, generator: torch.Generator) -> "Pool":
        """In float64."""
        rows = torch.randperm(len(self), generator=generator)[: len(self) // 2]
        features, packets, ends = (
            None if x is None else in_float64(x[rows.to(x.device)]) for x in (self.features, self.packets, self.ends)
        )
        return replace(self, features=features, packets=packets, ends=ends)

    def scale(self, key: str) -> float:
        """From the deviation of halves to that of the images that the number with this key is computed from."""
        of_all = key.removeprefix("floor_") in OF_SUMS or not self.num_kept  # without features so is the score
        number = self.num_images if of_all else self.num_kept
        half = len(self) // 2
        return ((1 / number) / (1 / half - 1 / len(self))) ** 0.5


def pool_of(measured: "Measurements") -> Pool | None:
    """`None` if there are not two halves, or nothing was kept."""
    features, pictures, ends, number = measured.kept, measured.pictures, measured.ends, measured.num_images
    kept = [len(rows) for rows in (features, pictures, ends) if rows is not None]
    if number is None or min(kept, default=0) < 4:
        return None
    rows = chosen(number, min(*kept, 2 * HALF))
    if features is not None:
        features = features[_places(rows, measured.kept_rows, features.device)]
    if pictures is not None:
        pictures = log_packets(pictures[_places(rows, measured.picture_rows, pictures.device)])
    ends = None if ends is None else ends[rows.to(ends.device)]
    return Pool(number, 0 if measured.kept is None else len(measured.kept), features, pictures, ends)


def chosen(num_images: int, number: int) -> Tensor:
    """So many of the images, or all, at random with a fixed seed, sorted. A smaller choice is part of a larger one."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(0))[:number].sort().values


def _places(rows: Tensor, among: Tensor, device: torch.device) -> Tensor:
    return torch.searchsorted(among, rows).to(device)


def deviations(numbers: Callable[..., dict[str, float]], pools: list[Pool]) -> dict[str, float]:
    """How far each of the numbers moves, from the numbers of halves of the sets."""
    generator = torch.Generator().manual_seed(0)
    draws = [numbers(*(pool.half(generator) for pool in pools)) for _ in range(DRAWS)]
    spread = {key: float(torch.tensor([draw[key] for draw in draws], dtype=torch.float64).std()) for key in draws[0]}
    # The largest scale is never too small where the sets differ in size.
    return {key: max(pool.scale(key) for pool in pools) * deviation for key, deviation in spread.items()}
