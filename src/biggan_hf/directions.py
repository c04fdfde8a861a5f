"""
Directions of the latents, and the file `directions.json`, which keeps them beside a model with the names that people
gave them. `exploring.py` finds directions.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .files import write_text
from .keywords import did_you_mean


FILE = "directions.json"
MOST_DIRECTIONS, MOST_BYTES = 64, 2**20  # of a file, which may be a stranger's
# Words: nothing that a path, HTML or Markdown is made of.
NAME = re.compile(r"\w[\w ,.+()'-]{0,39}")
UNNAMED = re.compile(r"direction \d+")


@dataclass(frozen=True)
class Directions:
    """
    Directions, each with its name.

    Args:
        vectors: float32 (K, z_dim), of length 1.
        names: K names that differ: of 1 to 40 letters, digits, spaces and `,.+()'-`.
        shares: K numbers from 0 to 1: which share of the change that was measured each direction has.

    Raises:
        ValueError: A name, a number of names or shares, or a vector is none of these.
    """

    vectors: Tensor
    names: tuple[str, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        number = len(self.vectors)
        if not 1 <= number <= MOST_DIRECTIONS or not len(self.names) == len(self.shares) == number:
            raise ValueError(
                f"expected from 1 to {MOST_DIRECTIONS} directions, each with a name and a share, got {number} with "
                f"{len(self.names)} names and {len(self.shares)} shares"
            )
        _check_names(self.names)
        if not torch.allclose(self.vectors.norm(dim=1), torch.ones(number), atol=1e-3):  # nor if one is NaN
            raise ValueError("the vectors of directions must have the length 1")
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"the shares of directions must be numbers from 0 to 1, got {self.shares}")

    def moved(self, latents: Tensor, strengths: Mapping[str, float]) -> Tensor:
        """
        Moves latents along directions. Truncate before: what is drawn is truncated, and not the move.

        Args:
            latents: (N, z_dim).
            strengths: By name, how far; 0 is where they are, and 1 a standard deviation of a latent.

        Returns:
            (N, z_dim), latents + Σ strength · vector.

        Raises:
            TypeError: The strengths have no names.
            ValueError: There is no direction of this name, or a strength is not finite.
        """
        if not isinstance(strengths, Mapping):
            expected = f"a strength by name, as in {{{self.names[0]!r}: 2.0}}"
            raise TypeError(f"directions must be {expected}, got {type(strengths).__name__}")
        move = torch.zeros(latents.shape[1])
        for name, strength in strengths.items():
            if name not in self.names:
                hint = did_you_mean(name, self.names) or f"; the names are {', '.join(self.names)}"
                raise ValueError(f"there is no direction {name!r}{hint}")
            if not math.isfinite(strength):
                raise ValueError(f"the strength of {name!r} must be a finite number, got {strength!r}")
            move = move + strength * self.vectors[self.names.index(name)]
        return latents + move.to(latents)

    def named(self, names: Mapping[int, str]) -> Self:
        """
        Some of the directions, with other names.

        Args:
            names: By the number of a direction, from 1 on.

        Returns:
            The directions of these numbers alone, in this order.

        Raises:
            ValueError: A number out of range, or a name that is none.
        """
        check_names(names, len(self.names))
        rows = [number - 1 for number in names]
        shares = tuple(self.shares[row] for row in rows)
        return replace(self, vectors=self.vectors[rows], names=tuple(names.values()), shares=shares)


def check_names(names: Mapping[int, str], number: int) -> None:
    """Raises `ValueError` unless they name some of so many directions, counted from 1."""
    for place in names:
        if not 1 <= place <= number:
            raise ValueError(f"the directions have the numbers 1 to {number}, got {place}")
    _check_names(tuple(names.values()))


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"a direction's name has 1 to 40 letters, digits, spaces and ,.+()'-, got {str(name)[:60]!r}"
            )
    if len({*names}) < len(names):
        raise ValueError(f"the names of directions must differ, got {', '.join(names)}")


# The file beside a model


def save_directions(directions: Directions, folder: Path) -> None:
    """Writes `directions.json`, a list with the name, the share and the vector of each direction."""
    columns = directions.names, directions.shares, directions.vectors.tolist()
    rows = [
        {"name": name, "share": round(share, 4), "vector": [round(entry, 6) for entry in vector]}
        for name, share, vector in zip(*columns, strict=True)
    ]
    write_text(folder / FILE, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def carry_directions(directions: Directions | None, folder: Path) -> None:
    """Writes a model's directions beside a copy of it. A file that lies there stays."""
    if directions is not None and not (folder / FILE).exists():
        save_directions(directions, folder)


def read_directions(path: Path, z_dim: int | None = None) -> Directions:
    """
    The directions in a file, which may be a stranger's.

    Raises:
        ValueError: It is no list of directions, they are not of `z_dim` entries, or a name or a number is none.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        rows = json.loads(path.read_text(encoding="utf-8"))
        names, shares, vectors = ([row[field] for row in rows] for field in ("name", "share", "vector"))
        found = Directions(torch.tensor(vectors, dtype=torch.float32), tuple(names), tuple(map(float, shares)))
        if z_dim not in (None, found.vectors.shape[1]):
            raise ValueError(f"its vectors have {found.vectors.shape[1]} entries, and this model has z_dim={z_dim}")
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{str(path)!r} holds no directions: {reason or type(error).__name__}") from error
    return found


def is_named(path: Path) -> bool:
    """Whether a file of directions has names that somebody gave."""
    return any(not UNNAMED.fullmatch(name) for name in read_directions(path).names)
