"""The stability watch: spectra, the clamp, the rule, and what is done when it speaks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import arguments, read_log

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.training import main, parse_arguments, set_up
from biggan_hf.training.checkpoints import load_training_state
from biggan_hf.training.collapse import last_good_checkpoint
from biggan_hf.training.plots import plot_curves
from biggan_hf.training.stability import SigmaClamp, Spectra, diagnose, held_out_accuracy
from biggan_hf.training.steps import Batch


CONFIG = BigGANConfig.preset("demo", num_labels=3, generator_base_channels=4, discriminator_base_channels=4)


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
    assert diagnose(log, window=10, loss_floor=0.01, sigma_factor=4) is None
    # A single line under the floor is no collapse, nor is a short log.
    assert diagnose([*log, line(100, discriminator_loss=0.0)], 10, 0.01, 4) is None
    assert diagnose([line(0, discriminator_loss=0.0)], 10, 0.01, 4) is None


def test_rule_lets_the_scaler_of_float16_find_its_scale() -> None:
    lines = [line(i, generator_gradient=math.inf, overflows_in_a_row=i + 1) for i in range(21)]
    assert all(diagnose(lines[: i + 1], 5, 0.01, 4) is None for i in range(20))
    assert (diagnose(lines, 5, 0.01, 4) or "").startswith("step 20: generator_gradient is inf")
    assert diagnose([line(0, generator_loss=math.nan, overflows_in_a_row=0)], 5, 0.01, 4) is not None


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ([line(10, generator_loss=math.nan)], "step 10: generator_loss is nan"),
        ([line(10, generator_gradient=math.inf)], "step 10: generator_gradient is inf"),
        (
            [line(i, discriminator_loss=0.001) for i in range(10, 15)],
            "step 14: the discriminator's loss averaged 0.0010",
        ),
        ([line(10, generator_sigma0=9.0)], "step 10: the generator's largest σ0 is 9, 2 before"),
    ],
)
def test_rule_calls_a_collapse(last: list[dict[str, Any]], why: str) -> None:
    log = [line(i, generator_sigma0=2.0) for i in range(10)]
    assert (diagnose([*log, *last], window=5, loss_floor=0.01, sigma_factor=4) or "").startswith(why)


def test_held_out_accuracy_counts_what_is_taken_for_real() -> None:
    discriminator = BigGANDiscriminator(CONFIG).train()
    pictures = Batch(torch.rand(16, 1, 32, 32), torch.arange(16) % 3)
    u0 = discriminator.linear.get_buffer("u0").clone()
    accuracy = held_out_accuracy(discriminator, pictures)
    expected = (discriminator.eval()(pictures.inputs, pictures.class_labels).logits > 0).float().mean()
    assert accuracy == float(expected)
    assert torch.equal(discriminator.linear.get_buffer("u0"), u0)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    log = [line(i, real_accuracy=0.5) for i in range(5)]
    evaluations = [{"step": i, "eval_FID": 10.0 - i} for i in range(5)]
    spectra = [{"step": i, "generator": {"a": [2.0, 1.0]}, "discriminator": {"b": [1.0]}} for i in range(5)]
    plot_curves(log, spectra, evaluations, tmp_path / "curves.png")
    plot_curves([], [], [], tmp_path / "empty.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000 and len(image.convert("L").getcolors() or []) > 10


# Runs driven to collapse on purpose: a discriminator that learns so fast that its loss falls to nothing


def collapsing(pictures: Path, output: Path, *more: str) -> list[str]:
    flags = ["--sample_steps", "1000", "--watch_steps", "2", "--checkpoints_total_limit", "100"]
    flags += ["--generator_learning_rate", "1e-7", "--discriminator_learning_rate", "5e-3"]
    flags += ["--collapse_window", "4", "--collapse_loss_floor", "0.01"]
    return arguments(pictures, output, *flags, *more, steps=200)


def test_collapse_stops_a_run_and_keeps_what_is_known(pictures: Path, tmp_path: Path) -> None:
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


def test_collapse_rolls_back_with_a_lower_rate_and_other_latents(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    flags = ["--on_collapse", "rollback", "--max_rollbacks", "1", "--rollback_r1_gamma", "0.1"]
    with pytest.raises(SystemExit):
        main(collapsing(pictures, output, *flags))
    notes = read_log(output, "collapses.jsonl")
    assert (
        len(notes) == 2 and notes[0]["rolled_back_to"] <= notes[0]["step"] - 4 and notes[1]["rolled_back_to"] is None
    )
    state = load_training_state(output / f"checkpoint-{notes[0]['rolled_back_to']}")
    assert state["rollbacks"] == 1
    assert state["discriminator_optimizer"]["param_groups"][0]["lr"] == 2.5e-3
    steps = [line["step"] for line in read_log(output)]
    assert steps == list(range(1, len(steps) + 1))  # the log goes on from the checkpoint


def test_not_a_number_stops_a_run(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(collapsing(pictures, tmp_path / "model", "--generator_learning_rate", "1e38"))
    note = read_log(tmp_path / "model", "collapses.jsonl")[0]
    assert "nan" in note["why"] or "inf" in note["why"]


@pytest.mark.parametrize("flags", [["--checkpointing_steps", "0"], ["--checkpointing_steps", "4"]])
@pytest.mark.parametrize("on_collapse", ["stop", "ignore"])
def test_not_a_number_after_the_last_logged_line_is_never_saved(
    pictures: Path, tmp_path: Path, flags: list[str], on_collapse: str
) -> None:
    output = tmp_path / "model"
    flags = [*flags, "--logging_steps", "1000", "--sample_steps", "0", "--on_collapse", on_collapse]
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, output, *flags, "--generator_learning_rate", "1e38", steps=4))
    assert stop.value.code == 3
    (note,) = read_log(output, "collapses.jsonl")
    assert note["why"] == "step 4: weights are not finite"
    assert not (output / "model.safetensors").exists() and not list(output.glob("checkpoint-*"))


def test_rollback_passes_over_checkpoints_that_are_not_finite(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    flags = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "9", "--collapse_window", "1"]
    flags += ["--on_collapse", "ignore"]
    main(arguments(pictures, output, *flags, steps=4))
    run = set_up(*parse_arguments(arguments(pictures, output, *flags, "--resume_from_checkpoint", "latest")))
    found = [last_good_checkpoint(run)]
    for step in (3, 2, 1, 4):
        file = output / f"checkpoint-{step}" / ("generator" if step % 2 else "discriminator") / "model.safetensors"
        weights = load_file(file)
        weights["linear.weight"][0, 0] = math.nan
        save_file(weights, file, metadata={"format": "pt"})
        found.append(last_good_checkpoint(run))
    assert [folder and folder.name for folder in found] == [*(f"checkpoint-{n}" for n in (3, 2, 1, 4)), None]


def test_collapse_may_be_ignored(pictures: Path, tmp_path: Path) -> None:
    flags = ["--on_collapse", "ignore", "--max_train_steps", "30"]
    main(collapsing(pictures, tmp_path / "model", *flags))
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "model" / "collapses.jsonl").exists()
