"""Options of the training run: each trains, and those that promise the same function keep it."""

import dataclasses
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import training_runs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker
from common import Operations, tiny_discriminator, tiny_generator
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file
from training_runs import (
    EVALUATION,
    SHORT,
    Capture,
    Patch,
    error_line,
    files_of_at_most,
    read_log,
    set_rule,
    start,
    write_pictures,
)

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.hub import upload_folder
from biggan_hf.training import main, parse_arguments, set_up, train
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.players import freeze
from biggan_hf.training.run import Run


ATTENTION = ["--config_overrides", "generator_base_channels=4", "discriminator_base_channels=4"]
ATTENTION += ["generator_attention_resolutions=[16]", "discriminator_attention_resolutions=[16]"]


def arguments(pictures: Path, output: Path, *more: str, steps: int = 3) -> list[str]:
    return training_runs.arguments(pictures, output, "--sample_steps", "0", *ATTENTION, *more, steps=steps)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    return weights


def losses(folder: Path) -> list[float]:
    return [line["discriminator_loss"] for line in read_log(folder)]


R1 = ["--r1_gamma", "10", "--r1_interval", "1", "--config_overrides", "discriminator_attention_resolutions=[16]"]


@pytest.mark.parametrize(
    ("flag", "shared"),
    [
        ("--channels_last", []),
        ("--gradient_checkpointing", []),
        ("--gradient_checkpointing", R1),  # checkpointed attention has a second derivative
        ("--gradient_checkpointing", [*R1, "--power_iteration", "every_forward"]),
        ("--gradient_checkpointing", [*R1, "--r2_gamma", "10", "--loss", "relativistic"]),
        pytest.param("--compile", ["--max_train_minutes", "60"], marks=pytest.mark.slow),
        pytest.param("--compile", [*R1, "--r2_gamma", "10", "--loss", "relativistic"], marks=pytest.mark.slow),
    ],
)
def test_option_keeps_the_function(pictures: Path, tmp_path: Path, flag: str, shared: list[str]) -> None:
    main(arguments(pictures, tmp_path / "plain", flag, "False", *shared))
    main(arguments(pictures, tmp_path / "option", flag, *shared))
    np.testing.assert_allclose(losses(tmp_path / "option"), losses(tmp_path / "plain"), rtol=0, atol=1e-3)
    assert trained(tmp_path / "option").keys() == trained(tmp_path / "plain").keys()


def test_bfloat16_trains_weights_that_stay_in_float32(pictures: Path, tmp_path: Path) -> None:
    main(arguments(pictures, tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of a process is set once
    main(arguments(pictures, tmp_path / "bf16", "--mixed_precision", "bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(weight.dtype == torch.float32 for weight in trained(tmp_path / "bf16").values())
    first, expected = losses(tmp_path / "bf16")[0], losses(tmp_path / "plain")[0]
    assert first != expected and abs(first - expected) < 0.1 * abs(expected) + 0.1


def run_with_scaler(argv: list[str], scale: float, backoff: float = 0.5) -> Run:
    """In float32, with float16's scaler, which a CPU has too."""
    run = set_up(*parse_arguments(argv))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff)
    players = run.players
    optimizers: list[Any] = [players.generator_optimizer, players.discriminator_optimizer]
    generator, discriminator = (AcceleratedOptimizer(o.optimizer, scaler=scaler) for o in optimizers)
    run.players = dataclasses.replace(players, generator_optimizer=generator, discriminator_optimizer=discriminator)
    run.accelerator.scaler = scaler
    return run


def test_scaled_gradients_train_as_others_do(pictures: Path, tmp_path: Path) -> None:
    flags = ["--generator_orthogonality", "0.01", "--r1_gamma", "1"]
    main(arguments(pictures, tmp_path / "plain", *flags))
    assert train(run_with_scaler(arguments(pictures, tmp_path / "scaled", *flags), 2.0**10))
    plain, scaled = (read_log(tmp_path / name) for name in ("plain", "scaled"))
    for expected, line in zip(plain, scaled, strict=True):
        assert line.pop("overflows_in_a_row") == 0
        assert {**line, "time": None} == {**expected, "time": None}  # a power of two rounds nothing


def test_overflows_that_the_scaler_leaves_out_are_no_collapse(pictures: Path, tmp_path: Path) -> None:
    # Twice the largest power of two is infinite: the first gradient overflows, and not the second.
    run = run_with_scaler(arguments(pictures, tmp_path / "model"), 2.0**127, backoff=2.0**-100)
    assert train(run) is not None and not run.collapsed
    lines = read_log(tmp_path / "model")
    assert [line["overflows_in_a_row"] for line in lines] == [1, 0, 0]
    assert not np.isfinite(lines[0]["discriminator_gradient"])
    trained(tmp_path / "model")


def test_scaler_goes_on_where_it_stopped(pictures: Path, tmp_path: Path) -> None:
    scales = {"first": 2.0**9, "second": 2.0}
    first, second = (run_with_scaler(arguments(pictures, tmp_path / name), scale) for name, scale in scales.items())
    first.overflows = torch.tensor(7.0)
    second.restore(first.state())
    assert second.accelerator.scaler is not None
    assert (second.accelerator.scaler.get_scale(), second.overflows) == (2.0**9, 7.0)


def test_overflows_without_end_are_a_collapse(pictures: Path, tmp_path: Path) -> None:
    run = run_with_scaler(arguments(pictures, tmp_path / "model", steps=40), 2.0**127, backoff=1 - 1e-6)
    assert train(run) is None and run.collapsed
    (note,) = read_log(tmp_path / "model", "collapses.jsonl")
    assert note["step"] == 21 and "gradient is" in note["why"]


# What would make the host wait for a GPU.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}


def test_a_step_that_is_not_logged_waits_for_nothing(pictures: Path, tmp_path: Path) -> None:
    flags = ["--checkpointing_steps", "0", "--watch_steps", "1", "--r1_gamma", "1", "--r1_interval", "2"]
    flags += ["--generator_orthogonality", "0.01", "--horizontal_flip", "--global_batch_size", "8"]

    def waits(steps: int, logging_steps: int) -> int:
        output = tmp_path / f"{steps}-{logging_steps}"
        with Operations() as operations:
            main(arguments(pictures, output, *flags, "--logging_steps", str(logging_steps), steps=steps))
        return sum(name in WAITS for name in operations.names)

    assert waits(2, 1000) == waits(4, 1000) < waits(4, 2)  # the last step is logged in any case


def test_the_last_step_is_logged(pictures: Path, tmp_path: Path) -> None:
    for steps, logged in ((3, [2, 3]), (4, [2, 3, 4])):
        resumed = ["--resume_from_checkpoint", "latest", "--logging_steps", "2"]
        main(arguments(pictures, tmp_path / "model", *resumed, steps=steps))
        assert [line["step"] for line in read_log(tmp_path / "model")] == logged
    in_no_time = ["--logging_steps", "1000", "--max_train_minutes", "1e-6"]
    main(arguments(pictures, tmp_path / "short", *in_no_time))
    assert [line["step"] for line in read_log(tmp_path / "short")] == [1]


def test_evaluation_keeps_the_best_model_apart(pictures: Path, tmp_path: Path) -> None:
    main(arguments(pictures, tmp_path / "model", *EVALUATION, steps=3))
    lines = read_log(tmp_path / "model", "evaluations.jsonl")
    assert [line.pop("step") for line in lines] == [1, 2, 3]
    name = "training_runs:features N=8"
    assert all([*line] == [f"eval_KD-{name}", f"eval_MIND-{name}"] for line in lines)
    values = [math.sqrt(math.prod(max(value, 1e-6) for value in line.values())) for line in lines]
    best = json.loads((tmp_path / "model" / "best" / "best.json").read_text(encoding="utf-8"))
    assert best["value"] == pytest.approx(min(values)) and best["step"] == 1 + values.index(min(values))
    assert BigGANModel.from_pretrained(tmp_path / "model" / "best").config.num_labels == 2


def test_checkpoint_of_other_pictures_is_refused(model: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, change in (("fewer", Path.unlink), ("others", lambda path: Image.new("L", (32, 32)).save(path))):
        shutil.copytree(pictures, tmp_path / name)
        change(next((tmp_path / name).rglob("0.png")))
    resumed = ["--resume_from_checkpoint", str(model / "checkpoint-3")]
    line = error_line(arguments(tmp_path / "fewer", tmp_path / "model", *resumed), capsys)
    assert "is of a run on 10 pictures, this data set has 9" in line
    line = error_line(arguments(tmp_path / "others", tmp_path / "model", *resumed), capsys)
    assert "is of a run on other pictures, labels or class names than this data" in line
    assert not (tmp_path / "model").exists()


def test_the_same_pictures_may_go_by_another_name(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(pictures.parent)
    resumed = ["--resume_from_checkpoint", str(model / "checkpoint-3")]
    main(arguments(Path(pictures.name), tmp_path / "model", *resumed, steps=4))
    assert len(losses(tmp_path / "model")) == 1


@pytest.mark.parametrize("text", ["{}", "[]", '{"seed": '])
def test_settings_that_no_run_wrote_are_one_line(pictures: Path, tmp_path: Path, capsys: Capture, text: str) -> None:
    (tmp_path / "training_settings.json").write_text(text, encoding="utf-8")
    line = error_line(arguments(pictures, tmp_path, "--resume_from_checkpoint", "latest"), capsys)
    assert "training_settings.json' is not what a run writes" in line


# A full disk


def test_full_disk_is_one_line_and_loses_nothing(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    main(arguments(pictures, output, "--checkpointing_steps", "2", steps=2))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and "log" not in path.name}
    for steps, flags in ((4, ["--checkpointing_steps", "2"]), (3, ["--checkpointing_steps", "0"])):
        argv = arguments(pictures, output, "--resume_from_checkpoint", "latest", *flags, steps=steps)
        with files_of_at_most(50_000):
            assert "File too large" in error_line(argv, capsys)
        of_the_start = ("training_settings.json", "report.txt")
        after = {path: path.read_bytes() for path in before if path.name not in of_the_start}
        assert after == {path: content for path, content in before.items() if path in after}
        assert not list(output.glob(".unfinished-*")) and not list(output.glob("checkpoint-[34]"))
    main(arguments(pictures, output, "--resume_from_checkpoint", "latest", steps=4))
    assert len(losses(output)) == 4


# Fine-tuning


@pytest.fixture(scope="module")
def model(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine-tuning") / "model"
    main(arguments(pictures, folder, "--ema_start_step", "100"))
    return folder


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("three"), ("x", "y", "z"), 6)


def fine_tuning(pictures: Path, model: Path, output: Path, *more: str) -> list[str]:
    where = ["--dataset_name", str(pictures), "--output_dir", str(output), "--init_from", str(model)]
    return ["--preset", "demo", *SHORT, *where, "--max_train_steps", "1", "--ema_start_step", "100", *more]


def changed(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {
        name for name in new if name.endswith(("weight", "bias", "gamma")) and not torch.equal(old[name], new[name])
    }


def test_fine_tuning_on_other_classes_starts_from_the_model(model: Path, three_classes: Path, tmp_path: Path) -> None:
    rates = ["--generator_learning_rate", "1e-30", "--discriminator_learning_rate", "1e-30"]
    # From the first step on an average, which a new network's would not be the model's.
    still = ["--generator_orthogonality", "0", "--ema_start_step", "0", *rates]
    main(fine_tuning(three_classes, model, tmp_path / "tuned", *still))
    tuned = BigGANModel.from_pretrained(tmp_path / "tuned")
    assert tuned.config.id2label == {0: "x", 1: "y", 2: "z"} and tuned.config.generator_base_channels == 4
    for part in ("", "discriminator"):
        assert changed(model / part, tmp_path / "tuned" / part) == {"class_embedding.weight"}


def test_fine_tuning_of_a_revision(model: Path, pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    upload_folder(model, "user/x", revision="next")
    upload_folder(model / "discriminator", "user/x")  # what main holds is no generator
    still = ["--generator_learning_rate", "1e-30", "--discriminator_learning_rate", "1e-30"]
    still += ["--generator_orthogonality", "0", "--revision", "next"]
    argv = fine_tuning(pictures, model, tmp_path / "tuned", *still)
    main(["user/x" if word == str(model) else word for word in argv])
    assert (
        changed(model, tmp_path / "tuned")
        == changed(model / "discriminator", tmp_path / "tuned/discriminator")
        == set()
    )


def test_fine_tuning_takes_no_other_architecture(
    model: Path, three_classes: Path, tmp_path: Path, capsys: Capture
) -> None:
    wider = ["--config_overrides", "generator_base_channels=8"]
    line = error_line(fine_tuning(three_classes, model, tmp_path / "t", *wider), capsys)
    assert "has other shapes than the configuration asks for, as of 'linear.bias'" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--train_only", "class_embeddings"], {"class_embedding"}),
        (["--freeze_discriminator_stages", "2"], {"stages.2", "stages.3", "linear", "class_embedding"}),
    ],
)
def test_frozen_weights_of_the_discriminator_stay(
    model: Path, pictures: Path, tmp_path: Path, flags: list[str], expected: set[str]
) -> None:
    main(fine_tuning(pictures, model, tmp_path / "tuned", *flags))
    in_generator, in_discriminator = (
        {re.match(r"stages\.\d|\w+", name)[0] for name in changed(model / part, tmp_path / "tuned" / part)}  # type: ignore[index]
        for part in ("", "discriminator")
    )
    assert in_discriminator == expected
    assert (in_generator == {"class_embedding"}) == ("class_embeddings" in flags)


def test_the_convolution_before_the_stages_of_a_deep_discriminator_is_frozen_with_them() -> None:
    generator, discriminator = (
        tiny_generator(architecture="biggan-deep"),
        tiny_discriminator(architecture="biggan-deep"),
    )
    freeze(generator, discriminator, TrainingArguments(freeze_discriminator_stages=1))
    frozen = {re.match(r"stages\.\d|\w+", name)[0]  # type: ignore[index]
              for name, parameter in discriminator.named_parameters() if not parameter.requires_grad}  # fmt: skip
    assert frozen == {"input_conv", "stages.0"} and all(p.requires_grad for p in generator.parameters())


def test_tracker_gets_scalars_and_pictures(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard, which the extra dev installs")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held_out = tmp_path / "held-out"
    shutil.copytree(pictures, held_out / "train")
    shutil.copytree(pictures, held_out / "test")
    next((held_out / "train").rglob("4.png")).write_bytes(b"no picture")
    flags = ["--held_out_split", "test", "--watch_steps", "2", "--per_device_batch_size", "9"]
    flags += [*EVALUATION, "--evaluation_steps", "2"]
    main(arguments(held_out, tmp_path / "model", "--report_to", "tensorboard", "--sample_steps", "2", *flags))
    (file,) = (tmp_path / "model").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars("discriminator_loss")] == [1, 2, 3]
    assert [event.step for event in events.Images("samples")] == [2]
    (evaluation,) = read_log(tmp_path / "model", "evaluations.jsonl")
    assert evaluation.pop("step") == 2 and len(evaluation) == 2
    for name, value in evaluation.items():
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(2, pytest.approx(value))]
    logged = [{**line, "step": None} for line in read_log(tmp_path / "model")]
    assert {"generator_sigma0", "discriminator_sigma0", "held_out_accuracy", "unreadable_pictures"} < logged[1].keys()
    for name in set().union(*logged) - {"step", "time"}:
        expected = [line[name] for line in logged if name in line]
        np.testing.assert_allclose([event.value for event in events.Scalars(name)], expected, rtol=1e-5, err_msg=name)


def test_trackio_gets_scalars_sheets_and_an_alert(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    trackio = pytest.importorskip("trackio", reason="needs trackio, whose 0.43 needs pillow<13")
    from trackio.sqlite_storage import SQLiteStorage

    output = tmp_path / "model"
    main(arguments(pictures, output, "--report_to", "trackio", "--sample_steps", "2", *EVALUATION, steps=3))
    (run,) = trackio.Api().runs("biggan_hf")
    logs = SQLiteStorage.get_logs("biggan_hf", run.name)
    for line in [*read_log(output), *read_log(output, "evaluations.jsonl")]:
        at_step = [entry for entry in logs if entry["step"] == line["step"]]
        told = {name: value for entry in at_step for name, value in entry.items()}
        assert told.items() >= {name: value for name, value in line.items() if name != "time"}.items()
    (sheet,) = [entry["samples"] for entry in logs if "samples" in entry]
    with Image.open(trackio.utils.MEDIA_DIR / sheet["file_path"]) as shown:
        drawn = Image.open(output / "samples" / "step-0000002.png")
        assert shown.convert("RGB").tobytes() == drawn.convert("RGB").tobytes()
    assert not run.alerts()
    set_rule(monkeypatch, WINDOW=1, LOSS_FLOOR=1e9)
    with pytest.raises(SystemExit):
        main(arguments(pictures, tmp_path / "collapsed", "--report_to", "trackio", "--watch_steps", "1", steps=9))
    (alert,) = trackio.Api().alerts("biggan_hf")
    (note,) = read_log(tmp_path / "collapsed", "collapses.jsonl")
    assert (alert["title"], alert["level"], alert["step"], alert["text"]) == (
        "collapse",
        "error",
        note["step"],
        note["why"],
    )


def test_tracker_that_can_not_start_is_one_line_and_writes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    def start(*_: object) -> None:
        raise ConnectionError("no API key")

    monkeypatch.setattr(TensorBoardTracker, "start", start)
    line = error_line(arguments(pictures, tmp_path / "model", "--report_to", "tensorboard"), capsys)
    assert line == "error: a tracker of report_to (tensorboard) can't start: ConnectionError: no API key"
    assert not (tmp_path / "model").exists()


# Runs in processes of their own, that are ended from outside


def ends_well(process: subprocess.Popen[str], seconds: float = 600) -> bool:
    """Reads what is printed while it waits: a pipe that nobody reads is full after 64 KiB, and stops the run."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, printed[-2000:]
    return True


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = output / "log.jsonl"
        if log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=10)[0] if process.poll() is not None else "no step in time")


def test_sigterm_to_all_processes_leaves_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    flags = ["--checkpointing_steps", "1000", "--dataloader_num_workers", "2", "--on_collapse", "ignore"]
    process = start(arguments(pictures, output, *flags, steps=10_000), num_processes=0)
    wait_for_step(process, output, 2)
    # The workers first, whose end the training process would else meet in the midst of a step.
    members = [*psutil.Process(process.pid).children(recursive=True), process]
    assert len(members) > 2
    for member in members:
        member.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "unfinished: " in printed, printed[-2000:]
    (checkpoint,) = output.glob("checkpoint-*")
    assert not (output / "model.safetensors").exists()
    step = int(checkpoint.name.partition("-")[2])
    main(arguments(pictures, output, "--resume_from_checkpoint", "latest", steps=step + 1))
    assert len(losses(output)) == step + 1


def test_processes_that_accelerate_does_not_count_are_refused(
    pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    line = error_line(arguments(pictures, tmp_path / "model"), capsys)
    assert "started 2 processes" in line and "accelerate counts 1" in line and "ACCELERATE_USE_CPU=true" in line
    assert not (tmp_path / "model").exists()


def test_one_of_two_processes_tells_a_mistake(pictures: Path, tmp_path: Path) -> None:
    process = start(arguments(pictures, tmp_path / "model", "--global_batch_size", "7"), num_processes=2)
    printed, _ = process.communicate(timeout=120)
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and "global_batch_size=7 does not divide" in line


def test_sigterm_between_two_lines_of_the_log_stops_all_processes(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    flags = ["--checkpointing_steps", "2", "--logging_steps", "1000000", "--on_collapse", "ignore"]
    process = start(arguments(pictures, output, *flags, steps=1_000_000), num_processes=2)
    deadline = time.monotonic() + 120
    while not list(output.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    # To the launcher, as a cluster sends it: after 30 seconds of grace it would kill what still runs.
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert "unfinished: " in printed, printed[-2000:]


def is_a_whole_model(folder: Path, steps: int) -> bool:
    assert json.loads((folder / "training_settings.json").read_text())["num_processes"] == 1
    lines = read_log(folder)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines[-1]["samples_seen"] == steps * 4
    assert all(np.isfinite(line["discriminator_loss"]) for line in lines)
    networks: list[Any] = [(BigGANModel, ""), (BigGANDiscriminator, "discriminator")]
    for network, where in networks:
        model, loading = network.from_pretrained(folder, output_loading_info=True, subfolder=where)
        assert not any(loading.values()) and model.config.id2label == {0: "cat", 1: "dog"}
    assert BigGANModel.from_pretrained(folder).sample([0, 1], truncation=0.5).shape == (2, 1, 32, 32)
    sheets = ("samples.png", "truncation.png", f"samples/step-{steps:07d}.png")
    return all(Image.open(folder / sheet).size[0] > 64 for sheet in sheets) and "library_name: biggan_hf" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")


def test_killed_run_ends_as_if_it_had_not_been(pictures: Path, tmp_path: Path) -> None:
    """By a kill from outside; test_campaign_runs.py kills many runs from within."""
    steps = 8
    # On pictures of noise the discriminator wins soon, which the rule would call.
    flags = ["--checkpointing_steps", "1", "--watch_steps", "2", "--horizontal_flip", "--on_collapse", "ignore"]
    flags += ["--sample_steps", "4"]
    assert ends_well(start(arguments(pictures, tmp_path / "whole", *flags, steps=steps), 0))
    assert is_a_whole_model(tmp_path / "whole", steps)
    argv = arguments(pictures, tmp_path / "killed", *flags, "--resume_from_checkpoint", "latest", steps=steps)
    process = start(argv, 0)
    wait_for_step(process, tmp_path / "killed", 1)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    process.kill()
    process.communicate(timeout=60)
    assert ends_well(start(argv, 0))
    for name in ("model.safetensors", "discriminator/model.safetensors"):
        whole, killed = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole), name
    for name in ("log.jsonl", "spectra.jsonl"):
        whole_log, killed_log = (read_log(tmp_path / run, name) for run in ("whole", "killed"))
        assert [{**line, "time": None} for line in killed_log] == [{**line, "time": None} for line in whole_log], name


@pytest.mark.slow
def test_two_machines_are_as_good_as_one(pictures: Path, tmp_path: Path) -> None:
    assert ends_well(start(arguments(pictures, tmp_path / "one"), num_processes=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in (0, 1):
        flags = f"--num_machines 2 --machine_rank {rank} --main_process_ip 127.0.0.1 --main_process_port {port}"
        machines.append(start(arguments(pictures, tmp_path / "two"), 2, *flags.split()))
    assert all(ends_well(machine) for machine in machines)
    assert json.loads((tmp_path / "two" / "training_settings.json").read_text())["num_processes"] == 2
    one_machine, two_machines = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert all(torch.equal(two_machines[name], weight) for name, weight in one_machine.items())
