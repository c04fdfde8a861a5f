"""What lies in a folder: splits, classes and what is left out, for the folders that people bring."""

import gzip
import io
import itertools
import json
import os
import re
import tarfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from biggan_hf.data import LabelledImages, load_labelled_images
from biggan_hf.data.folders import list_folder, natural_order
from biggan_hf.data.tars import advice_on_error


Content = str | None  # a text, "-> path" for a link, or None for a picture


def png(seed: int) -> bytes:
    data = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4), np.uint8)
    Image.fromarray(noise).save(data, "PNG")
    return data.getvalue()


def write(folder: Path, layout: str, **texts: Content) -> Path:
    """Files by their paths, with spaces as `_`; those of `texts` hold them, all others are pictures, each another."""
    paths = [path.replace("_", " ") for path in layout.split()]
    for seed, path in enumerate(paths):
        name, _, target = path.partition("->")
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if target:
            place.symlink_to(target)
        elif path.endswith("/"):
            place.mkdir()
        else:
            place.write_bytes(png(seed))
    for path, text in texts.items():
        (folder / path).write_text(text or "")
    return folder


def load(folder: Path | str, **options: Any) -> LabelledImages:
    return load_labelled_images(str(folder), **{"image_size": 4, "num_channels": 1, **options})


def counts(images: LabelledImages) -> dict[str, int] | int:
    """How many pictures each class has; without classes, how many there are."""
    if images.labels is None:
        assert images.class_names == images.class_values == images.contents.class_counts == []
        return len(images)
    assert Counter(images.labels.tolist()) == +Counter(dict(enumerate(images.contents.class_counts)))
    return dict(zip(images.class_names, images.contents.class_counts, strict=True))


@dataclass(frozen=True)
class Case:
    layout: str
    found: Any  # as `counts` gives it, or a part of the error
    left_out: dict[str, list[str]] = field(default_factory=dict)  # a part of the reason, and names
    remark: str = ""  # a part of the only one
    split: str = "train"
    ignored: dict[str, int] = field(default_factory=dict)


CLASSES = "cat/1.png cat/2.png dog/3.png"
PAIR = {"cat": 2, "dog": 1}
FLAT_SPLIT = {"bus": 1, "car": 1, "train": 2}
CASES = {
    "classes": Case(CLASSES, PAIR),
    "natural order": Case("10/a.png 9/a.png 2/a.png", {"2": 1, "9": 1, "10": 1}),
    "endings in any case": Case("cat/1.PNG cat/2.JpEg dog/3.png", PAIR),
    "flat": Case("1.png 2.png", 2),
    "one class": Case("cat/1.png cat/2.png", 2, remark="one class folder, 'cat'"),
    # What lies beside the pictures of classes
    "a picture beside": Case(f"{CLASSES} 4.png", PAIR, {"beside the class": ["4.png"]}),
    "texts beside pictures": Case(
        f"{CLASSES} cat/1.txt cat/1.json dog/noending captions.csv README.md",
        PAIR,
        {"no picture": ["README.md", "captions.csv", "cat/1.json", "cat/1.txt", "dog/noending"]},
    ),
    "masks of each class": Case(
        f"{CLASSES} masks/cat/1.png masks/dog/3.png", PAIR, {"called like the class folders": ["masks"]}
    ),
    "masks of one class": Case(f"{CLASSES} masks/cat/1.png", PAIR, {"called like the class folders": ["masks"]}),
    "masks of more classes": Case(f"{CLASSES} masks/cat/1.png masks/emu/1.png", "'masks/cat' lies in one class"),
    "hidden": Case(
        f"{CLASSES} .emu/1.png cat/._1.png __MACOSX/cat/1.png".replace("__MACOSX", "@eaDir"),
        PAIR,
        {"hidden": [".emu", "@eaDir", "cat/. 1.png"]},
    ),
    "empty class folders": Case(
        f"{CLASSES} emu/ fox/notes.md", PAIR, {"without": ["emu", "fox"], "no p": ["fox/notes.md"]}
    ),
    "more pictures beside than inside": Case("1.png 2.png 3.png a/4.png b/5.png", "3 pictures beside its sub-folders"),
    "thumbnails": Case("1.png 2.png thumbs/1.png thumbs/2.png", "2 pictures and beside them 'thumbs' with 2"),
    # Names
    "brackets, dots and spaces": Case("a_[2020]/1.png b.c/2.png d_/3.png", {"a [2020]": 1, "b.c": 1, "d ": 1}),
    "names that differ only in case": Case("cat/1.png Cat/2.png", {"Cat": 1, "cat": 1}, remark="alike: 'Cat', 'cat'"),
    "a class called test tube": Case("test_tube/1.png flask/2.png", {"flask": 1, "test tube": 1}),
    "other names of splits": Case("train2017/1.png val2017/2.png", "'train2017', 'val2017' look like splits"),
    "letters": Case("trainA/1.png trainB/2.png testA/3.png", "'testA', 'trainA', 'trainB' look like splits.*classes"),
    "numbers and more": Case(
        "train2017/1.png extra/2.png", {"extra": 1, "train2017": 1}, remark="Read as classes: 'train2017'"
    ),
    "words of splits": Case(
        "test_tube/1.png train_station/2.png",
        {"test tube": 1, "train station": 1},
        remark="Read as classes: 'test tube', 'train station'",
    ),
    "numbers at the end": Case("cat/1.png cat2/2.png cat10/3.png", {"cat": 1, "cat2": 1, "cat10": 1}),
    "a zip beside": Case(f"{CLASSES} emu.zip", PAIR, {"an archive, which is not read": ["emu.zip"]}),
    "masks of a split": Case("train/1.png train-masks/2.png", "'train', 'train-masks' look like splits"),
    # Deeper pictures
    "deeper pictures": Case(
        f"{CLASSES} cat/small/4.png cat/small/red/5.png", {"cat": 4, "dog": 1}, remark="'cat/small'"
    ),
    "all are deeper": Case(
        "animal/cat/1.png animal/dog/2.png plant/elm/3.png", {"animal": 2, "plant": 1}, remark="Pictures of deeper"
    ),
    "one deeper folder in each": Case(
        "cat/images/1.png dog/images/2.png", {"cat": 1, "dog": 1}, remark="2, as 'cat/i"
    ),
    "the classes twice": Case(
        "images/cat/1.png images/dog/2.png maps/cat/1.png maps/dog/2.png", "'cat', 'dog'.*unclear"
    ),
    "a class in another": Case(f"{CLASSES} dog/cat/4.png", "'dog/cat' lies in one class folder"),
    # Splits
    "splits": Case("train/cat/1.png train/dog/2.png test/dog/3.png", {"cat": 1, "dog": 1}, ignored={"test": 1}),
    "of other names": Case(
        "Training/a/1.png Training/b/2.png val/a/3.png", {"a": 1, "b": 1}, ignored={"validation": 1}
    ),
    "splits without classes": Case("train/1.png train/2.png test/3.png", 2, ignored={"test": 1}),
    "a part of the classes": Case(
        "train/cat/1.png train/dog/2.png val/dog/3.png",
        {"cat": 0, "dog": 1},
        split="valid",
        remark="1 of 2 classes has no pictures in split 'valid': cat",
        ignored={"train": 2},
    ),
    "a slice": Case(
        "cat/1.png cat/2.png dog/3.png dog/4.png", {"cat": 2, "dog": 0}, split="train[:50%]", remark="no pictures in"
    ),
    "several": Case("train/a/1.png train/b/2.png val/b/3.png", {"a": 1, "b": 2}, split="Training[:100%]+val"),
    "all": Case("train/a/1.png train/b/2.png test/b/3.png", {"a": 1, "b": 2}, split="all"),
    "no such split": Case("train/a/1.png train/b/2.png", "no split 'test', but 'train'", split="test"),
    "only a test split": Case("test/a/1.png test/b/2.png", "no split 'train', but 'test'"),
    "no splits": Case(CLASSES, "no split 'test', but 'train'.*all of its pictures", split="test"),
    "files beside splits": Case(
        "train/a/1.png train/b/2.png test/a/1.png x.png labels.txt",
        {"a": 1, "b": 1},
        {"beside the splits": ["x.png"], "no p": ["labels.txt"]},
        ignored={"test": 1},
    ),
    "a class called train": Case(
        "bus/1.png car/2.png train/3.png train/4.png", FLAT_SPLIT, remark="Read as classes: 'train'. If they are spl"
    ),
    "pictures of no class": Case(
        "cat/1.png unlabeled/2.png",
        {"cat": 1, "unlabeled": 1},
        remark="Read as classes: 'unlabeled'. If they are none",
    ),
    "pictures and masks": Case("images/1.png masks/1.png", {"images": 1, "masks": 1}, remark="'images', 'masks'"),
    "an empty train": Case("train/ val/a/1.png val/b/2.png", "'train' is there and holds no pictures; 'validation' d"),
    "train or classes": Case(
        "bus/1.png train/steam/2.png train/diesel/3.png", "'train' may be splits, or classes as 'bus'"
    ),
    "two splits and more": Case(
        "train/a/1.png train/b/1.png test/a/1.png more/1.png",
        {"a": 1, "b": 1},
        {"beside the splits": ["more"]},
        ignored={"test": 1},
    ),
    "flat splits and more": Case(
        "train/1.png test/2.png bus/3.png", "'test', 'train' may be splits, or classes as 'bus'"
    ),
    "a split twice": Case("train/a/1.png Train/b/2.png", "'Train', 'train' name the same split"),
    "splits in classes": Case(
        "cat/train/1.png dog/train/2.png", "'cat/train' is a split inside of what would be a class"
    ),
    "beside a level too high": Case("pictures/train/a/1.png extra/2.png", "give the folder 'pictures'"),
    # A level too high
    "one level too high": Case(
        "pictures/cat/1.png pictures/dog/2.png", {"cat": 1, "dog": 1}, remark="lie in 'pictures'"
    ),
    "splits one level too high": Case(
        "pictures/train/circle/1.png pictures/train/square/2.png pictures/test/circle/3.png notes.txt",
        {"circle": 1, "square": 1},
        {"no picture": ["notes.txt"]},
        ignored={"test": 1},
    ),
    "a folder between": Case("train/images/1.png val/images/2.png", 1, remark="'images'", ignored={"validation": 1}),
    # Links
    "links to classes": Case("cat->../far/cat dog->../far/dog", {"cat": 1, "dog": 2}),
    "links to one folder": Case("cat->../far/cat kitty->cat", {"cat": 1, "kitty": 1}, remark="'cat', 'kitty' are one"),
    "links to pictures": Case("cat/1.png->../../far/cat/1.png dog/2.png", {"cat": 1, "dog": 1}),
    "a link back": Case(f"{CLASSES} cat/up->.. dog/here->.", PAIR, {"back": ["cat/up", "dog/here"]}),
    "a dead link": Case(
        f"{CLASSES} emu->nowhere cat/9.png->nowhere cat/self->self",
        PAIR,
        {"nowhere": ["cat/9.png", "cat/self", "emu"]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_folders(tmp_path: Path, case: Case) -> None:
    write(tmp_path / "far", "cat/1.png dog/1.png dog/2.png")
    folder = write(tmp_path / "pictures [1]*", case.layout)
    if isinstance(case.found, str):
        with pytest.raises(ValueError, match=case.found):
            load(folder, split=case.split)
        return
    images = load(folder, split=case.split)
    contents = images.contents
    assert counts(images) == case.found and contents.split == case.split
    assert contents.label_source == ("none found" if isinstance(case.found, int) else "sub-folders")
    assert contents.ignored_splits == case.ignored
    assert len(contents.left_out) == len(case.left_out), contents.left_out
    for reason, names in case.left_out.items():
        (found,) = [paths for words, paths in contents.left_out.items() if reason in words]
        assert sorted(found) == sorted(names)
    assert len(contents.remarks) == bool(case.remark) and case.remark in "".join(contents.remarks)
    load(folder, split=case.split, label_column="none")


# Zips


def zipped(folder: Path, archive: Path) -> Path:
    """A zip of what lies in a folder."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize(
    "name", ["classes", "natural order", "a picture beside", "splits", "deeper pictures", "hidden"]
)
@pytest.mark.parametrize("given", ["the zip", "its folder"])
def test_a_zip_is_read_as_its_folder(tmp_path: Path, name: str, given: str) -> None:
    folder = write(tmp_path / "folder", CASES[name].layout)
    archive = zipped(folder, tmp_path / "zips" / "pictures.zip")
    expected, images = load(folder), load(archive if given == "the zip" else archive.parent)
    assert counts(images) == counts(expected) and images.fingerprint == expected.fingerprint
    rows = range(len(images))
    assert torch.equal(images.__getitems__(rows)["pixel_values"], expected.__getitems__(rows)["pixel_values"])
    # A zip in a folder counts as a folder.
    left_out = {
        reason: [path.removeprefix("pictures/") for path in paths]
        for reason, paths in images.contents.left_out.items()
    }
    assert left_out == expected.contents.left_out


def test_several_zips(tmp_path: Path) -> None:
    classes, one = write(tmp_path / "1", "cat/1.png dog/2.png"), write(tmp_path / "2", "cat/3.png")
    flat = write(tmp_path / "3", "4.png 5.png")
    zipped(classes, tmp_path / "splits" / "train.zip")
    zipped(one, tmp_path / "splits" / "val.zip")
    assert counts(load(tmp_path / "splits")) == {"cat": 1, "dog": 1}
    assert counts(load(tmp_path / "splits", split="validation")) == {"cat": 1, "dog": 0}
    zipped(classes, tmp_path / "parts" / "0.zip")
    zipped(one, tmp_path / "parts" / "1.zip")
    zipped(one, tmp_path / "shards" / "train-0.zip")
    zipped(flat, tmp_path / "shards" / "test-0.zip")
    assert load(tmp_path / "shards").contents.ignored_splits == {"test": 2}
    assert counts(load(tmp_path / "parts")) == {"cat": 2, "dog": 1}
    zipped(flat, tmp_path / "classes" / "cat.zip")
    zipped(flat, tmp_path / "classes" / "dog.zip")
    assert counts(load(tmp_path / "classes")) == {"cat": 2, "dog": 2}
    for name, inner in {"cat.zip": "images/1.png", "dog.zip": "images/2.png images/1.png"}.items():
        zipped(write(tmp_path / name, inner), tmp_path / "inner" / name)
    assert counts(load(tmp_path / "inner")) == {"cat": 1, "dog": 2}
    zipped(tmp_path / "cat.zip", tmp_path / "digits" / "7.zip")
    zipped(tmp_path / "dog.zip", tmp_path / "digits" / "10.zip")
    assert counts(load(tmp_path / "digits")) == {"7": 1, "10": 2}
    (tmp_path / "inner" / "dog.zip").rename(tmp_path / "inner" / "cat2.zip")  # numbered, as parts of one folder
    with pytest.raises(ValueError, match="several zips.*unpack each into a folder of its own"):
        load(tmp_path / "inner")
    (tmp_path / "classes" / "dog.zip").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match="dog.zip' is no zip that can be read"):
        load(tmp_path / "classes")


def spoil(archive: Path, part: bytes) -> None:
    """Changes a byte behind these."""
    data = bytearray(archive.read_bytes())
    data[data.index(part) + len(part)] ^= 255
    archive.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_picture_in_a_zip(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        for seed, name in enumerate(("cat/1.png", "cat/2.png", "dog/3.png")):
            file.writestr(name, png(seed))
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        first, packed = file.infolist()[1].header_offset, file.infolist()[1].compress_size
    spoil(archive, whole[first : first + 30 + len("cat/2.png") + packed // 2])
    images = load(archive)
    assert images.left_out() == {"unreadable, unknown image format": ["cat/2.png"]}
    archive.write_bytes(whole)
    assert load(archive).left_out() == {}  # and nothing of the damaged one is taken from the cache


def test_other_damage_of_a_zip(tmp_path: Path) -> None:
    for name, text in {"metadata.csv": "file_name,label\n1.png,a\n2.png,b\n", "dataset.json": STYLEGAN}.items():
        archive = zipped(write(tmp_path / name, "1.png 2.png", **{name: text}), tmp_path / f"{name}.zip")
        spoil(archive, text[:9].encode())
        with pytest.raises(ValueError, match=f"zip': {name} cannot be read: it is damaged in '.*.zip' .Bad CRC-32"):
            load(archive)
    archive = zipped(write(tmp_path / "packed", CLASSES), tmp_path / "packed.zip")
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 10] = 9
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="packed.zip' holds 'cat/', packed by method 9, which is not read: unpack"):
        load(archive)


def test_files_of_the_names_in_an_archive_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the folder in which the program runs."""
    dotted, plain = ["a.1.png", "a.2.png"], ["1.png", "2.png"]
    for archive, names in (
        (zipped(write(tmp_path / "in", " ".join(dotted)), tmp_path / "0.zip"), dotted),
        (tar(tmp_path / "0.tar", *dotted), dotted),
        (tar(tmp_path / "1.tar", *plain), plain),
    ):
        expected = load(archive).__getitems__([0, 1])["pixel_values"]
        monkeypatch.chdir(write(tmp_path / f"{archive.name} beside", " ".join(names[::-1])))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"{archive.name} cache")
        assert torch.equal(load(archive).__getitems__([0, 1])["pixel_values"], expected)
        monkeypatch.chdir(tmp_path)


def test_a_zip_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    archive = zipped(write(tmp_path / "1", "cat/1.png dog/2.png"), tmp_path / "pictures.zip")
    first = load(archive)
    zipped(write(tmp_path / "2", "0.png cat/1.png dog/2.png"), archive)
    again = load(archive)
    assert first.fingerprint != again.fingerprint
    assert again.contents.left_out == {"a picture beside the class folders": ["0.png"]}


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_an_archive_that_is_replaced_is_read_anew(tmp_path: Path, kind: str) -> None:
    """Also under the same size and time of modification."""
    archive, shown = tmp_path / "place" / f"pictures.{kind}", []
    archive.parent.mkdir()
    for grey in (0, 200):
        folder = tmp_path / f"{grey:03}"
        for name in ("a.1.bmp", "a.2.bmp"):
            folder.mkdir(exist_ok=True)
            Image.new("L", (8, 8), grey).save(folder / name)
        if kind == "zip":
            zipped(folder, archive)
        elif kind == "parquet":
            paths = [str(folder / "a.1.bmp")] * 2
            features = datasets.Features(image=datasets.Image())
            datasets.Dataset.from_dict({"image": paths}, features).to_parquet(str(archive))
        else:
            with tarfile.open(archive, "w") as file:
                file.add(folder, "pictures")
        os.utime(archive, (1_000_000_000, 1_000_000_000))
        sources = [load(place) for place in (archive, tmp_path / "place")]
        values = [int(source.__getitems__([0])["pixel_values"].max()) for source in sources]
        shown.append((archive.stat().st_size, *values))
    assert shown == [(shown[0][0], 0, 0), (shown[0][0], 200, 200)]


# Files that say the labels

ROWS = [("cat/1.png", "red", 7), ("cat/2.png", "blue", 3), ("dog/3.png", "red", 3)]
CSV = "file_name,colour,label,caption\n" + "".join(f"{name},{colour},{n},A picture.\n" for name, colour, n in ROWS)
JSONL = "".join(json.dumps(dict(zip(("file_name", "colour", "label"), row, strict=True))) + "\n" for row in ROWS)
STYLEGAN = json.dumps({"labels": [[name, number] for name, _, number in ROWS]})


@pytest.mark.parametrize(
    ("layout", "texts", "column", "found", "source"),
    [
        (CLASSES, {"metadata.csv": CSV}, None, PAIR, "sub-folders"),
        (CLASSES, {"metadata.csv": CSV}, "colour", {"blue": 1, "red": 2}, "column 'colour' of metadata.csv"),
        (CLASSES, {"metadata.jsonl": JSONL}, "colour", {"blue": 1, "red": 2}, "column 'colour' of metadata.jsonl"),
        (CLASSES, {"metadata.csv": CSV}, "label", {"3": 2, "7": 1}, "column 'label' of metadata.csv"),
        (CLASSES, {"metadata.csv": CSV}, "none", 3, "none found"),
        (CLASSES, {"captions.csv": CSV}, "label", PAIR, "sub-folders"),
        (CLASSES, {"metadata.csv": CSV}, "size", "'size' is not a column.*'label', 'colour'", ""),
        (CLASSES, {"metadata.csv": "file_name,colour\n9.png,red\n"}, "colour", "names no picture of the folder", ""),
        (
            CLASSES,
            {"metadata.csv": "file_name,colour\ncat/1.png,\ncat/2.png,red\n"},
            "colour",
            "1 null labels of 2",
            "",
        ),
        (
            CLASSES,
            {"metadata.csv": f"{CSV}cat/1.png,blue,7,Two.\n"},
            "colour",
            "cat/1.png the label 'blue', and 're",
            "",
        ),
        (
            "1.png 2.png",
            {"metadata.csv": "file_name,label\n1.png,a\n2.png,b\n"},
            None,
            {"a": 1, "b": 1},
            "column 'label' of",
        ),
        ("1.png 2.png", {"metadata.csv": "file_name,label,class\n1.png,a,b\n"}, None, "several columns of labels", ""),
        ("1.png 2.png", {"metadata.csv": "file_name,caption\n1.png,a\n2.png,b\n"}, None, 2, "none found"),
        (
            "train/1.png train/2.png test/3.png",
            {"metadata.csv": "file_name,label\ntrain/1.png,4\ntrain/2.png,2\n"},
            None,
            {"2": 1, "4": 1},
            "column 'label' of metadata.csv",
        ),
        (
            "0/1.png 0/2.png 1/3.png",
            {"dataset.json": json.dumps({"labels": [["0/1.png", 3], ["0/2.png", 11], ["1/3.png", 3]]})},
            None,
            {"3": 2, "11": 1},
            "dataset.json",
        ),
        ("0/1.png 0/2.png 1/3.png", {"dataset.json": '{"labels": null}'}, None, 3, "none found"),
        (CLASSES, {"dataset.json": STYLEGAN}, None, {"3": 2, "7": 1}, "dataset.json"),
        (CLASSES, {"dataset.json": '{"labels": ["cat", "dog"]}'}, None, PAIR, "sub-folders"),
        (CLASSES, {"dataset.json": "[1, 2"}, None, PAIR, "sub-folders"),
        (CLASSES, {"dataset.json": '{"labels": [{"id": 0, "name": "cat"}]}'}, None, PAIR, "sub-folders"),
        (CLASSES, {"dataset.json": '{"labels": [[0, 3], [1, 2]]}'}, None, PAIR, "sub-folders"),
        (CLASSES, {"dataset.json": '{"labels": {"10": "cat"}}'}, None, PAIR, "sub-folders"),
        (
            CLASSES,
            {"dataset.json": json.dumps({"labels": [["cat/1.png", 2**64]]})},
            None,
            "of several types or too l",
            "",
        ),
        (CLASSES, {"dataset.json": '{"labels": [["cat/1.png", [0, 1]]]}'}, None, "dataset.json is list", ""),
        (
            CLASSES,
            {"dataset.json": STYLEGAN, "metadata.csv": CSV},
            "colour",
            {"blue": 1, "red": 2},
            "column 'colour' of",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_files_that_say_the_labels(
    tmp_path: Path, layout: str, texts: dict[str, Content], column: str | None, found: Any, source: str, kind: str
) -> None:
    folder = write(tmp_path / "pictures", layout, **texts)
    place = folder if kind == "folder" else zipped(folder, tmp_path / "pictures.zip")
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            load(place, label_column=column)
        return
    images = load(place, label_column=column)
    assert counts(images) == found and source in images.contents.label_source


def test_pictures_without_a_row_and_rows_without_a_picture_are_told(tmp_path: Path) -> None:
    folder = write(tmp_path, "1.png 2.png 3.png", **{"metadata.csv": "file_name,label\n1.png,4\n2.png,9\n8.png,9\n"})
    images = load(folder)
    assert counts(images) == {"4": 1, "9": 1} and images.class_values == [4, 9]
    assert images.contents.left_out == {"a picture without a row in metadata.csv": ["3.png"]}
    (remark,) = images.contents.remarks
    assert "1 rows of column 'label' of metadata.csv name pictures that are not there, as '8.png'" in remark
    (folder / "metadata.csv").write_text("file_name,caption\n1.png,A dog.\n")
    contents = load(folder).contents
    assert contents.left_out == {"metadata whose labels are not used": ["metadata.csv"]}
    assert contents.remarks == [
        "No column of metadata.csv has a usual name of labels: label_column may name one of ['caption']."
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file_name, label\n1.png, cat\n2.png, cat2\n", ["cat", "cat2"]),
        ("file_name;label\n1.png;a, b\n2.png;c\n", ["a, b", "c"]),
        ("\ufefffile_name\tLabel\n1.png\ta\n\n2.png\tb\n", ["a", "b"]),
        ('file_name,label\n1.png,"a, b"\n2.png,c\n', ["a, b", "c"]),
        ("file_name,label\n1.png,01\n2.png,2\n", ["01", "2"]),
        (f"file_name,label\n1.png,3\n2.png,{2**63}\n", ["3", str(2**63)]),
        ("file_name,label\n1.png,3.0\n2.png,4.0\n", [3, 4]),
        ("file_name,label\n1.png,1E2\n2.png,100\n", ["1E2", "100"]),
        ("file_name,label\n1.png,nan\n2.png,+1\n", ["+1", "nan"]),
        ("mask_file_name,file_name,label\n2.png,1.png,a\n1.png,2.png,b\n", ["a", "b"]),
        ("image_file_name,label\n1.png,a\n2.png,b\n", ["a", "b"]),
        (
            "mask_file_name,image_file_name,label\n2.png,1.png,a\n",
            "csv names files in .'mask_file_name', 'image_file_name'.: rename the one of the pictures 'file_name'",
        ),
        ("filename,label\n1.png,a\n2.png,b\n", "metadata.csv has no column 'file_name'.*'filename', 'label'.*Rename"),
        ("file_name,label\n1.png,caf\xe9\n2.png,b\n", "metadata.csv is not in UTF-8"),
        ("file_name,label\n1.png,a,b\n", "metadata.csv cannot be read: it has 2 columns, and 3 in the row '1.png, a"),
        ("file_name,label\n1.PNG,a\n2.PNG,b\n", "its first is '1.PNG', and there is '1.png': names count exactly"),
        ("file_name,label\n1,a\n2,b\n", "its first is '1', and there is '1.png'"),
        ("file_name,label\npictures/1.png,a\n", "its first is 'pictures/1.png', and there is '1.png'"),
    ],
)
def test_how_metadata_is_written(tmp_path: Path, text: str, found: list[Any] | str) -> None:
    folder = write(tmp_path, "1.png 2.png")
    (folder / "metadata.csv").write_text(text, encoding="latin-1" if "\xe9" in text else "utf-8")
    if isinstance(found, list):
        images = load(folder)
        assert images.class_values == found
        assert "mask" not in text or images.labels is not None and images.labels.tolist() == [0, 1]
        return
    with pytest.raises(ValueError, match=found):
        load(folder, label_column="label")


def test_metadata_without_names_is_told(tmp_path: Path) -> None:
    contents = load(write(tmp_path, "1.png 2.png", **{"metadata.csv": "filename,label\n1.png,a\n2.png,b\n"})).contents
    assert contents.left_out == {"metadata whose labels are not used": ["metadata.csv"]}
    assert "metadata.csv has no column 'file_name'" in contents.remarks[0]


@pytest.mark.parametrize("layout", ["1.png 2.png", "cat/1.png cat/2.png"])
def test_labels_that_are_asked_for_and_not_there(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ValueError, match="label_column 'label': .*(no class folders|one class folder, 'cat')"):
        load(write(tmp_path, layout), label_column="label")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (".cat/1.png .dog/2.png", "'.cat', '.dog' .hidden"),
        ("cat.txt info.json", "'cat.txt', 'info.json' .no picture"),
        ("cat/1.heic", "'cat/1.heic' .no picture"),
        ("cat/", "'cat' .a folder"),
    ],
)
def test_a_folder_without_pictures_says_what_there_is(tmp_path: Path, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"there are no pictures in '.*; left out: .*{message}"):
        load(write(tmp_path, layout))


def test_pictures_and_tables_in_one_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "1.png 2.png", **{"train.parquet": ""})
    with pytest.raises(ValueError, match="2 pictures without labels, and tables .'train.parquet'.: it is unclear"):
        load(folder)
    assert counts(load(folder, label_column="none")) == 2
    labelled = write(tmp_path / "labelled", CLASSES, **{"captions.parquet": ""})
    assert counts(load(labelled)) == PAIR
    with pytest.raises(ValueError, match="a folder of pictures and has no configurations, got 'small'"):
        load(labelled, dataset_config_name="small")


def test_a_copy_of_a_repository_is_read_as_its_card_says(tmp_path: Path) -> None:
    pictures = [Image.open(io.BytesIO(png(seed))) for seed in range(3)]
    datasets.Dataset.from_dict({"image": pictures}).to_parquet(tmp_path / "data" / "part.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n# Pictures\n"
    assert counts(load(write(tmp_path, "logo.png", **{"README.md": card}))) == 3


# Tars


def tar(archive: Path, *names: str, labels: tuple[str, str] = ("0", "7")) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as file:
        for seed, name in enumerate(names):
            text = labels[seed // 2 % 2]
            data = png(seed) if name.endswith("png") else text.encode()
            if name.endswith("json"):
                data = json.dumps({"label": int(text), "boxes": [{"category": 3}]}).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return archive


@pytest.mark.parametrize(
    "names",
    [
        [f"{row}.{kind}" for row in range(4) for kind in ("png", "cls")],
        [f"a.{row}.{kind}" for row in range(4) for kind in ("png", "cls")],
        [f"2026.{row}.v1.{kind}" for row in range(4) for kind in ("png", "cls")],
        [f"{row}.crop.{kind}" for row in range(4) for kind in ("png", "cls")],
        [f"{row}.{kind}" for row in range(4) for kind in ("png", "json")],
        [f"a.{row}.{kind}" for row in range(4) for kind in ("png", "json")],
    ],
    ids=["no dots", "dots", "more dots", "the same word", "json", "json and dots"],
)
def test_labels_of_tars_survive_dots_in_names(tmp_path: Path, names: list[str]) -> None:
    shard = tar(tmp_path / "shards" / "train-0.tar", *names)
    for place in (shard.parent, shard):
        images = load(place)
        assert counts(images) == {"0": 2, "7": 2} and images.class_values == [0, 7]
        assert images.labels is not None and images.labels.tolist() == [0, 1, 0, 1]
    tar(tmp_path / "shards" / "val-0.tar", *names[:4])
    assert len(load(tmp_path / "shards", split="validation")) == 2 and len(load(tmp_path / "shards")) == 4


PLAIN, DOTTED = ([f"{stem}{row}.{kind}" for row in range(4) for kind in ("png", "cls")] for stem in ("", "a."))


def test_shards_with_and_without_dots(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", *PLAIN)
    tar(tmp_path / "train-1.tar", *DOTTED)
    assert counts(load(tmp_path)) == {"0": 4, "7": 4}


@pytest.mark.parametrize("names", [PLAIN, DOTTED], ids=["no dots", "dots"])
def test_texts_in_cls_files(tmp_path: Path, names: list[str]) -> None:
    tar(tmp_path / "train-0.tar", *names, labels=("cat", "cat2"))
    tar(tmp_path / "train-1.tar", *names)
    assert counts(load(tmp_path)) == {"0": 2, "7": 2, "cat": 2, "cat2": 2}


@pytest.mark.parametrize("stem", ["", "a."], ids=["no dots", "dots"])
def test_shards_of_other_kinds_of_pictures(tmp_path: Path, stem: str) -> None:
    """They would be read as samples without a picture."""
    for shard in range(10):  # of which not all are looked into to tell how names are split
        kind = "jpg" if shard in (1, 3) else "png"
        tar(tmp_path / f"{shard}.tar", *(f"{stem}{shard}-{row}.{end}" for row in range(4) for end in (kind, "cls")))
    key = re.escape(f"{stem}1-0")
    with pytest.raises(ValueError, match=f"^Each sample needs .*: 8 of 40 samples have no 'png', as '{key}'$"):
        load(tmp_path)
    for shard in range(2, 10):
        (tmp_path / f"{shard}.tar").unlink()
    with pytest.raises(ValueError, match=f"'{key}' has the files ..cls', 'jpg'..|have no 'png', as '{key}'"):
        load(tmp_path)


def test_files_beside_those_of_the_splits(tmp_path: Path) -> None:
    """`datasets` reads those that are called like a split, if one is, and those of one kind."""
    pictures = [Image.open(io.BytesIO(png(seed))) for seed in range(3)]
    table = datasets.Dataset.from_dict({"image": pictures})
    for path in ("named/train", "named/extra/2", "kinds/0", "kinds/1", "tars/0"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / f"{path}.parquet")
    (tmp_path / "named" / "test.parquet").symlink_to(tmp_path / "kinds" / "0.parquet")
    (tmp_path / "named" / "README.md").write_text("Pictures.")
    tar(tmp_path / "kinds" / "2.tar", *PLAIN)
    for shard in ("train-0.tar", "more-0.tar"):
        tar(tmp_path / "shards" / shard, *PLAIN)
        tar(tmp_path / "tars" / shard, *DOTTED)
    found = {
        name: load(tmp_path / name, label_column="none").contents.left_out
        for name in ("named", "kinds", "shards", "tars", "named/train.parquet")
    }
    assert load(tmp_path / "named", streaming=True).contents.left_out == found["named"]
    beside = "a file beside those of the splits"
    assert found == {
        "named": {beside: ["extra/2.parquet"]},
        "kinds": {beside: ["2.tar"]},
        "shards": {beside: ["more-0.tar"]},
        "tars": {beside: ["0.parquet"]},
        "named/train.parquet": {},
    }


def test_folders_in_a_tar_are_told(tmp_path: Path) -> None:
    plain = tar(tmp_path / "a" / "all.tar", "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    packed = tmp_path / "all.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for place in (plain.parent, packed):
        images = load(place)
        assert counts(images) == 4
        assert "'dog', are not read as classes: for labels, unpack it" in images.contents.remarks[0]
    assert counts(load(plain, label_column="none")) == 4


@pytest.mark.parametrize(
    ("names", "message", "has_dots"),
    [
        (["a.1.png", "a.1.cls", "a.2.png", "b.2.txt"], "'a.2' has the files ..png.., most have", False),
        (DOTTED[:-1], "^Each sample needs .* 1 of 4 samples differs, as 'a.3' has the files ..png.., most", False),
        (DOTTED[:3] + DOTTED[4:], "^Each sample needs .*'a.1' has the files ..png.., most have ..cls', 'png", False),
        ([*DOTTED, "a.3.jpg"], "^Each sample needs .*'a.3' has the files ..cls', 'jpg', 'png.., most have", False),
        (
            [f"{row}.{kind}" for row in range(4) for kind in ("left.png", "right.png", "cls")][1:],
            "needs the same kinds of files: 1 of 4 samples differs, as '0' has the files ..cls', 'right.png'",
            False,
        ),
        ([f"{folder}/a.{row}.png" for folder in "bc" for row in range(3)], "columns of images.*rename them", True),
        (PLAIN[:-1], "'3' has the files ..png.., most have ..cls', 'png", False),
        (PLAIN[:1] + PLAIN[2:], "'0' has the files ..png.., most have ..cls', 'png", False),
        (
            [f"{row}.{kind}" for row in range(4) for kind in ("png", "seg.png", "cls")],
            "several columns of images, ..png', 'seg.png'.: name image_column, as 'png'",
            False,
        ),
    ],
)
def test_the_advice_for_tars(tmp_path: Path, names: list[str], message: str, has_dots: bool) -> None:
    tar(tmp_path / "0.tar", *names)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert ("first dot" in str(caught.value)) == has_dots and "download" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("The TAR archives of the dataset should be in WebDataset format", "first dot.*download the shards"),
        ("invalid literal for int() with base 10: b'cat'", "a .cls file holds text: download the shards"),
        ("Connection refused", "^$"),
    ],
)
def test_the_advice_for_tars_on_the_hub(reason: str, advice: str) -> None:
    assert re.search(advice, advice_on_error(reason, None))


# What holds of every folder


def test_rows_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = write(tmp_path, "b/10.png b/9.png a-b/1.png a/2.png")
    images = load(folder)
    paths = [Path(cell["path"]).relative_to(folder).as_posix() for cell in images.pictures["image"]]
    assert paths == ["a-b/1.png", "a/2.png", "b/10.png", "b/9.png"]
    assert images.class_names == ["a", "a-b", "b"]
    assert images.labels is not None and images.labels.tolist() == [1, 0, 2, 2]


def test_no_picture_is_opened_to_list_many(tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for row in range(2_000):
            (tmp_path / str(label) / f"{row}.png").touch()
    os.mkfifo(tmp_path / "0" / "fifo.png")  # which blocks whoever opens it
    start = time.process_time()
    listing = list_folder(tmp_path)
    assert listing.top.number == 6_000 and time.process_time() - start < 2
    assert list(listing.top.folders["0"].left_out.values()) == [{"0/fifo.png"}]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path, CLASSES)
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    assert load(folder).contents.left_out == {"a name that is no UTF-8": ["caf\\xe9"]}


def test_sizes_and_modes_as_stored(tmp_path: Path) -> None:
    for index, (mode, size) in enumerate([("RGB", (9, 4)), ("L", (3, 5)), ("RGBA", (8, 8))]):
        Image.new(mode, size).save(tmp_path / f"{index}.png")
    images = load(tmp_path)
    assert images.stored_sizes() == ((5, 3), (8, 8)) and images.stored_modes == ["L", "RGB", "RGBA"]


def test_labels_by_the_classes_of_another_set(tmp_path: Path) -> None:
    images = load(write(tmp_path, CLASSES))
    others = images.with_classes(["dog", "emu", "cat"])
    assert counts(others) == {"dog": 1, "emu": 0, "cat": 2} and others.class_values == ["dog", "emu", "cat"]
    with pytest.raises(ValueError, match="class 'dog' is not in the training data, whose classes are cat, emu"):
        images.with_classes(["cat", "emu"])


def test_any_names_have_an_order() -> None:
    pieces = ["a", "b", "2", "02", "10", "", " ", "-", "é", "²", "9" * 5_000]
    generator = np.random.default_rng(0)
    names = ["".join(generator.choice(pieces, generator.integers(0, 6))) for _ in range(300)]
    ordered = sorted(set(names), key=natural_order)
    generator.shuffle(names)
    assert sorted(set(names), key=natural_order) == ordered
    assert all(natural_order(first) < natural_order(second) for first, second in itertools.pairwise(ordered))


def test_natural_order() -> None:
    assert sorted(["b2", "b10", "a", "10", "2", "02", "b2x"], key=natural_order) == [
        "02",
        "2",
        "10",
        "a",
        "b2",
        "b2x",
        "b10",
    ]
