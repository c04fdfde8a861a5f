"""Pictures that files hold as pixels: they are read, not decoded."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..pictures import as_ppm


class PictureTable(Protocol):
    """What is used of a table of `datasets` with a column "image" of undecoded cells, "bytes" or else "path"."""

    @property
    def split(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


class StoredPixels:
    """Pictures that are stored as uint8 pixels. As a table, it gives encoded pictures: of exactly these pixels."""

    split: str | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W), in the order of `rows`."""
        raise NotImplementedError

    def __getitem__(self, key: int | Sequence[int]) -> dict[str, Any]:
        rows = [key] if isinstance(key, int) else key
        cells = [{"bytes": as_ppm(pixels), "path": None} for pixels in self.read(rows).numpy()]
        return {"image": cells[0] if isinstance(key, int) else cells}


class Shards(StoredPixels):
    """
    Pictures of one size in files of NumPy's format, `.npy`, one after the other.

    The files are read, not mapped into memory: a map would count to the memory of the process, page by page, and a
    file that is cut off while it is mapped would end the process. Processes that fork may share the open files.

    Args:
        files: With the number of pictures in each.
        shape: Of a picture: (C, S, S).
        chosen: The rows of all these that count, in their order; default all.
    """

    def __init__(
        self, files: Sequence[tuple[Path, int]], shape: tuple[int, int, int], chosen: np.ndarray | None = None
    ) -> None:
        self.files = [path for path, _ in files]
        self.starts = np.cumsum([0, *(number for _, number in files)])  # the first row of each file, and the end
        self.shape, self.chosen = shape, chosen

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.chosen is None else len(self.chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    @cached_property
    def _opened(self) -> dict[int, Any]:
        return {}

    def read(self, rows: Sequence[int]) -> Tensor:
        """
        In the order in which they lie on the disk, each into its place; neighbours by one call. The system is told of
        all of them first: a disk reads many at a time two to five times as fast as one by one.
        """
        wanted = np.asarray(rows, np.int64)
        if self.chosen is not None:
            wanted = self.chosen[wanted]
        pixels = torch.empty(len(wanted), *self.shape, dtype=torch.uint8)
        view, size = memoryview(pixels.numpy().reshape(-1).data), int(np.prod(self.shape))
        places = np.argsort(wanted, kind="stable")
        wanted = wanted[places]
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        offsets = HEADER + (wanted - self.starts[shards]) * size
        apart = (np.diff(wanted) != 1) | (np.diff(places) != 1) | (np.diff(shards) != 0)
        firsts = np.flatnonzero(np.concatenate([[True], apart])) if len(wanted) else wanted
        numbers = np.diff([*firsts, len(wanted)])
        columns = (
            column.tolist() for column in (shards[firsts], offsets[firsts], places[firsts] * size, numbers * size)
        )
        runs = list(zip(*columns, strict=True))
        for shard, offset, _, length in runs if hasattr(os, "posix_fadvise") and len(runs) > 1 else ():
            os.posix_fadvise(self._file(shard).fileno(), offset, length, os.POSIX_FADV_WILLNEED)
        for shard, offset, start, length in runs:
            self._read(shard, view[start : start + length], offset)
        return pixels

    def _file(self, shard: int) -> Any:
        if (file := self._opened.get(shard)) is None:
            try:
                file = self._opened[shard] = self.files[shard].open("rb", buffering=0)
            except OSError as error:
                raise ValueError(f"{str(self.files[shard])!r} cannot be read: {error.strerror}") from error
        return file

    def _read(self, shard: int, view: memoryview, offset: int) -> None:
        path, file = self.files[shard], self._file(shard)
        try:
            while view and (length := os.preadv(file.fileno(), [view], offset)):
                view, offset = view[length:], offset + length
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        if view:
            raise ValueError(f"{str(path)!r} was cut off while it was read")


HEADER = 128  # bytes in front of the pixels


def npy_header(number: int, shape: tuple[int, int, int]) -> bytes:
    """Of a file of so many pictures, as NumPy's format version 1.0 defines it."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (number, *shape)}).encode()
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11) + b"\n"
