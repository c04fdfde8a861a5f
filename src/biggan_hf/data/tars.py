"""
WebDataset shards on this machine that `datasets` cannot read: it splits names at the first dot, so that `a.b.jpg` and
`a.c.jpg` are one sample, and takes numbers only for labels in `.cls` files. For a picture whose name is that of a file
in the working directory it takes that file (5.2.0, `datasets/features/image.py`: the path of a file replaces bytes).
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute

from ..words import counted
from .folders import is_picture, list_folder, natural_order, split_in


DOTS = (
    "WebDataset splits a name at its first dot, so a.b.jpg and a.c.jpg are two kinds of files of one sample: if names "
    "have more, rename them (a_b.jpg), or download the shards and give their folder, which is read by the last dot"
)
UNEQUAL = "Each sample needs the same kinds of files"
TEXT_IN_CLS = "a .cls file holds text: download the shards and give their folder, of which texts are read as labels"
NUMBERS, TEXTS, JSONS = {"cls", "cls2", "index", "id"}, {"txt", "text", "caption", "label", "class"}, {"json", "jsn"}
LOOKED_AT = 8  # shards, of which the names are read each time

Split = Callable[[str], tuple[str, str]]  # of a name into what its sample is called and what the file is


def own_tars(place: Path) -> dict[str, datasets.Dataset]:
    """
    The splits of the shards in a folder, or of one shard, if names must be split at the last dot, labels are texts, or
    files of these names are in the working directory. None if `datasets` can read them, or if neither dot gives
    samples that are alike.
    """
    shards = shards_of(place)
    looked_at = _some(shards)
    names = [[name for name, _ in _files(shard)] for shard in looked_at]
    # One sample by the first dot, such as a.0.jpg and a.1.jpg, may be many.
    first_serves = all(_samples_if_alike(part, by_first_dot) > 1 for part in names)
    split_name = by_first_dot if first_serves else by_last_dot
    if not first_serves and _samples_if_alike(_together(names), by_last_dot) < 2:
        return {}
    known = _features(looked_at, split_name) if shards else {}
    has_texts = any(_kind(field) in NUMBERS and value.dtype == "string" for field, value in known.items())
    are_here = any(os.path.isfile(name) for part in names for name in part)
    if first_serves and not has_texts and not are_here:
        return {}
    splits: dict[str, list[str]] = {}
    for shard in shards:
        name = str(shard.relative_to(place)) if place.is_dir() else ""
        splits.setdefault(split_in(name) or "train", []).append(str(shard))
    return {
        split: datasets.Dataset.from_generator(
            _samples,
            datasets.Features({"__key__": datasets.Value("string"), **known}),
            gen_kwargs={
                "shards": tuple(paths),
                "at_first_dot": first_serves,
                "numbers": tuple(field for field, value in known.items() if getattr(value, "dtype", "") == "int64"),
                "fields": tuple(known),
                "stamps": tuple(map(stamp, paths)),
            },
        )
        for split, paths in splits.items()
    }


def shards_of(place: Path) -> list[Path]:
    if place.is_file():
        return [place] if place.suffix == ".tar" else []
    return [place / path for path in sorted(list_folder(place).top.other_paths()) if path.endswith(".tar")]


def _some(shards: list[Path]) -> list[Path]:
    """Shards from all over the list."""
    return shards if len(shards) <= LOOKED_AT else shards[:: -(-len(shards) // LOOKED_AT)]


def _together(names: list[list[str]]) -> list[str]:
    """The names of several shards, each in a folder of its own: samples of two shards may have the same name."""
    return [f"{shard}/{name}" for shard, part in enumerate(names) for name in part]


# Advice


def folders_of_keys(source: datasets.Dataset) -> list[str]:
    """The folders inside of the shards."""
    return sorted({os.path.dirname(os.path.normpath(key)) for key in source["__key__"]}, key=natural_order)


def with_advice_on_dots(error: str, source: datasets.Dataset, place: Path) -> str:
    """The error and what helps, if the columns of pictures show that `datasets` has split names at the wrong dot."""
    pictures = [name for name, feature in source.features.items() if isinstance(feature, datasets.Image)]
    if "__url__" not in source.features or not pictures:
        return error
    # Of samples that are pictures of one sample there is no plain "jpg", and several shards leave holes.
    if not (all("." in name for name in pictures) if pictures[1:] else source.data.column(pictures[0]).null_count):
        return error
    advice = _odd_sample(place) if place.exists() else DOTS
    return advice if advice.startswith(UNEQUAL) else ". ".join(filter(None, (error, advice)))


def refuse_gaps(source: datasets.Dataset, image_column: str) -> None:
    """Raises `ValueError` if samples lack the picture: another kind of file may hold it, which is in no column."""
    pictures = source.data.column(image_column)
    if "__key__" not in source.features or not pictures.null_count:
        return
    first = source.data.column("__key__")[pa.compute.index(pictures.is_null(), True).as_py()].as_py()
    lacking = f"{pictures.null_count} of {counted(len(pictures), 'sample')}"
    raise ValueError(f"{UNEQUAL}: {lacking} have no {image_column!r}, as {first!r}")


def advice_on_error(reason: str, place: Path | None) -> str:
    """What helps with an error of `datasets`.

    Args:
        place: `None` for shards on the Hub.
    """
    if "TAR archive" not in reason and "invalid literal for int" not in reason:
        return ""
    if place is not None:
        return f" {_odd_sample(place)}"
    return f" {DOTS}" if "TAR archive" in reason else f": {TEXT_IN_CLS}"


def _odd_sample(place: Path) -> str:
    """A sample that has other kinds of files than most; what to rename, if there is none."""
    names = [[name for name, _ in _files(shard)] for shard in _some(shards_of(place))]
    by_dot = [_by_sample(_together(names), split) for split in (by_last_dot, by_first_dot)]
    samples = max(by_dot, key=_share_of_usual)
    usual = _usual(samples)[0]
    odd = {key.partition("/")[2]: kinds for key, kinds in samples.items() if kinds != usual}
    for key, kinds in odd.items():
        differ = f"{len(odd)} of {counted(len(samples), 'sample')} {'differs' if len(odd) == 1 else 'differ'}"
        return f"{UNEQUAL}: {differ}, as {key!r} has the files {[*kinds]}, most have {[*usual]}"
    if any(os.path.basename(name).count(".") > 1 for part in names for name in part):
        return "WebDataset splits a name at its first dot, and names here have more: rename them (a.b.jpg to a_b.jpg)"
    return ""


# Names


def by_first_dot(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    key, _, field = base.partition(".")
    return f"{folder}/{key}", field.lower()


def by_last_dot(name: str) -> tuple[str, str]:
    key, _, field = name.rpartition(".")
    return key, field.lower()


def _by_sample(names: list[str], split: Split) -> dict[str, tuple[str, ...]]:
    """The kinds of files that each sample has, sorted."""
    samples: dict[str, list[str]] = {}
    for key, field in map(split, names):
        samples.setdefault(key, []).append(field)
    return {key: tuple(sorted(fields)) for key, fields in samples.items()}


def _usual(samples: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], int]:
    """The kinds of files that most samples have, and how many these are."""
    return (Counter(samples.values()).most_common(1) or [((), 0)])[0]


def _share_of_usual(samples: dict[str, tuple[str, ...]]) -> float:
    number = _usual(samples)[1]
    return number / len(samples) if number > 1 else 0


def _samples_if_alike(names: list[str], split: Split) -> int:
    """How many samples there are, if all have the same kinds of files, one of each, and a picture; 0 otherwise."""
    fields, number = _usual(samples := _by_sample(names, split))
    alike = number == len(samples) and len(set(fields)) == len(fields)
    return number if alike and any(map(_is_picture, fields)) else 0


def _kind(field: str) -> str:
    """ "png" of "seg.png"."""
    return field.rpartition(".")[2]


def _is_picture(field: str) -> bool:
    return is_picture(f"0.{field}")


# Files


def _features(shards: list[Path], split_name: Split) -> dict[str, Any]:
    """The types of the fields that may be pictures or labels; that of a json file follows from the first one."""
    features: dict[str, Any] = {}
    for name, read in (file for shard in shards for file in _files(shard)):
        field = split_name(name)[1]
        if _is_picture(field):
            features[field] = datasets.Image()
        elif _kind(field) in TEXTS:
            features[field] = datasets.Value("string")
        elif _kind(field) in JSONS and field not in features:
            features[field] = datasets.Dataset.from_list([{field: json.loads(read())}]).features[field]
        elif _kind(field) in NUMBERS and features.get(field) != datasets.Value("string"):
            features[field] = datasets.Value("int64" if _is_number(read()) else "string")
    return dict(sorted(features.items()))


def _is_number(data: bytes) -> bool:
    try:
        int(data)
    except ValueError:
        return False
    return True


def _files(shard: str | Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The names of a shard's files, and how each is read."""
    with tarfile.open(shard) as archive:
        for member in archive:
            if member.isfile() and not os.path.basename(member.name).startswith("."):
                yield member.name, partial(_read, archive, member)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _samples(
    shards: tuple[str, ...], at_first_dot: bool, numbers: tuple[str, ...], fields: tuple[str, ...], stamps: Any
) -> Iterator[dict[str, Any]]:
    empty, split_name = dict.fromkeys(fields), by_first_dot if at_first_dot else by_last_dot
    for shard in shards:
        sample: dict[str, Any] = {}
        for name, read in _files(shard):
            key, field = split_name(name)
            if sample and key != sample["__key__"]:
                yield empty | sample
                sample = {}
            sample["__key__"] = key
            if field in fields:
                sample[field] = _value(f"{shard}/{name}", field, read(), field in numbers)
        if sample:
            yield empty | sample


def _value(name: str, field: str, data: bytes, is_number: bool) -> Any:
    if _is_picture(field):
        return {"bytes": data, "path": name}  # if that was a file, `datasets` would leave out the bytes
    if is_number and not _is_number(data):
        raise ValueError(f"{name!r} holds {data.decode(errors='replace')[:60]!r}, and others of its kind hold numbers")
    if is_number:
        return int(data)
    return json.loads(data) if _kind(field) in JSONS else data.decode().strip()


def stamp(path: str | Path) -> tuple[int, ...]:
    """What changes with a file: who replaces one and keeps its time of modification cannot keep that of the change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
