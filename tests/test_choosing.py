"""`--preset auto`: each rule, what it leaves to the user, and that a run keeps what was chosen for it."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import REPO, SHORT, Capture, error_line, write_pictures

from biggan_hf.data import load_labelled_images
from biggan_hf.presets import PRESETS
from biggan_hf.training import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    choosing,
    main,
    parse_arguments,
    set_up,
)
from biggan_hf.training.arguments import with_chosen
from biggan_hf.training.choosing import LENGTHS, RULES, Found, choose
from biggan_hf.training.settings import read_settings


LARGE = Found(pictures=300_000, side=512, is_coloured=True, class_counts=[], gpu_memory=79.1)


def chosen(**fields: Any) -> dict[str, Any]:
    return choose(LARGE._replace(**fields))[0]


@pytest.mark.parametrize(
    ("fields", "preset"),
    [
        ({}, "biggan-128"),
        ({"side": 64}, "biggan-64"),
        ({"pictures": 99_999}, "small-128"),
        ({"gpu_memory": 23.6}, "small-128"),
        ({"gpu_memory": 23.6, "side": 64}, "small-64"),
        ({"gpu_memory": 5.8}, "small-64"),
        ({"side": 47}, "cifar10"),
        ({"gpu_memory": 3.9}, "cifar10"),
        ({"gpu_memory": 2.0}, "demo"),
        ({"gpu_memory": 0.0}, "demo"),
        ({"pictures": 1, "side": 1, "gpu_memory": 0.0}, "demo"),
    ],
)
def test_each_rule(fields: dict[str, Any], preset: str) -> None:
    assert chosen(**fields)["preset"] == preset


@pytest.mark.parametrize(
    ("pictures", "augmented", "steps"),
    [(300, True, 11_718), (3_000, True, 29_296), (30_000, True, 58_593), (99_999, True, 60_000)],
)
def test_few_pictures_are_augmented_and_shown_for_less_long(pictures: int, augmented: bool, steps: int) -> None:
    settings = chosen(pictures=pictures)
    assert (settings["diff_augment"], settings["max_train_steps"]) == (augmented, steps)


def test_steps_follow_the_updates_that_were_given() -> None:
    few = Found(pictures=3_000, side=64, is_coloured=True, class_counts=[], gpu_memory=24)
    usual, larger = choose(few)[0], choose(few, {"global_batch_size": 256, "num_discriminator_steps": 4})[0]
    assert usual["max_train_steps"] == 2_500 * 3_000 // (64 * 4) and larger["max_train_steps"] == 2_500 * 3_000 // 1024


def test_many_pictures_are_shown_as_often_as_the_papers() -> None:
    settings = chosen()
    assert (settings["diff_augment"], settings["max_train_steps"]) == (False, 480 * 300_000 // (2 * 2048))


def test_half_of_a_short_run_is_averaged() -> None:
    short = chosen(pictures=100_000)
    assert (short["max_train_steps"], short["ema_start_step"]) == (11_718, 5_859)
    assert "ema_start_step" not in chosen(pictures=400_000) and "ema_start_step" not in chosen(pictures=300)


def test_colour_and_classes() -> None:
    assert chosen()["config_overrides"] == ["num_channels=3"]
    assert chosen(is_coloured=False)["config_overrides"] == ["num_channels=1"]
    assert "label_sampling" not in chosen(class_counts=[10, 20])
    assert chosen(class_counts=[10, 21])["label_sampling"] == "counts"


def test_one_line_says_why() -> None:
    why = choose(Found(pictures=300, side=96, is_coloured=False, class_counts=[5, 295], gpu_memory=7.6))[1]
    assert why == (
        "small-128, by --preset auto: 300 pictures, grey, of 96 px; a GPU of 8 GiB; augmented, since they are few; "
        "at most 10,000 passes over them; labels drawn as often as in the data, whose classes are uneven"
    )


def test_the_page_says_what_is_chosen() -> None:
    page = (REPO / "docs" / "your-own-pictures.md").read_text(encoding="utf-8")
    for rule in RULES[:-1]:
        px, number = (f"{least:,} " if least else "" for least in (rule.side, rule.pictures))
        assert f"| `{rule.preset}` | {rule.gpu_memory:g} GiB | {px}| {number}| " in page
    for length in LENGTHS[:-1]:
        assert f"| below {length.below:,} | {'yes' if length.diff_augment else 'no'} | {length.passes:,} |" in page
    for row in re.findall(r"^\| ([\d,]+) \| (\d+) \| (yes|no) \| (.+) \|$", page, re.MULTILINE):
        pictures, side = int(row[0].replace(",", "")), int(row[1])
        for memory, cell in zip((0, 8, 24, 80), row[3].split(" | "), strict=True):
            settings = choose(Found(pictures, side, True, [], memory))[0]
            assert cell.startswith(f"`{settings['preset']}`, {settings['max_train_steps']:,} steps, ")
            assert settings["diff_augment"] is (row[2] == "yes")


# In a run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Coloured, and the most of them of 100 px."""
    folder = write_pictures(tmp_path / "pictures", number=3)
    for index in range(9):
        noise = np.random.default_rng(index).integers(0, 256, (100, 120, 3), np.uint8)
        Image.fromarray(noise).save(folder / "cat" / f"coloured-{index}.png")
    return folder


def auto(pictures: Path, output: Path, *more: str) -> list[str]:
    where = ["--dataset_name", str(pictures), "--output_dir", str(output), "--preset", "auto"]
    narrow = ["--config_overrides", "generator_base_channels=4", "discriminator_base_channels=4"]
    return [*where, *SHORT, "--global_batch_size", "4", *narrow, "--max_train_steps", "2", *more]


def test_a_run_keeps_what_was_chosen(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model"
    main(auto(pictures, output, "--ema_start_step", "20000"))  # the default, and yet given
    report = (output / "report.txt").read_text()
    assert "chosen      demo, by --preset auto: 12 pictures, coloured, of 100 px; a CPU" in report
    settings = read_settings(output)
    assert (settings["preset"], settings["diff_augment"], settings["label_sampling"]) == ("demo", True, "counts")
    assert settings["generator_learning_rate"] == PRESETS["demo"].training["generator_learning_rate"]
    assert (settings["max_train_steps"], settings["ema_start_step"]) == (2, 20_000)  # as given
    assert "num_channels=3" in settings["config_overrides"] and "generator_base_channels=4" in str(settings)
    # On another device it would be another preset now.
    monkeypatch.setattr(choosing, "gpu_memory", lambda device: 80.0)
    resume = ["--resume_from_checkpoint", "latest"]
    again = parse_arguments(auto(pictures, output, *resume, "--max_train_steps", "3"))
    assert again[0].preset == "demo" and again[2].diff_augment
    assert set_up(*again).global_step == 2
    from_python = TrainingArguments(output_dir=str(output), resume_from_checkpoint="latest", dry_run=True)
    run = set_up(ModelArguments(preset="auto"), DataArguments(dataset_name=str(pictures)), from_python)
    assert (run.settings["preset"], run.global_step) == ("demo", 2)


def test_a_gpu_gets_more_and_pictures_are_opened_once(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "gpu_memory", lambda device: 24.0)
    opened: list[Any] = []
    load = set_up.__globals__["load_images"]

    def noted(*args: Any) -> Any:
        opened.append(args)
        return load(*args)

    monkeypatch.setitem(set_up.__globals__, "load_images", noted)
    run = set_up(*parse_arguments(auto(pictures, tmp_path / "model", "--dry_run", "--no_diff_augment")))
    assert len(opened) == 1 and run.config.image_size == 128 and run.config.num_channels == 3
    assert run.batches.images.__getitems__([0])["pixel_values"].shape == (1, 3, 128, 128)
    assert run.settings["preset"] == "small-128" and run.settings["diff_augment"] is False
    assert run.settings["discriminator_learning_rate"] == 2e-4


def test_labels_of_balanced_pictures_come_equally_often(pictures: Path) -> None:
    uneven = load_labelled_images(str(pictures), image_size=32)
    arguments = parse_arguments(auto(pictures, pictures / "model"))
    cases: list[tuple[Literal["as_it_is", "balanced"], str]] = [("as_it_is", "counts"), ("balanced", "uniform")]
    for sampling, expected in cases:
        arguments[1].class_sampling = sampling
        (_, data, _), why = choosing.choose_preset(arguments, uneven, torch.device("cpu"))
        assert (data.label_sampling, "uneven" in why) == (expected, expected == "counts")


def test_what_was_given_wins_over_what_was_chosen() -> None:
    given = ["--config_overrides", "num_channels=1", "--label_sampling", "uniform", "--max_train_steps", "150000"]
    arguments = parse_arguments(["--preset", "auto", "--dataset_name", "x", "--output_dir", "y", *given])
    model, data, training = with_chosen(arguments, chosen(pictures=300, class_counts=[1, 9]))
    assert (model.preset, model.config_overrides) == ("small-128", ["num_channels=1"])
    assert (data.label_sampling, training.max_train_steps) == ("uniform", 150_000)  # the defaults, and yet given
    assert training.diff_augment and training.global_batch_size == 64


def test_a_prepared_folder_has_its_own_size(tmp_path: Path, pictures: Path, capsys: Capture) -> None:
    (pictures / "prepared.json").write_text("{}")
    line = error_line(auto(pictures, tmp_path / "model"), capsys)
    assert line.endswith(f"{str(pictures)!r} is prepared for its own: name a preset, such as small-64")


def test_what_has_networks_already_is_refused(tmp_path: Path, pictures: Path, capsys: Capture) -> None:
    line = error_line(auto(pictures, tmp_path / "model", "--init_from", "user/model"), capsys)
    assert line == (
        "error: preset=auto chooses new networks, and 'user/model' has some: name a preset, such as small-64"
    )
    assert not (tmp_path / "model" / "report.txt").exists()
