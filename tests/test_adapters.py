"""Fine-tuning by adapters (`--lora_rank`): what learns, what a run leaves, and that it goes on to the bit."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import ATTENTION, VARIANTS, tiny_discriminator, tiny_generator, tiny_inputs
from fake_hub import FakeHub
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from training_runs import EVALUATION, SHORT, Capture, Patch, error_line, start, write_pictures

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.cards import metadata
from biggan_hf.hub import upload_folder
from biggan_hf.training import main, parse_arguments, set_up
from biggan_hf.training.adapters import add_adapters, average_of, bound_adapters, learned, merged, save_adapter
from biggan_hf.training.loop import train_step


Network = BigGANModel | BigGANDiscriminator
Build = Callable[..., Network]
WEIGHTS = ["model.safetensors", "discriminator/model.safetensors"]
APART = ["adapter/adapter_model.safetensors", "adapter/discriminator/adapter_model.safetensors"]
KINDS = ["attention", "deep", "per-layer labels", "unconditional", "narrow, no spectral norm"]
RATES = ["--generator_learning_rate", "1e-2", "--discriminator_learning_rate", "1e-2", "--ema_start_step", "0"]


@torch.no_grad()
def answer(network: Any, inputs: tuple[Any, ...]) -> Tensor:
    return network.eval()(*inputs)[0]


def loras(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """A and B of each layer."""
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "lora_A")]
    return [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]


@torch.no_grad()
def perturb(network: Network) -> None:
    """As if a run had learned: all adapters differ from zero, and the classes are others."""
    for name, value in learned(network).items():
        if name.endswith("weight"):
            value.add_(torch.randn_like(value), alpha=0.1)


# The networks


@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator], ids=["generator", "discriminator"])
@pytest.mark.parametrize(
    "variant", ["attention", "deep", "per-layer labels", "unconditional", "narrow, no spectral norm"]
)
def test_adapters_begin_at_nothing_and_merge(build: Build, variant: str, tmp_path: Path) -> None:
    base = build(**VARIANTS[variant])
    network, inputs = copy.deepcopy(base), tiny_inputs(base)
    expected = answer(base, inputs)
    add_adapters(network, 2)
    assert torch.equal(answer(network, inputs), expected)
    assert len(loras(network)) == sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in base.modules())
    perturb(network)
    before, perturbed = copy.deepcopy(network.state_dict()), answer(network, inputs)
    assert not torch.allclose(perturbed, expected, atol=1e-2)
    # Merged, it loads without peft.
    merged(network).save_pretrained(tmp_path / "merged")  # type: ignore[type-var]
    loaded = type(base).from_pretrained(tmp_path / "merged")
    scale = max(1.0, float(perturbed.abs().max()))
    torch.testing.assert_close(answer(loaded, inputs), perturbed, rtol=0, atol=1e-5 * scale)
    assert not loaded.config.generator_spectral_norm and not loaded.config.discriminator_spectral_norm
    # Apart, peft loads it.
    save_adapter(network, tmp_path / "adapter", None)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(answer(loaded, inputs), perturbed, rtol=0, atol=1e-5 * scale)
    # The network itself stays as it was.
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_adapters_of_rank_8_are_small() -> None:
    with torch.device("meta"):
        model = BigGANModel(BigGANConfig.preset("biggan-128", num_labels=10))
        total = sum(weight.numel() for weight in model.parameters())
        add_adapters(model, 8)
    assert 0 < sum(value.numel() for value in learned(model).values()) < 0.05 * total


def test_adapters_are_bounded() -> None:
    network = tiny_generator(**ATTENTION)
    add_adapters(network, 4)
    bound_adapters([network])  # nothing, where all are zero
    pairs = loras(network)
    assert not any(b.any() for _, b in pairs)
    for index, (_, b) in enumerate(pairs):
        torch.nn.init.normal_(b, std=(1e-3, 10.0)[index % 2])
    small = [b.clone() for _, b in pairs]
    bound_adapters([network])
    norms = [float(torch.linalg.matrix_norm((b.flatten(1) @ a.flatten(1)).detach(), 2)) for a, b in pairs]
    assert all(torch.equal(b, before) for (_, b), before in list(zip(pairs, small, strict=True))[::2])
    assert all(4 ** (-1 / 16) - 1e-3 <= norm <= 1 + 1e-3 for norm in norms[1::2])


def test_the_average_shares_what_is_frozen() -> None:
    model = tiny_generator()
    add_adapters(model, 2)
    ema, own = average_of(model), dict(model.named_parameters())
    for name, weight in ema.named_parameters():
        assert (weight is own[name]) == (not own[name].requires_grad), name


# Runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the two classes of the pictures."""
    folder = tmp_path_factory.mktemp("base")
    config = BigGANConfig.preset(
        "demo", id2label={0: "cat", 1: "dog"}, generator_base_channels=4, discriminator_base_channels=4
    )
    torch.manual_seed(1)
    BigGANModel(config).save_pretrained(folder)
    BigGANDiscriminator(config).save_pretrained(folder / "discriminator")
    return folder


def tuning(pictures: Path, model: Path | str, output: Path, *more: str, steps: int = 2) -> list[str]:
    where = ["--dataset_name", str(pictures), "--output_dir", str(output), "--init_from", str(model)]
    return ["--preset", "demo", *SHORT, *RATES, *where, "--max_train_steps", str(steps), "--lora_rank", "2", *more]


@pytest.fixture(scope="module")
def tuned(pictures: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "model"
    main(tuning(pictures, base, folder, *EVALUATION, steps=4))
    return folder


def inputs_of(model: Path) -> tuple[Tensor, Tensor]:
    config = BigGANConfig.from_pretrained(model)
    labels = torch.arange(4) % (config.num_labels or 1)
    return torch.randn(4, config.z_dim, generator=torch.Generator().manual_seed(0)), labels


def test_a_run_leaves_the_model_merged_and_apart(base: Path, tuned: Path) -> None:
    inputs = inputs_of(base)
    whole, old = answer(BigGANModel.from_pretrained(tuned), inputs), BigGANModel.from_pretrained(base)
    assert float((whole - answer(old, inputs)).abs().max()) > 1e-3
    apart = PeftModel.from_pretrained(old, tuned / "adapter")
    torch.testing.assert_close(answer(apart, inputs), whole, rtol=0, atol=1e-5)
    pair = answer(BigGANModel.from_pretrained(tuned / "best"), inputs), inputs[1]
    whole = answer(BigGANDiscriminator.from_pretrained(tuned, subfolder="discriminator"), pair)
    old_discriminator = BigGANDiscriminator.from_pretrained(base, subfolder="discriminator")
    apart = PeftModel.from_pretrained(old_discriminator, tuned / "adapter" / "discriminator")
    torch.testing.assert_close(answer(apart, pair), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    assert {(tuned / path).stat().st_mode for path in [*WEIGHTS, *APART]} == {(tuned / "report.txt").stat().st_mode}
    said = (tuned / "report.txt").read_text()
    assert "trained     adapters of rank 2 on 34 layers, " in said
    assert "base_model" not in (tuned / "README.md").read_text()  # which is a folder here
    assert json.loads((tuned / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_all_but_adapters_and_classes_stands_still(base: Path, tuned: Path) -> None:
    for part in ("", "discriminator"):
        before = load_file(base / part / "model.safetensors")
        after = load_file(tuned / "checkpoint-4" / "base" / part / "model.safetensors")
        others = {name for name in before if not torch.equal(before[name], after[name])}
        assert others and {name.rpartition(".")[0] for name in others} == {"class_embedding"}
    state = torch.load(tuned / "checkpoint-4" / "training_state.pt", weights_only=True)
    for adapters in state["adapters"]:
        zero = [name for name, value in adapters.items() if "lora_" in name and not value.any()]
        assert not zero


def test_a_run_goes_on_to_the_bit_without_its_model(pictures: Path, base: Path, tuned: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    main(tuning(pictures, moved, tmp_path / "model", *EVALUATION))
    shutil.rmtree(moved)
    main(["--output_dir", str(tmp_path / "model"), "--resume_from_checkpoint", "latest", "--max_train_steps", "4"])
    for name in [*WEIGHTS, *APART, *(f"checkpoint-4/generator/{name}" for name in WEIGHTS[:1])]:
        mine, other = load_file(tuned / name), load_file(tmp_path / "model" / name)
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine), name


def test_a_rollback_brings_the_adapters_back(pictures: Path, base: Path, tmp_path: Path) -> None:
    run = set_up(*parse_arguments(tuning(pictures, base, tmp_path / "model")))
    train_step(run)
    good, before = run.checkpoint(), [copy.deepcopy(learned(network)) for network in run.networks]
    train_step(run)
    run.roll_back(good)
    for saved, network in zip(before, run.networks, strict=True):
        now = learned(network)  # type: ignore[arg-type]
        assert now.keys() == saved.keys() and all(torch.equal(now[name], saved[name]) for name in now)


def test_recomputed_activations_change_nothing(pictures: Path, base: Path, tmp_path: Path) -> None:
    weights = []
    for name, flags in (("kept", []), ("again", ["--gradient_checkpointing"])):
        run = set_up(*parse_arguments(tuning(pictures, base, tmp_path / name, *flags)))
        train_step(run)
        weights.append([value for network in run.networks for value in learned(network).values()])
    torch.testing.assert_close(*weights)


@pytest.mark.slow  # torch compiles both networks, which takes a minute
def test_compiled_networks_learn_the_same(pictures: Path, base: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        main(tuning(pictures, base, tmp_path / name, *flags))
    for path in APART:
        plain, compiled = (load_file(tmp_path / name / path) for name in ("plain", "compiled"))
        assert max((plain[name] - compiled[name]).abs().max().item() for name in plain) < 1e-5


def test_other_classes(base: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "three", ("ant", "cat", "bee"), 9)
    main(tuning(pictures, base, tmp_path / "model"))
    model = BigGANModel.from_pretrained(tmp_path / "model")
    assert [*model.config.id2label.values()] == ["ant", "bee", "cat"]
    # As docs/training.md says.
    config = BigGANConfig.from_pretrained(base, id2label=model.config.id2label)
    resized = BigGANModel.from_pretrained(base, config=config, ignore_mismatched_sizes=True)
    apart, inputs = PeftModel.from_pretrained(resized, tmp_path / "model" / "adapter"), inputs_of(tmp_path / "model")
    torch.testing.assert_close(answer(apart, inputs), answer(model, inputs), rtol=0, atol=1e-5)
    # A merged model can be fine-tuned again.
    main(tuning(pictures, tmp_path / "model", tmp_path / "again", steps=1))


def test_published(pictures: Path, base: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    upload_folder(base, "user/base")
    upload_folder(base / "discriminator", "user/base")
    push = ["--push_to_hub", "--hub_model_id", "user/tuned"]
    main(tuning(pictures, "user/base", tmp_path / "model", *push, steps=1))
    files = fake_hub.files("user/tuned")
    assert {*WEIGHTS, *APART, "adapter/README.md", "adapter/adapter_config.json"} < files.keys()
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "user/base"
    for card, relation in (("README.md", "finetune"), ("adapter/README.md", "adapter")):
        told = metadata(files[card].decode())
        assert (told["base_model"], told["base_model_relation"]) == ("user/base", relation)


# What can't be


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lora_rank", "-1"], "lora_rank must be at least 0, got -1"),
        (["--lora_rank", "1000"], "lora_rank must be at most 16, the largest rank that a layer of the BigGANModel"),
        (["--config_overrides", "generator_base_channels=8"], "has other shapes than the configuration asks for"),
        (["--train_only", "class_embeddings"], "lora_rank freezes all weights but the adapters"),
        (["--sigma_clamp", "1"], "leave out sigma_clamp"),
    ],
)
def test_refused(pictures: Path, base: Path, tmp_path: Path, capsys: Capture, flags: list[str], expected: str) -> None:
    assert expected in error_line(tuning(pictures, base, tmp_path / "model", *flags), capsys)
    assert not (tmp_path / "model").exists()


def test_needs_a_model(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    words = tuning(pictures, "x", tmp_path / "model")
    words = [word for word in words if word not in ("--init_from", "x")]
    assert "lora_rank=2 needs init_from" in error_line(words, capsys)


def test_needs_peft(pictures: Path, base: Path, tmp_path: Path, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    line = error_line(tuning(pictures, base, tmp_path / "model"), capsys)
    assert 'lora_rank needs peft: pip install "biggan_hf[adapters]"' in line


@pytest.mark.parametrize("rank", ["0", "3"])
def test_the_rank_stays(pictures: Path, base: Path, tuned: Path, capsys: Capture, rank: str) -> None:
    argv = ["--output_dir", str(tuned), "--resume_from_checkpoint", "latest", "--lora_rank", rank]
    assert f"the run that goes on has lora_rank=2, this one lora_rank={rank}: it can't change" in error_line(
        argv, capsys
    )


@pytest.mark.slow  # two processes: as long as a few of the tests above together
def test_two_processes(pictures: Path, base: Path, tmp_path: Path) -> None:
    for more in ([], ["--resume_from_checkpoint", "latest", "--max_train_steps", "4"]):
        run = start(tuning(pictures, base, tmp_path / "model", "--per_device_batch_size", "2", *more), 2)
        printed, _ = run.communicate(timeout=300)
        assert run.returncode == 0, printed
    apart = PeftModel.from_pretrained(BigGANModel.from_pretrained(base), tmp_path / "model" / "adapter")
    inputs = inputs_of(base)
    whole = answer(BigGANModel.from_pretrained(tmp_path / "model"), inputs)
    torch.testing.assert_close(answer(apart, inputs), whole, rtol=0, atol=1e-5)
