"""What lies in a folder: splits, classes and what is left out, for the folders that people bring."""

import io
import json
import os
import tarfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from biggan_hf.data import LabelledImages, load_labelled_images
from biggan_hf.folders import list_folder, natural_order


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
    "empty class folders": Case(f"{CLASSES} emu/ fox/notes.md", PAIR, {"without": ["emu", "fox"], "no p": ["fox/notes.md"]}),
    "more pictures beside than inside": Case("1.png 2.png 3.png a/4.png b/5.png", "3 pictures beside its sub-folders"),
    "thumbnails": Case("1.png 2.png thumbs/1.png thumbs/2.png", "2 pictures and beside them 'thumbs' with 2"),
    # Names
    "brackets, dots and spaces": Case(
        "a_[2020]/1.png b.c/2.png d_/3.png", {"a [2020]": 1, "b.c": 1, "d ": 1}
    ),
    "names that differ only in case": Case("cat/1.png Cat/2.png", {"Cat": 1, "cat": 1}, remark="differ only in case"),
    "a class called test tube": Case("test_tube/1.png flask/2.png", {"flask": 1, "test tube": 1}),
    "classes of splits' names in part": Case("train-1/1.png my_train/2.png", {"my train": 1, "train-1": 1}),
    # Deeper pictures
    "deeper pictures": Case(f"{CLASSES} cat/small/4.png cat/small/red/5.png", {"cat": 4, "dog": 1}, remark="'cat/small'"),
    "all are deeper": Case(
        "animal/cat/1.png animal/dog/2.png plant/elm/3.png", {"animal": 2, "plant": 1}, remark="Pictures of deeper"
    ),
    "one deeper folder in each": Case("cat/images/1.png dog/images/2.png", {"cat": 1, "dog": 1}, remark="2, as 'cat/i"),
    "the classes twice": Case("images/cat/1.png images/dog/2.png maps/cat/1.png maps/dog/2.png", "'cat', 'dog'.*unclear"),
    "a class in another": Case(f"{CLASSES} dog/cat/4.png", "'dog/cat' lies in one class folder"),
    # Splits
    "splits": Case("train/cat/1.png train/dog/2.png test/dog/3.png", {"cat": 1, "dog": 1}, ignored={"test": 1}),
    "of other names": Case("Training/a/1.png Training/b/2.png val/a/3.png", {"a": 1, "b": 1}, ignored={"validation": 1}),
    "splits without classes": Case("train/1.png train/2.png test/3.png", 2, ignored={"test": 1}),
    "a part of the classes": Case(
        "train/cat/1.png train/dog/2.png val/dog/3.png",
        {"cat": 0, "dog": 1},
        split="valid",
        remark="1 of 2 classes have no pictures in split 'valid': cat",
        ignored={"train": 2},
    ),
    "a slice": Case(
        "cat/1.png cat/2.png dog/3.png dog/4.png", {"cat": 2, "dog": 0}, split="train[:50%]", remark="no pictures in"
    ),
    "several": Case("train/a/1.png train/b/2.png val/b/3.png", {"a": 1, "b": 2}, split="train+val"),
    "all": Case("train/a/1.png train/b/2.png test/b/3.png", {"a": 1, "b": 2}, split="all"),
    "no such split": Case("train/a/1.png train/b/2.png", "no split 'test', but 'train'", split="test"),
    "only a test split": Case("test/a/1.png test/b/2.png", "no split 'train', but 'test'"),
    "no splits": Case(CLASSES, "no split 'test', but 'train'.*all of its pictures", split="test"),
    "files beside splits": Case(
        "train/a/1.png train/b/2.png test/a/1.png x.png labels.txt", {"a": 1, "b": 1}, {"beside the splits": ["x.png"],
        "no p": ["labels.txt"]}, ignored={"test": 1}
    ),
    "a class called train": Case("bus/1.png car/2.png train/3.png train/4.png", FLAT_SPLIT),
    "train or classes": Case("bus/1.png train/steam/2.png train/diesel/3.png", "'train' may be splits, or classes as 'bus'"),
    "two splits and more": Case(
        "train/a/1.png train/b/1.png test/a/1.png more/1.png", {"a": 1, "b": 1}, {"beside the splits": ["more"]},
        ignored={"test": 1}
    ),
    "flat splits and more": Case("train/1.png test/2.png bus/3.png", "'test', 'train' may be splits, or classes as 'bus'"),
    "a split twice": Case("train/a/1.png Train/b/2.png", "'Train', 'train' name the same split"),
    "splits in classes": Case("cat/train/1.png dog/train/2.png", "'cat/train' is a split inside of what would be a class"),
    "beside a level too high": Case("pictures/train/a/1.png extra/2.png", "give the folder 'pictures'"),
    # A level too high
    "one level too high": Case("pictures/cat/1.png pictures/dog/2.png", {"cat": 1, "dog": 1}, remark="lie in 'pictures'"),
    "splits one level too high": Case(
        "pictures/train/circle/1.png pictures/train/square/2.png pictures/test/circle/3.png notes.txt",
        {"circle": 1, "square": 1},
        {"no picture": ["notes.txt"]},
        ignored={"test": 1},
    ),
    "a folder between": Case("train/images/1.png val/images/2.png", 1, remark="'images'", ignored={"validation": 1}),
    # Links
    "links to classes": Case("cat->../far/cat dog->../far/dog", {"cat": 1, "dog": 2}),
    "links to pictures": Case("cat/1.png->../../far/cat/1.png dog/2.png", {"cat": 1, "dog": 1}),
    "a link back": Case(f"{CLASSES} cat/up->.. dog/here->.", PAIR, {"back": ["cat/up", "dog/here"]}),
    "a dead link": Case(f"{CLASSES} emu->nowhere cat/9.png->nowhere cat/self->self", PAIR,
                        {"nowhere": ["cat/9.png", "cat/self", "emu"]}),
}  # fmt: skip


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


def test_zipped_folders_are_read_as_folders(tmp_path: Path) -> None: ...
