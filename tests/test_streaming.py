"""Parquet files, fetched as they are needed: each picture exactly once an epoch, with any number of processes."""

import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from training_runs import arguments, read_log

from biggan_hf.data import ShuffledBatches, labelled_images, load_labelled_images, prepare, streaming
from biggan_hf.pictures import as_ppm
from biggan_hf.training import main
from biggan_hf.training.batches import BatchSource


ROWS = 52  # in each of two files, in groups of 4


def write_parquet(folder: Path) -> Path:
    """Each picture is of one colour: its number in the split."""
    (folder / "data").mkdir(parents=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    for split, number in {"train": ROWS, "test": 4}.items():
        for file in range(2):
            rows = range(file * number, file * number + number)
            values = {"image": [Image.new("RGB", (8, 8), (row, 0, 0)) for row in rows], "label": [r % 2 for r in rows]}
            table = datasets.Dataset.from_dict(values, features=features)
            table.to_parquet(folder / "data" / f"{split}-{file:05}-of-00002.parquet", batch_size=4)
    return folder


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (labelled_images, streaming):
        monkeypatch.setattr(module, "BUFFER", 10)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("source") / "set")


def rows_of(pixel_values: torch.Tensor) -> list[int]:
    return pixel_values[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("split", ["train", "train[30:70]", "test+train[:10]"])
def test_the_same_pictures_as_without(source: Path, split: str) -> None:
    options: dict[str, Any] = {"image_size": 8, "split": split}
    images, stream = (load_labelled_images(str(source), streaming=on, **options) for on in (False, True))
    assert len(images) == len(stream) and images.fingerprint == stream.fingerprint
    assert images.class_names == stream.class_names == ["ant", "bee"]
    assert images.contents.class_counts == stream.contents.class_counts
    assert images.contents.ignored_splits.keys() == stream.contents.ignored_splits.keys()
    rows = [*range(len(images))][::-1]
    expected, found = images.__getitems__(rows), stream.__getitems__(rows)
    assert torch.equal(expected["pixel_values"], found["pixel_values"])
    assert torch.equal(expected["class_labels"], found["class_labels"])  # type: ignore[arg-type]
    assert stream.runs is not None and sum(stream.runs) == len(stream) and max(stream.runs) == 4
    assert images.runs is None


def write_table(path: Path, **columns: Any) -> None:
    """Of pictures, and columns by their values."""
    pictures = [{"bytes": as_ppm(np.full((3, 8, 8), row, np.uint8)), "path": None} for row in range(4)]
    cells = pa.array(pictures, datasets.Image().pa_type)
    path.parent.mkdir(exist_ok=True)
    features = datasets.Features.from_arrow_schema(pa.table(columns).schema) | {"image": datasets.Image()}
    info = json.dumps({"info": {"features": datasets.Features(features).to_dict()}})
    pq.write_table(pa.table({"image": cells, **columns}).replace_schema_metadata({"huggingface": info}), path)


KINDS = ["ant", "bee", "ant", "bee"]
CARD = """---
dataset_info:
  features: [{name: image, dtype: image}, {name: label, dtype: {class_label: {names: {'0': ant, '1': bee}}}}]
configs:
- config_name: default
  data_files: [{split: train, path: 0.parquet}]
---
"""


@pytest.mark.parametrize(
    "tables",
    [
        [{"label": ["ant"] * 4}],
        [{"json": [{"label": kind, "size": {"width": 8}} for kind in KINDS]}],
        [{"json": [{"more": {"label": kind}} for kind in KINDS]}],
        [{"kind": KINDS}],
        [{"label": pa.array([3, 7] * 2, dtype)} for dtype in (pa.int64(), pa.int32())],
    ],
    ids=["one class", "in a struct", "deeper", "another name", "two types"],
)
def test_the_same_labels_as_without(tmp_path: Path, tables: list[dict[str, Any]]) -> None:
    for number, columns in enumerate(tables):
        write_table(tmp_path / "set" / f"{number}.parquet", **columns)
    images, stream = (load_labelled_images(str(tmp_path / "set"), image_size=8, streaming=on) for on in (False, True))
    assert images.contents == stream.contents and images.fingerprint == stream.fingerprint
    assert images.class_values == stream.class_values


def test_a_card_says_the_features(tmp_path: Path) -> None:
    write_table(tmp_path / "set" / "0.parquet", label=[0, 1, 0, 1])
    table = pq.read_table(tmp_path / "set" / "0.parquet").replace_schema_metadata(None)
    data = table.column("image").combine_chunks().field("bytes")  # bytes alone
    pq.write_table(table.set_column(0, "image", data), tmp_path / "set" / "0.parquet")
    (tmp_path / "set" / "README.md").write_text(CARD)
    images, stream = (load_labelled_images(str(tmp_path / "set"), image_size=8, streaming=on) for on in (False, True))
    assert images.class_names == stream.class_names == ["ant", "bee"] and images.contents == stream.contents
    assert images.fingerprint == stream.fingerprint


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    for number, labels in enumerate(([3, 7, 3, 7], KINDS)):
        write_table(tmp_path / "set" / f"{number}.parquet", label=labels)
    with pytest.raises(ValueError, match=r"column 'label' of '.*1.parquet' does not fit Value\('int64'\): "):
        load_labelled_images(str(tmp_path / "set"), image_size=8, streaming=True)
    write_table(tmp_path / "set" / "1.parquet", kind=KINDS)
    with pytest.raises(ValueError, match="label column 'label' has 4 null labels of 8"):
        load_labelled_images(str(tmp_path / "set"), image_size=8, streaming=True)


def test_of_the_hub(fake_hub: FakeHub, source: Path) -> None:
    fake_hub.create("datasets", "user/pictures")
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.parquet")}
    fake_hub.repos["datasets", "user/pictures"].commit("main", files)
    images = load_labelled_images("user/pictures", image_size=8, streaming=True, max_cache_bytes=0)
    assert rows_of(images.__getitems__([7, 60])["pixel_values"]) == [7, 60]
    assert images.contents.class_counts == [ROWS, ROWS]


def test_a_file_that_is_replaced_is_fetched_anew(fake_hub: FakeHub, source: Path, tmp_path: Path) -> None:
    """Also under the same size and time of modification."""
    mine = write_parquet(tmp_path / "mine")
    fake_hub.create("datasets", "user/pictures")
    file = mine / "data" / "train-00000-of-00002.parquet"
    before, pictures = file.stat(), pq.read_table(file)
    for red in (5, 6):
        cells = [{"bytes": as_ppm(np.full((3, 8, 8), red, np.uint8)), "path": None} for _ in range(ROWS)]
        column = pa.array(cells, pictures.schema.field("image").type)
        pq.write_table(pictures.set_column(0, pictures.schema.field("image"), column), file, row_group_size=4)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        fake_hub.repos["datasets", "user/pictures"].commit("main", {"train.parquet": file.read_bytes()})
        for name in (str(mine), "user/pictures"):
            images = load_labelled_images(name, image_size=8, streaming=True, max_cache_bytes=0)
            assert rows_of(images.__getitems__([7])["pixel_values"]) == [red]


def batches(images: Any, samples_seen: int, ranks: int, number: int, workers: int = 0) -> list[int]:
    """The pictures of so many global batches of 12, in order of the ranks."""
    sources = [
        BatchSource(
            images, 4, 2, 12 // ranks, 5, rank, ranks, torch.device("cpu"), False, samples_seen, num_workers=workers
        )
        for rank in range(ranks)
    ]
    pixels = [source.pictures().pixel_values for _ in range(number) for source in sources]
    return rows_of(((torch.cat(pixels) + 1) * 127.5).round().int())


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_once_an_epoch_resumed_with_other_processes(source: Path, workers: int) -> None:
    images = load_labelled_images(str(source), image_size=8, streaming=True, max_cache_bytes=0)
    epochs = 3
    whole = batches(images, 0, 1, epochs * 2 * ROWS // 12, workers)
    assert len(whole) == epochs * 2 * ROWS
    for epoch in range(epochs):
        assert sorted(whole[epoch * 2 * ROWS : (epoch + 1) * 2 * ROWS]) == [*range(2 * ROWS)]
    assert whole[: 2 * ROWS] != whole[2 * ROWS : 4 * ROWS]
    if workers:
        return
    parts = (
        batches(images, 0, 3, 4) + batches(images, 48, 2, 5) + batches(images, 108, 1, 3) + batches(images, 144, 4, 3)
    )
    assert parts == whole[: len(parts)]


@pytest.mark.parametrize("buffer", [10, 2])  # larger and smaller than a row group
def test_a_group_is_fetched_once_an_epoch_and_few_are_kept(
    source: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    for module in (labelled_images, streaming):
        monkeypatch.setattr(module, "BUFFER", buffer)
    fetched: Counter[tuple[int, int]] = Counter()
    read_row_group = streaming.pq.ParquetFile.read_row_group

    def counted(self: Any, number: int, columns: list[str]) -> Any:
        fetched[self.metadata.num_rows, number] += 1
        assert columns == ["image"]
        return read_row_group(self, number, columns)

    monkeypatch.setattr(streaming.pq.ParquetFile, "read_row_group", counted)
    images = load_labelled_images(str(source), image_size=8, streaming=True, max_cache_bytes=0)
    assert images.fingerprint and images.probed and fetched.total() <= 16  # of each picture that is probed
    pictures: Any = images.pictures
    fetched.clear()
    for file in pictures.folder.iterdir():
        file.unlink()
    pictures._opened.clear()
    before, seen = pa.total_allocated_bytes(), []
    for rows in islice(ShuffledBatches(2 * ROWS, 4, seed=5, runs=images.runs), 2 * ROWS // 4):
        seen += rows_of(images.__getitems__(rows)["pixel_values"])
        assert sum(pictures.groups[group].rows for group in pictures._opened) <= 2 * buffer + 2 * 4
        assert {int(path.stem) for path in pictures.folder.iterdir()} == {*pictures._opened}
    assert sorted(seen) == [*range(2 * ROWS)] and fetched.total() <= 2 * ROWS // 4
    assert pa.total_allocated_bytes() - before < 10_000  # they are mapped


def test_order(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [*np.random.default_rng(0).integers(1, 9, 300)]
    number = int(sum(lengths))
    sampler = ShuffledBatches(number, 7, seed=1, runs=lengths)
    order = sampler.order(2)
    assert sorted(order.tolist()) == [*range(number)] and torch.equal(order, sampler.order(2))
    place = order.argsort()
    spans = [int(part.max() - part.min()) for part in place.split(lengths)]
    assert max(spans) < 10 + 9  # a run is in use for the buffer and its own length
    firsts = [int(part.min()) for part in place.split(lengths)]
    assert abs(np.corrcoef(firsts, np.arange(300))[0, 1]) < 0.2  # and comes anywhere
    assert [len(rows) for rows in islice(sampler, 3)] == [7, 7, 7]


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "ant").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "ant" / "1.png")
    prepare(str(source), tmp_path / "prepared", [8], say=lambda text: None)
    for name, split, message in (
        (tmp_path / "pictures", "train", "a stream is of parquet files, and this is imagefolder"),
        (tmp_path / "prepared", "train", "is prepared: its pictures are decoded, and lie here; leave out streaming"),
        (source, "val", "there is no split 'val'"),
        (source, "train[:0]", "is empty"),
        (tmp_path / "nowhere", "train", "cannot stream split 'train' of dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            load_labelled_images(str(name), image_size=8, split=split, streaming=True)


def test_a_file_that_goes_away(source: Path, tmp_path: Path) -> None:
    mine = write_parquet(tmp_path / "mine")
    images = load_labelled_images(str(mine), image_size=8, streaming=True, max_cache_bytes=0)
    (mine / "data" / "train-00001-of-00002.parquet").unlink()
    images.__getitems__([0])
    with pytest.raises(ValueError, match=r"cannot read row group 3 of '.*train-00001-.*\.parquet': No such file"):
        images.__getitems__([ROWS + 13])


def test_a_file_that_is_replaced_while_it_is_used(source: Path, tmp_path: Path) -> None:
    mine = write_parquet(tmp_path / "mine")
    images = load_labelled_images(str(mine), image_size=8, streaming=True, max_cache_bytes=0)
    path = mine / "data" / "train-00001-of-00002.parquet"
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)
    with pytest.raises(ValueError, match=r"row group 3 of '.*train-00001-.*': the file has been replaced since the"):
        images.__getitems__([ROWS + 13])


def test_runs_with_these_options(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    pictures = [Image.new("L", (40, 32), row) for row in range(12)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [row % 2 for row in range(12)]}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")
    quiet = ["--sample_steps", "0", "--watch_steps", "0"]
    for name, options in {
        "stream": ["--streaming", "--label_sampling", "counts", "--reduced_jpeg"],
        "balanced": ["--class_sampling", "balanced", "--random_crop"],
    }.items():
        main(arguments(tmp_path / "set", tmp_path / name, *quiet, *options, steps=1))
        assert len(read_log(tmp_path / name)) == 1
    with pytest.raises(SystemExit, match="2"):
        main(arguments(tmp_path / "set", tmp_path / "both", "--streaming", "--class_sampling", "balanced"))
    assert not (tmp_path / "both").exists()
