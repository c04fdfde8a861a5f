"""From what a data set says about its pictures to classes: columns, a metadata file, StyleGAN's dataset.json."""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.json
import pyarrow.parquet
import torch
from torch import Tensor

from ..pictures import first_line
from .folders import Folder, Listing, above_and_inside, natural_order


NO_LABELS = "none"
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "class_labels", "cls", "target")
# Looked for where there is none of the others
OTHER_LABEL_NAMES = ("class_name", "label_name", "category", "species", "breed")
MAX_CLASSES = 2**20
FEW_ROWS = 20  # up to so many rows may all have different labels

STYLEGAN_FILE = "dataset.json"
NAMES_PICTURES = "file_name"  # the column; also with something in front: "image_file_name"
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of a data set, and that of each row."""

    rows: Tensor  # int64 (N,)
    names: list[str]
    values: list[Any]  # as the data set has them: numbers, strings, dates


# Columns


def find_label_column(features: Mapping[str, Any], requested: str | None) -> str | None:
    if requested == NO_LABELS:
        return None
    if requested is not None and requested not in features:
        raise ValueError(f"label_column {requested!r} is not a column, expected one of {list(features)} or 'none'")
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = usual_label_names(
        name for name, feature in features.items() if "." not in name or isinstance(feature, datasets.Value)
    )
    candidates = [requested] if requested is not None else typed or usual
    if len(candidates) > 1:
        raise ValueError(f"several columns of labels {candidates}: name label_column, or 'none' for no labels")
    if not candidates:
        return None
    feature = features[candidates[0]]
    if not isinstance(feature, datasets.ClassLabel | datasets.Value):
        raise ValueError(
            f"label column {candidates[0]!r} is {feature}, expected one value for each picture: ClassLabel, integers, "
            f"strings, … (or 'none')"
        )
    return candidates[0]


def usual_label_names(columns: Iterable[str]) -> list[str]:
    """The columns with a usual name, in any case. WebDataset's may have a part of a file name in front: "0.cls"."""
    last = {column: column.rpartition(".")[2].casefold() for column in columns}
    for names in (LABEL_NAMES, OTHER_LABEL_NAMES):
        if found := [column for column in last if last[column] in names]:
            return found
    return []


def read_labels(source: datasets.Dataset, column: str, whole: Sequence[datasets.Dataset] = ()) -> Labels:
    """
    The labels of a column. A `ClassLabel` keeps its classes, also those without pictures.

    Args:
        whole: The splits of which the source is a part, and others. Their values are classes, but for null and
            negative ones, as hidden test splits have.
    """
    where = f"label column {column!r}"
    values = _column(source, column)
    feature = source.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        chunks = [_column(other, column) for other in whole if other.features.get(column) == feature]
        known = pa.chunked_array([chunk for array in chunks for chunk in array.chunks], values.type).drop_null()
        if pa.types.is_integer(known.type):
            known = known.filter(pa.compute.greater_equal(known, 0))
        return to_classes(values, where, known if whole else None)
    _refuse_nulls(values, where)
    rows = torch.from_numpy(values.to_numpy().astype(np.int64))
    _refuse_negative(values, where)
    if rows.max() >= len(feature.names):
        most = len(feature.names) - 1
        raise ValueError(f"{where} has a label {int(rows.max())}, expected 0 to {most}")
    return Labels(rows, list(feature.names), list(feature.names))


def _column(source: datasets.Dataset, column: str) -> pa.ChunkedArray:
    return source.select_columns([column]).with_format("arrow")[:][column]


# Values


def of_folders(names: Sequence[str], known: Iterable[str] = ()) -> Labels:
    """The classes of pictures in class folders of these names; the known ones are classes too."""
    ordered = sorted({*names, *known}, key=natural_order)
    number = {name: index for index, name in enumerate(ordered)}
    return Labels(torch.tensor([number[name] for name in names]), ordered, list(ordered))


def to_classes(values: pa.ChunkedArray, where: str, known: pa.ChunkedArray | None = None) -> Labels:
    """
    Every different value is a class, in natural order: numbers by value, "2" before "10".

    Args:
        where: What the values are, for errors: "label column 'breed'".
        known: All values of the data set, where `values` are a part.
    """
    _refuse_nulls(values, where)
    values = _as_classes(values, where)
    known = values if known is None else _as_classes(known, where)
    different = known.unique().to_pylist()
    if len(different) > MAX_CLASSES:
        raise ValueError(f"{where} has {len(different)} different values, expected at most {MAX_CLASSES} classes")
    is_text = pa.types.is_string(values.type)
    most = len(known) // 2 if is_text else len(known) - 1
    if len(known) > FEW_ROWS and len(different) > most:
        example = str(different[0])
        raise ValueError(
            f"{where} has {len(different)} different values in {len(known)} rows, such as {example[:60]!r}: these "
            f"are no classes; let label_column name another column, or 'none' for no labels"
        )
    ordered = sorted(different, key=natural_order if is_text else None)
    rows = pa.compute.index_in(values, value_set=pa.array(ordered, values.type))
    return Labels(torch.from_numpy(rows.to_numpy().astype(np.int64)), [str(value) for value in ordered], ordered)


def _as_classes(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """The values in a type that can name classes."""
    types = pa.types
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_floating(values.type):
        numbers = values.to_numpy()
        fit = (abs(numbers.astype(np.float64)) < 2**53) & (numbers == numbers.round())
        if not fit.all():
            raise ValueError(f"{where} has {values.type} values such as {numbers[~fit][0]}, which are no classes")
        values = pa.chunked_array([pa.array(numbers.astype(np.int64))])
    if types.is_integer(values.type):
        _refuse_negative(values, where)
    elif types.is_string(values.type) or types.is_large_string(values.type) or types.is_string_view(values.type):
        values = values.cast(pa.string())
        if empty := sum(not text.strip() for text in values.to_pylist()):
            raise ValueError(f"{where} has {empty} empty labels")
    elif not any(is_type(values.type) for is_type in (types.is_boolean, types.is_temporal, types.is_decimal)):
        raise ValueError(f"{where} is {values.type}, expected one value for each picture: integers, strings, …")
    return values


def _refuse_nulls(values: pa.ChunkedArray, where: str) -> None:
    if values.null_count:
        raise ValueError(f"{where} has {values.null_count} null labels of {len(values)}: every picture needs one")


def _refuse_negative(values: pa.ChunkedArray, where: str) -> None:
    numbers = values.to_numpy()
    if numbers.min(initial=0) < 0:
        count = int((numbers < 0).sum())
        raise ValueError(f"{where} has {count} negative labels ({numbers.min()}), as hidden test splits have")


def alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that are the same but for case, spaces and how Unicode writes them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFKC", " ".join(name.split())).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


# Files beside pictures


@dataclass(frozen=True, eq=False)
class LabelFiles:
    """The labels that files beside the pictures name."""

    values: dict[str, Any]  # by the relative path of the picture
    paths: list[str]  # of the files
    source: str  # in words


def find_stylegan_labels(listing: Listing, split: Folder) -> LabelFiles | None:
    """
    Those of the nearest `dataset.json` above the pictures of a split, none (but a file) if it holds `null`. A file of
    another program counts as none.
    """
    folder: Folder | None = split
    while folder is not None and STYLEGAN_FILE not in folder.others:
        folder = folder.above
    if folder is None:
        return None
    path = folder.inside(STYLEGAN_FILE)
    data = listing.read(path)
    try:
        labels = json.loads(data)["labels"]
    except (ValueError, TypeError, KeyError):
        return None
    if labels is not None and not (isinstance(labels, list) and all(map(_is_pair, labels))):
        return None
    return LabelFiles({_relative(folder, name): label for name, label in labels or []}, [path], STYLEGAN_FILE)


def _is_pair(item: object) -> bool:
    """Of the name of a picture and its label."""
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


@dataclass(frozen=True, eq=False)
class Metadata:
    """A table that says something about pictures: `metadata.csv`, `.jsonl` or `.parquet`, as `datasets` defines it."""

    folder: Folder  # in which it lies; its names of pictures are relative to it
    path: str
    table: pa.Table

    @property
    def names(self) -> list[str]:
        """The columns that may name the pictures; it is clear which does if it is one."""
        found = [column for column in self.table.column_names if _names_files(column)]
        return [NAMES_PICTURES] if NAMES_PICTURES in found else found

    @property
    def columns(self) -> list[str]:
        """Those that may be labels."""
        return [column for column in self.table.column_names if not _names_files(column)]


def _names_files(column: str) -> bool:
    return column == NAMES_PICTURES or column.endswith(f"_{NAMES_PICTURES}")


def read_metadata(listing: Listing, split: Folder) -> list[Metadata]:
    """The tables in the split's folder, deeper, or above."""
    folders = above_and_inside(split)
    there = [(folder, folder.inside(name)) for folder in folders for name in METADATA_FILES if name in folder.others]
    return [Metadata(folder, path, _read_table(path, listing.read(path))) for folder, path in there]


def labels_of_metadata(tables: Sequence[Metadata], requested: str | None) -> LabelFiles | None:
    """`None` if no table names pictures and has the requested column (default the only one with a usual name)."""
    values: dict[str, Any] = {}
    used, columns = [], set()
    for table in tables:
        path = table.path
        found = usual_label_names(table.columns) if requested is None else [requested]
        if len(found) > 1:
            raise ValueError(f"{path} has several columns of labels {found}: name label_column, or 'none'")
        if not found or found[0] not in table.columns:
            continue
        if not table.names and requested is None:
            continue
        if not table.names:
            raise ValueError(f"{_without_names(table)} Rename the one that names the pictures.")
        if len(table.names) > 1:
            raise ValueError(f"{path} names files in {table.names}: rename the one of the pictures {NAMES_PICTURES!r}")
        names, labels = (table.table[column].to_pylist() for column in (table.names[0], found[0]))
        for file, value in zip(names, labels, strict=True):
            picture = _relative(table.folder, str(file))
            if values.setdefault(picture, value) != value:
                raise ValueError(f"{path} gives {picture} the label {value!r}, and {values[picture]!r} elsewhere")
        used.append(path)
        columns.add(found[0])
    if not used:
        return None
    files = sorted({posixpath.basename(path) for path in used})
    return LabelFiles(values, used, f"column {', '.join(map(repr, sorted(columns)))} of {', '.join(files)}")


def why_unused(tables: Sequence[Metadata]) -> list[str]:
    """Why no label is taken from the tables."""
    return [
        _without_names(table)
        if not table.names
        else f"No column of {table.path} has a usual name of labels: label_column may name one of {table.columns}."
        for table in tables
        if not table.names or table.columns
    ]


def _without_names(table: Metadata) -> str:
    return f"{table.path} has no column {NAMES_PICTURES!r}, which says the picture of a row, but has {table.columns}."


def _relative(folder: Folder, name: str) -> str:
    return posixpath.normpath(folder.inside(name.replace("\\", "/")))


def _read_table(path: str, data: bytes) -> pa.Table:
    try:
        if path.endswith(".parquet"):
            return pa.parquet.read_table(io.BytesIO(data))
        text = data.decode("utf-8-sig")
        return _read_csv(text) if path.endswith(".csv") else pa.json.read_json(io.BytesIO(text.encode()))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it in UTF-8") from error
    except (ValueError, csv.Error, OSError) as error:  # pyarrow's errors are of the former
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error


def _read_csv(text: str) -> pa.Table:
    """A comma, a semicolon or a tab separates columns, also with a space after it. Empty texts are null."""
    head = text.lstrip().partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    rows = [[cell.strip() for cell in line] for line in lines if line]
    header, *rows = rows or [[]]
    if uneven := next((row for row in rows if len(row) != len(header)), None):
        raise ValueError(f"it has {len(header)} columns, and {len(uneven)} in the row {', '.join(uneven)[:60]!r}")
    return pa.table({name: _typed([row[index] or None for row in rows]) for index, name in enumerate(header)})


def _typed(texts: list[str | None]) -> pa.Array:
    """Numbers, if all texts are, and none would lose digits, as "01" or a very long one. "1E2" and "nan" are none."""
    array = pa.array(texts, pa.string())
    if all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?", text) for text in texts if text):
        for dtype in (pa.int64(), pa.float64()):
            with suppress(pa.ArrowInvalid):
                return array.cast(dtype)
    return array
