"""Standing statistics against a brute-force computation, that nothing else changes, and the same bits from a seed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from common import ATTENTION, VARIANTS, seeded, tiny_config, tiny_generator
from torch import Tensor, nn

from biggan_hf import BigGANDiscriminator, BigGANModel, collect_standing_statistics
from biggan_hf.layers import BatchNorm2d, ConditionalBatchNorm2d, SelfAttention, SpectralNorm


def collect(model: BigGANModel, truncations: Any, seed: int = 0, **options: Any) -> None:
    options = {"num_batches": 3, "batch_size": 6, "progress_bar": False, **options}
    collect_standing_statistics(model, truncations, generator=seeded(seed), **options)


def norms(model: nn.Module) -> dict[str, BatchNorm2d | ConditionalBatchNorm2d]:
    kinds = (BatchNorm2d, ConditionalBatchNorm2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@contextmanager
def calls_of(model: BigGANModel) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of each forward of the model."""
    calls: list[tuple[Any, ...]] = []
    with model.register_forward_pre_hook(lambda _, arguments: calls.append(arguments)):
        yield calls


def training_mode_inputs(model: BigGANModel, calls: list[tuple[Any, ...]]) -> dict[str, list[Tensor]]:
    """What each batch norm sees in each call, in float64, with torch's own batch norm in training mode."""
    reference = copy.deepcopy(model).double().eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in norms(reference)}
    for name, layer in norms(reference).items():
        layer.training = True
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].detach()))
    with torch.no_grad():
        for call in calls:
            reference(*call)
    return seen


# What is measured


@pytest.mark.parametrize("variant", ["attention", "deep", "unconditional", "per-layer labels"])
def test_brute_force(variant: str) -> None:
    model = tiny_generator(**VARIANTS[variant]).double()
    with calls_of(model) as calls:
        collect(model, [0.3, 1.0])
    assert len(calls) == 6  # 2 truncations of 3 batches: nothing more is computed
    for row in range(2):
        for name, batches in training_mode_inputs(model, calls[3 * row : 3 * row + 3]).items():
            values = torch.cat(batches)
            layer = norms(model)[name]
            torch.testing.assert_close(layer.standing_mean[row], values.mean(dim=(0, 2, 3)), atol=1e-9, rtol=1e-9)
            var = values.var(dim=(0, 2, 3), correction=0)
            torch.testing.assert_close(layer.standing_var[row], var, atol=1e-9, rtol=1e-9)


def test_single_precision_sums_in_double() -> None:
    model = tiny_generator(**ATTENTION, generator_spectral_norm=False)
    conv = model.get_submodule("stages.1.blocks.0.conv1")
    with torch.no_grad():
        conv.get_parameter("bias").fill_(1000.1)  # a mean that would drown the variance in float32 sums
        conv.get_parameter("weight")[0] = 0  # a constant, whose E[x²] - E[x]² may be below zero
    seen: dict[str, list[Tensor]] = {name: [] for name in norms(model)}
    for name, layer in norms(model).items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].double()))
    collect(model, 0.5)
    for name, layer in norms(model).items():
        mean, var = layer.standing_mean, layer.standing_var
        assert mean.dtype == torch.float32 and mean.shape == (1, layer.num_features) and var.min() >= 0
        values = torch.cat(seen[name])
        torch.testing.assert_close(mean[0].double(), values.mean(dim=(0, 2, 3)), atol=1e-6, rtol=1e-6, msg=name)
        expected = values.var(dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(var[0].double(), expected, atol=1e-12, rtol=1e-6, msg=name)


def test_averaging_leaves_out_the_variance_of_the_means() -> None:
    pooled, averaged = tiny_generator(**ATTENTION).double(), tiny_generator(**ATTENTION).double()
    with calls_of(pooled) as calls:
        collect(pooled, 0.5)
    collect(averaged, 0.5, average_batches=True)
    for name, batches in training_mode_inputs(pooled, calls).items():
        means = torch.stack([values.mean(dim=(0, 2, 3)) for values in batches])
        variances = torch.stack([values.var(dim=(0, 2, 3), correction=0) for values in batches])
        one, other = norms(pooled)[name], norms(averaged)[name]
        torch.testing.assert_close(other.standing_var[0], variances.mean(0), atol=1e-9, rtol=1e-9)
        difference = one.standing_var - other.standing_var
        torch.testing.assert_close(difference[0], means.var(0, correction=0), atol=1e-9, rtol=1e-7)
        assert torch.equal(one.standing_mean, other.standing_mean)


def test_latents_are_truncated_in_the_models_sense_and_labels_are_drawn() -> None:
    for mode, bound in (("resample", 0.1), ("scale", 0.2)):
        model = tiny_generator(**ATTENTION, truncation_mode=mode)
        with calls_of(model) as calls:
            collect(model, 0.1, batch_size=50)
        latents = torch.cat([call[0] for call in calls])
        assert 0.95 * bound < latents.abs().max() <= bound
        assert set(torch.cat([call[1] for call in calls]).tolist()) == set(range(5))


def test_the_bar_counts_the_passes(capsys: pytest.CaptureFixture[str]) -> None:
    collect(tiny_generator(**ATTENTION), [0.5, 1.0])
    assert capsys.readouterr().err == ""
    collect(tiny_generator(**ATTENTION), [0.5, 1.0], progress_bar=True)
    assert "6/6" in capsys.readouterr().err


def test_without_truncation_the_running_statistics_are_replaced() -> None:
    model = tiny_generator(**ATTENTION).double()
    with calls_of(model) as calls:
        collect(model, None)
    assert model.config.standing_truncations == [] and not hasattr(model.output_bn, "standing_mean")
    assert torch.cat([call[0] for call in calls]).abs().max() > 2
    for name, batches in training_mode_inputs(model, calls).items():
        values = torch.cat(batches)
        torch.testing.assert_close(norms(model)[name].running_mean, values.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(norms(model)[name].running_var, values.var(dim=(0, 2, 3), correction=0))


# What stays


def state_of(model: BigGANModel) -> dict[str, Tensor]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # with v0, which is not saved
    return {name: value.detach().clone() for name, value in state.items() if "standing" not in name}


def test_nothing_else_changes() -> None:
    model = tiny_generator(**ATTENTION)
    model.train()
    model(torch.randn(4, 16), torch.tensor([0, 1, 2, 3]))  # v0 and the running statistics move from where they began
    model.stages[0].eval()  # a mixture of modes, as when part of a network is frozen
    before, modes = state_of(model), [module.training for module in model.modules()]
    config, random_state = model.config, torch.get_rng_state()
    assert any(isinstance(m, SpectralNorm) and m.v0.abs().sum() > 0 for m in model.modules())

    collect(model, [0.5, 1.0])
    after = state_of(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert all(layer.observer is None for layer in norms(model).values())
    assert torch.equal(torch.get_rng_state(), random_state)
    # Another network may have been made from the same configuration.
    assert config.standing_truncations == [] and model.config.standing_truncations == [0.5, 1.0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_follows_the_configuration_with_the_table() -> None:
    model, other = tiny_generator(**ATTENTION), BigGANDiscriminator(tiny_config(**ATTENTION))
    other.config = model.config
    collect(model, [0.5])
    model.set_attn_implementation("eager")
    attention = [module for module in model.modules() if isinstance(module, SelfAttention)]
    assert attention and all(module.config is model.config for module in attention)
    assert not other.config.standing_truncations and other.config._attn_implementation != "eager"


def test_a_call_that_fails_changes_nothing() -> None:
    model = tiny_generator(**ATTENTION)
    collect(model, [0.5])
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        bias = model.get_parameter("stages.1.blocks.0.conv2.bias")
        kept, bias[0] = bias[0].clone(), torch.nan
    model.train()
    with pytest.raises(ValueError, match="truncation=0.2 are not finite"):
        collect(model, [0.2, 0.7])
    with torch.no_grad():
        bias[0] = kept
    assert model.training and all(layer.observer is None for layer in norms(model).values())
    assert model.config.standing_truncations == [0.5]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


# Reproducible, saved and loaded


def rows(model: BigGANModel) -> Tensor:
    return torch.cat([torch.cat([layer.standing_mean, layer.standing_var], 1) for layer in norms(model).values()], 1)


def test_the_same_bits_from_a_seed_whatever_the_table() -> None:
    models = [tiny_generator(**ATTENTION) for _ in range(4)]
    collect(models[0], [0.5])
    collect(models[1], np.array([2.0, 0.5, 1.0]))  # in any order, and with other rows
    collect(models[2], [0.5], seed=1)
    models[3].train()
    collect(models[3], [0.5])
    assert models[1].config.standing_truncations == [0.5, 1.0, 2.0]
    assert torch.equal(rows(models[0])[0], rows(models[1])[0])
    assert torch.equal(rows(models[0]), rows(models[3]))
    assert not torch.allclose(rows(models[0]), rows(models[2]), rtol=1e-3)
    collect(models[1], 0.5)  # takes the place of the table
    assert torch.equal(rows(models[1]), rows(models[0]))


def test_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    model = tiny_generator(**ATTENTION)
    collect(model, [0.5, 1.0])
    model.save_pretrained(tmp_path)
    loaded = BigGANModel.from_pretrained(tmp_path)
    assert loaded.config.standing_truncations == [0.5, 1.0]
    assert torch.equal(rows(loaded), rows(model))
    sampled, again = (m.sample([3], 2, truncation=0.7, generator=seeded(1)) for m in (model, loaded))
    torch.testing.assert_close(again, sampled, atol=1e-5, rtol=0)


def test_a_mirrored_table_is_replaced_by_one_that_is_not() -> None:
    model = tiny_generator(**ATTENTION, standing_truncations=[0.0, 0.5, 1.0], standing_interpolation="mirrored")
    collect(model, [0.3, 1.0])
    assert model.config.standing_interpolation == "linear"
    BigGANModel(model.config)  # and is a valid configuration


def _one_of_two(rank: int, rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = tiny_generator(**ATTENTION)
    with calls_of(model) as calls:
        collect(model, [0.5, 1.0], seed=rank)  # the first process's generator counts
    torch.save((rows(model), len(calls)), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    # 3 batches: the shares are not equal. Forked, so that nothing is imported anew.
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")
    model = tiny_generator(**ATTENTION)
    collect(model, [0.5, 1.0])
    (first, first_calls), (second, second_calls) = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert (first_calls, second_calls) == (4, 2)  # of 3 batches of 2 truncations
    assert torch.equal(first, second)
    torch.testing.assert_close(first, rows(model), atol=1e-7, rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("truncations", "options", "message"),
    [
        ([], {}, "truncations is empty"),
        ([0.5, 0.0], {}, "positive number or None, got 0.0"),
        (-1.0, {}, "got -1.0"),
        ([float("nan")], {}, "got nan"),
        ([0.5, None], {}, "got None"),
        ("0.5", {}, "got '0'"),
        (0.5, {"num_batches": 0}, "num_batches must be at least 1, got 0"),
        (0.5, {"batch_size": 1}, "batch_size must be at least 2.*got 1"),
    ],
)
def test_bad_input(truncations: Any, options: dict[str, Any], message: str) -> None:
    model = tiny_generator(**ATTENTION)
    with pytest.raises(ValueError, match=message) as caught:
        collect(model, truncations, **options)
    assert "\n" not in str(caught.value)
    assert model.config.standing_truncations == []


def test_only_a_generator_has_them() -> None:
    with pytest.raises(TypeError, match="BigGANModel, got DataParallel"):
        collect(nn.DataParallel(tiny_generator(**ATTENTION)), 0.5)  # type: ignore[arg-type]


def test_statistics_of_another_kind_or_threshold_are_refused() -> None:
    model = tiny_generator(**ATTENTION)
    assert model.sample([0], truncation=0.5, truncation_mode="scale").isfinite().all()  # none are asked for
    collect(model, [0.3, 0.5])
    with pytest.raises(ValueError, match="were measured with truncation_mode='resample', got 'scale'"):
        model.sample([0], truncation=0.5, truncation_mode="scale")
    model.sample([0], truncation_mode="scale")  # no truncation, no standing statistics
    for outside in (0.2, 0.6):
        with pytest.raises(ValueError, match=rf"truncation={outside} is outside .* 0.3 to 0.5"):
            model.sample([0], truncation=outside)
