"""
That every option of a run reaches what it is for: a table of what each must change, in the first step or before it.

A run is set up on tiny pictures; where one step is taken, it is compared with the step of the same run without the
option. `test_training_exact.py` has what only several processes show.
"""

import dataclasses
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Operations
from torch import nn
from training_runs import Patch, arguments, write_pictures

from biggan_hf.data import load_labelled_images
from biggan_hf.devices import fastest_format
from biggan_hf.training import parse_arguments, set_up
from biggan_hf.training.batches import BatchSource
from biggan_hf.training.loop import train_step
from biggan_hf.training.run import Run
from biggan_hf.training.stability import Spectra
from biggan_hf.training.steps import Objective, generator_step


def ready(pictures: Path, output: Path, *flags: str) -> Run:
    return set_up(*parse_arguments(arguments(pictures, output, *flags)))


# The objective

# A row for each field: the flags that set it, and what they set it to.
OBJECTIVE: dict[str, tuple[list[str], Any]] = {
    "loss": (["--loss", "logistic"], "logistic"),
    "iterate_every_forward": (["--power_iteration", "every_forward"], True),
    "generator_orthogonality": (["--generator_orthogonality", "0.5"], 0.5),
    "r1_gamma": (["--r1_gamma", "3", "--r1_interval", "4"], 12.0),
    "consistency": (["--consistency", "5"], 5.0),
    "r2_gamma": (["--r2_gamma", "3", "--r1_interval", "4"], 12.0),
    "diff_augment": (["--diff_augment"], True),
}


def test_flags_set_the_objective(pictures: Path, tmp_path: Path) -> None:
    assert OBJECTIVE.keys() == {field.name for field in dataclasses.fields(Objective)}
    plain = dataclasses.asdict(ready(pictures, tmp_path / "plain").objective())
    for name, (flags, value) in OBJECTIVE.items():
        objective = dataclasses.asdict(ready(pictures, tmp_path / name, *flags).objective())
        assert objective == {**plain, name: value} != plain, name


# What a step does

_EVERY_FORWARD = ["--power_iteration", "every_forward"]
_OVERRIDES = ["--config_overrides", "generator_base_channels=4"]
_BATCH_OF_8 = ["--global_batch_size", "8"]

# What both runs have, what one of them has, and what that one's first step must change first: the discriminator, which
# learns before the generator, or the generator alone.
CHANGES = [
    ([], ["--loss", "logistic"], "discriminator"),
    ([], ["--loss", "least_squares"], "discriminator"),
    ([], ["--loss", "relativistic"], "discriminator"),
    (_BATCH_OF_8, _EVERY_FORWARD, "discriminator"),
    ([], _BATCH_OF_8, "discriminator"),
    ([], ["--num_discriminator_steps", "2"], "discriminator"),
    ([], ["--discriminator_learning_rate", "1e-2"], "discriminator"),
    ([], ["--adam_epsilon", "1e-2"], "discriminator"),
    ([], ["--r1_gamma", "10"], "discriminator"),
    ([], ["--r2_gamma", "10"], "discriminator"),
    ([], ["--consistency", "10"], "discriminator"),
    ([], ["--diff_augment"], "discriminator"),
    ([], ["--horizontal_flip"], "discriminator"),
    (_OVERRIDES, [*_OVERRIDES, "discriminator_dropout=0.5"], "discriminator"),
    ([], ["--freeze_discriminator_stages", "1"], "discriminator"),
    ([], ["--train_only", "class_embeddings"], "discriminator"),
    ([], ["--generator_learning_rate", "1e-2"], "generator"),
    ([], ["--generator_orthogonality", "0.5"], "generator"),
    ([], ["--sigma_clamp", "0.5"], "generator"),
    (["--sigma_clamp", "0.5"], ["--sigma_clamp", "0.25"], "generator"),
    ([], ["--sigma_clamp_ratio", "0.5"], "generator"),
    (["--sigma_clamp_ratio", "0.5"], ["--sigma_clamp_ratio", "0.25"], "generator"),
    (["--ema_start_step", "1"], ["--ema_decay", "0.5"], "ema"),
    ([], ["--ema_start_step", "1"], "ema"),
]


@pytest.mark.parametrize(("shared", "flags", "first"), CHANGES, ids=[" ".join(flags) for _, flags, _ in CHANGES])
def test_option_changes_the_first_step(
    pictures: Path, tmp_path: Path, shared: list[str], flags: list[str], first: str
) -> None:
    steps = [after_a_step(ready(pictures, tmp_path / name, *shared, *more))
             for name, more in (("with", flags), ("without", []))]  # fmt: skip
    changed = [name for name, weights in steps[0].items() if not torch.equal(weights, steps[1][name])]
    assert changed and changed[0] == first


def after_a_step(run: Run) -> dict[str, torch.Tensor]:
    """All weights of each network, in the order in which a step comes to them."""
    train_step(run)
    players = run.players
    networks = {"discriminator": players.bare_discriminator, "generator": players.bare_generator, "ema": run.ema}
    weights = {name: [p.detach().flatten() for p in network.parameters()] for name, network in networks.items()}
    return {name: torch.cat(parts) for name, parts in weights.items()}


@pytest.mark.parametrize(
    "changed", [{"loss": "least_squares"}, {"diff_augment": True}], ids=lambda changed: next(iter(changed))
)
def test_objective_changes_the_step_of_the_generator(pictures: Path, tmp_path: Path, changed: Any) -> None:
    losses = []
    for name, objective in (("with", Objective(**changed)), ("without", Objective())):
        run = ready(pictures, tmp_path / name)
        losses.append(float(generator_step(run.players, [run.batches.latents(0, 0)], objective)["generator_loss"]))
    assert losses[0] != losses[1]


def test_augmentation_depends_on_seed_step_and_process(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    fixed = ready(pictures, tmp_path / "fixed").batches
    pairs = [(fixed.latents(0, draw), fixed.pictures()) for draw in range(2)]
    monkeypatch.setattr(BatchSource, "latents", lambda self, step, draw: pairs[draw][0])
    monkeypatch.setattr(BatchSource, "pictures", lambda self: pairs[0][1])

    def loss(name: str, **counters: int) -> float:
        run = ready(pictures, tmp_path / name, "--diff_augment")
        with monkeypatch.context() as patch:
            patch.setattr(type(run.accelerator), "process_index", counters.pop("process_index", 0))
            for counter, value in counters.items():
                setattr(run, counter, value)
            return float(train_step(run)["discriminator_loss"])

    assert loss("plain") == loss("again")
    others = {loss("process", process_index=1), loss("step", global_step=1), loss("rollback", rollbacks=1)}
    assert len(others | {loss("plain once more")}) == 4


def test_seed_reaches_weights_pictures_and_latents(pictures: Path, tmp_path: Path) -> None:
    def drawn(name: str, seed: str) -> dict[str, torch.Tensor]:
        run = ready(pictures, tmp_path / name, "--seed", seed)
        generator, discriminator = run.players.bare_generator, run.players.bare_discriminator
        weights = {"generator": generator.linear.weight, "discriminator": discriminator.linear.weight}
        latents = run.batches.latents(0, 0)
        assert latents.class_labels is not None
        return {**weights, "latents": latents.z, "pictures": run.batches.pictures().pixel_values}

    first, again, other = drawn("first", "1"), drawn("again", "1"), drawn("other", "2")
    for name, value in first.items():
        assert torch.equal(value, again[name]) and not torch.equal(value, other[name]), name


def test_adam_is_as_the_flags_say(pictures: Path, tmp_path: Path) -> None:
    flags = ["--adam_beta1", "0.25", "--adam_beta2", "0.75", "--adam_epsilon", "0.125"]
    rates = ["--generator_learning_rate", "0.5", "--discriminator_learning_rate", "2"]
    players = ready(pictures, tmp_path / "run", *flags, *rates).players
    for optimizer, rate in ((players.generator_optimizer, 0.5), (players.discriminator_optimizer, 2.0)):
        (group,) = optimizer.param_groups
        assert (group["betas"], group["eps"], group["lr"], group["fused"]) == ((0.25, 0.75), 0.125, rate, True)


def test_workers_decode(pictures: Path, tmp_path: Path) -> None:
    before = len(multiprocessing.active_children())
    for workers in (0, 2):
        run = ready(pictures, tmp_path / str(workers), "--dataloader_num_workers", str(workers))
        run.batches.pictures()
        assert len(multiprocessing.active_children()) == before + workers


# Options that keep the function


@pytest.mark.parametrize("classes", [("cat", "cow", "dog"), ("cat",)], ids=["a class", "a block of an unlabelled set"])
def test_many_unreadable_pictures_have_many_stand_ins(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """The same ones whatever was found before, and without a long walk for each."""
    folder, rows = str(write_pictures(tmp_path / "set", classes, number=90)), [*range(30, 60)]  # all of the cows
    for cell in load_labelled_images(folder, image_size=32, num_channels=1).pictures[rows]["image"]:
        Path(cell["path"]).write_bytes(b"not a picture")
    images = load_labelled_images(folder, image_size=32, num_channels=1)
    batch = images.__getitems__(rows)
    shown = Counter(picture.numpy().tobytes() for picture in batch["pixel_values"])
    assert images.unreadable.keys() == {*rows} and len(shown) >= 18 and shown.most_common(1)[0][1] <= 4
    after = images._after_all if len(classes) > 1 else images._after_in_class
    assert not {*after[rows].tolist()} & {*rows}
    fresh = dataclasses.replace(images, unreadable={}, cache=None)
    for row in reversed(rows):
        single = fresh.__getitems__([row])
        assert torch.equal(single["pixel_values"][0], batch["pixel_values"][row - 30])
        if batch["class_labels"] is not None:
            assert single["class_labels"] == batch["class_labels"][row - 30] != 1


def are_channels_last(network: nn.Module) -> bool:
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


# How to see in a network that it is as the flag wants it.
ARRANGED: dict[str, Any] = {
    "--channels_last": are_channels_last,
    "--gradient_checkpointing": lambda network: network.is_activation_checkpointing,
    "--compile": lambda network: network._compiled_call_impl is not None,
}


def test_channels_are_last_where_that_is_faster(
    pictures: Path, tmp_path: Path, tf32_switches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert are_channels_last(ready(pictures, tmp_path / "cpu").players.bare_generator)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert fastest_format(cpu, torch.float32) == fastest_format(gpu, torch.bfloat16) == torch.channels_last
    assert fastest_format(gpu, torch.float32) == torch.contiguous_format
    tf32_switches[1].allow_tf32 = True  # as torch does; only some GPUs have it
    for has_tf32, expected in ((False, torch.contiguous_format), (True, torch.channels_last)):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda has_tf32=has_tf32: has_tf32)
        assert fastest_format(gpu, torch.float32) == expected


@pytest.mark.parametrize("flag", ARRANGED)
def test_networks_are_arranged(pictures: Path, tmp_path: Path, flag: str) -> None:
    for value in ("False", "True"):
        run = ready(pictures, tmp_path / value, flag, value)
        networks = run.players.bare_generator, run.players.bare_discriminator
        assert [bool(ARRANGED[flag](network)) for network in networks] == [value == "True"] * 2


def test_tf32_is_switched_on(pictures: Path, tmp_path: Path, tf32_switches: Any) -> None:
    ready(pictures, tmp_path / "plain")
    assert not any(switch.allow_tf32 for switch in tf32_switches)
    ready(pictures, tmp_path / "tf32", "--tf32")
    assert all(switch.allow_tf32 for switch in tf32_switches)


# The watch


def test_spectra_go_on_from_the_last_vectors(pictures: Path, tmp_path: Path) -> None:
    network = ready(pictures, tmp_path / "run").players.bare_generator
    torch.manual_seed(0)
    weight = nn.init.normal_(network.linear.weight)  # its singular values lie close to one another
    exact = torch.linalg.svdvals(weight.detach())[:3]
    spectra, numbers, errors = Spectra(network, steps=1), [], []
    for _ in range(4):
        with Operations() as operations:
            measured = torch.tensor(spectra.measure()["linear"])
        numbers.append(operations.names.count("linalg_qr"))
        errors.append(float((measured - exact).abs().max()))
    assert numbers[3] == numbers[1] < numbers[0] / 2
    assert errors[3] < 0.9 * errors[0]
