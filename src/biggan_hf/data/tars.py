"""WebDataset shards whose base names have dots, as `a.b.jpg` and `a.b.cls`: `datasets` splits names at the first."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from .folders import is_picture, list_folder, split_in


DOTS = (
    "WebDataset splits a name at its first dot, so a.b.jpg and a.c.jpg are two kinds of files of one sample: rename "
    "them (a_b.jpg), or download the shards and give their folder, which is read by the last dot"
)
NUMBERS, TEXTS, JSONS = {"cls", "cls2", "index", "id"}, {"txt", "text", "caption", "label", "class"}, {"json", "jsn"}

Split = Callable[[str], tuple[str, str]]  # of a name into what its sample is called and what the file is


def dotted_tars(place: Path) -> dict[str, datasets.Dataset]:
    """
    The splits of the shards in a folder, or of one shard, read by the last dot of each name. None where the first dot
    serves, or where neither does.
    """
    if place.is_file():
        shards = [place] if place.suffix == ".tar" else []
    else:
        listing = list_folder(place)
        files = (folder.inside(name) for folder in listing.top.walk() for name in folder.others)
        shards = [place / path for path in sorted(files) if path.endswith(".tar")]
    names = [name for name, _ in _files(shards[0])] if shards else []
    # One sample by the first dot, such as a.0.jpg and a.1.jpg, may be many.
    if _samples_if_alike(names, by_first_dot) > 1 or _samples_if_alike(names, by_last_dot) < 2:
        return {}
    known = _features(shards[0], {by_last_dot(name)[1] for name in names})
    splits: dict[str, list[str]] = {}
    for shard in shards:
        name = str(shard.relative_to(place)) if place.is_dir() else ""
        splits.setdefault(split_in(name) or "train", []).append(str(shard))
    return {
        split: datasets.Dataset.from_generator(
            _samples,
            known,
            gen_kwargs={"shards": tuple(paths), "fields": tuple(known), "stamps": tuple(map(_stamp, paths))},
        )
        for split, paths in splits.items()
    }


def by_first_dot(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    key, _, field = base.partition(".")
    return f"{folder}/{key}", field.lower()


def by_last_dot(name: str) -> tuple[str, str]:
    key, _, field = name.rpartition(".")
    return key, field.lower()


def _samples_if_alike(names: list[str], split: Split) -> int:
    """How many samples there are, if all have the same kinds of files, one of each, and a picture; 0 otherwise."""
    samples: dict[str, list[str]] = {}
    for name in names:
        key, field = split(name)
        samples.setdefault(key, []).append(field)
    kinds = {tuple(sorted(fields)) for fields in samples.values()}
    fields = kinds.pop() if len(kinds) == 1 else ()
    return len(samples) if len(set(fields)) == len(fields) and any(map(_is_picture, fields)) else 0


def _is_picture(field: str) -> bool:
    return is_picture(f"0.{field}")


def _features(shard: Path, fields: set[str]) -> datasets.Features:
    """The types of the fields that may be pictures or labels; that of a json file follows from the first one."""
    features: dict[str, Any] = {field: datasets.Image() for field in fields if _is_picture(field)}
    features |= {field: datasets.Value("int64") for field in fields & NUMBERS}
    features |= {field: datasets.Value("string") for field in fields & TEXTS}
    for field in fields & JSONS:
        first = next(_value(name, field, read()) for name, read in _files(shard) if by_last_dot(name)[1] == field)
        features[field] = datasets.Dataset.from_list([{field: first}]).features[field]
    return datasets.Features(dict(sorted(features.items())))


def _files(shard: str | Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The names of a shard's files, and how each is read."""
    with tarfile.open(shard) as archive:
        for member in archive:
            if member.isfile() and not os.path.basename(member.name).startswith("."):
                yield member.name, partial(_read, archive, member)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _samples(shards: tuple[str, ...], fields: tuple[str, ...], stamps: Any) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(fields)
    for shard in shards:
        sample: dict[str, Any] = {}
        current = None
        for name, read in _files(shard):
            key, field = by_last_dot(name)
            if key != current and sample:
                yield empty | sample
                sample = {}
            current = key
            if field in fields:
                sample[field] = _value(name, field, read())
        if sample:
            yield empty | sample


def _value(name: str, field: str, data: bytes) -> Any:
    if _is_picture(field):
        return {"bytes": data, "path": name}
    text = data.decode()
    return json.loads(text) if field in JSONS else int(text) if field in NUMBERS else text


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
