import copy
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import (
    ATTENTION,
    VARIANTS,
    tiny_config,
    tiny_discriminator,
    tiny_generator,
    tiny_images,
    tiny_inputs,
    tiny_latents,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel, sample_latents, sampling_biggan
from biggan_hf.layers import _BatchNorm


Network = BigGANModel | BigGANDiscriminator
NETWORKS: dict[str, Callable[..., Network]] = {"generator": tiny_generator, "discriminator": tiny_discriminator}
FLOAT32_BUFFERS = ("running_mean", "running_var", "standing_mean", "standing_var", "u0", "sv0", "v0")

both_networks = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
all_variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
plain_and_deep = pytest.mark.parametrize("overrides", [ATTENTION, VARIANTS["deep"]], ids=["plain", "deep"])


def output(model: Network, *inputs: Any, **named: Any) -> Tensor:
    return model(*inputs, return_dict=False, **named)[0]


def weighted_sum(out: Tensor) -> Tensor:
    """A loss to which each output contributes differently."""
    return (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, copied."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """As near as half precision comes."""
    assert actual.isfinite().all()
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


# Shapes, gradients, determinism


@all_variants
def test_outputs(overrides: dict[str, Any]) -> None:
    generator, discriminator = tiny_generator(**overrides), tiny_discriminator(**overrides)
    config = generator.config
    latents, labels = tiny_inputs(generator)
    images = generator(latents, class_labels=labels).images
    assert images.shape == (3, config.num_channels, 32, 32) and images.abs().max() <= 1
    assert images.std() > 0.01 and not torch.allclose(images[0], images[1], atol=1e-3)
    logits = discriminator(images, class_labels=labels).logits
    assert logits.shape == (3, 1)
    assert isinstance(generator(latents, labels, return_dict=False), tuple)
    assert isinstance(discriminator(images, labels, return_dict=False), tuple)


@both_networks
@all_variants
def test_gradients_reach_every_parameter(build: Callable[..., Network], overrides: dict[str, Any]) -> None:
    model = build(**overrides)
    inputs = tiny_inputs(model, num_samples=5)
    # In eval mode: training subtracts the batch mean, and with it the biases of the convolutions before.
    weighted_sum(output(model, *inputs)).backward()
    assert {name for name, _ in model.named_parameters()} == {n for n, grad in gradients(model).items() if grad.any()}
    model.zero_grad()
    weighted_sum(output(model.train(), *inputs)).backward()
    assert {name for name, _ in model.named_parameters()} == gradients(model).keys()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@both_networks
@all_variants
def test_evaluation_is_deterministic_and_leaves_no_trace(
    build: Callable[..., Network], overrides: dict[str, Any]
) -> None:
    model = build(**overrides)
    inputs, before = tiny_inputs(model), state(model)
    first = output(model, *inputs)
    assert torch.equal(output(model, *inputs), first)
    assert differing(before, state(model)) == set()
    # A sample does not depend on its neighbours.
    alone = output(model, *(None if x is None else x[1:2] for x in inputs))
    assert torch.allclose(alone, first[1:2], atol=1e-5)


def test_training_moves_statistics_and_singular_vectors_once() -> None:
    generator = tiny_generator(**ATTENTION).train()
    before = state(generator)
    with torch.no_grad():
        output(generator, *tiny_inputs(generator))
    moved = {name.rpartition(".")[2] for name in differing(before, state(generator))}
    assert moved == {"running_mean", "running_var", "u0", "v0", "sv0"}


@pytest.mark.parametrize("initializer", ["orthogonal", "normal", "xavier_uniform"])
def test_initial_weights(initializer: Any) -> None:
    torch.manual_seed(0)
    generator = BigGANModel(tiny_config(initializer=initializer, generator_base_channels=16, **ATTENTION))
    weight = generator.get_parameter("stages.0.blocks.0.conv1.weight").detach().flatten(1)  # (64, 576)
    if initializer == "orthogonal":
        assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-5)
    elif initializer == "normal":
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    else:
        bound = (6 / (9 * (64 + 64))) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert not any(parameter.any() for name, parameter in generator.named_parameters() if name.endswith(".bias"))
    assert generator.get_parameter("stages.1.attention.gamma") == 0


# Where latents and labels enter


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # The paper's plain model: a chunk of the latents for the first map, and one for each stage, beside the class.
        ({}, lambda c, z: (z[:, :4], [torch.cat([c, chunk], 1) for chunk in z[:, 4:].chunk(3, 1)])),
        ({"architecture": "biggan-deep"}, lambda c, z: (torch.cat([c, z], 1), [torch.cat([c, z], 1)] * 3)),
        ({"hierarchical_latents": False}, lambda c, z: (z, [c] * 3)),
    ],
    ids=["chunks", "deep", "not hierarchical"],
)
def test_what_conditions_each_stage(overrides: dict[str, Any], expected: Callable[..., Any]) -> None:
    model = tiny_generator(**overrides)
    latents, labels = tiny_inputs(model)
    seen: list[Tensor] = []
    model.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for stage in model.stages:
        stage.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model(latents, labels)
    first, others = expected(model.class_embedding(labels), latents)
    assert all(torch.equal(a, b) for a, b in zip(seen, [first, *others], strict=True))


@pytest.mark.parametrize("variant", ["plain", "deep", "per-layer labels", "not hierarchical"])
def test_class_embeddings_in_place_of_labels(variant: str) -> None:
    model = tiny_generator(**VARIANTS[variant])
    latents, labels = tiny_inputs(model)
    embeddings = model.class_embedding(labels)
    expected = output(model, latents, labels)
    assert torch.allclose(output(model, latents, class_embeddings=embeddings), expected, atol=1e-6)
    pair = model.class_embedding(torch.tensor([0, 3])).float()
    mixed = output(model, latents[:1], class_embeddings=pair.mean(0, keepdim=True))
    ends = [output(model, latents[:1], torch.tensor([label])) for label in (0, 3)]
    assert all(not torch.allclose(mixed, end, atol=1e-3) for end in ends)
    with torch.no_grad():  # a class of its own, whose embedding is the mean
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[4] = module.weight[[0, 3]].mean(0)
    assert torch.allclose(mixed, output(model, latents[:1], torch.tensor([4])), atol=1e-5)


def test_class_enters_the_discriminator_by_an_inner_product() -> None:
    model = tiny_discriminator()
    images = tiny_images(1, model.config)
    features: list[Tensor] = []
    model.linear.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    one, other = (output(model, images, torch.tensor([label])) for label in (1, 4))
    embeddings = model.get_submodule("class_embedding")(torch.tensor([1, 4]))
    assert torch.allclose(one - other, features[0] @ (embeddings[0] - embeddings[1])[:, None], atol=1e-5)


# Standing statistics


def with_table(*truncations: float) -> BigGANModel:
    model = tiny_generator(standing_truncations=list(truncations))
    for name, buffer in model.named_buffers():
        if name.endswith("standing_mean"):
            buffer.normal_(std=0.3)
        if name.endswith("standing_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def holding_row(model: BigGANModel, row: Callable[[Tensor], Tensor]) -> BigGANModel:
    """A model whose running statistics are a row of the other's table."""
    plain = tiny_generator()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "standing" not in k})
    tables = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        if "running" in name:
            buffer.copy_(row(tables[name.replace("running", "standing")]))
    return plain


@pytest.mark.parametrize(
    ("truncation", "row"),
    [
        (0.2, lambda table: table[0]),
        (0.6, lambda table: table[1]),
        (1, lambda table: table[2]),
        (0.3, lambda table: 0.75 * table[0] + 0.25 * table[1]),
        (0.8, lambda table: 0.5 * table[1] + 0.5 * table[2]),
    ],
)
def test_truncation_chooses_the_statistics(truncation: float, row: Callable[[Tensor], Tensor]) -> None:
    model = with_table(0.2, 0.6, 1.0)
    latents, labels = tiny_inputs(model)
    expected = output(holding_row(model, row), latents, labels)
    assert torch.allclose(output(model, latents, labels, truncation=truncation), expected, atol=1e-5)
    running = output(model, latents, labels)
    assert not torch.allclose(running, expected, atol=1e-3)
    # Training statistics are those of the batch, whatever the truncation.
    trained = [output(copy.deepcopy(model).train(), latents, labels, truncation=t) for t in (None, truncation)]
    assert torch.equal(*trained)


def test_without_a_table_truncation_warns_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("biggan_hf"), "propagate", True)  # pytest sees the records
    warning_once: Any = type(sampling_biggan.logger).warning_once
    warning_once.cache_clear()
    model = tiny_generator()
    inputs = tiny_inputs(model)
    expected = output(model, *inputs)
    for _ in range(2):
        assert torch.equal(output(model, *inputs, truncation=0.5), expected)
    (record,) = caplog.records
    assert "has no standing statistics" in record.message and record.levelname == "WARNING"


# sample()


def test_sample_keeps_the_order_of_labels() -> None:
    model = tiny_generator()
    latents = tiny_latents(6, model.config)
    images = model.sample([3, 0], num_images_per_prompt=3, latents=latents)
    assert images.shape == (6, 3, 32, 32) and not images.requires_grad
    expected = output(model, latents, torch.tensor([3, 3, 3, 0, 0, 0])).detach()
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    for one in (3, [3], torch.tensor(3), torch.tensor([3], dtype=torch.int32)):
        assert torch.equal(model.sample(one, latents=latents[:1]), model.sample([3], latents=latents[:1]))


@pytest.mark.parametrize("labels", [[1, 2, 2], None])
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_sample_is_reproducible(labels: list[int] | None, truncation: float | None) -> None:
    model = tiny_generator()

    def sample(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        number = 3 if labels is None else 1
        generator = generators if len(generators) > 1 else generators[0]
        return model.sample(labels, number, truncation=truncation, generator=generator)

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert torch.allclose(sample(5, 6, 7)[1:], sample(4, 6, 7)[1:], atol=1e-5)


def test_sample_of_an_unconditional_model() -> None:
    for variant in ("unconditional", "deep unconditional", "unconditioned"):
        model = tiny_generator(**VARIANTS[variant])
        assert model.sample(num_images_per_prompt=4).shape == (4, 3, 32, 32)
        with pytest.raises(ValueError, match=r"unconditional \(num_labels=0\): class_labels must be None"):
            model.sample([0])
        for call in (model, model.sample):
            with pytest.raises(ValueError, match=r"unconditional \(num_labels=0\): class_embeddings must be None"):
                call(latents=tiny_latents(1, model.config), class_embeddings=torch.zeros(1, 6))


@pytest.mark.parametrize("variant", ["plain", "per-layer labels"])
def test_sample_of_class_embeddings(variant: str) -> None:
    model = tiny_generator(**VARIANTS[variant]).eval()
    latents, labels = tiny_latents(6, model.config), torch.tensor([3, 0])
    embeddings = model.class_embedding(labels).detach()
    expected = model.sample(labels, 3, latents=latents)
    sampled = model.sample(class_embeddings=embeddings, num_images_per_prompt=3, latents=latents)
    torch.testing.assert_close(sampled, expected)
    drawn = model.sample(class_embeddings=embeddings, generator=torch.Generator().manual_seed(0))
    latents = sample_latents(2, model.config.z_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, model.sample(class_embeddings=embeddings, latents=latents))
    for wrong, labels_too, message in [
        (embeddings[:, :-1], None, "class_embeddings must be"),
        (embeddings[:0], None, "class_embeddings must be"),
        (embeddings[0], None, rf"class_embeddings must be \(1, {embeddings.shape[1]}\), got"),
        (embeddings, labels, "exclude each other"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.sample(labels_too, class_embeddings=wrong)
    with pytest.raises(TypeError, match="class_embeddings must be a tensor, got list"):
        model.sample(class_embeddings=embeddings.tolist())
    with pytest.raises(ValueError, match="num_images_per_prompt must be at least 1, got 0"):
        model.sample(class_embeddings=embeddings, num_images_per_prompt=0)


def test_sample_uses_the_models_own_truncation_mode() -> None:
    seen = []
    for mode in ("resample", "scale"):
        model = tiny_generator(truncation_mode=mode, hierarchical_latents=False)
        model.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.sample([0] * 50, truncation=0.5)
        model.sample([0] * 50, truncation=0.5, truncation_mode="resample")
    assert [bool((latents.abs() > 0.5).any()) for latents in seen] == [False, False, True, False]


@pytest.mark.parametrize("training", [False, True])
def test_sample_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_generator(**ATTENTION).train(training)
    before = state(model)
    model.sample([0, 1], truncation=0.5)
    with pytest.raises(ValueError):
        model.sample([0, 1], latents=torch.zeros(2, 3))
    assert model.training is training and all(module.training is training for module in model.modules())
    assert differing(before, state(model)) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [0, 5]}, "class label 5 is outside 0 to 4"),
        ({"class_labels": -1}, "class label -1 is outside 0 to 4"),
        ({"class_labels": [0.5]}, "class_labels must be 1 integers .* torch.float32"),
        ({"class_labels": True}, "class_labels must be 1 integers .* torch.bool"),
        ({"class_labels": "dog"}, "unknown class name 'dog'; the ids are 0 to 4, of 'LABEL_0', "),
        ({"class_labels": [None]}, r"class_labels must be integers or names, got \[None\]"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"class_labels": [0, 1], "latents": torch.zeros(2, 15)}, r"latents must be \(2, 16\), got \(2, 15\)"),
        ({"class_labels": [0, 1], "latents": torch.zeros(3, 16)}, r"latents must be \(2, 16\), got \(3, 16\)"),
        ({"class_labels": [0, 1], "truncation": 0}, "truncation must be a positive number or None, got 0"),
        ({"class_labels": [0], "truncation_mode": "cut"}, "must be one of resample, scale, .* got 'cut'"),
        ({"num_images_per_prompt": 2, "generator": []}, "2 samples need 2 generators, got 0"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()]}, "2 samples need 2 generators, got 1"),
    ],
)
def test_sample_of_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_generator().sample(**arguments)


LATENTS, IMAGES, LABELS = torch.zeros(2, 16), torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(16)}, r"latents must be \(N, 16\), got \(16,\)"),
        ({"latents": torch.zeros(2, 3)}, r"latents must be \(N, 16\), got \(2, 3\)"),
        ({"latents": LATENTS}, "has 5 classes: class_labels must be given"),
        ({"latents": LATENTS, "class_labels": LABELS[:1]}, r"class_labels must be 2 integers .* got \(1,\)"),
        ({"latents": LATENTS, "class_labels": LABELS.float()}, "class_labels must be 2 integers .* torch.float32"),
        ({"latents": LATENTS, "class_labels": LABELS + 4}, "class label 5 is outside 0 to 4"),
        ({"latents": LATENTS, "class_embeddings": LATENTS}, r"class_embeddings must be \(2, 6\), got \(2, 16\)"),
        ({"latents": LATENTS, "class_labels": LABELS, "class_embeddings": LATENTS[:, :6]}, "give one of them"),
        ({"latents": LATENTS, "class_labels": LABELS, "truncation": -1.0}, "positive number or None, got -1.0"),
        ({"pixel_values": IMAGES[0], "class_labels": LABELS}, r"\(N, 3, 32, 32\) floats .* got \(3, 32, 32\)"),
        ({"pixel_values": IMAGES[:, :1], "class_labels": LABELS}, r"got \(2, 1, 32, 32\)"),
        ({"pixel_values": IMAGES.byte(), "class_labels": LABELS}, "floats in .* torch.uint8"),
        ({"pixel_values": IMAGES}, "has 5 classes: class_labels must be given"),
        ({"pixel_values": IMAGES, "class_labels": LABELS - 1}, "class label -1 is outside 0 to 4"),
    ],
)
def test_forward_of_bad_input(arguments: dict[str, Any], message: str) -> None:
    model = tiny_generator() if "latents" in arguments else tiny_discriminator()
    with pytest.raises(ValueError, match=message):
        model(**arguments)


# Precision


@both_networks
@plain_and_deep
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(build: Callable[..., Network], overrides: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(**overrides)
    inputs = tiny_inputs(model)
    expected = output(model, *inputs)
    with torch.autocast("cpu", dtype):
        assert_near(output(model, *inputs), expected)
    nn.Module.to(model, dtype)
    out = output(model, *inputs)
    assert out.dtype == dtype and {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert_near(out, expected)
    weighted_sum(output(model.train(), *inputs)).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


# Saving and loading


def load(model: Network, folder: Path, **kwargs: Any) -> Network:
    """Loads the folder with the class of the model, and makes sure that every key of the file met one of the model."""
    result: Any = type(model).from_pretrained(folder, output_loading_info=True, **kwargs)
    loaded, report = result
    assert not any(report.values()), report
    return loaded


@both_networks
@all_variants
def test_save_and_load(build: Callable[..., Network], overrides: dict[str, Any], tmp_path: Path) -> None:
    model = build(**overrides)
    output(model.train(), *tiny_inputs(model))  # v0 is not saved, and no longer what a new model has
    model.eval().save_pretrained(tmp_path)
    loaded = load(model, tmp_path)
    assert not loaded.training
    before, after = state(model), state(loaded)
    assert {name.rpartition(".")[2] for name in differing(before, after)} <= {"v0"}
    assert not any(after[name].any() for name in after if name.endswith(".v0"))
    inputs = tiny_inputs(model)
    assert torch.allclose(output(loaded, *inputs), output(model, *inputs), atol=1e-5)
    # The state dict is what training resumes from: the next training forward is the same.
    assert torch.allclose(output(loaded.train(), *inputs), output(model.train(), *inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "field", "value", "told"),
    [
        (tiny_generator, "z_dim", 32, r"'linear.weight' is \(256, 4\) in this network and \(256, 8\) in a"),
        (tiny_generator, "generator_attention_resolutions", [], r"gamma' is \(1,\) in this network and missing in a"),
        (tiny_discriminator, "num_labels", 3, r"'class_embedding.weight' is \(5, 16\) .* and \(3, 16\) in a"),
    ],
)
def test_a_configuration_that_does_not_fit_is_not_saved(
    build: Callable[..., Network], field: str, value: Any, told: str, tmp_path: Path
) -> None:
    model = build(**ATTENTION)
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=told):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@both_networks
def test_save_in_shards(build: Callable[..., Network], tmp_path: Path) -> None:
    model = build(**VARIANTS["deep"])
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    loaded = load(model, tmp_path)
    assert differing(state(model), state(loaded)) == set()
    # And once more in one file, where the shards lie.
    build(**VARIANTS["deep"]).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


@both_networks
def test_load_in_bfloat16(build: Callable[..., Network], tmp_path: Path) -> None:
    model = build(standing_truncations=[0.5, 1.0], **VARIANTS["deep"])
    model.save_pretrained(tmp_path)
    loaded = load(model, tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    for name, buffer in loaded.named_buffers():
        assert name.endswith(FLOAT32_BUFFERS) and buffer.dtype == torch.float32, name
        assert torch.equal(buffer, model.get_buffer(name)), name
    assert_near(output(loaded, *tiny_inputs(model)), output(model, *tiny_inputs(model)))


@both_networks
def test_device_map(build: Callable[..., Network], tmp_path: Path) -> None:
    model = build(**ATTENTION)
    model.save_pretrained(tmp_path)
    loaded, inputs = load(model, tmp_path, device_map="auto"), tiny_inputs(model)
    assert torch.allclose(output(loaded, *inputs).cpu(), output(model, *inputs), atol=1e-4)
    assert differing(state(model), {name: tensor.cpu() for name, tensor in state(loaded).items()}) == set()


def test_auto_class_takes_what_there_is(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    tiny_discriminator().save_pretrained(tmp_path / "discriminator")
    assert type(AutoModel.from_pretrained(tmp_path)) is type(AutoModel.from_config(tiny_config())) is BigGANModel
    assert type(AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))) is BigGANModel
    assert type(AutoModel.from_config(AutoConfig.from_pretrained(tmp_path / "discriminator"))) is BigGANDiscriminator
    for where in ({}, {"subfolder": "discriminator"}):
        folder = tmp_path if where else tmp_path / "discriminator"
        assert type(AutoModel.from_pretrained(folder, **where)) is BigGANDiscriminator


def test_missing_keys_are_initialised() -> None:
    model = tiny_generator(**ATTENTION)
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(("stages.1", "output_bn"))}
    loaded = BigGANModel.from_pretrained(None, config=model.config, state_dict=kept)
    after = state(loaded)
    assert all(torch.equal(after[name], tensor) for name, tensor in kept.items())
    assert after["output_bn.running_var"].eq(1).all() and not after["output_bn.running_mean"].any()
    assert after["output_bn.gain"].eq(1).all() and after["stages.1.attention.gamma"] == 0
    conv = after["stages.1.blocks.0.conv1.weight"].flatten(1)
    assert torch.allclose(conv @ conv.T, torch.eye(16), atol=1e-5)
    assert after["stages.1.blocks.0.conv1.u0"].std() > 0.3 and after["stages.1.blocks.0.conv1.sv0"] == 1


# Another number of classes


PER_LAYER = {f"stages.{i}.blocks.0.bn{k}.{part}.weight" for i in range(3) for k in (1, 2) for part in ("gain", "bias")}
REPLACED: list[tuple[Callable[..., Network], dict[str, Any], set[str]]] = [
    (tiny_generator, VARIANTS["deep"], {"class_embedding.weight"}),
    (tiny_generator, VARIANTS["not hierarchical"], {"class_embedding.weight"}),
    (tiny_generator, VARIANTS["per-layer labels"], PER_LAYER),
    (tiny_discriminator, ATTENTION, {"class_embedding.weight", "class_embedding.u0"}),
    (tiny_discriminator, {"discriminator_spectral_norm": False}, {"class_embedding.weight"}),
]


@pytest.mark.parametrize(("build", "overrides", "replaced"), REPLACED)
def test_another_number_of_classes(
    build: Callable[..., Network],
    overrides: dict[str, Any],
    replaced: set[str],
    tmp_path: Path,
) -> None:
    model = build(**overrides)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path, num_labels=3)
    result: Any = type(model).from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    loaded, report = result
    assert loaded.config.num_labels == 3 and [*loaded.config.id2label] == [0, 1, 2]
    assert {name for name, *_ in report["mismatched_keys"]} == replaced
    assert not report["missing_keys"] and not report["unexpected_keys"]
    after = state(loaded)
    assert differing(state(model), after) == replaced
    for name in replaced:
        assert after[name].isfinite().all() and after[name].std() > 0.05, name
    assert output(loaded, *tiny_inputs(loaded)).isfinite().all()
    loaded.save_pretrained(tmp_path / "again")
    load(loaded, tmp_path / "again")


# Names in the files

SN = "{bias,sv0,u0,weight}"
IN_ATTENTION = ["gamma", "{theta,phi,g,o}.{sv0,u0,weight}"]
OF_GENERATORS = ["{linear,output_conv}." + SN, "output_bn.{bias,gain,running_mean,running_var}"]
NAMES: dict[str, list[str]] = {
    "plain generator": [
        *("class_embedding.weight", *OF_GENERATORS, "stages.{0,1,2}.blocks.0.{conv1,conv2,conv_sc}." + SN),
        "stages.{0,1,2}.blocks.0.bn{1,2}.running_{mean,var}",
        "stages.{0,1,2}.blocks.0.bn{1,2}.{bias,gain}.{sv0,u0,weight}",
    ],
    "deep generator": [
        *("class_embedding.weight", *OF_GENERATORS, "stages.{0,1,2}.blocks.{0,1}.conv{1,2,3,4}." + SN),
        "stages.{0,1,2}.blocks.{0,1}.bn{1,2,3,4}.running_{mean,var}",
        "stages.{0,1,2}.blocks.{0,1}.bn{1,2,3,4}.{bias,gain}.{sv0,u0,weight}",
    ],
    "per-layer labels generator": [
        *(*OF_GENERATORS, "stages.{0,1,2}.blocks.0.{conv1,conv2,conv_sc}." + SN),
        "stages.{0,1,2}.blocks.0.bn{1,2}.{running_mean,running_var,bias.weight,gain.weight}",
    ],
    "plain discriminator": [
        *("class_embedding.{sv0,u0,weight}", "linear." + SN),
        *("stages.{0,1,2,3}.blocks.0.conv{1,2}." + SN, "stages.{0,1}.blocks.0.conv_sc." + SN),
    ],
    "deep discriminator": [
        *("class_embedding.{sv0,u0,weight}", "{input_conv,linear}." + SN),
        "stages.{0,1,2}.blocks.{0,1}.conv{1,2,3,4}." + SN,
    ],
}


def expanded(pattern: str) -> list[str]:
    """`a{b,c}` to `ab` and `ac`, as in a shell."""
    match = re.search(r"\{(.*?)\}", pattern)
    if match is None:
        return [pattern]
    return [name for part in match[1].split(",") for name in expanded(pattern.replace(match[0], part, 1))]


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_the_tensors(kind: str) -> None:
    variant, _, network = kind.rpartition(" ")
    stage = {"generator": 1, "discriminator": 0}[network]  # the one of 16 pixels
    patterns = NAMES[kind] + [f"stages.{stage}.attention.{name}" for name in IN_ATTENTION]
    model = NETWORKS[network](**{**VARIANTS[variant], **ATTENTION})
    assert sorted(model.state_dict()) == sorted(name for pattern in patterns for name in expanded(pattern))


# Activation checkpointing and compilation


def after_a_step(model: Network, run: Callable[..., Any]) -> dict[str, Tensor]:
    """The output, the gradients and the state after one training forward and its backward."""
    (out,) = run(*tiny_inputs(model), return_dict=False)
    weighted_sum(out).backward()
    return {"output": out.detach(), **{f"gradient of {n}": g for n, g in gradients(model).items()}, **state(model)}


@both_networks
@pytest.mark.parametrize("variant", ["attention", "deep", "per-layer labels", "unconditional"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(
    build: Callable[..., Network], variant: str, use_reentrant: bool
) -> None:
    plain, checkpointed = (build(**VARIANTS[variant]).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    expected, actual = after_a_step(plain, plain), after_a_step(checkpointed, checkpointed)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():  # the order in which gradients are added up may change
        assert torch.allclose(actual[name], tensor, rtol=0, atol=1e-6 * float(1 + tensor.abs().max())), name
    assert differing(state(plain), state(checkpointed)) == set()


def test_checkpointed_discriminator_asks_no_gradient_of_the_callers_images() -> None:
    model = tiny_discriminator().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    images, labels = tiny_inputs(model)
    model(images, labels).logits.sum().backward()
    assert not images.requires_grad and images.grad is None


@pytest.mark.parametrize(
    ("build", "memory_format"),
    [(tiny_generator, torch.channels_last), (tiny_discriminator, torch.contiguous_format)],
    ids=NETWORKS,
)
def test_compile_in_training(build: Callable[..., Network], memory_format: torch.memory_format) -> None:
    # In double precision, since the bias before a norm has rounding for a gradient. tests/test_eval_mode.py compiles
    # networks in eval mode.
    model, compiled = (build(**VARIANTS["attention"]).double().train() for _ in range(2))
    for network in (model, compiled):
        network.to(memory_format=memory_format)
    torch._dynamo.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    expected, actual = after_a_step(model, model), after_a_step(compiled, run)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(actual[name], tensor, rtol=1e-9, atol=1e-9), name


@both_networks
def test_hooks_see_blocks_as_they_stay(build: Callable[..., Network]) -> None:
    model = build().train()
    outputs, gradients = [], []
    for stage in model.stages:
        stage.blocks[0].register_forward_hook(lambda _, inputs, out: outputs.append((out, out.detach().clone())))
        stage.blocks[0].register_full_backward_hook(lambda _, inputs, outs: gradients.append(outs[0]))
    output(model, *tiny_inputs(model)).sum().backward()
    assert len(gradients) == len(outputs) == len(model.stages)
    assert all(torch.equal(out, before) for out, before in outputs)


# Code on the Hub

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["biggan_hf"] = None  # an import of it fails
import torch
from transformers import AutoConfig, AutoModel

folder, = sys.argv[1:]
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
assert type(model).__module__.startswith("transformers_modules"), type(model)
latents, labels = torch.load(folder + "/inputs.pt")
torch.save(model(latents, labels).images.detach(), folder + "/images.pt")
assert AutoConfig.from_pretrained(folder, trust_remote_code=True, num_labels=3).num_labels == 3
model.save_pretrained(folder + "/again")
"""


def test_remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cls, auto_class in ((BigGANConfig, "AutoConfig"), (BigGANModel, "AutoModel")):
        monkeypatch.setattr(cls, "_auto_class", None)  # and back again, or every later save copies the code
        cls.register_for_auto_class(auto_class)
    model = tiny_generator(**ATTENTION)
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model)
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path)], check=True, env=environment)
    assert torch.allclose(torch.load(tmp_path / "images.pt"), output(model, *inputs), atol=1e-5)


def test_code_is_not_saved_unasked(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# Parts in training


def test_a_stage_in_training_inside_a_network_in_eval_mode() -> None:
    model = tiny_generator()
    model.stages[-1].train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(*tiny_inputs(model))
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved and all(name.startswith("stages.2.") for name in moved)
    assert any(name.endswith("running_mean") for name in moved) and any(name.endswith("u0") for name in moved)


def test_frozen_norms_stay_after_a_recomputed_forward() -> None:
    model = tiny_generator().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(*tiny_inputs(model)).images.sum().backward()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.eval()
    before = [norm.running_mean.clone() for norm in norms]
    model(*tiny_inputs(model))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
