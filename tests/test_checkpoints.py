"""Checkpoints that are gone back to, killed in the middle, damaged, or needed for a rollback."""

import os
import shutil
from pathlib import Path

import pytest
from training_runs import Capture, Patch, arguments, error_line, read_log, write_checkpoint

from biggan_hf.training import main
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.checkpoints import find_checkpoint, rotate_checkpoints, set_aside
from biggan_hf.training.quality import set_best_aside
from biggan_hf.training.stability import WINDOW


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


# Going back


def test_later_checkpoints_than_the_one_resumed_from_are_set_aside(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    output, flags = tmp_path / "model", ["--checkpointing_steps", "1", "--on_collapse", "ignore"]
    main(arguments(pictures, output, *flags, "--checkpoints_total_limit", "3", steps=4))
    abandoned = (output / "checkpoint-4" / "model.safetensors").read_bytes()
    (output / "best").mkdir()
    (output / "best" / "best.json").write_text('{"step": 3, "label": "x", "value": 1.0}')
    main(arguments(pictures, output, *flags, "--resume_from_checkpoint", str(output / "checkpoint-2"), steps=3))
    assert f"a later checkpoint is now '{output}/abandoned-checkpoint-4'" in capsys.readouterr().err
    assert names(output) == ["abandoned-checkpoint-3", "abandoned-checkpoint-4", "checkpoint-2", "checkpoint-3"]
    assert (output / "abandoned-checkpoint-4" / "model.safetensors").read_bytes() == abandoned
    assert (output / "abandoned-best" / "best.json").exists() and not (output / "best").exists()
    assert find_checkpoint(output, "latest") == output / "checkpoint-3"


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    for number in range(3):
        (write_checkpoint(tmp_path, 8) / "number").write_text(str(number))
        (tmp_path / ".replaced-checkpoint-8").mkdir()  # left by a kill
        set_aside(tmp_path, 4, "abandoned-checkpoint")
    folders = [tmp_path / f"abandoned-checkpoint-8{suffix}" for suffix in ("", "-2", "-3")]
    assert [(folder / "number").read_text() for folder in folders] == ["0", "1", "2"]
    write_checkpoint(tmp_path, 5)
    rotate_checkpoints(tmp_path, 1)
    assert len(names(tmp_path)) == 4


def test_best_model_from_before_stays(tmp_path: Path) -> None:
    assert set_best_aside(tmp_path, 2) is None
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"step": 3, "label": "x", "value": 1.0}')
    assert set_best_aside(tmp_path, 3) is None
    assert set_best_aside(tmp_path, 2) == tmp_path / "abandoned-best"


# Going on otherwise


def test_other_settings_are_told(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output, again = tmp_path / "model", ["--resume_from_checkpoint", "latest"]
    main(arguments(pictures, output, steps=2))
    main(arguments(pictures, output, *again, steps=4))
    assert "other settings" not in capsys.readouterr().err
    main(arguments(pictures, output, *again, "--loss", "logistic", steps=5))
    told = "warning: the run goes on with other settings: loss='logistic' (was 'hinge')\n"
    assert told in capsys.readouterr().err
    # Of a run elsewhere, whose seed need not be kept.
    elsewhere = arguments(
        pictures, tmp_path / "other", "--resume_from_checkpoint", str(output / "checkpoint-4"), steps=5
    )
    main([*elsewhere, "--seed", "3"])
    assert "settings: seed=3 (was 0), loss='hinge' (was 'logistic')\n" in capsys.readouterr().err


def test_other_weights_to_train_are_refused(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    again = ["--resume_from_checkpoint", "latest", "--freeze_discriminator_stages", "2"]
    line = error_line(arguments(pictures, output, *again, steps=4), capsys)
    assert "checkpoint-2' trained" in line and "freeze_discriminator_stages and train_only must stay" in line


# Kills and power cuts


def test_checkpoint_killed_while_it_was_replaced_comes_back(tmp_path: Path, monkeypatch: Patch) -> None:
    write_checkpoint(tmp_path, 3)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.startswith(".unfinished-"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        write_checkpoint(tmp_path, 3)
    assert names(tmp_path) == [".replaced-checkpoint-3", ".unfinished-checkpoint-3"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"


def test_run_without_a_checkpoint_says_that_it_starts_anew(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, "--checkpointing_steps", "0", "--resume_from_checkpoint", "latest"))
    assert "starts anew" not in capsys.readouterr().err
    (output / "config.json").unlink()  # as if it had been killed before its first checkpoint
    main(arguments(pictures, output, "--checkpointing_steps", "0", "--resume_from_checkpoint", "latest"))
    assert "starts anew" in capsys.readouterr().err
    assert [line["step"] for line in read_log(output)] == [1, 2]


# Damage

FILES = [
    f"{network}{file}"
    for network in ("", "generator/", "discriminator/")
    for file in ("config.json", "model.safetensors")
]


@pytest.mark.parametrize("file", [*FILES, "training_state.pt"])
def test_latest_passes_over_a_damaged_checkpoint(tmp_path: Path, capsys: Capture, file: str) -> None:
    good, damaged = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "latest") == damaged
    (damaged / file).write_bytes((damaged / file).read_bytes()[:-3])
    assert find_checkpoint(tmp_path, "latest") == good
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"'{damaged}' is passed over: " in line and file in line


def test_latest_among_damaged_checkpoints_is_an_error(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, "--checkpointing_steps", "1", steps=2))
    log = (output / "log.jsonl").read_bytes()
    (output / "checkpoint-1" / "config.json").unlink()
    truncate(output / "checkpoint-2" / "generator" / "model.safetensors")
    for checkpoint, why in (("latest", "checkpoint-1, checkpoint-2"), (str(output / "checkpoint-2"), "header")):
        assert why in error_line(arguments(pictures, output, "--resume_from_checkpoint", checkpoint, steps=3), capsys)
        assert (output / "log.jsonl").read_bytes() == log


# The rotation and the rule for collapses


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("interval", [100, 300, 700, 2000])
def test_rotation_keeps_a_checkpoint_from_before_a_collapse(tmp_path: Path, interval: int) -> None:
    args = TrainingArguments(output_dir="out")
    limit, window = args.checkpoints_total_limit or 0, WINDOW * args.logging_steps
    template = write_checkpoint(tmp_path / "template", 0)
    for step in range(interval, 10_001, interval):
        shutil.copytree(template, tmp_path / f"checkpoint-{step}", copy_function=os.link)
        rotate_checkpoints(tmp_path, limit, onset=step - window)
        steps = steps_of(tmp_path)
        assert steps[-limit:] == list(range(interval, step + 1, interval))[-limit:] and len(steps) <= limit + 2
        if step >= interval + window:
            before = max(kept for kept in steps if kept <= step - window)
            assert before >= step - 2 * window - limit * interval
