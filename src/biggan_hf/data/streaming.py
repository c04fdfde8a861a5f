"""Parquet files, on the Hub or here, of which only a part lies in the cache: a set may be larger than the disk."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import write_file
from ..pictures import first_line
from .labelled_images import BUFFER, spread_rows
from .labels import Labels, find_label_column, read_labels
from .opening import (
    UNLABELLED,
    Contents,
    Opened,
    asks_for_fields,
    files_beside,
    find_image_column,
    other_label_columns,
    read_parts,
    used_splits,
    with_classes,
)
from .tars import stamp


AT_ONCE = 16  # files whose ends are read


class Group(NamedTuple):
    """A row group of a file: the rows that are fetched together."""

    file: int
    number: int  # in the file
    rows: int


class StreamedPictures:
    """
    A table with a column "image" of undecoded cells. A row group is fetched when the first of its rows is asked for,
    and stays in the cache until enough others have come (see `_outdated`). Processes of a machine share the cache.

    Args:
        files: Paths or addresses.
        heads: What is known of each file.
        chosen: The rows of all these that count, in their order; default all.
    """

    split: str | None = None

    def __init__(
        self, files: Sequence[str], heads: Sequence[pq.FileMetaData], column: str, chosen: np.ndarray | None = None
    ) -> None:
        self.files, self.heads, self.column = list(files), list(heads), column
        self.groups = [
            Group(file, number, head.row_group(number).num_rows)
            for file, head in enumerate(heads)
            for number in range(head.num_row_groups)
        ]
        self.ends = np.cumsum([group.rows for group in self.groups])
        self.chosen = np.arange(int(self.ends[-1])) if chosen is None else chosen
        self.states = [_state_of(file, head) for file, head in zip(self.files, heads, strict=True)]
        digest = hashlib.sha256(repr((self.states, column)).encode()).hexdigest()
        self.folder = Path(datasets.config.HF_DATASETS_CACHE) / "biggan_hf" / digest[:32]
        self._spread: dict[int, Any] = dict.fromkeys(spread_rows(len(self)))  # looked at several times at the start

    def __len__(self) -> int:
        return len(self.chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    @cached_property
    def _opened(self) -> dict[int, pa.ChunkedArray]:
        return {}

    @property
    def runs(self) -> list[int]:
        """The numbers of rows, one after the other, that are fetched together."""
        groups = np.searchsorted(self.ends, self.chosen, side="right")
        return np.diff(np.flatnonzero(np.diff(groups, prepend=-1, append=-1))).tolist()

    def __getitem__(self, key: int | Sequence[int]) -> dict[str, Any]:
        cells = [self._cell(row) for row in ([key] if isinstance(key, int) else key)]
        return {"image": cells[0] if isinstance(key, int) else cells}

    def _cell(self, place: int) -> dict[str, Any] | None:
        if (known := self._spread.get(place)) is not None:
            return known
        row = int(self.chosen[place])
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group not in self._opened:
            self._opened[group] = self._fetched(group)
            for outdated in self._outdated([*self._opened]):
                del self._opened[outdated]
        cells = self._opened[group]
        cell = cells[row - int(self.ends[group]) + len(cells)].as_py()
        if place in self._spread:
            self._spread[place] = cell
        return cell

    def _outdated(self, groups: Sequence[int]) -> list[int]:
        """
        Those of some groups, from the oldest to the newest, that may go. An order is done with a group when `BUFFER`
        rows lie between it and the newest; workers and processes are not all at the same place.
        """
        rows = np.array([self.groups[group].rows for group in groups])
        between = rows.sum() - rows.cumsum() - rows[-1:]
        return [group for group, number in zip(groups, between, strict=True) if number >= 2 * BUFFER]

    def _fetched(self, group: int) -> pa.ChunkedArray:
        """The cells of a group: in the cache, and not in memory."""
        path, (file, number, _) = self.folder / f"{group}.arrow", self.groups[group]
        with suppress(FileNotFoundError):
            return _read(path)
        try:
            if _state_of(self.files[file], self.heads[file]) != self.states[file]:  # the labels are of what was there
                raise ValueError("the file has been replaced since the stream began")
            with fsspec.open(self.files[file], "rb") as opened:
                table = pq.ParquetFile(opened, metadata=self.heads[file]).read_row_group(number, [self.column])
            table = _only(table, self.column, datasets.Image())
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"cannot read row group {number} of {self.files[file]!r}: {first_line(error)}") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_file(path) as unfinished, pa.OSFile(str(unfinished), "wb") as sink:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        cells = _read(path)
        self._make_room()
        return cells

    def _make_room(self) -> None:
        """Removes outdated groups. A process that has one of them open can still read it."""
        with suppress(FileNotFoundError):  # another process was faster
            paths = sorted(self.folder.glob("[0-9]*.arrow"), key=lambda path: path.stat().st_mtime_ns)
            for group in self._outdated([int(path.stem) for path in paths]):
                (self.folder / f"{group}.arrow").unlink()


def _state_of(file: str, head: pq.FileMetaData) -> tuple[object, ...]:
    """What changes with a file: an address on the Hub has the commit in it; elsewhere the head must tell."""
    if "://" not in file:
        return file, stamp(file)
    written = pa.BufferOutputStream()
    head.write_metadata_file(written)
    return file, hashlib.sha256(written.getvalue()).digest()


def _read(path: Path) -> pa.ChunkedArray:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().column(0)


# Opening


def open_streamed(
    name: str, config_name: str | None, spec: str, image_column: str | None, label_column: str | None
) -> Opened:
    """
    See `load_labelled_images`. Reads the ends of all files of the split, and the labels.

    Args:
        spec: The split.
    """
    try:
        place = Path(name).expanduser()
        builder = datasets.load_dataset_builder(str(place) if place.exists() else name, config_name)
        if builder.name != "parquet":
            raise ValueError(f"a stream is of parquet files, and this is {builder.name}")
        files = {str(split): [str(file) for file in found] for split, found in builder.config.data_files.items()}
        used = used_splits(spec, list(files))
        heads = {split: _in_threads(_head, files[split]) for split in used}
        of_files = datasets.Features.from_arrow_schema(heads[used[0]][0].schema.to_arrow_schema())
        features = builder.info.features or of_files  # a card may say more
        if asks_for_fields(features, label_column):
            features = features.flatten()
        image_column = find_image_column(features, image_column)
        column = find_label_column(features, label_column)
        known = [] if column is None else [*used, *({"train"} & files.keys() - {*used})]
        whole = {split: _labels_of(files[split], str(column), features[column]) for split in known}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"cannot stream split {spec!r} of dataset {name!r}: {first_line(error)}") from error
    lengths = {split: sum(head.num_rows for head in heads[split]) for split in used}
    starts = dict(zip(used, np.cumsum([0, *lengths.values()]), strict=False))
    parts = read_parts(spec, lengths)
    chosen = np.concatenate([starts[split] + np.arange(first, last) for split, first, last in parts])
    if not len(chosen):
        raise ValueError(f"split {spec!r} of dataset {name!r} is empty")
    all_files, all_heads = ([item for split in used for item in found[split]] for found in (files, heads))
    pictures = StreamedPictures(all_files, all_heads, image_column, chosen)
    labels: Labels | None = None
    if column is not None:
        rows = datasets.concatenate_datasets([whole[split] for split in used]).select(chosen)
        labels = read_labels(rows, column, list(whole.values()))
    ignored: dict[str, int | None] = {split: None for split in files if split not in used}
    left_out = files_beside(place, itertools.chain(*files.values()))
    label_source = UNLABELLED if column is None else f"column {column!r}"
    remarks = other_label_columns(features) if column is None and label_column is None else []
    contents = Contents(spec, ignored, left_out, label_source=label_source, remarks=remarks)
    return with_classes(Opened(pictures, labels, contents), label_column)


def _head(file: str) -> pq.FileMetaData:
    with fsspec.open(file, "rb") as opened:
        return pq.ParquetFile(opened).metadata


def _labels_of(files: Sequence[str], column: str, feature: Any) -> datasets.Dataset:
    """A table of this column alone."""
    table = pa.concat_tables(_in_threads(partial(_column, column=column, feature=feature), files))
    return datasets.Dataset(table, datasets.DatasetInfo(features=datasets.Features({column: feature})))


def _column(file: str, column: str, feature: Any) -> pa.Table:
    with fsspec.open(file, "rb") as opened:
        table = pq.ParquetFile(opened).read([column])
    try:
        return _only(table, column, feature)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {column!r} of {file!r} does not fit {feature}: {first_line(error)}") from error


def _only(table: pa.Table, column: str, feature: Any) -> pa.Table:
    """The column alone, which may be a field of a struct, in the type of the feature. Null where there is none."""
    while column not in table.column_names and any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    there = [name for name in table.column_names if name == column]
    return datasets.table.table_cast(table.select(there), datasets.Features({column: feature}).arrow_schema)


def _in_threads(function: Callable[[str], Any], files: Sequence[str]) -> list[Any]:
    """Each file takes a while to answer."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, files))
