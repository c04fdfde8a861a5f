"""What a run says before its first step and of its time."""

import struct
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from fake_hub import FakeHub
from PIL import Image
from training_runs import Capture, Patch, arguments, write_checkpoint, write_pictures

from biggan_hf.data import Contents
from biggan_hf.training import main, parse_arguments, report, set_up
from biggan_hf.training.report import Report, Row, _length, time_in_words


def found(pictures: Path, output: Path, *flags: str) -> Report:
    run = set_up(*parse_arguments(arguments(pictures, output, "--dry_run", *flags)))
    assert run.report is not None
    return run.report


def coloured(folder: Path, channels: int = 3, size: int = 32) -> Path:
    """Ten pictures in RGB, of noise in all of them or the same in each."""
    noise = np.random.default_rng(0).integers(0, 256, (10, size, size, channels), np.uint8)
    for index, pixels in enumerate(noise):
        path = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(pixels, (size, size, 3)).copy()).save(path)
    return folder


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_dry_run_says_what_it_found_and_writes_nothing(
    pictures: Path, tmp_path: Path, fake_hub: FakeHub, capsys: Capture
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard, which the extra dev installs")
    flags = ["--dry_run", "--push_to_hub", "--hub_model_id", "user/x", "--report_to", "tensorboard"]
    batch = ["--global_batch_size", "8", "--num_discriminator_steps", "3"]
    main(arguments(pictures, tmp_path / "model", *flags, *batch, steps=50))
    lines = capsys.readouterr().out.splitlines()
    assert not files(tmp_path) and not fake_hub.repos
    assert len(lines) <= 24 and all(len(line) <= 100 for line in lines)
    rows = {line[:12].strip(): line[12:] for line in lines}
    assert rows["pictures"] == f"10 of split 'train' of {pictures}"
    assert rows["classes"].startswith("2 classes by ") and rows["classes"].endswith(", 5 pictures each: cat, dog")
    assert rows["trained as"] == "32×32, grey"
    assert rows["stored"].startswith("32×32, L") and rows["networks"].startswith("preset demo, generator ")
    assert "1 process, float32" in rows["device"] and rows["weights"] == "new"
    assert rows["batch"] == "8 = 4 × 1 process × 2 accumulated"
    assert rows["training"].startswith("50 steps with 3 updates of the discriminator each, 1,200 pictures, 120.0")
    assert rows["written to"] == "nothing: this is a dry run"


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_too_few_pictures_are_told_after_what_was_found(
    pictures: Path, tmp_path: Path, capsys: Capture, flags: list[str]
) -> None:
    (pictures / "notes.txt").touch()
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, tmp_path / "model", "--per_device_batch_size", "11", *flags))
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not files(tmp_path / "model")
    assert "2 classes by sub-folders, 5 pictures each: cat, dog" in printed.out and "notes.txt" in printed.out
    assert "11 (per_device_batch_size=11); lower --per_device_batch_size\n" in printed.err


def test_a_run_that_fine_tunes_says_whose_its_networks_and_its_settings_are(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    write_checkpoint(tmp_path, 1)
    where = ["--dataset_name", str(pictures), "--output_dir", str(tmp_path / "model")]
    with pytest.raises(SystemExit):
        main(["--init_from", str(tmp_path / "checkpoint-1"), *where])
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    assert f"networks architecture of {tmp_path}/checkpoint-1, generator " in said
    assert "settings of preset biggan-128 where none were given; --preset names another" in said
    why = "fewer than one update takes, 2,048 (global_batch_size=2048 as in preset biggan-128); lower"
    assert f"{why} --global_batch_size, and --per_device_batch_size, which divides it" in printed.err
    told = found(pictures, tmp_path / "model", "--init_from", str(tmp_path / "checkpoint-1"))
    assert dict(told.public_rows())["networks"].startswith("architecture of the local folder 'checkpoint-1', gen")


@pytest.mark.parametrize(
    ("processes", "batch", "to_lower"),
    [(6, 2, "--per_device_batch_size"), (11, 1, "the number of processes, 11, of which each takes a picture")],
)
def test_too_few_pictures_for_the_processes(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, processes: int, batch: int, to_lower: str
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    options = ["--dry_run", "--per_device_batch_size", str(batch)]
    with pytest.raises(ValueError, match=f"10 pictures, fewer than one update takes, .*; lower {to_lower}"):
        set_up(*parse_arguments(arguments(pictures, tmp_path / "model", *options)))


def test_the_report_is_in_the_log_and_in_the_card(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    said = capsys.readouterr().out
    main(arguments(pictures, output, "--resume_from_checkpoint", "latest", steps=3))
    first, second = (output / "report.txt").read_text(encoding="utf-8").split("\n\n")
    assert first.splitlines()[0].endswith("step 0") and "\n".join(first.splitlines()[1:]) in said
    assert second.splitlines()[0].endswith("step 2") and "of step 2, checkpoint-2" in second
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"| pictures | 10 of split 'train' of the local folder {pictures.name!r} |" in card
    assert str(tmp_path) not in card and str(pictures) not in card and card.count("## Training") == 1


FEW = "10 pictures are few, and nothing augments them"


@pytest.mark.parametrize(
    ("make", "flags", "expected", "unexpected"),
    [
        (write_pictures, [], FEW, "colour"),
        (write_pictures, ["--diff_augment"], "", FEW),
        (write_pictures, ["--ema_start_step", "1"], "", "The average"),
        (write_pictures, [], "The average of the generator begins at step 50, after the last step", ""),
        (write_pictures, ["--config_overrides", "num_channels=3"], "are grey and the model is coloured", ""),
        (coloured, [], "The pictures are coloured and the model is grey", ""),
        (coloured, ["--config_overrides", "num_channels=3"], "", "colour"),
        (lambda folder: coloured(folder, channels=1), [], "", "colour"),  # grey pictures that are stored in RGB
        (lambda folder: coloured(folder, size=24), [], "smaller than the model's 32 pixels, and are enlarged", ""),
        (lambda folder: coloured(folder, size=40), [], "", "smaller"),
        (write_pictures, ["--label_column", "none"], "", "No labels were found"),
        (lambda folder: black(folder), [], "The probed pictures of more than 8 bits are nearly black", ""),
        (lambda folder: black(folder, "*/[0-4].png"), [], "the brightest value is 6% of white", ""),
        (lambda folder: black(folder, "*/[0-4].png", channels=3), [], "of more than 8 bits are nearly black", ""),
        (write_pictures, [], "", "nearly black"),
        (write_pictures, ["--class_sampling", "balanced", "--label_sampling", "counts"], "generated ones do not", ""),
        (write_pictures, ["--class_sampling", "balanced"], "", "equally often"),
        (
            write_pictures,  # whose generated pictures have the labels of the real ones
            ["--class_sampling", "balanced", "--label_sampling", "counts", "--loss", "relativistic"],
            "",
            "equally often",
        ),
        (write_pictures, ["--consistency", "10"], "", "nothing augments them"),
        (write_pictures, ["--loss", "relativistic", "--r1_gamma", "1"], "is meant to have R1 and R2", ""),
        (write_pictures, ["--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1"], "", "meant"),
    ],
)
def test_what_is_unusual(tmp_path: Path, make: Any, flags: list[str], expected: str, unexpected: str) -> None:
    said = " ".join(found(make(tmp_path / "pictures"), tmp_path / "model", *flags).unusual)
    assert expected in said and (not unexpected or unexpected not in said)


def test_what_the_pictures_have_to_say(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    counts, left_out = [10, 0], {"not a picture": ["notes.txt", "a\x1b[2Jb"], "an empty folder": ["x"]}
    splits = {"test": 5, "dev": None}
    contents = Contents("train", splits, left_out, counts, "sub-folders", ["The labels are numbers."])
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model", "--dry_run")))
    object.__setattr__(run.batches.images, "contents", contents)
    said = report.describe(run, parse_arguments(arguments(pictures, tmp_path / "model"))[1], None)
    screen = said.screen()
    assert "not used    splits test (5 pictures), dev\n" in screen
    assert "left out    2 × not a picture: notes.txt, a�[2Jb\n" in screen and "1 × an empty folder: x" in screen
    assert "2 classes by sub-folders: cat (10), dog (0)" in screen and "The labels are numbers." in screen
    assert "Not trained on: splits test (5" in screen


def black(folder: Path, those: str = "*/*.png", channels: int = 1) -> Path:
    """Values of 12 bits in files of 16."""
    for path in write_pictures(folder).glob(those):
        values = np.asarray(Image.open(path)).astype(">u2") * 16
        path.write_bytes(deep_png(np.stack([values] * channels, axis=-1)))
    return folder


def deep_png(values: np.ndarray) -> bytes:
    """A PNG file of (H, W, 1 or 3) values in 16 bits. Pillow writes grey ones alone."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_held_out_split_is_used(pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "test", "val"):
        write_pictures(tmp_path / "data" / split)
    for held_out, unused in (("test", "validation"), ("val", "test"), ("validation[:50%]", "test")):
        said = found(tmp_path / "data", tmp_path / "model", "--held_out_split", held_out)
        rows = {row.title: row.text for row in said.rows}
        assert (
            rows["not used"] == f"split {unused} (10 pictures)" and f"Not trained on: split {unused} (" in said.text()
        )
        assert rows["held out"].endswith(" (10 pictures), on which the discriminator is watched")


def test_unreadable_pictures_are_left_out(pictures: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ("ant", "bee", "cat"), 30)
    for path in [*(folder / "bee").iterdir(), folder / "cat" / "2.png"]:
        path.write_bytes(path.read_bytes()[:100])
    said = found(folder, tmp_path / "model")
    rows = {row.title: row.text for row in said.rows}
    assert rows["pictures"].startswith("19 of split 'train'") and "19 pictures are few" in " ".join(said.unusual)
    assert rows["left out"].startswith("11 × unreadable, OSError: image file is truncated: bee/1.png, ")
    assert "ant (10), bee (0), cat (9)" in rows["classes"] and "No picture can be read of class bee." in said.unusual
    assert str(tmp_path) not in str(said.public_rows())


@pytest.mark.parametrize("letter", ["a", "鳥", "\u200b"])
def test_the_screen_has_24_lines_of_100_columns(letter: str) -> None:
    rows = [Row(f"row {index}", " ".join([letter * 30] * 200)) for index in range(12)]
    said = Report([*rows, Row("long", letter * 900)], [f"{index}. {letter * 150}" for index in range(9)], {})
    lines = said.screen().splitlines()
    widths = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in lines]
    assert len(lines) <= 24 and max(widths) <= 100
    assert all(any(line.startswith(row.title) for line in lines) for row in rows)
    assert "more: see report.txt" in lines[-1] and len(said.text()) > 12 * 30 * 200


def test_of_too_many_rows_the_first_stay() -> None:
    said = Report([Row(f"row {index}", "x") for index in range(40)], ["Odd."], {})
    lines = said.screen().splitlines()
    assert (
        len(lines) == 24
        and lines[0].split() == ["row", "0", "x"]
        and lines[-1].strip() == "and 18 more: see report.txt"
    )


def test_what_others_read_names_no_path(tmp_path: Path, monkeypatch: Patch) -> None:
    write_pictures(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for folder in (Path("a"), tmp_path / "a"):
        said = found(folder, tmp_path / "model")
        public = dict(said.public_rows())
        assert public["pictures"] == "10 of split 'train' of the local folder 'a'" and "written to" not in public
        assert public["unusual"] == " ".join(said.unusual)
    rows = Report([], [f"See {tmp_path}/a."], {f"{tmp_path}/a": "the local folder 'a'"}).public_rows()
    assert rows == [("unusual", "See the local folder 'a'.")]


def test_a_thousand_classes_are_counted(tmp_path: Path) -> None:
    names = tuple(f"class {index:03}" for index in range(300))
    folder = write_pictures(tmp_path / "pictures", names, 310)
    (row,) = (row.text for row in found(folder, tmp_path / "model").rows if row.title == "classes")
    assert row.startswith("300 classes by ") and len(row) < 250
    assert "1 to 2 pictures each, the least 'class 010': class 000, " in row


@pytest.mark.parametrize(
    ("seconds", "steps", "minutes", "expected"),
    [
        (1.8432, 150_000, None, "about 3.2 days on this device: see docs/training.md (150,000 steps of 1.84 s)"),
        (0.1, 4_000, None, "about 6.7 minutes on this device (4,000 steps of 0.1 s)"),
        (1, 7_200, None, "about 2.0 hours on this device (7,200 steps of 1 s)"),
        (1, 20, 30, "about 20.0 seconds on this device (20 steps of 1 s)"),
        (5.43, 1, None, "about 5.4 seconds on this device (1 step of 5.43 s)"),
        (0.5, 4_000, 5, "about 600 steps in the 5 minutes of max_train_minutes on this device (4,000 steps of 0.5 s)"),
    ],
)
def test_time_in_words(seconds: float, steps: int, minutes: float | None, expected: str) -> None:
    assert time_in_words(seconds, steps, minutes) == expected


def test_a_run_that_is_to_end_before_has_no_steps_left() -> None:
    args = SimpleNamespace(max_train_steps=5, num_discriminator_steps=1, max_train_minutes=None)
    batches = SimpleNamespace(images=SimpleNamespace(num_readable=10))
    run: Any = SimpleNamespace(args=args, global_step=9, batches=batches)
    assert _length(run, 32).startswith("0 steps with 1 update of the discriminator each, 0 pictures, 0.0 passes")


def test_the_time_is_told_once_after_the_first_steps(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(report, "MEASURED", 0.0)
    main(arguments(pictures, tmp_path / "model", "--sample_steps", "0", steps=4))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "on this device" in line]
    assert line.startswith("time        about ") and "(2 steps of " in line
    told = (tmp_path / "model" / "report.txt").read_text(encoding="utf-8")
    assert told.endswith(f" after the training began\n{line}\n") and "\nfirst step  done " in told
