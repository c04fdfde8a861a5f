"""From what a data set says about its pictures to classes: columns, a metadata file, StyleGAN's dataset.json."""

import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import torch
from torch import Tensor

from .folders import Folder, Listing, above_and_inside, natural_order


NO_LABELS = "none"
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "class_labels", "cls", "target")
# Looked for where there is none of the others
OTHER_LABEL_NAMES = ("class_name", "label_name", "category", "species", "breed")
MAX_CLASSES = 2**20
FEW_ROWS = 20  # up to so many rows may all have different labels

STYLEGAN_FILE = "dataset.json"
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
    """The columns with a usual name. WebDataset's may have a part of the file name in front: "0.cls"."""
    last = {column: column.rpartition(".")[2] for column in columns}
    for names in (LABEL_NAMES, OTHER_LABEL_NAMES):
        if found := [column for column in last if last[column] in names]:
            return found
    return []


def read_labels(source: datasets.Dataset, column: str) -> Labels:
    """The labels of a column. A `ClassLabel` keeps its classes, also those without pictures."""
    values = source.select_columns([column]).with_format("arrow")[:][column]
    feature = source.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return to_classes(values, f"label column {column!r}")
    _refuse_nulls(values, f"label column {column!r}")
    rows = torch.from_numpy(values.to_numpy().astype(np.int64))
    _refuse_negative(values, f"label column {column!r}")
    if rows.max() >= len(feature.names):
        most = len(feature.names) - 1
        raise ValueError(f"label column {column!r} has a label {int(rows.max())}, expected 0 to {most}")
    return Labels(rows, list(feature.names), list(feature.names))


# Values


def of_folders(names: Sequence[str]) -> Labels:
    """The classes of pictures in class folders of these names."""
    ordered = sorted(set(names), key=natural_order)
    number = {name: index for index, name in enumerate(ordered)}
    return Labels(torch.tensor([number[name] for name in names]), ordered, list(ordered))


def to_classes(values: pa.ChunkedArray, where: str) -> Labels:
    """
    Every different value is a class, in natural order: numbers by value, "2" before "10".

    Args:
        where: What the values are, for errors: "label column 'breed'".
    """
    _refuse_nulls(values, where)
    values = _as_classes(values, where).combine_chunks()
    encoded = values.dictionary_encode()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    different = encoded.dictionary.to_pylist()
    if len(different) > MAX_CLASSES:
        raise ValueError(f"{where} has {len(different)} different values, expected at most {MAX_CLASSES} classes")
    is_text = pa.types.is_string(values.type)
    most = len(values) // 2 if is_text else len(values) - 1
    if len(values) > FEW_ROWS and len(different) > most:
        example = str(different[0])
        raise ValueError(
            f"{where} has {len(different)} different values in {len(values)} rows, such as {example[:60]!r}: these "
            f"are no classes; let label_column name another column, or 'none' for no labels"
        )
    order = sorted(range(len(different)), key=lambda i: natural_order(different[i]) if is_text else different[i])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    rows = torch.from_numpy(rank[encoded.indices.to_numpy()])
    ordered = [different[index] for index in order]
    return Labels(rows, [str(value) for value in ordered], ordered)


def _as_classes(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """The values in a type that can name classes."""
    types = pa.types
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_floating(values.type):
        numbers = values.to_numpy()
        if not (np.isfinite(numbers).all() and (numbers == numbers.round()).all()):
            broken = next(number for number in numbers if not np.isfinite(number) or number != round(number))
            raise ValueError(f"{where} has {values.type} values such as {broken}, which are no classes")
        values = pa.chunked_array([pa.array(numbers.astype(np.int64))])
    if types.is_integer(values.type):
        _refuse_negative(values, where)
    elif types.is_string(values.type) or types.is_large_string(values.type):
        values = values.cast(pa.string())
        if empty := sum(not text.strip() for text in values.to_pylist()):
            raise ValueError(f"{where} has {empty} empty labels")
    elif not any(
        is_type(values.type)
        for is_type in (types.is_boolean, types.is_date, types.is_timestamp, types.is_time, types.is_decimal)
    ):
        raise ValueError(f"{where} is {values.type}, expected one value for each picture: integers, strings, …")
    return values


def _refuse_nulls(values: pa.ChunkedArray, where: str) -> None:
    if values.null_count:
        raise ValueError(f"{where} has {values.null_count} null labels of {len(values)}: every picture needs one")


def _refuse_negative(values: pa.ChunkedArray, where: str) -> None:
    numbers = values.to_numpy()
    if numbers.min() < 0:
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
    try:
        labels = json.loads(listing.read(path))["labels"]
        pairs = [(posixpath.normpath(folder.inside(name)), label) for name, label in labels or []]
    except (ValueError, TypeError, KeyError):
        return None
    return LabelFiles(dict(pairs), [path], STYLEGAN_FILE)


def find_metadata(listing: Listing, split: Folder, requested: str | None) -> LabelFiles | None:
    """
    The labels of `metadata.csv`, `.jsonl` or `.parquet` files, as `datasets` defines them: each row has a `file_name`
    relative to the file. They lie in the split's folder, deeper, or above. `None` if there are none, or if none has
    the requested column (default the only one with a usual name).
    """
    values: dict[str, Any] = {}
    used, columns = [], set()
    for folder, path in _metadata_files(split):
        table = _read_table(path, listing.read(path))
        names = [column for column in table.column_names if column == "file_name" or column.endswith("_file_name")]
        found = usual_label_names(table.column_names) if requested is None else [requested]
        if len(found) > 1:
            raise ValueError(f"{path} has several columns of labels {found}: name label_column, or 'none'")
        if not names or not found or found[0] not in table.column_names:
            continue
        for file, value in zip(table[names[0]].to_pylist(), table[found[0]].to_pylist(), strict=True):
            picture = posixpath.normpath(folder.inside(str(file).replace("\\", "/")))
            if values.setdefault(picture, value) != value:
                raise ValueError(f"{path} gives {picture} the label {value!r}, and {values[picture]!r} elsewhere")
        used.append(path)
        columns.add(found[0])
    if not used:
        return None
    files = sorted({posixpath.basename(path) for path in used})
    return LabelFiles(values, used, f"column {', '.join(map(repr, sorted(columns)))} of {', '.join(files)}")


def metadata_columns(listing: Listing, split: Folder) -> list[str]:
    """The columns of all metadata files."""
    tables = [_read_table(path, listing.read(path)) for _, path in _metadata_files(split)]
    return list(dict.fromkeys(name for table in tables for name in table.column_names))


def _metadata_files(split: Folder) -> list[tuple[Folder, str]]:
    """With the folders in which they lie: that of the split, deeper ones, and those above."""
    folders = [*above_and_inside(split)]
    return [(folder, folder.inside(name)) for folder in folders for name in METADATA_FILES if name in folder.others]


def _read_table(path: str, data: bytes) -> pa.Table:
    try:
        if path.endswith(".csv"):
            options = pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
            return pa.csv.read_csv(io.BytesIO(data), convert_options=options)
        if path.endswith(".jsonl"):
            return pa.json.read_json(io.BytesIO(data))
        return pa.parquet.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
