"""Where a training argument's value comes from, and what can't be one."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from biggan_hf import BigGANConfig
from biggan_hf.presets import PRESETS
from biggan_hf.training import DataArguments, ModelArguments, TrainingArguments, parse_arguments


NEEDED = ["--dataset_name", "pictures", "--output_dir", "out"]
GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, TrainingArguments)


def test_every_preset_trains() -> None:
    for preset in PRESETS:
        model, _, training = parse_arguments(["--preset", preset, *NEEDED])
        assert (model.config(["cat", "dog"]).num_labels, model.config([]).num_labels) == (2, 0)
        assert training.accumulation_steps(1) * training.per_device_batch_size == (
            training.global_batch_size or training.per_device_batch_size
        )


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_command_line_beats_file_beats_preset(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"settings.{suffix}"
    # Without a dot, YAML takes 3e-4 for a text.
    settings: dict[str, Any] = {"preset": "cifar10", "dataset_name": "pictures", "output_dir": "out"}
    settings |= {"generator_learning_rate": "3e-4", "seed": 5, "horizontal_flip": True}
    text = json.dumps(settings) if suffix == "json" else "\n".join(f"{k}: {v}" for k, v in settings.items())
    file.write_text(text, encoding="utf-8")
    model, data, training = parse_arguments([str(file), "--seed", "6"])
    assert model.preset == "cifar10" and training.num_discriminator_steps == 4  # the preset's row
    assert training.generator_learning_rate == 3e-4 and data.horizontal_flip is True  # the file
    assert training.seed == 6  # the command line


def test_config_overrides_are_json_values() -> None:
    overrides = ["num_channels=1", "generator_attention_resolutions=[16]", "architecture=biggan"]
    model, _, _ = parse_arguments(["--preset", "biggan-32", "--config_overrides", *overrides, *NEEDED])
    config = model.config(["a", "b", "c"])
    assert (config.num_channels, config.generator_attention_resolutions) == (1, [16])
    assert config.id2label == {0: "a", 1: "b", 2: "c"}


def test_other_spellings(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    text = "preset: biggan-32\nmax-train-steps: 7\nconfig-overrides:\n  num_channels: 1\n"
    file.write_text(text + "  generator_attention_resolutions: [16]\n  initializer: normal\n")
    model, data, training = parse_arguments(
        [str(file), "--dataset-name", "a-b", "--output-dir=c-d", "--horizontal-flip"]
    )
    assert (data.dataset_name, training.output_dir, training.max_train_steps) == (
        "a-b",
        "c-d",
        7,
    ) and data.horizontal_flip
    config = model.config(["a"])
    assert (config.num_channels, config.generator_attention_resolutions, config.initializer) == (1, [16], "normal")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "biggan-100", *NEEDED], "unknown preset 'biggan-100'; the presets are biggan-128"),
        (["--output_dir", "out"], "--dataset_name must be given"),
        (["--dataset_name", "x"], "--output_dir must be given"),
        (["--max_train_steps", "0", *NEEDED], "max_train_steps must be at least 1, got 0"),
        (["--adam_beta1", "1", *NEEDED], r"adam_beta1 must be in \[0, 1\), got 1.0"),
        (["--generator_learning_rate", "-1", *NEEDED], "generator_learning_rate must be positive, got -1.0"),
        (["--checkpoints_total_limit", "0", *NEEDED], "checkpoints_total_limit must be positive or left out, got 0"),
        (["--generator_learning_rate", "inf", *NEEDED], "generator_learning_rate must be finite, got inf"),
        (["--r1_gamma", "nan", *NEEDED], "r1_gamma must be finite, got nan"),
        (["--push_to_hub", *NEEDED], "push_to_hub needs hub_model_id"),
        (["missing.yaml"], "no file of settings at 'missing.yaml'"),
        ([*NEEDED, "--batch_size", "8"], "arguments: --batch_size; did you mean .*--per_device_batch_size"),
        ([*NEEDED, "stray"], "arguments: stray"),
    ],
)
def test_what_cannot_be_is_named(argv: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_arguments(argv)


@pytest.mark.parametrize(
    ("section", "prefix", "expected"),
    [
        ("Training", "--", {f.name for group in GROUPS for f in fields(group)}),
        ("Configuration", "", {*BigGANConfig.__annotations__, "num_labels", "id2label"}),
    ],
)
def test_the_page_of_options_names_every_option_and_no_other(section: str, prefix: str, expected: set[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
    text = re.split(r"^## ", page.partition(f"\n## {section}\n")[2], flags=re.MULTILINE)[0]
    named = re.findall(rf"^\| `{prefix}(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(expected - {"model_type", "attribute_map"})


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/bin/biggan-hf", "biggan-hf train"),
        ("/x/biggan_hf/__main__.py", "python -m biggan_hf train"),
        ("/x/biggan_hf/training/__main__.py", "python -m biggan_hf.training"),
        ("train.py", "train.py"),
    ],
)
def test_help_names_the_program(
    started: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [started])
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {name} [settings.yaml]")


def test_help_is_in_sections_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    titles = ["networks", "pictures", "run", "game", "regularisers", "speed", "log, evaluations", "Hub", "example"]
    places = [text.index(f"\n{title}") for title in titles]
    assert stop.value.code == 0 and places == sorted(places)
    assert text.index("--preset") > places[0] and "(default: 0.0002)" in text and "(default: None)" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "settings.yaml: .*--learning_rate; did you mean .*--generator_learning_rate"),
        ("loss: foo", "argument --loss: invalid choice: 'foo'"),
        ("per_device_batch_size: 4.5", "argument --per_device_batch_size.*: invalid int value: '4.5'"),
        ("on_collapse: foo", "argument --on_collapse.*: invalid choice: 'foo'"),
        ("ema_decay: [0.9", "is no YAML"),
        ("seed: [1, 2]", r"must set seed to one value, got \[1, 2\]"),
        ("mixed_precision: no", "must not set mixed_precision to False; YAML takes on, off, yes and no .* in quotes"),
        ("cuda_graphs: on", "must not set cuda_graphs to True; YAML"),
        ("image_column: {a: 1}", "must set image_column to one value, got {'a': 1}"),
        ("- a\n- b", "must hold a mapping of settings, got list"),
    ],
)
def test_file_is_checked_as_the_command_line_is(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(file), *NEEDED])


def test_global_batch_that_does_not_divide_names_the_nearest() -> None:
    training = TrainingArguments(output_dir="out", per_device_batch_size=48, global_batch_size=256)
    with pytest.raises(ValueError, match="batch_size=256 does not divide .* 2 processes; the nearest .* is 288"):
        training.accumulation_steps(2)
    assert TrainingArguments(per_device_batch_size=64, global_batch_size=2048).accumulation_steps(4) == 8


def test_switches_are_turned_off_in_two_ways() -> None:
    for flag in ("--no_diff_augment", "--no-diff-augment", "--diff_augment=False"):
        assert not parse_arguments([*NEEDED, "--diff_augment", flag])[2].diff_augment
