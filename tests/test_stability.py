"""The stability watch: spectra, the clamp, the rule, and what is done when it speaks."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import (
    Capture,
    Patch,
    arguments,
    error_line,
    files_of_at_most,
    launch_worker,
    read_log,
    set_rule,
    tiny,
    write_checkpoint,
    write_pictures,
)

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.training import main, parse_arguments, set_up, train
from biggan_hf.training.checkpoints import load_training_state
from biggan_hf.training.logs import draw_curves
from biggan_hf.training.loop import measure_stability, not_finite, stop_or_roll_back, train_step
from biggan_hf.training.run import Run
from biggan_hf.training.stability import SigmaClamp, Spectra, all_finite, diagnose, share_taken_for_real
from biggan_hf.training.steps import Pictures


CONFIG = tiny()


def exact_spectra(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights = {name: m.weight.detach().flatten(1) for name, m in network.named_modules() if hasattr(m, "u0")}
    return {name: torch.linalg.svdvals(weight)[:3] for name, weight in weights.items()}


def random_network() -> BigGANModel:
    torch.manual_seed(0)
    network = BigGANModel(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_()  # unlike orthogonal weights, these have different singular values
    return network


def test_spectra_are_the_top_singular_values_and_follow_the_weights() -> None:
    network = random_network()
    spectra = Spectra(network)
    for _ in range(3):
        spectra.measure()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    measured, exact = spectra.measure(), exact_spectra(network)
    assert measured.keys() == exact.keys() and len(measured) > 10
    for name, values in measured.items():
        np.testing.assert_allclose(values, exact[name], rtol=0.03, err_msg=name)
        np.testing.assert_allclose(values[0], exact[name][0], rtol=0.01, err_msg=name)


def test_spectra_of_a_broken_weight_are_not_a_number() -> None:
    network = random_network()
    network.linear.weight.data[0, 0] = math.inf
    measured = Spectra(network).measure()
    assert all(math.isnan(value) for value in measured["linear"])
    assert not any(math.isnan(value) for value in measured["output_conv"])


@pytest.mark.parametrize("value", [0.5, None])
def test_clamp_lowers_the_largest_singular_value_alone(value: float | None) -> None:
    network = random_network()
    # A gap below σ0, so that a few iterations find it.
    with torch.no_grad():
        u, s, v = torch.linalg.svd(network.linear.weight, full_matrices=False)
        s = torch.tensor([4.0, 1.0, *torch.linspace(0.4, 0.1, len(s) - 2)])
        network.linear.weight.copy_(u @ torch.diag(s) @ v)
    SigmaClamp(network, value, None if value else 1.5).apply()
    clamped = torch.linalg.svdvals(network.linear.weight)
    expected = sorted([value or 1.5, *s[1:].tolist()], reverse=True)
    torch.testing.assert_close(clamped, torch.tensor(expected), rtol=0, atol=1e-4)
    SigmaClamp(network, 100.0, None).apply()
    torch.testing.assert_close(torch.linalg.svdvals(network.linear.weight), clamped)  # below the limit nothing moves


def line(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, "discriminator_loss": 1.0, "generator_loss": 0.5, **values}


def test_rule_leaves_a_healthy_run_alone() -> None:
    log = [line(i, discriminator_loss=0.5 + 0.4 * (-1) ** i, generator_sigma0=2 + 0.01 * i) for i in range(100)]
    assert diagnose(log) is None
    # A single line under the floor is no collapse, nor is a short log.
    assert diagnose([*log, line(100, discriminator_loss=0.0)]) is None
    assert diagnose([line(0, discriminator_loss=0.0)]) is None


def test_rule_lets_the_scaler_of_float16_find_its_scale() -> None:
    lines = [line(i, generator_gradient=math.inf, overflows_in_a_row=i + 1) for i in range(21)]
    assert all(diagnose(lines[: i + 1]) is None for i in range(20))
    assert (diagnose(lines) or "").startswith("step 20: generator_gradient is inf")
    assert diagnose([line(0, generator_loss=math.nan, overflows_in_a_row=0)]) is not None


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ([line(10, generator_loss=math.nan)], "step 10: generator_loss is nan"),
        ([line(10, generator_gradient=math.inf)], "step 10: generator_gradient is inf"),
        (
            [line(i, discriminator_loss=0.001) for i in range(10, 30)],
            "step 29: the discriminator's loss averaged 0.0010",
        ),
        ([line(10, generator_sigma0=9.0)], "step 10: the generator's largest σ0 is 9, 2 before"),
    ],
)
def test_rule_calls_a_collapse(last: list[dict[str, Any]], why: str) -> None:
    log = [line(i, generator_sigma0=2.0) for i in range(10)]
    assert (diagnose([*log, *last]) or "").startswith(why)
    assert diagnose([*log, *last[:-1]]) is None


def test_rule_calls_an_explosion_early_and_slow_growth_never() -> None:
    def called(tenfold_in: float, steps: int) -> int | None:
        """The step at which the rule calls growth from the first step on, of a run with the default settings."""
        log: list[dict[str, Any]] = []
        for step in range(50, steps + 1, 50):
            sigma = {} if step % 1000 else {"generator_sigma0": 2 * 10 ** (step / tenfold_in)}
            log.append(line(step, **sigma))
            if diagnose(log):
                return step
        return None

    assert called(tenfold_in=3_000, steps=30_000) == 11_000
    assert called(tenfold_in=20_000 / math.log10(2), steps=200_000) is None


def test_rule_needs_half_a_window_of_singular_values() -> None:
    log = [line(i, generator_sigma0=2.0 if i % 2 else 0.2) for i in range(10)]
    assert diagnose([*log[:9], line(10, generator_sigma0=9.0)]) is None
    assert (diagnose([*log, line(10, generator_sigma0=9.0)]) or "").endswith("σ0 is 9, 1.1 before")
    assert diagnose([*log, line(10, generator_sigma0=9.0), line(11)]) is None  # it has been called


# Memorisation


def test_share_taken_for_real_leaves_the_discriminator_as_it_was() -> None:
    discriminator = BigGANDiscriminator(CONFIG).train()
    pictures = Pictures(torch.rand(16, 1, 32, 32), torch.arange(16) % 3)
    u0 = discriminator.linear.get_buffer("u0").clone()
    share = share_taken_for_real(discriminator, pictures)
    assert discriminator.training
    expected = (discriminator.eval()(pictures.pixel_values, pictures.class_labels).logits > 0).double().mean()
    assert share == float(expected)
    assert torch.equal(discriminator.linear.get_buffer("u0"), u0)


def two_splits(folder: Path) -> Path:
    write_pictures(folder / "train", number=10)
    for file in write_pictures(folder / "test", number=12).rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    return folder


def watched(data: Path, output: Path, *more: str) -> Run:
    flags = ["--held_out_split", "test", "--watch_steps", "1", "--per_device_batch_size", "1"]
    return set_up(*parse_arguments(arguments(data, output, *flags, *more)))


def rows(pictures: Pictures, folder: Path) -> list[tuple[int, int]]:
    """Which pictures of a folder these are, in the order of the set, and their labels."""
    files = sorted(folder.rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    known = np.stack([np.asarray(Image.open(file)) for file in files])
    pixels = ((pictures.pixel_values[:, 0] + 1) * 127.5).round().numpy().astype(np.uint8)
    matches = (pixels[:, None] == known[None]).all(axis=(2, 3))
    assert (matches.sum(axis=1) == 1).all() and pictures.class_labels is not None
    return [(int(row), int(label)) for row, label in zip(matches.argmax(axis=1), pictures.class_labels, strict=True)]


def test_watched_pictures_are_a_random_sample_of_each_split(tmp_path: Path) -> None:
    data = two_splits(tmp_path / "data")
    samples = {}
    for seed in range(3):
        run = watched(data, tmp_path / f"{seed}", "--seed", str(seed))
        for name, split, size in (("held_out", "test", 12), ("training", "train", 10)):
            sample = rows(run.watched[name], data / split)
            assert len(dict(sample)) == 4 and all(label == (row >= size // 2) for row, label in sample)
            samples[seed, name] = sample
    assert len(set(map(str, samples.values()))) == 6 and set(samples) > {(0, "training"), (0, "held_out")}
    assert any(row >= 4 for row, _ in samples[0, "held_out"]) and any(row >= 4 for row, _ in samples[0, "training"])
    again = watched(data, tmp_path / "again").watched
    assert rows(again["held_out"], data / "test") == samples[0, "held_out"]


def test_of_the_same_pictures_both_shares_are_the_same(pictures: Path, tmp_path: Path) -> None:
    flags = ["--held_out_split", "train", "--watch_steps", "1", "--discriminator_learning_rate", "1e-2"]
    main(arguments(pictures, tmp_path / "model", *flags, steps=4))
    shares = [(line["training_accuracy"], line["held_out_accuracy"]) for line in read_log(tmp_path / "model")]
    assert len(shares) == 4 and len(set(shares)) > 1 and all(training == held_out for training, held_out in shares)


def test_held_out_classes_are_the_training_datas(tmp_path: Path, capsys: Capture) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    for split, labels in (("train", [0, 1, 2, 0]), ("test", [0, 1, 3, 0]), ("few", [0, 1, 0, 0])):
        images = [Image.fromarray(np.full((32, 32), 60 * i, np.uint8)) for i in range(4)]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(str(tmp_path / "data" / f"{split}-0.parquet"))
    line = error_line(arguments(tmp_path / "data", tmp_path / "model", "--held_out_split", "test"), capsys)
    assert not (tmp_path / "model").exists()
    assert "held_out_split 'test': class '3' is not in the training data, whose classes are 0, 1, 2" in line


def test_curves_are_a_picture_of_the_panels_that_have_points(tmp_path: Path) -> None:
    draw_curves(tmp_path)  # of a run that has logged nothing yet
    assert not (tmp_path / "curves.png").exists()
    losses = {"discriminator_loss": 1.0, "generator_loss": 0.5}
    logs: dict[str, dict[str, Any]] = {
        "log": losses,
        "spectra": {"generator": {"a": [2.0, 1.0]}, "discriminator": {"b": [1.0]}},
        "evaluations": {"eval_FID": 10.0},
    }
    for name, rows in zip(logs, (1, 2, 2), strict=True):  # 1, 3 and 4 panels
        lines = [json.dumps({**logs[name], "step": i}) + "\n" for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        draw_curves(tmp_path)
        with Image.open(tmp_path / "curves.png") as image:
            assert image.size == (1320, 330 * rows) and len(image.convert("L").getcolors() or []) > 10
    (tmp_path / "spectra.jsonl").unlink()  # as in a run that ends before it measures them
    draw_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.height == 330


def test_a_single_point_is_seen(tmp_path: Path) -> None:
    """Of a run of few steps the log has one line: no panel has empty axes."""
    line = {"step": 20, "discriminator_loss": 0.0, "generator_loss": 1.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    draw_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14)):
        seen = (np.abs(pixels - colour).max(axis=2) < 20).any(axis=0)
        assert seen[: len(seen) // 3].any()  # left of the legend


# Runs driven to collapse on purpose: a discriminator that learns so fast that its loss falls to nothing


def collapsing(pictures: Path, output: Path, *more: str) -> list[str]:
    flags = ["--sample_steps", "1000", "--watch_steps", "2", "--checkpoints_total_limit", "100"]
    flags += ["--generator_learning_rate", "1e-7", "--discriminator_learning_rate", "5e-3"]
    return arguments(pictures, output, *flags, *more, steps=200)


def test_collapse_stops_a_run_and_keeps_what_is_known(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    set_rule(monkeypatch, WINDOW=4)
    output = tmp_path / "model"
    with pytest.raises(SystemExit) as stop:
        main(collapsing(pictures, output))
    assert stop.value.code == 3
    (note,) = read_log(output, "collapses.jsonl")
    assert "discriminator's loss averaged" in note["why"] and note["rolled_back_to"] is None
    assert BigGANModel.from_pretrained(output / f"collapsed-{note['step']}").config.num_labels == 2
    assert not (output / "model.safetensors").exists() and list(output.glob("checkpoint-*"))
    spectra = read_log(output, "spectra.jsonl")
    assert spectra[0]["step"] == 2 and len(spectra[0]["generator"]["linear"]) == 3
    assert (output / "curves.png").exists()


def test_collapse_rolls_back_with_a_lower_rate_and_other_latents(
    pictures: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    set_rule(monkeypatch, WINDOW=6, MAX_ROLLBACKS=1)
    output = tmp_path / "model"
    with pytest.raises(SystemExit):
        main(collapsing(pictures, output, "--on_collapse", "rollback", "--checkpointing_steps", "1"))
    first, second = read_log(output, "collapses.jsonl")
    good = first["rolled_back_to"]
    assert first["step"] - 18 <= good <= first["step"] - 6 and second["rolled_back_to"] is None
    aside = [int(path.name.removeprefix("before-collapse-")) for path in output.glob("before-collapse-*")]
    assert aside and min(aside) > good
    state = load_training_state(output / f"checkpoint-{good}")
    assert state["rollbacks"] == 1
    assert state["discriminator_optimizer"]["param_groups"][0]["lr"] == 2.5e-3
    steps = [line["step"] for line in read_log(output)]
    assert steps == list(range(1, len(steps) + 1))  # the log goes on from the checkpoint


@pytest.mark.parametrize(("on_collapse", "steps"), [("stop", "0"), ("stop", "4"), ("ignore", "0"), ("ignore", "4")])
def test_not_a_number_after_the_last_logged_line_is_never_saved(
    pictures: Path, tmp_path: Path, on_collapse: str, steps: str
) -> None:
    output = tmp_path / "model"
    flags = ["--checkpointing_steps", steps, "--logging_steps", "1000", "--on_collapse", on_collapse]
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, output, *flags, "--generator_learning_rate", "1e38", steps=4))
    assert stop.value.code == 3
    (note,) = read_log(output, "collapses.jsonl")
    assert note["why"] == "step 4: weights are not finite"
    assert not (output / "model.safetensors").exists() and not list(output.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["generator", "discriminator", "ema"])
def test_not_a_number_in_any_network_is_seen(pictures: Path, tmp_path: Path, name: str) -> None:
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model")))
    players = run.players
    networks = {"generator": players.bare_generator, "discriminator": players.bare_discriminator, "ema": run.ema}
    assert not_finite(run) is None
    next(networks[name].parameters()).data.view(-1)[-1] = math.nan
    assert not_finite(run) == "step 0: weights are not finite"


def test_rollback_passes_over_checkpoints_that_are_not_finite(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(output_dir=tmp_path, onset=3)
    checkpoints = {step: write_checkpoint(tmp_path, step) for step in (1, 2, 3, 4)}
    found = [Run.last_good_checkpoint(run)]
    for step in (3, 2, 1, 4):
        file = checkpoints[step] / ("generator" if step % 2 else "discriminator") / "model.safetensors"
        weights = load_file(file)
        weights["linear.weight"][0, 0] = math.nan
        save_file(weights, file, metadata={"format": "pt"})
        found.append(Run.last_good_checkpoint(run))
    assert [folder and folder.name for folder in found] == [*(f"checkpoint-{n}" for n in (3, 2, 1, 4)), None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["linear.weight", "output_bn.running_var", "stages.0.blocks.0.conv1.bias"])
def test_a_single_value_makes_a_network_not_finite(name: str, value: float) -> None:
    models = [BigGANModel(CONFIG), BigGANModel(CONFIG)]
    models[0].linear.weight.data.fill_(3e38)  # large is finite
    assert all_finite(models)
    models[1].state_dict()[name].view(-1)[-1] = value
    assert not all_finite(models)


def test_collapse_may_be_ignored(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    set_rule(monkeypatch, LOSS_FLOOR=1e9, WINDOW=1)
    main(arguments(pictures, tmp_path / "model", "--on_collapse", "ignore"))
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "model" / "collapses.jsonl").exists()


# The answer to a collapse, piece by piece


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Copies of what a rollback brings back, but for the learning rates."""
    players = run.players
    state: dict[str, torch.Tensor] = {}
    for name in ("bare_generator", "bare_discriminator"):
        state |= {f"{name}.{key}": value for key, value in getattr(players, name).state_dict().items()}
    state |= {f"ema.{key}": value for key, value in run.ema.state_dict().items()}
    for name, optimizer in (("g", players.generator_optimizer), ("d", players.discriminator_optimizer)):
        for index, moments in optimizer.state_dict()["state"].items():
            state |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    for name, spectra in (("g", run.spectra["generator"]), ("d", run.spectra["discriminator"])):
        state |= {f"spectra of {name}.{key}": value for key, value in spectra.bases.items()}
    return {name: value.clone() for name, value in state.items()}


def test_rollback_restores_everything_but_the_seed_and_the_rates(pictures: Path, tmp_path: Path) -> None:
    flags = ["--on_collapse", "rollback", "--watch_steps", "1"]
    flags += ["--loss", "least_squares", "--discriminator_learning_rate", "1e-3"]
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model", *flags)))
    train_step(run)
    measure_stability(run)
    run.save(run.output_dir / "checkpoint-1")
    good, latents, order, seed = state_of(run), run.batches.latents(1, 0), run.batches.pictures(), run.batch_seed
    train_step(run)
    measure_stability(run)
    later = state_of(run)
    for part in ("bare_generator", "bare_discriminator", "ema", "g", "d", "spectra of g", "spectra of d"):
        names = [name for name in good if name.startswith(f"{part}.")]
        assert any(not torch.equal(good[name], later[name]) for name in names), part

    assert stop_or_roll_back(run, "a test")
    restored = state_of(run)
    assert restored.keys() == good.keys() and all(torch.equal(restored[name], good[name]) for name in good)
    assert (run.global_step, run.rollbacks) == (1, 1)
    assert run.batch_seed != seed
    assert not torch.equal(run.batches.latents(1, 0).z, latents.z)
    assert not torch.equal(run.batches.pictures().pixel_values, order.pixel_values)
    assert run.players.discriminator_optimizer.param_groups[0]["lr"] == 5e-4
    assert load_training_state(run.output_dir / "checkpoint-1")["rollbacks"] == 1


def test_a_full_disk_hides_no_collapse(pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    set_rule(monkeypatch, LOSS_FLOOR=1e9, WINDOW=1)
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model", "--checkpointing_steps", "0")))
    with files_of_at_most(10_000), pytest.raises(OSError, match="cannot write '.*collapsed-1'"):
        train(run)
    assert "collapse at step 1: the discriminator's loss averaged" in "".join(capsys.readouterr())
    (note,) = read_log(tmp_path / "model", "collapses.jsonl")
    assert note["step"] == 1 and not (tmp_path / "model" / "collapsed-1").exists()


def test_processes_roll_back_together(pictures: Path, tmp_path: Path) -> None:
    flags = ["--checkpointing_steps", "1", "--loss", "least_squares", "--on_collapse", "rollback"]
    argv = arguments(pictures, tmp_path / "model", *flags, "--sample_steps", "0", steps=3)
    first = launch_worker("rollback_worker.py", 2, tmp_path / "state.pt", *argv)
    second = torch.load(tmp_path / "other.pt", weights_only=True)
    assert [note["rolled_back_to"] for note in read_log(tmp_path / "model", "collapses.jsonl")] == [1, None]
    assert not torch.equal(first.pop("latents"), second.pop("latents"))
    assert first["counters"].tolist() == [2, 1, 1_000_003, 2 * 2 * 4]
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# The watch of a resumed run


def test_resumed_watch_measures_what_the_uninterrupted_one_does(pictures: Path, tmp_path: Path) -> None:
    flags = ["--watch_steps", "1", "--held_out_split", "train", "--sample_steps", "0"]
    main(arguments(pictures, tmp_path / "whole", *flags, steps=4))
    main(arguments(pictures, tmp_path / "parts", *flags, steps=2))
    shutil.copytree(tmp_path / "parts", tmp_path / "old")
    state = torch.load(tmp_path / "old" / "checkpoint-2" / "training_state.pt", weights_only=True)
    del state["spectra"]
    torch.save(state, tmp_path / "old" / "checkpoint-2" / "training_state.pt")
    for name in ("parts", "old"):
        main(arguments(pictures, tmp_path / name, *flags, "--resume_from_checkpoint", "latest", steps=4))
    files = ("spectra.jsonl", "log.jsonl")
    logs = {
        name: [{**line, "time": 0} for file in files for line in read_log(tmp_path / name, file)]
        for name in ("whole", "parts", "old")
    }
    assert logs["parts"] == logs["whole"] and len(logs["whole"]) == 8
    assert logs["old"] != logs["whole"]  # a checkpoint from before the vectors were kept starts them anew
