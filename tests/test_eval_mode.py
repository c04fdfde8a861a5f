"""Folded weights: made once a scope, never stale, and out of the way of gradients, copies, threads and compilers."""

import copy
import io
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from common import SPECTRAL, VARIANTS, seeded, tiny_discriminator, tiny_generator, tiny_inputs, tiny_latents
from evaluation_common import tiny_extractor
from torch import Tensor, nn
from torch.nn.utils import prune

from biggan_hf import BigGANDiscriminator, BigGANModel, BigGANPipeline, collect_standing_statistics, ops
from biggan_hf.eval_mode import FoldableWeight, fold, folded_weights, in_eval_mode
from biggan_hf.evaluation import GeneratedImages, measure
from biggan_hf.inversion import invert
from biggan_hf.layers import Conv2d, SNConv2d, SNConv2dPool, SNLinear, SNUpsampleConv2d
from biggan_hf.spectral_norm import SpectralNorm, power_iteration
from biggan_hf.training.ema import update_ema
from biggan_hf.training.stability import share_taken_for_real
from biggan_hf.training.steps import Pictures


Network = BigGANModel | BigGANDiscriminator


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[tiny_generator, tiny_discriminator])
def network(request: pytest.FixtureRequest) -> Network:
    return request.param(**VARIANTS["attention"]).eval()


def output(network: Network, *inputs: Any) -> Tensor:
    return next(iter(network(*inputs).values()))


def folds(network: nn.Module) -> list[Any]:
    return [module._folded for module in network.modules() if isinstance(module, FoldableWeight)]


# A scope


@torch.no_grad()
def test_a_scope_makes_each_kernel_once_and_drops_it_at_its_end(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FoldableWeight] = []
    make = SpectralNorm.normalized_weight

    def note(layer: SpectralNorm) -> Tensor:
        made.append(layer)
        return make(layer)

    monkeypatch.setattr(SpectralNorm, "normalized_weight", note)
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    made.clear()
    with network.folded_weights():
        assert all(folds(network))
        with network.folded_weights():  # uses those that are there, and leaves them
            torch.testing.assert_close(output(network, *inputs), expected)
        torch.testing.assert_close(output(network, *inputs), expected)
    assert len(made) == len({*made}) and not any(folds(network))
    with pytest.raises(KeyError), network.folded_weights():
        raise KeyError
    assert not any(folds(network))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_folded_convolutions_and_their_maps_are_channels_last(dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=dtype).to(memory_format=torch.channels_last)
    for layer in (Conv2d(3, 5, 3).to(dtype), SNUpsampleConv2d(3, 5, 3, eps=1e-12).to(dtype)):
        weight = layer.weight.clone()
        with folded_weights(layer.eval()):
            assert layer.kernel().is_contiguous(memory_format=torch.channels_last)
            assert layer(maps).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer.weight, weight)


@torch.no_grad()
def test_wide_convolutions_fold_in_tiles_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "WIDE_FOR_TILES", 4)
    for layer, in_tiles in [
        (SNConv2d(4, 6, 3, eps=1e-12), True),
        (Conv2d(4, 6, 3).double(), True),
        (Conv2d(3, 6, 3), False),  # narrow
        (Conv2d(4, 6, 1), False),
        (SNUpsampleConv2d(4, 6, 3, eps=1e-12), False),
        (SNConv2dPool(4, 6, 3, eps=1e-12), False),
        (SNConv2d(4, 6, 3, eps=1e-12).bfloat16(), False),  # too few digits
    ]:
        maps = torch.randn(2, layer.in_channels, 4, 6, dtype=layer.weight.dtype)
        expected = layer.eval()(maps)
        with folded_weights(layer):
            assert layer.kernel().ndim == (3 if in_tiles else 4)
            torch.testing.assert_close(layer(maps), expected)
            with ops.plain_operations():
                assert layer.kernel().ndim == 4


@torch.no_grad()
def test_images_lie_in_memory_as_users_expect() -> None:
    model = tiny_generator()
    assert model.sample([0]).is_contiguous() and output(model, *tiny_inputs(model)).is_contiguous()


# Never stale


def noise(layer: SpectralNorm) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()}


def optimised(layer: SpectralNorm, fused: bool = False) -> None:
    layer.weight.grad = torch.randn_like(layer.weight)
    torch.optim.Adam([layer.weight], lr=0.1, fused=fused).step()


def trained(layer: SpectralNorm) -> None:
    power_iteration([layer.train()])
    layer.weight.data.mul_(torch.rand_like(layer.weight))
    layer.eval()


def replace_data_twice(layer: SpectralNorm) -> None:
    for _ in range(2):
        layer.weight.data = torch.randn_like(layer.weight)


def cast(layer: SpectralNorm) -> None:
    layer.double().float()
    layer.weight.data[0].mul_(3)


CHANGES: dict[str, Callable[[SpectralNorm], object]] = {
    "in place": lambda layer: layer.weight.detach()[0].mul_(3),
    "in inference mode": torch.inference_mode()(lambda layer: layer.weight[0].mul_(3)),
    "replaced": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
    "data replaced": lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    "data replaced twice": replace_data_twice,  # the first memory must not come back as the third
    "loaded": lambda layer: layer.load_state_dict(noise(layer)),
    "assigned": lambda layer: layer.load_state_dict(noise(layer), assign=True),
    "optimised": optimised,
    "optimised by a fused step": lambda layer: optimised(layer, fused=True),  # leaves the version (torch 2.13)
    "averaged": lambda layer: torch._foreach_lerp_([layer.weight.detach()], [torch.randn_like(layer.weight)], 0.5),
    "another vector": lambda layer: layer.u0.copy_(torch.randn_like(layer.u0)),
    "trained": trained,
    "cast": cast,
}


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_scope_sees_changes(change: Callable[[SpectralNorm], object], kind: str) -> None:
    build, inputs = SPECTRAL[kind]
    layer = build().eval()
    with folded_weights(layer):
        with torch.no_grad():
            before = layer(inputs)
        change(layer)
        expected = layer(inputs).detach()  # with gradients of the weight, hence not the folded one
        assert not torch.allclose(expected, before, atol=1e-4)
        for _ in range(2):
            with torch.no_grad():
                assert torch.allclose(layer(inputs), expected, atol=1e-6)
            fold(layer)  # as the next call of a pipeline does


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pipeline_sees_changes_and_renews_on_demand(compiled: bool) -> None:
    pipe = BigGANPipeline(tiny_generator())
    if compiled:
        torch._dynamo.reset()
        pipe.compile(backend="eager")
    layer = pipe.model.get_submodule("stages.1.blocks.0.conv2")
    assert isinstance(layer, SpectralNorm)
    latents = tiny_latents(2, pipe.model.config)

    def images() -> Tensor:
        return pipe([0, 1], latents=latents, output_type="pt", progress_bar=False).images

    before = images()
    kernels = folds(pipe.model)
    assert torch.equal(images(), before)
    assert all(kernels) and all(a is b for a, b in zip(kernels, folds(pipe.model), strict=True))
    for change in ("in place", "optimised by a fused step", "loaded", "replaced", "averaged", "unseen"):
        if change == "unseen":
            layer.weight.data[0].mul_(-2)
            pipe.renew_weights()
        else:
            CHANGES[change](layer)
        fresh = BigGANPipeline(copy.deepcopy(pipe.model))
        expected = fresh([0, 1], latents=latents, output_type="pt", progress_bar=False).images
        assert not torch.allclose(expected, before, atol=1e-5), change
        torch.testing.assert_close(images(), expected, rtol=1e-5, atol=1e-5)
        before = expected


def test_folded_weights_end_with_the_pipeline() -> None:
    model = tiny_generator()
    pipe = BigGANPipeline(model)
    pipe(0, progress_bar=False)
    assert all(folds(model))
    gone = weakref.ref(pipe)
    del pipe
    assert gone() is None and not any(folds(model))


def test_a_pipeline_of_a_script_ends_without_a_word() -> None:
    code = "import biggan_hf, common; pipe = biggan_hf.BigGANPipeline(common.tiny_generator())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


# Gradients, transforms, copies


def test_gradients_of_weights_pass_a_scope(network: Network) -> None:
    images, labels = tiny_inputs(network)
    (expected,) = torch.autograd.grad(output(network, images, labels).sum(), next(network.parameters()))
    with network.folded_weights():
        (gradient,) = torch.autograd.grad(output(network, images, labels).sum(), next(network.parameters()))
    torch.testing.assert_close(gradient, expected)


def test_a_kernel_of_inference_mode_hands_on_gradients_of_the_input() -> None:
    layer, rows = SNLinear(12, 7).eval().requires_grad_(False), torch.randn(2, 12, requires_grad=True)
    with folded_weights(layer):
        with torch.inference_mode():
            fold(layer)
        kernel = layer._folded
        assert torch.autograd.grad(layer(rows).sum(), rows)[0].any() and layer._folded is kernel


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = tiny_generator()
        before = model.sample([0], latents=tiny_latents(1, model.config))
        model.get_parameter("linear.weight").neg_()
        assert not torch.allclose(model.sample([0], latents=tiny_latents(1, model.config)), before)


@torch.no_grad()
def test_transforms_inside_a_scope(network: Network) -> None:
    network.requires_grad_(False)
    first, labels = tiny_inputs(network)
    expected = output(network, first, labels)
    weights = {name: 1.3 * parameter for name, parameter in network.named_parameters()}
    scaled = torch.func.functional_call(network, weights, (first, labels))
    with network.folded_weights():
        assert torch.func.grad(lambda x: output(network, x, labels).square().sum())(first).any()
        torch.testing.assert_close(
            next(iter(torch.func.functional_call(network, weights, (first, labels)).values())),
            next(iter(scaled.values())),
        )
        torch.testing.assert_close(output(network, first, labels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vmap_over_samples() -> None:
    model = tiny_generator(**VARIANTS["attention"])
    latents, labels = tiny_inputs(model)
    embeddings = model.class_embedding(labels)
    expected = output(model, latents, None, embeddings)
    for context in (torch.no_grad(), model.folded_weights()):
        with context:
            images = torch.vmap(lambda z, e: output(model, z[None], None, e[None])[0])(latents, embeddings)
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_copies_fold_their_own_weights(network: Network) -> None:
    inputs, file = tiny_inputs(network), io.BytesIO()
    with network.folded_weights():
        expected = output(network, *inputs)
        torch.save(network, file)
        copies = [copy.deepcopy(network), torch.load(io.BytesIO(file.getvalue()), weights_only=False)]
    for copied in copies:
        assert not any(folds(copied))
        torch.testing.assert_close(output(copied, *inputs), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pruned_weights_are_taken_as_they_are(network: Network) -> None:
    inputs = tiny_inputs(network)
    for module in network.modules():
        if isinstance(module, Conv2d):
            prune.random_unstructured(module, "weight", amount=0.3)
    expected = output(network, *inputs)
    with network.folded_weights():
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_compiled_inside_and_outside_of_a_scope(network: Network) -> None:
    torch._dynamo.reset()
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    network.compile(backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
        with network.folded_weights():
            torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


# Threads


def test_threads_with_and_without_gradients_share_a_model() -> None:
    model = tiny_generator()
    latents, labels = tiny_inputs(model)
    expected = output(model, latents, labels).detach()

    def work(index: int) -> Tensor:
        return output(model, latents, labels).detach() if index % 3 else model.sample(labels, latents=latents)

    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(work, range(60)):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def inversion_of(model: Any) -> list[Tensor]:
    images = torch.zeros(1, model.config.num_channels, 32, 32)
    return [invert(model, images, num_steps=2, generator=seeded(0), progress_bar=False).errors]


def share_of(discriminator: Any) -> list[Tensor]:
    pixels, labels = tiny_inputs(discriminator)
    return [torch.tensor(share_taken_for_real(discriminator, Pictures(pixels, labels)))]


def standing_of(model: Any) -> list[Tensor]:
    images = model.sample([1], generator=seeded(0))  # while another thread measures
    collect_standing_statistics(model, 0.5, num_batches=2, batch_size=2, generator=seeded(0), progress_bar=False)
    return [images, model.output_bn.standing_var.clone()]


USES_IN_EVAL_MODE: dict[str, Callable[[Any], list[Tensor]]] = {
    "sample": lambda model: [model.sample([1, 2], generator=seeded(0))],
    "invert": inversion_of,
    "evaluate": lambda model: [measure(GeneratedImages(model, 6), tiny_extractor()).mean],
    "measure standing statistics": standing_of,
    "watch for memorisation": share_of,
}


@pytest.mark.parametrize("use", USES_IN_EVAL_MODE)
def test_threads_use_a_model_in_training(use: str) -> None:
    work = USES_IN_EVAL_MODE[use]
    model: Any = tiny_discriminator() if work is share_of else tiny_generator()
    expected = work(model.eval())
    model.train().stages[0].eval()  # a frozen part, whose mode differs
    modes, seen = [module.training for module in model.modules()], list[list[bool]]()
    model.register_forward_pre_hook(lambda *_: seen.append([module.training for module in model.modules()]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, [model] * 8):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert seen and all(each == modes for each in seen)  # what a step of training meets meanwhile
    assert [module.training for module in model.modules()] == modes and not any(folds(model))
    kept = (item for item in model.named_buffers() if "standing" not in item[0])
    assert all(torch.equal(buffer, before[name]) for name, buffer in kept)


@torch.no_grad()
def test_a_view_in_eval_mode_keeps_the_precision_of_a_run() -> None:
    discriminator = tiny_discriminator().train()
    inputs, seen = tiny_inputs(discriminator), list[torch.dtype]()
    discriminator.linear.register_forward_hook(lambda _, __, logits: seen.append(logits.dtype))
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of a process is set once
    prepared: Any = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(discriminator)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert in_eval_mode(prepared)(*inputs).logits.dtype == torch.float32  # accelerate's wrapper converts outputs
    assert seen == [torch.bfloat16] and prepared.training


# What ends a fold, and what must not be left behind


@pytest.mark.parametrize(
    "end",
    [
        lambda network: network.train(),
        lambda network: network.to(torch.float64),
        lambda network: network.load_state_dict(network.state_dict()),
    ],
    ids=["training", "casting", "loading"],
)
def test_what_ends_a_fold(network: Network, end: Callable[[Network], object]) -> None:
    fold(network)
    assert all(folds(network))
    end(network)
    assert not any(folds(network))


def test_a_kernel_made_in_inference_mode_is_an_ordinary_tensor() -> None:
    layer = SNLinear(12, 7).eval()
    with torch.inference_mode():
        fold(layer)
    assert layer._folded is not None
    assert not layer._folded.kernel.is_inference() and not layer._folded.kernel.requires_grad


def test_a_fold_that_fails_leaves_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    last = [module for module in network.modules() if isinstance(module, SpectralNorm)][-1]
    monkeypatch.setattr(last, "normalized_weight", lambda: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError), network.folded_weights():
        pass
    assert not any(folds(network))


@pytest.mark.parametrize("backend", [None, "eager"])
@torch.no_grad()
def test_a_call_inside_a_scope_sees_a_change(network: Network, backend: str | None) -> None:
    torch._dynamo.reset()
    inputs = tiny_inputs(network)
    if backend:
        network.compile(backend=backend)
    with network.folded_weights():
        before = output(network, *inputs)
        for weight in network.parameters():
            weight.mul_(1 + 0.5 * torch.rand_like(weight))
        expected = output(copy.deepcopy(network), *inputs)
        assert not torch.allclose(expected, before, atol=1e-3)
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


def test_writes_that_torch_does_not_count_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, `torch._foreach_…` and the optimisers that use it leave the versions (torch 2.11)."""
    model, other = tiny_generator(), tiny_generator()
    layer = model.get_submodule("stages.0.blocks.0.conv1")
    assert isinstance(layer, SpectralNorm)
    for uncounted in ("_foreach_lerp_", "_foreach_copy_"):
        monkeypatch.setattr(torch, uncounted, lambda *_: None)
    for change in (lambda: update_ema(model, other, 0.5), lambda: update_ema(model, other, 0.0)):
        fold(model)
        version = layer.weight._version
        change()
        assert layer.weight._version > version and layer.fold()
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, foreach=True)  # without gradients it writes nothing
    version = layer.weight._version
    optimizer.step()
    assert layer.weight._version > version
