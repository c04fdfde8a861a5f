"""oneDNN's own operations on a CPU: networks that evaluate with weights in its order, and products of matrices."""

import copy
import functools
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from common import Operations, saved_for_the_gradient, tiles_from, tiny_discriminator, tiny_generator, tiny_inputs
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from biggan_hf import kernels, layers, winograd
from biggan_hf.kernels import KeptKernel, kept_kernels
from biggan_hf.onednn import product


Network = Any
NETWORKS: dict[str, Callable[..., Network]] = {"generator": tiny_generator, "discriminator": tiny_discriminator}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"architecture": "biggan-deep"},
    "folded": {"generator_spectral_norm": False, "discriminator_spectral_norm": False},
}

needs_packing = pytest.mark.skipif(
    not kernels.can_pack(torch.ones(1)), reason="this torch has no packed convolutions for this CPU"
)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    """A second network in a process is compiled for any size, a third one for minutes."""
    torch._dynamo.reset()


@pytest.fixture(params=ARCHITECTURES)
def overrides(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(0)
    return ARCHITECTURES[request.param]


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, overrides: dict[str, Any]) -> Network:
    return NETWORKS[request.param](**overrides).eval()


def output(network: Network, *inputs: Any) -> Tensor:
    return network(*inputs, return_dict=False)[0]


def output_of_copy(network: Network, *inputs: Any) -> Tensor:
    """With kernels of its own, while those of the network stay as they are."""
    return output(copy.deepcopy(network), *inputs)


def packed(network: nn.Module) -> list[bool]:
    return [m._kept is not None and m._kept.is_packed for m in network.modules() if isinstance(m, layers.Conv2d)]


def same_with_other_kernels(network: Network, change: Callable[[], None]) -> tuple[tuple[Any, ...], Tensor]:
    """Shows that a network computes the same when its kernels take another form; gives its inputs and its output."""
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    change()
    network.train().eval()  # makes the kernels anew
    for _ in range(2):
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
    return inputs, expected


# Products


LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "rows": torch.randn,
    "columns": lambda m, n: torch.randn(n, m).t(),
    "strided": lambda m, n: torch.randn(2 * m, 3 * n)[::2, ::3],
}


def second_gradients(multiply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> list[Tensor]:
    """The product, its gradients, and the gradients of their squares."""
    leaves = left.clone().requires_grad_(), right.clone().requires_grad_()
    out = multiply(*leaves)
    first = torch.autograd.grad(out.pow(2).sum(), leaves, create_graph=True)
    return [out, *first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)]  # type: ignore[arg-type]


@needs_packing
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_product_and_gradients(left: str, right: str) -> None:
    matrices = LAYOUTS[left](6, 5), LAYOUTS[right](4, 5)
    with Operations() as operations:
        ours = second_gradients(product, *matrices)
    assert "_linear_pointwise" in operations.names and not {"mm", "addmm"} & {*operations.names}
    for a, b in zip(ours, second_gradients(F.linear, *matrices), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_product_where_onednn_does_not_serve() -> None:
    left, right = torch.randn(6, 5), torch.randn(4, 5)
    expected = left @ right.t()
    with Operations() as operations:
        assert torch.allclose(torch.vmap(product, (None, 0))(left, right[None])[0], expected, atol=1e-6)
        assert product(left.double(), right.double()).dtype == torch.float64
        assert product(left[:0], right).shape == (0, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert product(left, right).dtype == torch.bfloat16
        with forward_ad.dual_level():
            dual = product(forward_ad.make_dual(left, left), right)
            assert torch.allclose(forward_ad.unpack_dual(dual).tangent, expected, atol=1e-6)
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.allclose(product(left, right), expected, atol=1e-6)
    assert "_linear_pointwise" not in operations.names


class Recorder(list[str]):
    """A backend of `torch.compile`: the code of what it is given, which it runs as it is."""

    def __call__(self, module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.append(module.code)
        return module.forward


def test_product_that_is_recorded() -> None:
    left, right, recorded = torch.randn(6, 5), torch.randn(4, 5), Recorder()
    assert torch.allclose(torch.compile(product, backend=recorded, fullgraph=True)(left, right), left @ right.t())
    assert len(recorded) == 1 and "linear(" in recorded[0] and "_linear_pointwise" not in recorded[0]


def attention_and_maps(channels: int, size: int, samples: int = 3) -> tuple[layers.SelfAttention, Tensor]:
    attention = layers.SelfAttention(channels, 1e-6)
    nn.init.ones_(attention.gamma)
    return attention.eval(), torch.randn(samples, channels, size, size)


@needs_packing
@pytest.mark.parametrize("pairs", [1, 30_000, 10**6])
def test_attention_in_parts(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PAIRS", pairs)
    attention, maps = attention_and_maps(64, 32)
    whole, parts = Operations(), Operations()
    with whole:
        expected = attention(maps)
    with parts, torch.no_grad():
        out = attention(maps)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=1e-5)
    assert "_linear_pointwise" in parts.names and "_linear_pointwise" not in whole.names
    with Operations() as training, torch.no_grad():
        attention.train()(maps)
    assert "_linear_pointwise" not in training.names  # a checkpointed forward is that of its repetition


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize(("channels", "size", "in_parts"), [(64, 32, True), (56, 32, False), (64, 30, False)])
def test_only_large_maps_are_attended_in_parts(channels: int, size: int, in_parts: bool) -> None:
    attention, maps = attention_and_maps(channels, size)
    with Operations() as operations:
        attention(maps)
    assert ("_linear_pointwise" in operations.names) == in_parts


@torch.no_grad()
def test_attention_of_no_maps() -> None:
    attention, maps = attention_and_maps(64, 32, samples=0)
    assert attention(maps).shape == maps.shape


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning", "ignore:`is_grad:FutureWarning"
)
@torch.no_grad()
def test_traced_attention_takes_any_number_of_maps() -> None:
    attention, maps = attention_and_maps(64, 32)
    traced, more = torch.jit.trace(attention, maps), torch.randn(5, 64, 32, 32)
    torch.testing.assert_close(traced(more), attention(more), rtol=1e-5, atol=1e-5)
    assert "_linear_pointwise" not in str(traced.inlined_graph)


@needs_packing
@pytest.mark.parametrize("needed", [(True, False), (False, True), (True, True)])
def test_product_keeps_what_its_gradients_need(needed: tuple[bool, bool]) -> None:
    left, right = torch.randn(6, 5), torch.randn(4, 5)
    kept = saved_for_the_gradient(lambda: product(left.requires_grad_(needed[0]), right.requires_grad_(needed[1])))
    assert [x.shape for x in kept] == [x.shape for x, other in ((left, needed[1]), (right, needed[0])) if other]


# Networks


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 2)])
@pytest.mark.parametrize("tile_values", [1, 10_000])
def test_tiles_are_the_convolution(size: tuple[int, int], tile_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "TILE_VALUES", tile_values)
    maps, bias = torch.randn(3, 4, *size, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    for form in (torch.contiguous_format, torch.channels_last):
        kernel = winograd.winograd_kernel(weight.to(memory_format=form))
        expected = F.conv2d(maps, weight, bias, padding=1)
        maps = maps.to(memory_format=form)
        torch.testing.assert_close(winograd.winograd_conv2d(maps, kernel, bias), expected, rtol=0, atol=1e-12)
        assert winograd.winograd_conv2d(maps[:0], kernel, bias).shape == (0, *expected.shape[1:])
        without = winograd.winograd_conv2d(maps, kernel, None)
        torch.testing.assert_close(without, expected - bias[:, None, None], rtol=0, atol=1e-12)


@needs_packing
@torch.no_grad()
def test_tiles_in_a_network(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = same_with_other_kernels(network, lambda: tiles_from(monkeypatch, channels=1))
    assert {m._kept.kernel.ndim for m in network.modules() if isinstance(m, layers.Conv2d) and m._kept} == {3, 4}
    with torch.enable_grad():
        first = inputs[0].clone().requires_grad_()
        assert torch.autograd.grad(output(network, first, *inputs[1:]).sum(), first)[0].any()


@needs_packing
@torch.no_grad()
def test_tiles_come_with_the_first_large_batch_and_stay(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels=1)
    inputs = tiny_inputs(network)
    one = [x[:1] for x in inputs if x is not None]
    expected = output_of_copy(network, *inputs)
    monkeypatch.setattr(winograd, "TILES", 257)  # a map of 32x32 pixels has 256
    forms = []
    for batch in (one, inputs, one):
        torch.testing.assert_close(output(network, *batch), expected[: len(batch[0])], rtol=1e-5, atol=1e-5)
        forms.append([m._kept.kernel.ndim == 3 for m in network.modules() if isinstance(m, layers.Conv2d) and m._kept])
    assert all(packed(network)) and sum(forms[0]) < sum(forms[1]) and forms[1] == forms[2]


@torch.no_grad()
def test_products_need_no_packing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, expected = same_with_other_kernels(network, lambda: monkeypatch.setattr(layers, "PRODUCT_CHANNELS", 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(output(network, *inputs).float(), expected, rtol=0.05, atol=0.2)


@needs_packing
def test_packed_is_plain(network: Network) -> None:
    inputs = tiny_inputs(network)
    expected = output(network, *inputs).detach()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
            assert all(packed(network))
        one = [x[:1] for x in inputs if x is not None]  # a batch of another size meets the kernels as they were packed
        torch.testing.assert_close(output(network, *one), expected[:1], rtol=1e-5, atol=1e-5)


def test_without_packed_convolutions(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny_inputs(network)
    expected = output(network, *inputs).detach()
    monkeypatch.setattr(kernels, "can_pack", lambda kernel: False)
    with torch.no_grad():
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert not any(packed(network))


@torch.no_grad()
def test_packed_kernels_are_never_stale(network: Network) -> None:
    inputs = tiny_inputs(network)
    before = output(network, *inputs)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.add_(torch.randn_like(parameter))
    expected = output_of_copy(network, *inputs)
    assert not torch.allclose(expected, before, atol=1e-4)
    torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, winograd.CHANNELS])
def test_layers_alone_after_packing(network: Network, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels)
    inputs = tiny_inputs(network)
    with torch.no_grad():
        output(network, *inputs)
    for layer in [m for m in network.modules() if isinstance(m, layers.Conv2d)]:
        maps = torch.randn(2, layer.in_channels, 4, 4, requires_grad=True)
        kept, layer._kept = layer._kept, None
        expected = layer(maps)
        layer._kept = kept
        out = layer(maps)
        torch.testing.assert_close(out, expected)
        assert all(g.any() for g in torch.autograd.grad(out.square().sum(), [maps, layer.weight]))


@torch.no_grad()
def test_compiled_without_more_after_packing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels=1)
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    network.compile(backend="eager")
    torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_what_leaves_sums_and_versions_is_seen(dtype: torch.dtype) -> None:
    model = tiny_generator(generator_base_channels=32).eval()
    inputs, conv = tiny_inputs(model), model.get_submodule("stages.1.blocks.0.conv2")
    nn.init.normal_(conv.weight)  # an orthogonal one has a single singular value, whatever the vector
    model.to(dtype)
    rows = torch.arange(len(conv.weight)).roll(1)
    changes: list[Callable[[], object]] = [
        # In its memory the input channels come last from now on; the sums are of values as they lie there.
        lambda: setattr(conv.weight, "data", conv.weight.detach().view(len(rows), 3, 3, -1).permute(0, 3, 1, 2)),
        lambda: conv.weight.data.copy_(conv.weight.detach()[rows]),
        lambda: conv.weight.data.copy_(conv.weight.detach().flip(-1)),
        lambda: conv.weight.data.copy_(conv.weight.detach().mT.clone()),
        lambda: conv.u0.data.copy_(torch.randn_like(conv.u0)),
    ]
    for change in changes:
        before = output(model, *inputs)
        change()
        expected = output_of_copy(model, *inputs)
        assert not torch.allclose(expected, before, atol=1e-4)
        torch.testing.assert_close(output(model, *inputs), expected, rtol=1e-4, atol=1e-4)


def test_gradients_after_packing(network: Network) -> None:
    network.requires_grad_(False)
    inputs = tiny_inputs(network)
    with torch.no_grad():
        before = output(network, *inputs)
    first = inputs[0].clone().requires_grad_()
    out = output(network, first, *inputs[1:])
    assert torch.autograd.grad(out.square().sum(), first)[0].any()
    torch.testing.assert_close(out.detach(), before, rtol=1e-5, atol=1e-5)
    assert not any(packed(network)) and all(
        m._kept is not None for m in network.modules() if isinstance(m, KeptKernel) and m.weight.ndim == 4
    )


@pytest.mark.parametrize("channels", [1, winograd.CHANNELS])
def test_gradients_in_the_midst_of_a_forward(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels)
    layer = layers.conv2d(4, 6, 3, 1e-6).eval().requires_grad_(False)
    maps = torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = torch.autograd.grad(layer(maps).square().sum(), maps)[0]
    with torch.no_grad(), kept_kernels(layer), torch.enable_grad():
        torch.testing.assert_close(torch.autograd.grad(layer(maps).square().sum(), maps)[0], expected)


def compiled_in_place(network: Network, name: str, backend: Any) -> None:
    network.get_submodule(name).compile(backend=backend)


def compiled_and_replaced(network: Network, name: str, backend: Any) -> None:
    network.set_submodule(name, torch.compile(network.get_submodule(name), backend=backend))


def compiled_forward(network: Network, name: str, backend: Any) -> None:
    part = network.get_submodule(name)
    part.forward = torch.compile(part.forward, backend=backend)


@pytest.mark.parametrize(
    ("compiles", "runs_before"),
    [
        (compiled_in_place, False),
        (compiled_in_place, True),
        (compiled_and_replaced, False),
        (compiled_and_replaced, True),
        (compiled_forward, False),
    ],
)
@torch.no_grad()
def test_a_part_that_is_compiled_has_nothing_packed(
    compiles: Callable[[Network, str, Any], None], runs_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles_from(monkeypatch, channels=1)
    network, recorded = tiny_generator().eval(), Recorder()
    inputs = tiny_inputs(network)
    expected = output_of_copy(network, *inputs)
    if runs_before:
        output(network, *inputs)
    part = network.get_submodule("stages.1")
    compiles(network, "stages.1", recorded)
    torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert recorded and not any("reorder" in code or "_pointwise" in code for code in recorded)
    assert not any(packed(part)) and any(packed(network))


@torch.no_grad()
def test_autocast_after_packing(network: Network) -> None:
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(output(network, *inputs).float(), expected, rtol=0.05, atol=0.2)
    assert not any(packed(network))  # which would compute in float32


@torch.no_grad()
def test_switched_off_after_packing(network: Network) -> None:
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    with torch.backends.mkldnn.flags(enabled=False), Operations() as operations:
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert not any(packed(network)) and not any(name.endswith("_pointwise") for name in operations.names)


@torch.no_grad()
def test_tangents_after_packing(network: Network) -> None:
    first, labels = tiny_inputs(network)
    output(network, first, labels)
    direction = torch.randn_like(first)

    def function(x: Tensor) -> Tensor:
        return output(network, x, labels)

    with torch.enable_grad():
        _, expected = torch.autograd.functional.jvp(function, first, direction)
    assert expected.any()
    torch.testing.assert_close(torch.func.jvp(function, (first,), (direction,))[1], expected, rtol=1e-4, atol=1e-4)
    output(network, first, labels)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(first, direction))).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_transform_leaves_no_kernels_behind(network: Network) -> None:
    network.requires_grad_(False)
    first, labels = tiny_inputs(network)
    expected = output(network, first, labels)
    for _ in range(2):
        assert torch.func.grad(lambda x: output(network, x, labels).square().sum())(first).any()
        torch.testing.assert_close(output(network, first, labels), expected)


@torch.no_grad()
def test_a_hook_that_asks_for_gradients() -> None:
    model = tiny_generator().eval()
    inputs, stages = tiny_inputs(model), model.get_submodule("stages")
    expected, seen = output(model, *inputs), []

    def start(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        seen.append(args[0].detach().requires_grad_())
        return seen[0], *args[1:]

    stages[1].register_forward_pre_hook(start)
    out = output(model, *inputs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weights = [model.get_parameter(f"stages.1.blocks.0.{name}.weight") for name in ("conv2", "bn1.gain")]
    assert all(gradient.any() for gradient in torch.autograd.grad(out.sum(), [*seen, *weights]))


@torch.no_grad()
def test_copies_after_packing(network: Network) -> None:
    inputs, file = tiny_inputs(network), io.BytesIO()
    expected = output(network, *inputs)
    torch.save(network, file)
    file.seek(0)
    for copied in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        torch.testing.assert_close(output(copied, *inputs), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vmap_after_packing(overrides: dict[str, Any]) -> None:
    model = tiny_generator(**overrides).eval()
    latents, labels = tiny_inputs(model)
    embeddings = model.class_embedding(labels)
    expected = output(model, latents, None, embeddings)

    def single(latents: Tensor, embeddings: Tensor) -> Tensor:
        return output(model, latents[None], None, embeddings[None])[0]

    torch.testing.assert_close(torch.vmap(single)(latents, embeddings), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_compiled_after_packing(network: Network) -> None:
    inputs = tiny_inputs(network)
    expected = output(network, *inputs)
    network.compile(backend="aot_eager")
    with kept_kernels(network):
        torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert not any(packed(network))  # the compiler packs by itself, and packing would break its graph at every layer


def test_compiled_samples_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a weight has changed is seen after the graph ran, which then runs again."""
    model = tiny_generator().eval()
    (latents, labels), conv = tiny_inputs(model), model.get_submodule("stages.1.blocks.0.conv2")

    def sample(network: Network) -> Tensor:
        return network.sample(labels, latents=latents)

    before = [sample(model), sample(model)]  # packed, which a graph does not take
    model.compile(backend="eager", dynamic=False)
    before += [sample(model), sample(model)]
    torch.testing.assert_close(before[0].expand(3, *before[0].shape), torch.stack(before[1:]), rtol=1e-5, atol=1e-5)
    assert not any(packed(model))
    changes: list[Callable[[], object]] = [
        lambda: conv.weight.data.neg_(),
        lambda: setattr(conv.weight, "data", conv.weight.data * torch.arange(1.0, 4.0)),
        lambda: setattr(conv, "weight", nn.Parameter(conv.weight.data.flip(0).contiguous())),
        lambda: conv.u0.data.copy_(conv.u0.roll(1, dims=1)),
        lambda: model.load_state_dict({name: x.double() for name, x in model.state_dict().items()}, assign=True),
        lambda: model.float(),
        lambda: model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()}),
    ]
    for number, change in enumerate(changes):
        change()
        expected = sample(copy.deepcopy(model))
        torch.testing.assert_close(sample(model), expected, rtol=1e-5, atol=1e-5, msg=str(number))
    monkeypatch.setattr(KeptKernel, "_keep", None)  # nothing is made anew, now
    torch.testing.assert_close(sample(model), expected, rtol=1e-5, atol=1e-5)


def test_compiled_samples_are_looked_at_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another thread that samples as soon as it can, which makes the kernels anew."""
    model: Network = tiny_generator().eval()
    latents, labels = tiny_inputs(model)
    model.compile(backend="eager", dynamic=False)
    model.sample(labels, latents=latents)
    events: list[str] = []
    other = threading.Thread(target=model.sample, args=(labels,), kwargs={"latents": latents})
    run, differ = model._compiled_call_impl, kernels._differ

    def note(event: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        events.append(event)
        if events == ["run", "look"]:
            other.start()
            other.join(0.5)
        return function(*args, **kwargs)

    monkeypatch.setattr(model, "_compiled_call_impl", functools.partial(note, "run", run))
    monkeypatch.setattr(kernels, "_differ", functools.partial(note, "look", differ))
    model.get_parameter("stages.1.blocks.0.conv2.weight").data.neg_()
    given = model.sample(labels, latents=latents)
    other.join()
    assert events[:4] == ["run", "look", "look", "run"]
    torch.testing.assert_close(given, copy.deepcopy(model).sample(labels, latents=latents), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_fails_leaves_no_kernel_trusted(compiled: bool) -> None:
    model = tiny_generator().eval()
    model.sample(0)
    if compiled:
        model.compile(backend="eager")
        model.sample(0)

    def fail(*_: Any) -> None:
        raise RuntimeError("of a hook")

    model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="of a hook"):
        model.sample(0)
    assert not any(m._trusts_kept or m._packs for m in model.modules() if isinstance(m, KeptKernel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@torch.no_grad()
def test_sums_tell_weights_apart_that_sum_alike(dtype: torch.dtype) -> None:
    layer = layers.conv2d(8, 8, 3, sn_eps=None).to(dtype).eval()
    maps = torch.randn(2, 8, 5, 5, dtype=dtype)
    board = (-1.0) ** torch.arange(8 * 8 * 9).view(8, 8, 3, 3).flip(0)
    alike = [
        nn.init.dirac_(torch.empty(8, 8, 3, 3)),
        nn.init.dirac_(torch.empty(8, 8, 3, 3)).roll(3, 0),
        board,
        -board,
    ]
    for weight in alike:
        layer.weight.data.copy_(weight)
        torch.testing.assert_close(layer(maps), copy.deepcopy(layer)(maps))


@torch.no_grad()
def test_small_writes_are_seen_under_autocast() -> None:
    layer = layers.conv2d(16, 16, 3, sn_eps=None).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for number in range(16):
            layer.kernel()
            layer.weight.data[number, number, 1, 1] += 5e-4 * layer.weight.abs().max()
            assert torch.equal(layer.kernel(), layer.weight)


@torch.no_grad()
def test_a_weight_made_smaller_is_seen() -> None:
    network = tiny_discriminator().eval()
    images, labels = tiny_inputs(network, num_samples=2)
    network.class_embedding.weight[4] *= 5
    output(network, images, labels)
    for tensor, rows in (
        (network.class_embedding.weight, slice(2)),
        (network.class_embedding.u0, (slice(None), slice(2))),
    ):
        tensor.data = tensor.data[rows]
    torch.testing.assert_close(output(network, images, labels), output_of_copy(network, images, labels))


@torch.no_grad()
def test_images_lie_in_memory_as_users_expect() -> None:
    model = tiny_generator().eval()
    assert output(model, *tiny_inputs(model)).is_contiguous()


def test_sampling_makes_no_kernel_twice() -> None:
    model = tiny_generator().eval()
    model.sample([0])
    kernels = [module._kept for module in model.modules() if isinstance(module, KeptKernel)]
    assert all(kernels)
    model.eval().sample([1])
    now = [module._kept for module in model.modules() if isinstance(module, KeptKernel)]
    assert all(a is not None and b is not None and a.kernel is b.kernel for a, b in zip(kernels, now, strict=True))


@torch.no_grad()
def test_networks_whose_kernels_can_not_be_kept(network: Network) -> None:
    inputs = tiny_inputs(network)
    weights = {name: 1.3 * parameter for name, parameter in network.named_parameters()}
    with torch.enable_grad():
        expected = torch.func.functional_call(network, weights, inputs, {"return_dict": False})[0].detach()
    actual = torch.func.functional_call(network, weights, inputs, {"return_dict": False})[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    for module in network.modules():
        if isinstance(module, layers.Conv2d):
            torch.nn.utils.prune.random_unstructured(module, "weight", amount=0.3)
    with torch.enable_grad():
        expected = output(network, *inputs).detach()
    torch.testing.assert_close(output(network, *inputs), expected, rtol=1e-5, atol=1e-5)


def test_threads_share_a_model() -> None:
    model = tiny_generator().eval()
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = output(model, *inputs)

    def work(index: int) -> Tensor:
        if index % 3 == 2:
            return output(model, *inputs).detach()
        with torch.no_grad():
            return output(model, *inputs)

    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(work, range(60)):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_part_written_through_data_is_seen() -> None:
    model = tiny_generator().eval()
    inputs = tiny_inputs(model)
    before = output(model, *inputs)
    conv = model.get_submodule("stages.1.blocks.0.conv2")
    conv.weight.data[:, 3] = 0  # as in dissecting a generator
    expected = output_of_copy(model, *inputs)
    assert not torch.allclose(expected, before, atol=1e-4)
    torch.testing.assert_close(output(model, *inputs), expected, rtol=1e-5, atol=1e-5)
