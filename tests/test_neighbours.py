"""What works with what: a test for each row of docs/neighbours.md."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload, disk_offload
from common import ATTENTION, SPECTRAL, VARIANTS, tiny_discriminator, tiny_generator, tiny_inputs
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.layers import Conv2d, SNConv2dPool, SNUpsampleConv2d, UpsampleConv2d
from biggan_hf.spectral_norm import SpectralNorm


Network = BigGANModel | BigGANDiscriminator
Build = Callable[..., Network]
BOTH = pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator], ids=["generator", "discriminator"])
DEEP = {**VARIANTS["deep"], "generator_blocks_per_stage": 1, "discriminator_blocks_per_stage": 1}
PER_LAYER = VARIANTS["per-layer labels"]


@torch.no_grad()
def answer(network: Any, inputs: tuple[Any, ...]) -> Tensor:
    return network(*inputs)[0]


def loss_of(output: Tensor) -> Tensor:
    """Of which no gradient is zero."""
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()


# Folding


@BOTH
@pytest.mark.parametrize("overrides", [ATTENTION, DEEP, PER_LAYER, VARIANTS["narrow, no spectral norm"]])
def test_folded_spectral_norm(build: Build, overrides: dict[str, Any], tmp_path: Path) -> None:
    network = build(**overrides)
    inputs, before, config = tiny_inputs(network), network.config, network.config.to_dict()
    expected = answer(network, inputs)
    folded = copy.deepcopy(network).fold_spectral_norm()
    assert not any(isinstance(layer, SpectralNorm) for layer in folded.modules())
    torch.testing.assert_close(answer(folded, inputs), expected, rtol=1e-6, atol=1e-5)
    # The function of training mode needs no power iteration any more, and the weights learn.
    loss_of(folded.train()(*inputs)[0]).backward()
    assert all(weight.grad is not None for weight in folded.parameters())
    folded.eval().save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    torch.testing.assert_close(answer(loaded, inputs), answer(folded, inputs), rtol=0, atol=1e-5)
    # The configuration of the other network stays, even where both share one object.
    of_generator, of_discriminator = loaded.config.generator_spectral_norm, loaded.config.discriminator_spectral_norm
    kept = before.discriminator_spectral_norm, before.generator_spectral_norm
    found = (of_discriminator, of_generator) if build is tiny_generator else (of_generator, of_discriminator)
    assert found == (kept[0] if build is tiny_generator else kept[1], False)
    assert before.to_dict() == config


# torch.export, ONNX, torch.compile


def exported(network: Network, inputs: tuple[Any, ...], strict: bool) -> Any:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(None if tensor is None else {0: batch} for tensor in inputs)
    return torch.export.export(network, inputs, dynamic_shapes=shapes, strict=strict)


@pytest.mark.parametrize(
    "build, overrides, strict",
    [
        (tiny_generator, ATTENTION, False),
        (tiny_generator, DEEP, False),
        (tiny_generator, PER_LAYER, True),
        (tiny_generator, VARIANTS["unconditioned"], False),
        (tiny_discriminator, ATTENTION, True),
        (tiny_discriminator, DEEP, False),
    ],
)
def test_export_has_a_dynamic_batch(build: Build, overrides: dict[str, Any], strict: bool, tmp_path: Path) -> None:
    network = build(**overrides).fold_spectral_norm()
    if isinstance(network, BigGANModel):
        network.sample(num_images_per_prompt=2)
    program = exported(network, tiny_inputs(network, 2), strict)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {getattr(target, "namespace", "aten") for target in called} == {"aten"}
    for size in (1, 5):
        inputs = tiny_inputs(network, size)
        torch.testing.assert_close(answer(program.module(), inputs), answer(network, inputs), rtol=0, atol=1e-5)
    network.save_pretrained(tmp_path)
    copy.deepcopy(network)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_an_exported_layer_has_its_gradient(kind: str) -> None:
    build, rows = SPECTRAL[kind]
    layer = build().eval()
    program: Any = torch.export.export(layer, (rows,)).module()
    for one in (layer, program):
        loss_of(one(rows)).backward()
    torch.testing.assert_close(program.weight.grad, layer.weight.grad)


def test_onnx_has_a_dynamic_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="the exported graph runs in onnxruntime")
    model = tiny_generator().fold_spectral_norm()
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model,
        tiny_inputs(model, 2),
        tmp_path / "model.onnx",
        dynamic_shapes=({0: batch}, {0: batch}),
        input_names=["latents", "labels"],
        verbose=False,
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for size in (1, 5):
        latents, labels = tiny_inputs(model, size)
        assert labels is not None
        (images,) = session.run(None, {"latents": latents.numpy(), "labels": labels.numpy()})
        torch.testing.assert_close(torch.from_numpy(images), answer(model, (latents, labels)), rtol=0, atol=1e-5)


@BOTH
def test_compiles_as_one_graph(build: Build, tmp_path: Path) -> None:
    network = build(**PER_LAYER)
    inputs = tiny_inputs(network)
    compiled: Any = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(answer(compiled, inputs), answer(network, inputs), rtol=0, atol=1e-5)
    compiled.save_pretrained(tmp_path)


# Adapters


def with_adapters(network: Network) -> Any:
    """LoRA on every layer that has a weight."""
    kinds = nn.Conv2d | nn.Linear | nn.Embedding
    targets = [name for name, layer in network.named_modules() if isinstance(layer, kinds)]
    return get_peft_model(network, LoraConfig(r=2, lora_alpha=4, target_modules=targets)).eval()


@BOTH
@pytest.mark.parametrize("overrides", [ATTENTION, DEEP, PER_LAYER], ids=["plain", "deep", "per-layer labels"])
@pytest.mark.parametrize("folded", [True, False])
def test_adapters(build: Build, overrides: dict[str, Any], folded: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(**overrides)
    network = network.fold_spectral_norm() if folded else network
    inputs, base = tiny_inputs(network), copy.deepcopy(network)
    expected = answer(network, inputs)
    adapted = with_adapters(network)
    assert torch.equal(answer(adapted, inputs), expected)
    # All adapters learn: B in the first step, A, for which B is no longer zero, in the second.
    adapters = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in adapters.items()}
    adam = torch.optim.Adam(adapters.values(), lr=1e-4)
    for _ in range(2):
        adam.zero_grad()
        loss_of(adapted(*inputs)[0]).backward()
        adam.step()
    assert adapters and not [name for name, weight in adapters.items() if torch.equal(weight, before[name])]
    learned = answer(adapted, inputs)
    assert not torch.allclose(learned, expected, atol=1e-3)
    # Saved apart, and put on another copy of the network. Folded there, they merge.
    adapted.save_pretrained(tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(answer(loaded, inputs), learned, rtol=0, atol=1e-5)
    base.fold_spectral_norm()
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    whole = type(network).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(whole, inputs), learned, rtol=0, atol=1e-4 * learned.abs().max().item())


@pytest.mark.parametrize("kind", [Conv2d, UpsampleConv2d, SNUpsampleConv2d, SNConv2dPool])
def test_a_layer_takes_the_arguments_of_torchs(kind: type[Conv2d]) -> None:
    layer = kind(3, 5, (1, 1), (1, 1), (0, 0), bias=False)  # as an adapter's second half
    assert not isinstance(layer, SpectralNorm) and layer(torch.ones(1, 3, 6, 6)).shape == (1, 5, 6, 6)
    for wrong in ({"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 3}, {"kernel_size": 5}):
        arguments: Any = {"in_channels": 3, "out_channels": 6, "kernel_size": 3, **wrong}
        with pytest.raises(ValueError, match=r"keeps the size: kernel_size is 1 or 3, stride 1, .* got \("):
            kind(**arguments)


# Gradients, floating-point operations, attention


@BOTH
@pytest.mark.parametrize("overrides", [ATTENTION, PER_LAYER, VARIANTS["unconditional"]])
def test_gradients_of_each_sample(build: Build, overrides: dict[str, Any]) -> None:
    network = build(**overrides)
    inputs, weights = tiny_inputs(network), dict[str, Tensor](network.named_parameters())

    def loss(weights: dict[str, Tensor], sample: Tensor, label: Tensor | None) -> Tensor:
        return loss_of(functional_call(network, weights, (sample[None], None if label is None else label[None]))[0])

    mapped = (None, 0, None if inputs[1] is None else 0)
    found = vmap(grad(loss), in_dims=mapped)(weights, *inputs)
    for index in range(len(inputs[0])):
        one = [None if tensor is None else tensor[index] for tensor in inputs]
        expected = torch.autograd.grad(loss(weights, *one), [*weights.values()])  # type: ignore[arg-type]
        for name, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(
                found[name][index], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item()
            )


@BOTH
def test_flops_do_not_depend_on_gradients(build: Build) -> None:
    network = build(**ATTENTION)
    counts = []
    for implementation in ("sdpa", "eager"):
        network.set_attn_implementation(implementation)
        for with_gradients in (True, False):
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(with_gradients):
                network(*tiny_inputs(network))
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] and counts[2] == counts[3] > counts[0]  # torch counts no fused attention on a CPU


@BOTH
def test_eager_attention_avoids_the_fused_kernel(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, fused = build(**ATTENTION), []
    inputs, kernel = tiny_inputs(network), nn.functional.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        fused.append(True)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noted)
    expected = answer(network, inputs)
    assert fused
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, attn_implementation="eager")
    fused.clear()
    for eager in (loaded, loaded.fold_spectral_norm()):
        torch.testing.assert_close(answer(eager, inputs), expected, rtol=1e-6, atol=1e-5)
    assert not fused
    loaded.set_attn_implementation("sdpa")
    answer(loaded, inputs)
    assert fused


# Quantising


def test_dynamic_quantising() -> None:
    model = tiny_generator().fold_spectral_norm()
    inputs = tiny_inputs(model)
    quantized: Any = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert not isinstance(quantized.linear, nn.Linear)
    assert (answer(quantized, inputs) - answer(model, inputs)).abs().mean() < 0.02


def test_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: the extra `neighbours`")
    model = tiny_generator().fold_spectral_norm()
    inputs, (latents, labels) = tiny_inputs(model), tiny_inputs(model)
    expected = answer(model, inputs)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.linear.weight) is not nn.Parameter
    assert (answer(model, inputs) - expected).abs().mean() < 0.02
    assert (model.sample(labels, latents=latents) - expected).abs().mean() < 0.02
    # Without folding, the quantised weight cannot be normalised, and torchao says so.
    model = tiny_generator()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(NotImplementedError):
        answer(model, inputs)


# Offloading and sharding


@BOTH
@pytest.mark.parametrize("overrides", [ATTENTION, PER_LAYER])
def test_offloads(build: Build, overrides: dict[str, Any], tmp_path: Path) -> None:
    network, device = build(**overrides), torch.device("cpu")
    inputs = tiny_inputs(network)
    expected = answer(network, inputs)
    network.save_pretrained(tmp_path / "model")
    device_map = {name: "disk" if name == "stages" else "cpu" for name, _ in network.named_children()}
    offloaded: list[Any] = [copy.deepcopy(network), copy.deepcopy(network)]
    cpu_offload(offloaded[0], execution_device=device)
    disk_offload(offloaded[1], str(tmp_path / "disk"), execution_device=device)
    options: Any = {"device_map": device_map, "offload_folder": tmp_path / "more"}
    for model in (*offloaded, type(network).from_pretrained(tmp_path / "model", **options)):
        torch.testing.assert_close(answer(model, inputs), expected, rtol=1e-6, atol=1e-5)
        if isinstance(model, BigGANModel):
            with pytest.raises(ValueError, match="offloaded layer by layer"):
                model.sample(inputs[1], latents=inputs[0])


@pytest.fixture
def one_process() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@BOTH
@pytest.mark.parametrize("overrides", [ATTENTION, DEEP])
def test_fully_sharded(build: Build, overrides: dict[str, Any], one_process: Any, tmp_path: Path) -> None:
    network = build(**overrides)
    inputs, sharded = tiny_inputs(network), cast(Any, fully_shard(copy.deepcopy(network), mesh=one_process))
    for model in (network, sharded):
        loss_of(model.train()(*inputs)[0]).backward()
    for weight, shard in zip(network.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(shard.grad.full_tensor(), weight.grad)
    expected = answer(network.eval(), inputs)
    torch.testing.assert_close(answer(sharded.eval(), inputs), expected)
    with pytest.raises(ValueError, match=r"state_dict=get_model_state_dict\(model"):
        sharded.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fold_spectral_norm before it"):
        sharded.fold_spectral_norm()
    whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    sharded.save_pretrained(tmp_path, state_dict=whole)
    torch.testing.assert_close(answer(type(network).from_pretrained(tmp_path), inputs), expected, rtol=1e-6, atol=1e-5)


def test_gamma_of_older_checkpoints(tmp_path: Path) -> None:
    model = tiny_generator(**ATTENTION)
    name, inputs = "stages.1.attention.gamma", tiny_inputs(model)
    assert model.state_dict()[name].shape == (1,)
    older = {key: value.reshape(()) if key == name else value for key, value in model.state_dict().items()}
    other = tiny_generator(**ATTENTION)
    other.get_parameter(name).data.zero_()
    other.load_state_dict(older)
    assert torch.equal(answer(other, inputs), answer(model, inputs))
    loaded = BigGANModel.from_pretrained(None, config=model.config, state_dict=older)
    assert torch.equal(answer(loaded, inputs), answer(model, inputs))


def test_the_page_has_a_row_for_each_test() -> None:
    page = (Path(__file__).parents[1] / "docs" / "neighbours.md").read_text(encoding="utf-8")
    tests = {name for name in globals() if name.startswith("test_")}
    assert {*re.findall(r"`(test_\w+)` \|", page)} == tests - {"test_the_page_has_a_row_for_each_test"}
