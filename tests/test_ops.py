"""Every operation in its computed form beside the plain one, alone and in networks; and how much work each does."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from common import (
    VARIANTS,
    Operations,
    saved_for_the_gradient,
    tiny_config,
    tiny_discriminator,
    tiny_generator,
    tiny_inputs,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from biggan_hf import ops
from biggan_hf.eval_mode import folded_weights
from biggan_hf.layers import BatchNorm2d, Conv2dPool, UpsampleConv2d
from biggan_hf.modeling_biggan import (
    BigGANDeepDiscriminatorBlock,
    BigGANDeepGeneratorBlock,
    BigGANDiscriminatorBlock,
    BigGANGeneratorBlock,
)
from biggan_hf.ops import plain_operations
from biggan_hf.spectral_norm import SpectralNorm


FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float | None = None) -> None:
    """To the tolerance of their dtype, relative to the largest value of each, or to one."""
    for a, b in zip(ours, theirs, strict=True):
        largest = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=(tolerance or TOLERANCE[b.dtype]) * largest)


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of all inputs, which the function leaves as they are."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.arange(out.numel(), dtype=out.dtype).cos().view_as(out)
    gradients = torch.autograd.grad((out * upstream).sum(), leaves)
    assert all(torch.equal(leaf, x) for leaf, x in zip(leaves, inputs, strict=True))
    return [out, *gradients]


def assert_computed_is_plain(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """With gradients and without, which may take another form."""
    with plain_operations():
        expected = with_gradients(function, inputs)
    assert_same(with_gradients(function, inputs), expected)
    with torch.no_grad():
        assert_same([function(*(x.clone() for x in inputs))], expected[:1])


def test_the_switch_is_put_back() -> None:
    with pytest.raises(KeyError), plain_operations():
        with plain_operations():
            pass
        assert ops._plain
        raise KeyError
    first, second = plain_operations(), plain_operations()  # as of two threads
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ops._plain
    second.__exit__(None, None, None)
    assert not ops._plain


# Operation by operation


class Case(NamedTuple):
    samples: int
    channels: tuple[int, int]
    size: tuple[int, int]
    bias: bool = True
    dtype: torch.dtype = torch.float32
    format: torch.memory_format = torch.contiguous_format  # of the map
    weight_format: torch.memory_format = torch.contiguous_format


def draw(number: int) -> Iterator[Case]:
    source = random.Random(0)
    for _ in range(number):
        yield Case(
            samples=source.randint(1, 3),
            channels=(source.randint(1, 24), source.randint(1, 24)),
            size=(2 * source.randint(1, 4), 2 * source.randint(1, 4)),
            bias=source.random() < 0.7,
            dtype=source.choice([torch.float32, torch.float64]),
            format=source.choice(FORMATS),
            weight_format=source.choice(FORMATS),
        )


WIDE = {
    "wide": Case(2, (ops.WIDE, 96), (2, 4)),
    "wide, channels last": Case(1, (1536, 40), (4, 4), bias=False, format=torch.channels_last),
    "wide in float64": Case(1, (ops.WIDE, 24), (2, 6), dtype=torch.float64, weight_format=torch.channels_last),
    "not wide": Case(2, (ops.WIDE - 1, 96), (2, 2)),
}


@pytest.mark.parametrize("layer_of", [UpsampleConv2d, Conv2dPool])
@pytest.mark.parametrize("case", [*draw(40), *WIDE.values()], ids=[*map(str, range(40)), *WIDE])
def test_convolutions(case: Case, layer_of: type[UpsampleConv2d | Conv2dPool]) -> None:
    operation = ops.upsample_conv2d if layer_of is UpsampleConv2d else ops.conv2d_pool
    layer = layer_of(*case.channels, 3, bias=case.bias).to(case.dtype)
    maps = torch.randn(case.samples, case.channels[0], *case.size, dtype=case.dtype).to(memory_format=case.format)
    weight = layer.weight.detach().to(memory_format=case.weight_format)
    bias = [] if layer.bias is None else [layer.bias.detach()]

    def function(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return operation(maps, weight, bias)

    assert_computed_is_plain(function, [maps, weight, *bias])
    # Beside torch's own operations, as the paper writes it.
    convolved = functools.partial(F.conv2d, weight=weight, bias=layer.bias, padding=1)
    expected = (
        convolved(F.interpolate(maps, scale_factor=2.0))
        if layer_of is UpsampleConv2d
        else F.avg_pool2d(convolved(maps), 2)
    )
    assert_same([layer(maps)], [expected])
    with Operations() as operations:
        layer(maps)
    assert ("convolution" in operations.names) == (case.channels[0] < ops.WIDE)


@pytest.mark.parametrize("case", [*draw(20)], ids=[*map(str, range(20))])
def test_convolutions_in_tiles(case: Case) -> None:
    maps = torch.randn(case.samples, case.channels[0], *case.size, dtype=case.dtype).to(memory_format=case.format)
    weight = torch.randn(*case.channels[::-1], 3, 3, dtype=case.dtype).to(memory_format=case.weight_format)
    bias = torch.randn(case.channels[1], dtype=case.dtype) if case.bias else None
    tiles = ops.weight_in_tiles(weight)
    expected = with_gradients(lambda x: F.conv2d(x, weight, bias, padding=1), [maps])
    assert_same(with_gradients(lambda x: ops.conv2d(x, tiles, bias), [maps]), expected)
    with FlopCounterMode(display=False) as counter:
        assert_same([ops.conv2d(maps, tiles, bias)], expected[:1])
    assert counter.get_total_flops() == 2 * expected[0].numel() * case.channels[0] * 4  # and not 9
    with torch.autocast("cpu"):
        half = maps.bfloat16()
        computed = ops.conv2d(half, tiles, bias)
    assert computed.dtype == torch.bfloat16
    assert_same([computed], [F.conv2d(half.to(case.dtype), weight, bias, padding=1).bfloat16()], 2**-8)


@pytest.mark.parametrize("layer_of", [UpsampleConv2d, Conv2dPool])
@pytest.mark.parametrize("channels", [3, ops.WIDE])
def test_no_images_at_all(layer_of: type[UpsampleConv2d | Conv2dPool], channels: int) -> None:
    layer, size = layer_of(channels, 2, 3), 8 if layer_of is UpsampleConv2d else 2
    maps = torch.ones(0, channels, 4, 4, requires_grad=True)
    layer(maps).sum().backward()
    with torch.no_grad():
        assert layer(maps).shape == (0, 2, size, size) and maps.grad is not None


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (ops.window_sum, lambda x: 4 * F.avg_pool2d(x, 2, stride=1)),
        (functools.partial(ops.window_sum, padding=1), lambda x: 4 * F.avg_pool2d(F.pad(x, [1] * 4), 2, stride=1)),
        (ops.average_pool, lambda x: F.avg_pool2d(x, 2)),
    ],
)
def test_windows(
    function: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], memory_format: torch.memory_format
) -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    torch.testing.assert_close(function(maps), plain(maps), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.vmap(function)(maps[None])[0], function(maps))
    assert torch.autograd.gradcheck(function, maps, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, maps)  # R1 needs the gradient of a gradient
    assert not saved_for_the_gradient(lambda: function(maps))


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_batch_norm(samples: int, memory_format: torch.memory_format) -> None:
    maps = (3 * torch.randn(4, 3, 2, 5, dtype=torch.float64) + 2).to(memory_format=memory_format)
    gain, bias = (torch.randn(samples, 3, dtype=torch.float64) for _ in range(2))
    mean, var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    assert_computed_is_plain(lambda x, g, b: ops.batch_norm(x, g, b, mean, var, 1e-3), [maps, gain, bias])
    assert_computed_is_plain(training_norm, [maps, gain, bias])
    leaves = [x.requires_grad_() for x in (maps, gain, bias)]
    assert torch.autograd.gradcheck(training_norm, leaves)
    for form in (contextlib.nullcontext(), plain_operations()):
        with form:
            _, *statistics = ops.batch_norm_in_training(maps, gain, bias, 1e-3)
        assert_same(statistics, [maps.mean((0, 2, 3)), maps.var((0, 2, 3))])  # unbiased
        assert not any(statistic.requires_grad for statistic in statistics)


def training_norm(maps: Tensor, gain: Tensor, bias: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    return ops.batch_norm_in_training(maps, gain, bias, 1e-3, group)[0]


def test_batch_norm_of_a_group_of_one(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        maps, gain, bias = torch.randn(4, 3, 2, 5), torch.randn(4, 3), torch.randn(4, 3)
        together = functools.partial(training_norm, group=dist.new_group([0]))
        assert_same(with_gradients(together, [maps, gain, bias]), with_gradients(training_norm, [maps, gain, bias]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("samples", [0, 2])
def test_attention(memory_format: torch.memory_format, samples: int) -> None:
    query, key, value = (
        torch.randn(samples, channels, size, size).to(memory_format=memory_format).flatten(2).mT
        for channels, size in ((2, 6), (2, 3), (8, 3))
    )
    assert_computed_is_plain(ops.attention, [query, key, value])


def test_attention_does_not_keep_the_matrix_of_all_pairs() -> None:
    query, key, value = (torch.randn(1, n, c, requires_grad=True) for n, c in ((1024, 8), (256, 8), (256, 32)))
    kept = saved_for_the_gradient(lambda: ops.attention(query, key, value))
    assert max(tensor.numel() for tensor in kept) < 1024 * 256


# Network by network


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator])
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks(variant: str, build: Callable[..., Any], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "WIDE", 8)
    monkeypatch.setattr(ops, "WIDE_FOR_TILES", 8)
    computed = answers(build(**VARIANTS[variant]).double(), training)
    with plain_operations():
        plain = answers(build(**VARIANTS[variant]).double(), training)
    assert_same(computed, plain, 1e-9)


def answers(network: Any, training: bool) -> list[Tensor]:
    """Outputs, with folded weights too, all gradients and buffers."""
    inputs, labels = tiny_inputs(network)

    def forward(x: Tensor) -> Tensor:
        return next(iter(network(x, labels).values()))

    network.train(training)
    results = with_gradients(forward, [inputs.double()])
    forward(inputs.double()).square().sum().backward()
    with torch.no_grad(), folded_weights(network.eval()):
        results.append(forward(inputs.double()))
    weights = [weight.grad for weight in network.parameters() if weight.grad is not None]
    return [x.detach() for x in (*results, *weights, *network.buffers())]


# How much is done


DEEP: dict[str, Any] = {"architecture": "biggan-deep"}


class Cost(NamedTuple):
    """
    A block that resamples: its class, the arguments after the configuration, the configuration. Then, for a sample and
    a pixel of its smaller map (a quarter of the larger), the multiplications: nine of a 3x3 beside the resampling,
    4 · 9 of others on the larger map, a shortcut's once; and the values kept for the backward pass: inputs of norms
    and convolutions, outputs of ReLUs, where the smaller map has 16x16 pixels (the sums of windows of the larger have
    a row and a column more).
    """

    kind: Any
    arguments: tuple[Any, ...]
    overrides: dict[str, Any]
    multiplications: int
    kept_values: float


COSTS = {
    "generator": Cost(BigGANGeneratorBlock, (8, 4), {}, 8 * 4 + 9 * 8 * 4 + 4 * 9 * 4 * 4, 2 * 8 + 4 * 2 * 4),
    "deep generator": Cost(
        *(BigGANDeepGeneratorBlock, (16, 8, True), DEEP),
        *(16 * 4 + 9 * 4 * 4 + 4 * (9 * 4 * 4 + 4 * 8), 2 * 16 + 2 * 4 + 4 * 4 * 4),
    ),
    "discriminator": Cost(
        *(BigGANDiscriminatorBlock, (4, 8, True, False), {}),
        *(4 * 8 + 4 * 9 * 4 * 8 + 9 * 8 * 8, 4 + 4 * (4 + 8) + (33 / 16) ** 2 * 8),
    ),
    "deep discriminator": Cost(
        *(BigGANDeepDiscriminatorBlock, (8, 16, True), DEEP),
        *(8 * 8 + 4 * (8 * 4 + 2 * 9 * 4 * 4) + 4 * 16, 8 + 4 * (8 + 3 * 4) + 4),
    ),
}


def costed(name: str, samples: int, size: tuple[int, int], dtype: torch.dtype) -> tuple[nn.Module, Tensor, Any]:
    """A block without spectral norm or condition, its input (the smaller map has `size`), and its forward."""
    cost = COSTS[name]
    plain = {"generator_spectral_norm": False, "discriminator_spectral_norm": False}
    block = cost.kind(tiny_config(**cost.overrides, **plain), *cost.arguments).to(dtype)
    factor = 2 if "discriminator" in name else 1
    maps = torch.randn(samples, cost.arguments[0], *(factor * n for n in size), dtype=dtype)
    if "discriminator" in name:
        return block, maps, block
    for norm_name, module in [*block.named_children()]:
        if norm_name.startswith("bn"):
            setattr(block, norm_name, BatchNorm2d(module.num_features, 1e-5).to(dtype))
    return block, maps, lambda x: block(x, None, None)


@pytest.mark.parametrize("name", COSTS)
def test_multiplications(name: str) -> None:
    block, maps, forward = costed(name, samples=2, size=(2, 3), dtype=torch.float64)
    expected = 2 * COSTS[name].multiplications * 2 * 2 * 3  # FLOPs, samples, pixels
    with FlopCounterMode(display=False) as counter:
        out = forward(maps.clone().requires_grad_())
        assert counter.get_total_flops() == expected
        out.sum().backward()
        assert counter.get_total_flops() == 3 * expected
    with torch.no_grad(), folded_weights(block.eval()), FlopCounterMode(display=False) as counter:
        forward(maps)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("name", COSTS)
def test_maps_that_are_kept_for_the_gradient(name: str) -> None:
    block, maps, forward = costed(name, samples=8, size=(16, 16), dtype=torch.float32)
    kept = saved_for_the_gradient(lambda: forward(maps.requires_grad_()))
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    values = sum(size for pointer, size in storages.items() if pointer not in parameters) / 4
    assert values < 1.02 * COSTS[name].kept_values * 8 * 16 * 16  # statistics and kernels are small beside the maps


@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator])
@pytest.mark.parametrize("overrides", [{}, DEEP], ids=["plain", "deep"])
def test_layers_of_one_shape_take_two_products_at_the_start(
    build: Callable[..., Any], overrides: dict[str, Any]
) -> None:
    network = build(**overrides).train()
    normed = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    shapes = {(layer.weight.flatten(1).shape, layer.spectral_norm_eps) for layer in normed}
    with Operations() as operations:
        network(*tiny_inputs(network))
    products = [name for name in operations.names if name in ("bmm", "mm", "addmm", "convolution")]
    assert products[: 2 * len(shapes)] == ["bmm"] * 2 * len(shapes) and len(shapes) < len(normed)
