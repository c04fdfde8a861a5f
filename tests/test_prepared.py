"""A prepared folder stands for its source: the same pictures in the same order, whole or refused."""

import dataclasses
import io
import multiprocessing
import os
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from training_runs import arguments, read_log, write_pictures

from biggan_hf import BigGANConfig
from biggan_hf.cli import main
from biggan_hf.data import LabelledImages, ShuffledBatches, load_labelled_images, prepare, preparing
from biggan_hf.data.pixels import Shards, npy_header
from biggan_hf.evaluation import RealImages
from biggan_hf.training import DataArguments, TrainingArguments
from biggan_hf.training import main as train
from biggan_hf.training.set_up import build_batches


SIZES = (8, 16)


def write_source(folder: Path, number: int = 70, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Noise of several sizes in two classes; of each split, one picture that can't be read."""
    for seed, split in enumerate(splits):
        noise = np.random.default_rng(seed)
        for index in range(number):
            path = folder / split / ("ant", "bee")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (20, 17 + index % 5, 3), np.uint8)).save(path)
        (folder / split / "ant" / "0000.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "set")


def silent(text: str) -> None:
    pass


def prepared(source: Path, output: Path, sizes: tuple[int, ...] = SIZES, **options: Any) -> Path:
    prepare(str(source), output, sizes, **{"say": silent, **options})
    return output


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(source, tmp_path_factory.mktemp("whole") / "out", splits=["train", "test"])


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def everything(images: LabelledImages) -> tuple[list[Any], list[Any]]:
    batch = images.__getitems__([*range(len(images))][::-1])
    labels = batch["class_labels"]
    return batch["pixel_values"].tolist(), [] if labels is None else labels.tolist()


# Reading


@pytest.mark.parametrize("max_cache_bytes", [0, 2**20], ids=["from the files", "from memory"])
@pytest.mark.parametrize("size", SIZES)
def test_it_stands_for_its_source(source: Path, whole: Path, size: int, max_cache_bytes: int) -> None:
    for split in ("train", "test"):
        options: dict[str, Any] = {"image_size": size, "split": split, "max_cache_bytes": max_cache_bytes}
        images, other = (load_labelled_images(str(folder), **options) for folder in (source, whole))
        assert (other.cache is not None) == (max_cache_bytes > 0)
        assert everything(images) == everything(other)
        assert images.fingerprint == other.fingerprint and images.probed == other.probed
        assert images.class_names == other.class_names == ["ant", "bee"]
        assert images.unreadable.keys() == other.unreadable.keys() == {1}
        assert images.left_out() == other.left_out()
        assert other.num_readable == 70 and other.contents.class_counts == [35, 35]
        assert dataclasses.replace(images.contents, class_counts=[35, 35]) == other.contents


def test_any_order_of_rows(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 4), np.uint8)
    for name, part in {"a": pictures[:5], "b": pictures[5:]}.items():
        (tmp_path / name).write_bytes(npy_header(len(part), (3, 4, 4)) + part.tobytes())
        assert np.array_equal(np.load(tmp_path / name), part)  # NumPy reads it too
    files = [(tmp_path / "a", 5), (tmp_path / "b", 4)]
    for chosen in (None, np.array([8, 0, 4, 5, 6])):
        shards = Shards(files, (3, 4, 4), chosen)
        expected = pictures if chosen is None else pictures[chosen]
        for rows in ([], [0], [4, 3, 2, 1, 0], [3, 4, 0, 4, 1, 2], range(len(shards))):
            assert np.array_equal(shards.read(rows).numpy(), expected[list(rows)])
        cell = shards[1]["image"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(cell["bytes"]))), expected[1].transpose(1, 2, 0))


def test_parts_of_splits(source: Path, whole: Path) -> None:
    for split in ("train[:50%]", "train[60:]+val", "train[9:]+train[:9]", "test+train[:3]"):
        if "val" in split:
            with pytest.raises(ValueError, match="no split 'val', but 'train', 'test'"):
                load_labelled_images(str(whole), image_size=8, split=split)
            continue
        images, other = (load_labelled_images(str(f), image_size=8, split=split) for f in (source, whole))
        assert everything(images) == everything(other)
        assert other.contents.ignored_splits == images.contents.ignored_splits
    assert other.unreadable.keys() == {1, 72}
    part = load_labelled_images(str(whole), image_size=8, split="train[:50%]")
    assert part.fingerprint not in (other.fingerprint, load_labelled_images(str(whole), image_size=8).fingerprint)


def test_remarks_are_of_what_is_read(tmp_path: Path) -> None:
    """And not of the split that was prepared."""
    source = tmp_path / "source"
    for split, classes in {"train": "ab", "test": "abc"}.items():
        for name in classes:
            path = source / split / "images" / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path)
    (source / "train" / "images" / "c").mkdir()
    (source / "train" / "images" / "c" / "1.png").write_bytes(b"no picture")
    folder = prepared(source, tmp_path / "out", (8,), splits=["train", "test"])
    choices: list[dict[str, Any]] = [{}, {"split": "train+test"}, {"split": "train[:1]"}, {"label_column": "none"}]
    for options in choices:
        images, other = (load_labelled_images(str(place), image_size=8, **options) for place in (source, folder))
        assert other.contents.remarks == images.contents.remarks
        lost = any(remark.startswith("No picture can be read") for remark in other.contents.remarks)
        assert lost == (not options)


def test_without_labels(source: Path, whole: Path) -> None:
    images = load_labelled_images(str(whole), image_size=8, label_column="none")
    assert images.labels is None and images.class_names == []
    assert images.fingerprint != load_labelled_images(str(whole), image_size=8).fingerprint


def test_the_classes_of_another_set(whole: Path) -> None:
    images = load_labelled_images(str(whole), image_size=8).with_classes(["cow", "bee", "ant"])
    assert everything(images)[1][:3] == [1, 1, 1] and images.contents.class_counts == [0, 35, 35]
    assert images.fingerprint != load_labelled_images(str(whole), image_size=8).fingerprint


def test_in_worker_processes(whole: Path) -> None:
    images = load_labelled_images(str(whole), image_size=8, max_cache_bytes=0)
    images.__getitems__([3])  # a file is open
    batches = [[1, 5, 2], [70, 4]]
    loader = torch.utils.data.DataLoader(images, batch_sampler=batches, collate_fn=lambda batch: batch, num_workers=2)
    for rows, batch in zip(batches, loader, strict=True):
        assert torch.equal(batch["pixel_values"], images.__getitems__(rows)["pixel_values"])


def test_an_evaluation_takes_no_picture_for_another(source: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 pictures could not be read.*ant/0000\.png.*mend them in the source"):
        load_labelled_images(str(whole), image_size=8, on_unreadable_image="error")
    (clean := Path(shutil.copytree(source, tmp_path / "set")) / "train/ant/0000.png").unlink()
    images = load_labelled_images(
        str(prepared(clean.parents[2], tmp_path / "out")), image_size=8, on_unreadable_image="error"
    )
    real = RealImages(images, name="x")
    assert real.stored_in_words == "RGB images of 20×17 to 20×21 px" and len(real) == 70
    before = real.fingerprint
    file = tmp_path / "out" / "train-8-000.npy"
    file.write_bytes(bytes(file.stat().st_size))
    assert RealImages(dataclasses.replace(images), name="x").fingerprint != before  # of which no digest is known yet


def test_a_run_goes_on_with_the_prepared_pictures(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    cache = prepared(pictures, tmp_path / "cache", (32,), num_channels=1)
    more = ["--sample_steps", "0", "--watch_steps", "0", "--checkpointing_steps", "1"]
    train(arguments(pictures, tmp_path / "run", *more, steps=1))
    train(arguments(cache, tmp_path / "run", *more, "--resume_from_checkpoint", "latest", steps=2))
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]


def test_random_squares_need_whole_pictures(whole: Path) -> None:
    images, config = load_labelled_images(str(whole), image_size=8), BigGANConfig.preset("demo", num_labels=2)
    data_args = DataArguments(dataset_name="x", random_crop=True)
    with pytest.raises(ValueError, match="random_crop needs whole pictures, and prepared ones are squares"):
        build_batches(images, data_args, TrainingArguments(output_dir="x"), config, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="is prepared: its pictures are decoded.*leave out reduced_jpeg"):
        load_labelled_images(str(whole), image_size=8, reduced_jpeg=True)


# Writing


def test_the_same_bytes_with_any_number_of_processes(source: Path, whole: Path, tmp_path: Path) -> None:
    prepared(source, tmp_path / "out", splits=["train", "test"], num_workers=2)
    assert contents(tmp_path / "out") == contents(whole)
    assert not [name for name in contents(whole) if name.startswith((".", "unfinished"))]


def die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(run: Callable[[], object]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def test_killed_twice_and_resumed(source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, decode = tmp_path / "out", preparing.square_of
    told: list[str] = []
    for pictures in (30, 90):  # each in the middle of a file of the second size
        left = [decode] * (2 * pictures - 1)
        monkeypatch.setattr(preparing, "square_of", lambda *args: (left.pop() if left else die)(*args))  # noqa: B023
        assert in_a_fork(lambda: prepared(source, output, splits=["train", "test"])) == -signal.SIGKILL
        assert any(path.name.startswith(".unfinished") for path in output.iterdir())
        with pytest.raises(ValueError, match="is not yet prepared: the same `biggan-hf prepare` goes on"):
            load_labelled_images(str(output), image_size=8)
    monkeypatch.setattr(preparing, "square_of", decode)
    prepared(source, output, splits=["train", "test"], say=told.append)
    assert told[1].startswith("2 of 4 parts are there")
    assert contents(output) == contents(whole)


@pytest.mark.slow  # torch looks for a lost worker after 5 s, and waits for the others
def test_a_worker_that_is_killed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "square_of", die)
    with pytest.raises(OSError, match="a process that decodes has ended; the same command goes on"):
        prepared(source, tmp_path / "out", num_workers=2)
    assert sorted(contents(tmp_path / "out")) == ["train-labels.npy", "unfinished.json"]


@pytest.mark.parametrize("when", ["before it begins", "while it decodes"])
def test_a_worker_ends_with_a_prepare_that_is_killed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Each worker holds the writing end of a pipe: it is closed when all have ended."""
    reading, writing = os.pipe()

    def kill_parent(*args: Any) -> None:
        if (parent := multiprocessing.parent_process()) is not None and parent.pid != os.getpid():
            os.kill(parent.pid or 0, signal.SIGKILL)
            time.sleep(60 if when == "while it decodes" else 0.2)

    if when == "while it decodes":
        monkeypatch.setattr(preparing, "square_of", kill_parent)
    else:  # before torch's worker looks whose child it is
        monkeypatch.setattr(torch.utils.data._utils.worker, "random", SimpleNamespace(seed=kill_parent))
    assert in_a_fork(lambda: prepared(source, tmp_path / "out", num_workers=2)) == -signal.SIGKILL
    os.close(writing)
    assert select.select([reading], [], [], 20)[0] and os.read(reading, 1) == b""
    os.close(reading)


def test_a_disk_that_fills(source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**4))
        with pytest.raises(OSError, match=r"0\.1 MB are to be written to .*out', and 0\.0 MB are free"):
            prepared(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # a file of 16 px is larger
        try:
            prepared(source, tmp_path / "out", splits=["train", "test"])
        except OSError as error:
            os._exit(7 if "cannot write" in str(error) and "train-16-000.npy" in str(error) else 1)

    assert in_a_fork(fill) == 7
    assert {*contents(tmp_path / "out")} <= {"unfinished.json", "train-labels.npy", "test-labels.npy"}
    prepared(source, tmp_path / "out", splits=["train", "test"])
    assert contents(tmp_path / "out") == contents(whole)


def test_two_processes_do_not_write_into_one_folder(source: Path, copy: Path) -> None:
    def hold() -> None:
        with preparing.locked_folder(copy):
            try:
                prepared_in_child = in_a_fork(lambda: refused_as_locked(source, copy))
            finally:
                os._exit(prepared_in_child or 0)

    assert in_a_fork(hold) == 7


def refused_as_locked(source: Path, folder: Path) -> None:
    try:
        prepared(source, folder, splits=["train", "test"])
    except FileExistsError as error:
        os._exit(7 if "another run works in" in str(error) else 1)


# Damage


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last picture, which is one of the 16
    path.write_bytes(data)


def flip_elsewhere(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[128 + 3 * 64 * 1] ^= 1  # of the second picture
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (missing, "train-8-001.npy", "train-8-001.npy is missing; the same `biggan-hf prepare` mends it"),
        (cut, "train-8-000.npy", "train-8-000.npy has 12,415 bytes, expected 12,416; the same"),
        (flip, "train-8-001.npy", "pictures of split 'train' at 8 px have changed since; the same"),
        (missing, "train-labels.npy", "train-labels.npy is missing or has changed; the same"),
        (flip, "train-labels.npy", "train-labels.npy is missing or has changed; the same"),
        (flip_elsewhere, "train-8-000.npy", "train-8-000.npy has changed since; the same"),
        (flip_elsewhere, "train-16-000.npy", None),
        (missing, "train-16-001.npy", None),
    ],
)
def test_damage_is_found_and_mended(
    source: Path, whole: Path, copy: Path, damage: Callable[[Path], None], file: str, message: str | None
) -> None:
    damage(copy / file)
    if message is None:
        load_labelled_images(str(copy), image_size=8)  # of another size
    else:
        with pytest.raises(ValueError, match=message):
            load_labelled_images(str(copy), image_size=8)
    if damage is flip_elsewhere:  # none of the 16 pictures that are compared of a large set
        load_labelled_images(str(copy), image_size=8, max_cache_bytes=0)
    prepared(source, copy, splits=["train", "test"])
    assert contents(copy) == contents(whole)


def test_a_file_that_is_cut_off_while_it_is_read(copy: Path) -> None:
    images = load_labelled_images(str(copy), image_size=8, max_cache_bytes=0)
    images.__getitems__([70])
    os.truncate(copy / "train-8-001.npy", 200)
    with pytest.raises(ValueError, match=r"train-8-001\.npy' was cut off while it was read"):
        images.__getitems__([70])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "it is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "it is of a later version"),
        (lambda text: text.replace('"num_pictures": 71', '"num_pictures": 70'), "it is damaged"),
        (lambda text: text.replace('"train": {', '"../train": {'), "it is damaged"),
        (lambda text: text.replace('"image_sizes": [', '"image_sizes": ["8", '), "it is damaged"),
        (lambda text: text.replace('"fingerprint"', '"more"'), "it is damaged"),
        (lambda text: text.replace('"left_out": {}', '"left_out": 1'), "'int' object has no attribute 'items'"),
        (lambda text: "[]", "it is damaged"),
        (lambda text: "[" * 100_000, "it is damaged"),
    ],
)
def test_a_strange_manifest(source: Path, copy: Path, change: Callable[[str], str], message: str) -> None:
    manifest = copy / "prepared.json"
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(ValueError, match=f"the prepared folder '{copy}': {message}"):
        load_labelled_images(str(copy), image_size=8)
    if message.startswith("it is"):
        with pytest.raises(ValueError, match=f"{message}.*--overwrite prepares all anew"):
            prepared(source, copy)


# What is refused


def test_another_size_source_or_column(source: Path, copy: Path, tmp_path: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"image_size": 32}, "it holds pictures of 8 and 16 px in RGB, and 32 px in RGB are asked for"),
        ({"image_size": 8, "num_channels": 1}, "8 px in grey are asked for"),
        ({"image_size": 8, "label_column": "breed"}, "it was prepared with label_column None, got 'breed'"),
        ({"image_size": 8, "split": "train[:0]"}, "is empty"),
    ]
    for options, message in asked:
        with pytest.raises(ValueError, match=message):
            load_labelled_images(str(copy), **options)
    before = contents(copy)
    other = write_source(tmp_path / "other", number=4)
    wanted: list[tuple[Path, dict[str, Any], str]] = [
        (other, {"splits": ["train", "test"]}, "other pictures, labels or class names of split 'train', of the local"),
        (source, {"splits": ["train"]}, r"splits \['test', 'train'\] and not \['train'\]: name another folder, or"),
        (source, {"splits": ["train", "test"], "sizes": (8,)}, r"image_sizes \[8, 16\] and not \[8\]"),
        (source, {"splits": ["train[:5]"]}, r"split 'train\[:5\]' is a part: prepare whole splits"),
        (source, {"sizes": (0,)}, "expected image_sizes >= 1"),
        (copy, {"sizes": (4,), "overwrite": True}, "is prepared already: its pictures are cropped; name the source"),
    ]
    for folder, options, message in wanted:
        with pytest.raises(ValueError, match=message):
            prepared(folder, copy, **options)
    assert contents(copy) == before
    prepared(other, copy, (4,), overwrite=True)
    assert sorted(contents(copy)) == ["prepared.json", "train-4-000.npy", "train-labels.npy"]
    assert len(load_labelled_images(str(copy), image_size=4)) == 5


def test_a_folder_of_something_else(source: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="'.*letters' holds something that is no prepared pictures"):
        prepared(source, tmp_path / "letters", overwrite=True)
    with pytest.raises(ValueError, match=r"'.*copy' has lost its prepared\.json, which says what the pictures are"):
        missing(copy / "prepared.json")
        prepared(source, copy, overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        prepared(source, tmp_path / "file")


def test_a_picture_that_can_not_be_read_may_be_an_error(source: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        broken = source.parent / "broken"
        shutil.copytree(source, broken, dirs_exist_ok=True)
        (broken / "train" / "ant" / "0000.png").unlink()
        (broken / "train" / "bee" / "3.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"^unreadable picture .*bee/3\.png \(row .*\): unknown.*move it away$"):
            prepared(broken, tmp_path / "out", on_unreadable_image="error", num_workers=workers)


def test_a_source_that_has_changed(source: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "set"))
    out = prepared(mine, tmp_path / "out", (8,))
    Image.new("RGB", (20, 20)).save(mine / "train" / "ant" / "2.png")
    prepared(mine, out, (8,))  # nothing is to be written
    missing(out / "train-8-000.npy")
    with pytest.raises(ValueError, match="the source has changed: some pictures of split 'train' are no longer"):
        prepared(mine, out, (8,))
    with pytest.raises(ValueError, match="train-8-000.npy is missing"):
        load_labelled_images(str(out), image_size=8)


def test_a_mend_that_fails_loses_nothing(source: Path, copy: Path, tmp_path: Path) -> None:
    """Of two sizes one is damaged, and the source has changed since: the other size stays."""
    mine = Path(shutil.copytree(source, tmp_path / "set"))
    Image.new("RGB", (20, 20)).save(mine / "train" / "ant" / "2.png")
    cut(copy / "train-8-000.npy")
    before = contents(copy)
    with pytest.raises(ValueError, match="the source has changed"):
        prepared(mine, copy, splits=["train", "test"])
    assert contents(copy) == before
    load_labelled_images(str(copy), image_size=16)


def test_a_source_that_changes_before_all_is_prepared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "set"))
    with monkeypatch.context() as patch:
        left = [preparing.square_of] * 66  # of 71: the second file is not finished
        patch.setattr(preparing, "square_of", lambda *args: (left.pop() if left else die)(*args))
        assert in_a_fork(lambda: prepared(mine, tmp_path / "out", (8,))) == -signal.SIGKILL
    assert (tmp_path / "out" / "train-8-000.npy").is_file()
    picture = mine / "train" / "ant" / "6.png"  # none of the 16 that are compared, and of the first file
    pixels = np.asarray(Image.open(picture))
    Image.fromarray(255 - pixels).save(picture)
    told: list[str] = []
    prepared(mine, tmp_path / "out", (8,), say=told.append)
    assert "parts are there" not in told[1]
    assert contents(tmp_path / "out") == contents(prepared(mine, tmp_path / "other", (8,)))


# BigGAN-PyTorch's HDF5


def write_hdf5(path: Path, number: int = 200) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0)
    pictures, labels = noise.integers(0, 256, (number, 3, 8, 8), np.uint8), np.arange(number) % 3
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=pictures, chunks=(2, 3, 8, 8), maxshape=(None, 3, 8, 8))
        file.create_dataset("labels", data=labels)
    return pictures, labels


def test_hdf5(tmp_path: Path) -> None:
    pictures, labels = write_hdf5(tmp_path / "I8.hdf5")
    for name in (
        str(tmp_path / "I8.hdf5"),
        str(prepared(tmp_path / "I8.hdf5", tmp_path / "out", (8,), num_workers=2)),
    ):
        images = load_labelled_images(name, image_size=8)
        assert np.array_equal(images.__getitems__(range(200))["pixel_values"], pictures)
        batch = images.__getitems__([4, 0, 5])
        assert images.class_names == ["0", "1", "2"] and batch["class_labels"].tolist() == labels[[4, 0, 5]].tolist()  # type: ignore[union-attr]
    part = load_labelled_images(str(tmp_path / "I8.hdf5"), image_size=8, split="train[2:4]")
    assert np.array_equal(part.__getitems__([1])["pixel_values"][0], pictures[3]) and len(part.class_names) == 3
    with pytest.raises(ValueError, match="no split 'test'"):
        load_labelled_images(str(tmp_path / "I8.hdf5"), image_size=8, split="test")


def test_hdf5_that_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "other.hdf5")
    path = tmp_path / "set.hdf5"

    def refused(message: str, **arrays: Any) -> None:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
        with pytest.raises(ValueError, match=f"dataset '{path}': {message}"):
            load_labelled_images(str(path), image_size=8)

    pictures = np.zeros((2, 3, 8, 8), np.uint8)
    refused("it has no array 'imgs' of its own, but", images=pictures)
    refused("it has no array 'imgs' of its own", imgs=h5py.ExternalLink("other.hdf5", "imgs"))
    refused("its 'imgs' are uint16", imgs=pictures.astype(np.uint16))
    refused("its 'imgs' are uint8 of 3 dim", imgs=pictures[0])
    refused("its 'imgs' are of shape", imgs=pictures[:, :2])
    refused("its 'labels' are object", imgs=pictures, labels=["a", "b"])
    refused("it has 2 'imgs' and 1 'labels'", imgs=pictures, labels=[0])
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(10))
    with pytest.raises(ValueError, match=f"dataset '{path}': .*"):
        load_labelled_images(str(path), image_size=8)


# The command


def test_the_command(source: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = ["prepare", str(source), "--image-size", "8", "16", "--output", out, "--num_workers", "1"]
    main([*words, "--dataset_split", "train", "test"])
    printed = capsys.readouterr().out
    assert printed.startswith(
        "71 pictures of split 'train', 71 pictures of split 'test', at 8 and 16 px: 0.1 MB in 8 f"
    )
    assert "left out    1 × unreadable, unknown image format: ant/0000.png" in printed
    assert printed.endswith(f"Use them: --dataset_name {out}\n")
    assert contents(tmp_path / "out") == contents(whole)


# Memory


NUMBER, FILES = 204_800, 200  # pictures of 128 px: 10 GB, of which the disk holds nothing


def read_twice(folder: Path) -> None:
    """Ends with 0 if less than 1 MB more is resident after each 1,000 batches."""
    limit = 2 * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    shards = Shards([(folder / f"{index}.npy", NUMBER // FILES) for index in range(FILES)], (3, 128, 128))
    resident = []
    for step, rows in zip(range(2 * NUMBER // 256), ShuffledBatches(NUMBER, 256, seed=0), strict=False):
        assert shards.read(rows).shape == (256, 3, 128, 128)
        if step >= NUMBER // 256 and step % 100 == 99:  # not in the first pass: the second makes a new order
            status = Path(
                "/proc/self/status"
            ).read_text()  # without pages of files, as of libraries that are read late
            resident.append(1024 * int(status.partition("RssAnon:")[2].split()[0]))
    slope = 1000 * np.polyfit(100 * np.arange(len(resident)), resident, 1)[0]
    print(f"{slope:,.0f} bytes in 1,000 batches")
    os._exit(int(slope > 2**20))


@pytest.mark.slow  # 10 GB are read twice
def test_memory_is_flat(tmp_path: Path) -> None:
    for index in range(FILES):
        path = tmp_path / f"{index}.npy"
        path.write_bytes(npy_header(NUMBER // FILES, (3, 128, 128)))
        os.truncate(path, 128 + NUMBER // FILES * 3 * 128 * 128)
    # A process of its own: one that is forked takes its parent's libraries into its memory bit by bit.
    process = multiprocessing.get_context("spawn").Process(target=read_twice, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


# Damaged pictures


def damaged(data: bytes, noise: np.random.Generator) -> bytes:
    """A flipped bit, cut off, another format's start, zeros, or (of a PNG) another width and height."""
    content, place = bytearray(data), int(noise.integers(len(data)))
    kind = noise.integers(5)
    if kind == 0:
        content[place] ^= 1 << int(noise.integers(8))
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[:4] = noise.choice([b"GIF8", b"RIFF", b"II*\0", b"BM\0\0", b"\0\0\0\0"])
    elif kind == 3:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    else:
        content[16:24] = noise.integers(0, 256, 8, np.uint8).tobytes()
    return bytes(content)


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])  # a picture takes some ms
def test_damaged_pictures_are_named_or_read(tmp_path: Path, number: int) -> None:
    noise = np.random.default_rng(0)
    for label, (name, kind) in enumerate({"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(number // 3):
            file = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (16, 24, 3), np.uint8)).save(file, kind)
            path = tmp_path / "set" / name / f"{label}{index}.{name}"
            path.write_bytes(file.getvalue() if index == 0 else damaged(file.getvalue(), noise))
    out = prepared(tmp_path / "set", tmp_path / "out", (8,), num_workers=2)
    images = load_labelled_images(str(out), image_size=8)
    named = [name for reason, names in images.left_out().items() if reason.startswith("unreadable") for name in names]
    assert len(named) == len(images.unreadable) > number // 4
    pixels, _ = everything(images)
    source = load_labelled_images(str(tmp_path / "set"), image_size=8, max_cache_bytes=0)
    assert everything(source)[0] == pixels
    assert source.unreadable.keys() == images.unreadable.keys()
    with pytest.raises(ValueError, match="^unreadable picture .*; no other picture takes its place here"):
        prepared(tmp_path / "set", tmp_path / "other", (8,), on_unreadable_image="error")
