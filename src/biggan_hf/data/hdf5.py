"""BigGAN-PyTorch's file of pictures, `ILSVRC128.hdf5`: `imgs`, uint8 (N, C, S, S), and `labels`, integers (N,)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pictures import first_line
from .pixels import StoredPixels


ENDINGS = (".hdf5", ".h5")


class HDF5Pixels(StoredPixels):
    """
    The file is opened for each reading: processes that fork must not share an open file of HDF5.

    Args:
        chosen: The rows that count, in their order; default all.
    """

    def __init__(self, path: Path, chosen: np.ndarray | None = None) -> None:
        self.path = path
        with self._opened() as file:
            number, *shape = _dataset(file, "imgs", 4).shape
        if not number or shape[0] not in (1, 3):
            raise ValueError(f"its 'imgs' are of shape {(number, *shape)}, expected (N, 1 or 3, H, W)")
        self.chosen = np.arange(number) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def labels(self) -> np.ndarray | None:
        """int64 (N,) of all rows; `None` where the file has none."""
        with self._opened() as file:
            if "labels" not in file:
                return None
            labels, number = _dataset(file, "labels", 1), len(file["imgs"])
            if len(labels) != number:
                raise ValueError(f"it has {number} 'imgs' and {len(labels)} 'labels'")
            return labels[:].astype(np.int64)

    def read(self, rows: Sequence[int]) -> Tensor:
        try:
            with self._opened() as file:
                return torch.from_numpy(np.stack([file["imgs"][row] for row in self.chosen[rows]]))
        except OSError as error:
            raise ValueError(f"{str(self.path)!r} cannot be read: {first_line(error)}") from error

    def _opened(self) -> Any:
        import h5py

        return h5py.File(self.path, "r")


def _dataset(file: Any, name: str, dimensions: int) -> Any:
    """An array of plain integers that lies in this file itself: not in another one that it names."""
    import h5py

    found = file.get(name)
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(found, h5py.Dataset):
        raise ValueError(
            f"it has no array {name!r} of its own, but {sorted(file)}: BigGAN-PyTorch writes imgs and labels"
        )
    if found.external or found.is_virtual:
        raise ValueError(f"its {name!r} lie in another file, which is not read")
    if found.dtype.kind not in "iu" or (name == "imgs" and found.dtype != np.uint8) or found.ndim != dimensions:
        expected = "uint8 (N, C, H, W)" if name == "imgs" else "integers (N,)"
        raise ValueError(f"its {name!r} are {found.dtype} of {found.ndim} dimensions, expected {expected}")
    return found
