"""Checkpoints that are gone back to, killed in the middle, damaged, or needed for a rollback."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import STATE, Capture, arguments, error_line, files_of_at_most, read_log, tiny, write_checkpoint

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.files import save_archive, step_of
from biggan_hf.training import main, parse_arguments, set_up
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.checkpoints import (
    WITHOUT_WEIGHTS,
    check_same_architecture,
    find_checkpoint,
    list_checkpoints,
    load_training_state,
    rotate_checkpoints,
    set_aside,
)
from biggan_hf.training.logs import cut_logs, draw_curves, last_lines, read_lines
from biggan_hf.training.players import load_networks
from biggan_hf.training.quality import keep_if_best, set_best_aside
from biggan_hf.training.set_up import warn_of_other_settings
from biggan_hf.training.settings import what_keeps
from biggan_hf.training.stability import WINDOW


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


# What a checkpoint is


def test_checkpoint_is_a_model_folder_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        folder = write_checkpoint(tmp_path, step)
        rotate_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
    assert BigGANModel.from_pretrained(folder).config.num_labels == 3
    assert BigGANDiscriminator.from_pretrained(folder, subfolder="discriminator").config.num_labels == 3
    assert load_training_state(folder).items() >= {**STATE, "global_step": 100}.items()
    assert find_checkpoint(tmp_path, "latest") == folder
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-10")) == tmp_path / "checkpoint-10"


def test_an_unfinished_checkpoint_is_not_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    with files_of_at_most(50_000), pytest.raises(OSError, match="File too large"):
        write_checkpoint(tmp_path, 2)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    write_checkpoint(tmp_path, 2)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-2"
    assert not list(tmp_path.glob(".unfinished-*"))


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "new", None) is find_checkpoint(tmp_path / "new", "latest") is None
    (tmp_path / "thesis.txt").write_text("mine")
    other = write_checkpoint(tmp_path / "other", 1)
    for resume in (None, "latest", str(other)):  # another run's checkpoint into a folder in use
        with pytest.raises(FileExistsError, match="is not empty"):
            find_checkpoint(tmp_path, resume)
    with pytest.raises(FileNotFoundError, match="no training checkpoint at 'nowhere'"):
        find_checkpoint(tmp_path, "nowhere")
    assert find_checkpoint(tmp_path / "new", str(other)) == other


def test_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    check_same_architecture(folder, tiny())
    with pytest.raises(ValueError, match="has generator_base_channels=4, this run generator_base_channels=8"):
        check_same_architecture(folder, tiny(generator_base_channels=8))


def test_what_has_no_weights_may_change(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    changes: dict[str, Any] = dict.fromkeys(["batch_norm_eps", "output_batch_norm_eps", "spectral_norm_eps"], 1e-5)
    changes |= {"discriminator_shortcut_relu": True, "discriminator_dropout": 0.5, "initializer": "normal"}
    changes["truncation_mode"] = "scale"
    assert changes.keys() == WITHOUT_WEIGHTS
    config = tiny(**changes)
    told = check_same_architecture(folder, config)
    assert told.keys() == changes.keys() and told["discriminator_dropout"] == "discriminator_dropout=0.5 (was 0.0)"
    for network in load_networks(folder, config):
        assert {name: getattr(network.config, name) for name in changes} == changes


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
    output, flags = tmp_path / "model", ["--checkpointing_steps", "1", "--sample_steps", "0"]
    again = [*flags, "--resume_from_checkpoint", "latest"]
    main(arguments(pictures, output, *flags, steps=1))
    main(arguments(pictures, output, *again, steps=1))
    assert "other settings" not in capsys.readouterr().err
    main(arguments(pictures, output, *again, "--loss", "logistic", steps=3))
    told = "warning: the run goes on with other settings: max_train_steps=3 (was 1), loss='logistic' (was 'hinge')\n"
    assert told in capsys.readouterr().err
    # Of a run elsewhere, whose seed need not be kept.
    elsewhere = ["--resume_from_checkpoint", str(output / "checkpoint-3"), "--seed", "3"]
    set_up(*parse_arguments(arguments(pictures, tmp_path / "other", *flags, *elsewhere)))
    assert "settings: seed=3 (was 0), max_train_steps=2 (was 3)\n" in capsys.readouterr().err


def test_another_number_of_processes_changes_the_batch(capsys: Capture) -> None:
    settings = {"seed": 0, "num_processes": 1, "per_device_batch_size": 4, "global_batch_size": None}
    warn_of_other_settings(settings, {**settings, "num_processes": 2})
    told = "at the same learning rates; --global_batch_size 4 --per_device_batch_size 2 keeps it\n"
    assert f"8 pictures now, 4 before, {told}" in capsys.readouterr().err
    warn_of_other_settings(settings, {**settings, "num_processes": 2, "global_batch_size": 4})
    assert "pictures now" not in capsys.readouterr().err


@pytest.mark.parametrize(("before", "now"), [((1, 4), (2, 4)), ((3, 2), (2, 4)), ((8, 4), (1, 4)), ((2, 6), (4, 6))])
def test_what_keeps_the_size_of_an_update_does(before: tuple[int, int], now: tuple[int, int]) -> None:
    batch = math.prod(before)
    words = what_keeps(batch, *now).removesuffix(" keeps it").split()
    advice: dict[str, Any] = {
        name.removeprefix("--"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    args = TrainingArguments(**({"per_device_batch_size": now[1]} | advice))
    assert args.accumulation_steps(now[0]) * args.per_device_batch_size * now[0] == batch == args.global_batch_size


def test_an_update_of_fewer_pictures_than_processes_can_not_be_kept() -> None:
    assert what_keeps(2, 3, 1) == "3 processes can't keep it, since 2 does not divide by 3"


def test_other_weights_to_train_are_refused(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    again = ["--resume_from_checkpoint", "latest", "--freeze_discriminator_stages", "2"]
    line = error_line(arguments(pictures, output, *again, steps=4), capsys)
    assert "checkpoint-2' trained" in line and "freeze_discriminator_stages and train_only must stay" in line


# Kills and power cuts


def test_checkpoint_killed_while_it_was_replaced_comes_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3).rename(tmp_path / ".replaced-checkpoint-3")
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

NETWORKS, KINDS = ("", "generator/", "discriminator/"), ("config.json", "model.safetensors")


@pytest.mark.parametrize("file", [*(network + kind for network in NETWORKS for kind in KINDS), "training_state.pt"])
def test_latest_passes_over_a_damaged_checkpoint(tmp_path: Path, capsys: Capture, file: str) -> None:
    good, damaged = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "latest") == damaged
    cut_off = (damaged / file).read_bytes()[:-3]
    for content in (cut_off, b"{}", None):
        (damaged / file).unlink() if content is None else (damaged / file).write_bytes(content)
        assert find_checkpoint(tmp_path, "latest") == good
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert f"'{damaged}' is passed over: " in line and file in line
        with pytest.raises(FileNotFoundError, match=f"no training checkpoint at .*{file}.*; --resume_from_"):
            find_checkpoint(tmp_path, str(damaged))


@pytest.mark.parametrize("file", [f"{network}model.safetensors" for network in NETWORKS] + ["training_state.pt"])
def test_latest_passes_over_flipped_bits(tmp_path: Path, capsys: Capture, file: str) -> None:
    good, damaged = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    content = (damaged / file).read_bytes()
    position = content.index(b"global_step") if file == "training_state.pt" else len(content) // 2
    (damaged / file).write_bytes(content[:position] + b"x" + content[position + 1 :])
    assert find_checkpoint(tmp_path, "latest") == good
    assert f"{damaged}/{file}' is damaged: its " in capsys.readouterr().err
    if file == "model.safetensors":
        with pytest.raises(ValueError, match="model.safetensors' is damaged"):
            BigGANModel.from_pretrained(damaged)
        with pytest.raises(ValueError, match="model.safetensors' is damaged"):
            BigGANModel.from_pretrained(tmp_path, subfolder="checkpoint-10")


@pytest.mark.parametrize("file", ["discriminator/model.safetensors", "training_state.pt"])
def test_a_file_of_another_checkpoint_is_found(tmp_path: Path, capsys: Capture, file: str) -> None:
    good, mixed = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    shutil.copy(good / file, mixed / file)
    assert find_checkpoint(tmp_path, "latest") == good
    assert "model.safetensors is of another checkpoint than its training_state.pt" in capsys.readouterr().err
    state = load_training_state(good)
    save_archive({**state, "weights": {}}, mixed / "training_state.pt")  # as older versions wrote it
    assert find_checkpoint(tmp_path, "latest") == good
    assert "its training_state.pt is of step 9" in capsys.readouterr().err


def test_moments_of_other_networks_are_refused(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output, flags = tmp_path / "model", ["--checkpointing_steps", "1", "--sample_steps", "0"]
    main(arguments(pictures, output, *flags, steps=1))
    path = output / "checkpoint-1" / "training_state.pt"
    state = torch.load(path)
    state["generator_optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    save_archive(state, path)
    line = error_line(arguments(pictures, output, *flags, "--resume_from_checkpoint", "latest", steps=2), capsys)
    assert "checkpoint-1' has moments of another generator" in line


INFINITE = b'{"step": Infinity, "label": "FID", "value": 1}'


@pytest.mark.parametrize("note", [b"", b"\0" * 40, b"[]", b'{"step": 1}', b"\xff", INFINITE])
def test_a_damaged_note_of_the_best(tmp_path: Path, capsys: Capture, note: bytes) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_bytes(note)
    model, discriminator = BigGANModel(tiny()), BigGANDiscriminator(tiny())
    assert keep_if_best(tmp_path, 5, {"FID": 7.0}, model, discriminator)
    assert "best.json' is damaged: the next evaluation replaces" in capsys.readouterr().err
    assert not keep_if_best(tmp_path, 6, {"FID": 8.0}, model, discriminator)
    (tmp_path / "best" / "best.json").write_bytes(note)
    assert set_best_aside(tmp_path, 2) == tmp_path / "abandoned-best"


LINES: dict[str, dict[str, Any]] = {
    "log.jsonl": {"discriminator_loss": 1.5, "generator_loss": math.nan},
    "evaluations.jsonl": {"eval_FID": 7},
    "spectra.jsonl": {"generator": {"linear": [2.0, 1.0]}, "discriminator": {}},
}


@pytest.mark.parametrize("name", LINES)
def test_damaged_lines_of_a_log(tmp_path: Path, capsys: Capture, name: str) -> None:
    log, values = tmp_path / name, LINES[name]
    first, second = (json.dumps({"step": step, **values}).encode() for step in (1, 4))
    others = [{"step": 2}, {"step": 2, **dict.fromkeys(values, "x")}, {"step": 2, **dict.fromkeys(values, {"x": []})}]
    odd = b"\n".join(json.dumps(line).encode() for line in others)
    log.write_bytes(b"\n".join([first, b'\xff\xfe{"step": 2}', b"\0\0\0", b"[3]", odd, second, second[:-1]]))
    assert [line["step"] for line in read_lines(log)] == [1, 4]
    assert f"'{log}' has 7 lines that can't be read; they are passed over" in capsys.readouterr().err
    draw_curves(tmp_path)
    cut_logs(tmp_path, 3)
    assert log.read_bytes() == first + b"\n"


def test_a_resumed_run_passes_over_lines_and_a_report_that_no_run_wrote(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output))
    for name in LINES:
        (output / name).write_text('{"step": 1}\n')
    (output / "report.txt").write_bytes(b"\xff\xfe")
    main(arguments(pictures, output, "--resume_from_checkpoint", "latest", steps=3))
    told = capsys.readouterr().err
    assert all(f"{output / name}' has 1 lines that can't be read" in told for name in LINES)
    assert f"'{output}/report.txt' is no text in UTF-8" in told
    assert "step 2" in (output / "report.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [1, 7, 500, 5000])
def test_the_rule_reads_the_end_of_a_log(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log.jsonl"
    lines = ({**LINES[log.name], "step": step, "é" * (step % 90): 1} for step in range(3000))
    log.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    steps = [line["step"] for line in last_lines(log, number)]
    assert steps == list(range(steps[0], 3000)) and len(steps) >= min(number, 3000)
    assert len(steps) < 3000 or number > 300


def test_a_damaged_model_to_fine_tune(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    checkpoint = write_checkpoint(tmp_path, 1)
    for file, content in (
        ("discriminator/model.safetensors", b"\0" * 5000),
        ("model.safetensors", b""),
        ("config.json", b"\xff\0"),
    ):
        (checkpoint / file).write_bytes(content)
        line = error_line(arguments(pictures, tmp_path / "new", "--init_from", str(checkpoint)), capsys)
        assert file.split("/")[-1] in line


class _Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_training_state_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    path, ran = write_checkpoint(tmp_path, 1) / "training_state.pt", tmp_path / "ran"
    for state, message in (
        ({}, "is no state of a training: it has no 'global_step'"),
        ([1], "is no state of a training: it has no 'global_step'"),
        ({**STATE, "global_step": _Malicious(ran)}, "can't be read: it holds something else"),  # it has code in it
    ):
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            load_training_state(path.parent)
    assert not ran.exists()


def test_latest_among_damaged_checkpoints_is_an_error(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, "--checkpointing_steps", "1", steps=2))
    log = (output / "log.jsonl").read_bytes()
    (output / "checkpoint-1" / "config.json").unlink()
    weights = output / "checkpoint-2" / "generator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for checkpoint, why in (("latest", "checkpoint-1, checkpoint-2"), (str(output / "checkpoint-2"), "header")):
        assert why in error_line(arguments(pictures, output, "--resume_from_checkpoint", checkpoint, steps=3), capsys)
        assert (output / "log.jsonl").read_bytes() == log


# The rotation and the rule for collapses


@pytest.mark.parametrize("interval", [100, 300, 700, 2000])
def test_rotation_keeps_a_checkpoint_from_before_a_collapse(tmp_path: Path, interval: int) -> None:
    args = TrainingArguments(output_dir="out")
    limit, window = args.checkpoints_total_limit or 0, WINDOW * args.logging_steps
    template = write_checkpoint(tmp_path / "template", 0)
    for step in range(interval, 10_001, interval):
        shutil.copytree(template, tmp_path / f"checkpoint-{step}", copy_function=os.link)
        rotate_checkpoints(tmp_path, limit, onset=step - window)
        steps = [step_of(folder) for folder in list_checkpoints(tmp_path)]
        assert steps[-limit:] == list(range(interval, step + 1, interval))[-limit:] and len(steps) <= limit + 2
        if step >= interval + window:
            before = max(kept for kept in steps if kept <= step - window)
            assert before >= step - 2 * window - limit * interval
