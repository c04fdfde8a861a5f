"""The fast paths beside the plain form of the same function, layer by layer and block by block; and how much they do.

The plain form upsamples before a convolution, pools after it, and has its shortcuts at the full size.
"""

import functools
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from common import (
    Operations,
    saved_for_the_gradient,
    tiles_from,
    tiny_config,
    tiny_discriminator,
    tiny_generator,
    tiny_inputs,
)
from conversion_common import ORIGINALS, answers, assert_close, convert
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from biggan_hf import BigGANDiscriminator, BigGANModel, layers, winograd
from biggan_hf.autograd import Function
from biggan_hf.conversion import convert as convert_any
from biggan_hf.kernels import can_pack, kept_kernels
from biggan_hf.layers import Conv2d, Modulation, Resample, conv2d, modulations
from biggan_hf.modeling_biggan import (
    BigGANDeepDiscriminatorBlock,
    BigGANDeepGeneratorBlock,
    BigGANDiscriminatorBlock,
    BigGANGeneratorBlock,
)
from biggan_hf.resampling import box_sum, halve, transposed_product
from biggan_hf.spectral_norm import SpectralNorm, iterate_in_training
from biggan_hf.training.ema import update_ema


RESAMPLE: list[Resample | None] = [None, "up", "down"]
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def normalised(layer: nn.Module) -> Tensor:
    """W / σ by one step from the layer's u0, whose u and v are constants (Miyato et al. 2018, algorithm 1)."""
    if not isinstance(layer, SpectralNorm):
        return layer.get_parameter("weight")
    matrix, eps = layer.weight.flatten(1), layer.spectral_norm_eps
    with torch.no_grad():
        v = F.normalize(layer.u0 @ matrix, eps=eps)
        u = F.normalize(v @ matrix.T, eps=eps)
    return layer.weight / (u @ matrix @ v.T)


def convolved(layer: nn.Module, x: Tensor) -> Tensor:
    """Without resampling."""
    weight, bias = normalised(layer), getattr(layer, "bias", None)
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """To the tolerance of their dtype, relative to the largest value of each, or to one."""
    for a, b in zip(ours, theirs, strict=True):
        largest = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[b.dtype] * largest)


def assert_same_with_gradients(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], module: nn.Module
) -> None:
    """Outputs and the gradients of all inputs and parameters; a training forward moves what the plain form reads."""
    results = []
    for function in (plain, fast):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        upstream = torch.arange(out.numel(), dtype=out.dtype).cos().view_as(out)
        results.append([out, *torch.autograd.grad((out * upstream).sum(), [*leaves, *module.parameters()])])
        assert all(torch.equal(leaf, x) for leaf, x in zip(leaves, inputs, strict=True))
    assert_same(*reversed(results))


@torch.no_grad()
def assert_same_with_kept_kernels(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], module: nn.Module
) -> None:
    """Twice, for the first forward packs the kernels of the second."""
    expected = plain(*inputs)
    for _ in range(2):
        with kept_kernels(module):
            assert_same([fast(*(x.clone() for x in inputs))], [expected])


def test_functions_look_up_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's own do in every call."""

    class Double(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient

    looked_up: list[object] = []
    monkeypatch.setattr(inspect, "signature", looked_up.append)
    x = torch.ones(2, requires_grad=True)
    assert torch.autograd.grad(Double.apply(x).sum(), x)[0].tolist() == [2, 2]
    assert not looked_up


# Convolutions


class Case(NamedTuple):
    samples: int
    channels: tuple[int, int]
    size: tuple[int, int]
    kernel_size: int = 3
    resample: Resample | None = None
    bias: bool = True
    sn_eps: float | None = None
    dtype: torch.dtype = torch.float32
    format: torch.memory_format = torch.contiguous_format  # of the map
    weight_format: torch.memory_format = torch.contiguous_format
    narrow: bool = False  # whether narrow layers, too, take tiles and products of matrices


def draw(number: int) -> Iterator[Case]:
    source = random.Random(0)
    for _ in range(number):
        resample = source.choice(RESAMPLE)
        smallest = 2 if resample == "down" else 1
        yield Case(
            samples=source.randint(1, 3),
            channels=(source.randint(1, 24), source.randint(1, 24)),
            size=(source.randint(smallest, 9), source.randint(smallest, 9)),
            kernel_size=source.choice([1, 3]) if resample is None else 3,
            resample=resample,
            bias=source.random() < 0.7,
            sn_eps=source.choice([None, 1e-6]),
            dtype=source.choice([torch.float32, torch.float64]),
            format=source.choice(FORMATS),
            weight_format=source.choice(FORMATS),
            narrow=source.random() < 0.5,
        )


TILES, PRODUCT = winograd.CHANNELS, layers.PRODUCT_CHANNELS
WIDE = {
    "tiles": Case(2, (TILES, TILES), (23, 20), sn_eps=1e-6),
    "tiles, few": Case(1, (1100, 1100), (2, 64), bias=False, weight_format=torch.channels_last),
    "too few for tiles": Case(1, (1100, 1100), (2, 62)),
    "too small for tiles": Case(2, (TILES, TILES), (18, 26), sn_eps=1e-6),
    "too narrow for tiles": Case(2, (TILES - 1, TILES), (24, 24), format=torch.channels_last),
    "pointwise": Case(3, (1536, TILES), (8, 8), kernel_size=1, sn_eps=1e-6),
    "product": Case(2, (PRODUCT, 96), (2, 3), resample="up", sn_eps=1e-6),
    "product, channels last": Case(1, (1536, 40), (4, 4), resample="up", bias=False, format=torch.channels_last),
    "product in float64": Case(1, (PRODUCT, 24), (1, 3), resample="up", dtype=torch.float64),
    "too narrow for a product": Case(2, (PRODUCT - 1, 96), (2, 2), resample="up"),
    "product, pooled": Case(2, (PRODUCT, 40), (4, 6), resample="down", sn_eps=1e-6, format=torch.channels_last),
    "pooled": Case(2, (PRODUCT - 1, TILES), (4, 6), resample="down", sn_eps=1e-6),
}


def build(case: Case) -> tuple[Conv2d, Tensor]:
    layer = conv2d(*case.channels, case.kernel_size, case.sn_eps, case.bias, case.resample).to(case.dtype)
    maps = torch.randn(case.samples, case.channels[0], *case.size, dtype=case.dtype)
    layer.weight.data = layer.weight.data.to(memory_format=case.weight_format)
    return layer, maps.to(memory_format=case.format)


def plain_convolution(layer: Conv2d, x: Tensor) -> Tensor:
    if layer.resample == "up":
        return convolved(layer, upsampled(x))
    return pooled(convolved(layer, x)) if layer.resample == "down" else convolved(layer, x)


@pytest.mark.parametrize("case", [*draw(60), *WIDE.values()], ids=[*map(str, range(60)), *WIDE])
def test_convolution_is_the_plain_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.narrow:
        tiles_from(monkeypatch, channels=1)
        monkeypatch.setattr(layers, "PRODUCT_CHANNELS", 1)
    layer, maps = build(case)
    plain = functools.partial(plain_convolution, layer)
    for training in (True, False):
        assert_same_with_gradients(layer.train(training), plain, [maps], layer)
    assert_same_with_kept_kernels(layer, plain, [maps], layer)


@pytest.mark.parametrize("name", WIDE)
@torch.no_grad()
def test_wide_layers_take_the_form_of_their_width(name: str) -> None:
    layer, maps = build(WIDE[name])
    with kept_kernels(layer.eval()), Operations() as operations:
        layer(maps)
    assert bool({"col2im", "im2col"} & {*operations.names}) == name.startswith("product")
    assert layer._kept is not None
    assert (layer._kept.kernel.ndim == 3) == (name.startswith("tiles") and can_pack(layer.weight))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("padding", [0, 1])
def test_sums_of_windows(memory_format: torch.memory_format, padding: int) -> None:
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    function = functools.partial(box_sum, padding=padding)
    expected = 4 * F.avg_pool2d(F.pad(maps, [padding] * 4), 2, stride=1)
    torch.testing.assert_close(function(maps), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.vmap(lambda x: function(x[None])[0])(maps), expected)
    assert torch.autograd.gradcheck(function, maps, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, maps)
    assert not saved_for_the_gradient(lambda: function(maps))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_halving(memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.equal(halve(maps), F.avg_pool2d(maps, 2))
    assert torch.equal(torch.vmap(halve)(maps[None])[0], halve(maps))
    assert torch.autograd.gradcheck(halve, maps, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(halve, maps)
    assert not saved_for_the_gradient(lambda: halve(maps))


def test_resampling_wants_windows() -> None:
    with pytest.raises(ValueError, match="kernel_size must be 3 with resample='up', got 1"):
        layers.conv2d(3, 4, 1, None, resample="up")


@pytest.mark.parametrize("memory_format", FORMATS)
def test_transposed_product_is_a_transposed_convolution(memory_format: torch.memory_format) -> None:
    maps, weight = torch.randn(2, 3, 2, 4), torch.randn(5, 3, 3, 3).to(memory_format=memory_format)
    expected = F.conv_transpose2d(maps, weight.flip(2, 3).transpose(0, 1), stride=2)
    out = transposed_product(maps, weight)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("resample", RESAMPLE)
@torch.no_grad()
def test_kept_kernels_and_maps_are_channels_last(dtype: torch.dtype, resample: Resample | None) -> None:
    layer, maps = build(Case(2, (3, 5), (4, 6), resample=resample, dtype=dtype))
    assert layer.eval()(maps).is_contiguous(memory_format=torch.channels_last)
    assert layer.kernel().is_contiguous(memory_format=torch.channels_last)


# Blocks


def norm_relu(norm: Any, x: Tensor, modulation: Modulation) -> Tensor:
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    gain, bias = (tensor[:, :, None, None] for tensor in modulation)
    return F.relu(F.batch_norm(x, *statistics, training=norm.training, eps=norm.eps) * gain + bias)


def plain_generator_block(block: Any, x: Tensor, modulations: Sequence[Modulation]) -> Tensor:
    h = norm_relu(block.bn1, x, modulations[0])
    h = convolved(block.conv1, upsampled(h))
    h = norm_relu(block.bn2, h, modulations[1])
    return convolved(block.conv2, h) + convolved(block.conv_sc, upsampled(x))


def plain_deep_generator_block(block: Any, x: Tensor, modulations: Sequence[Modulation]) -> Tensor:
    resampled = upsampled if block.upsample else lambda x: x
    h = convolved(block.conv1, norm_relu(block.bn1, x, modulations[0]))
    h = convolved(block.conv2, resampled(norm_relu(block.bn2, h, modulations[1])))
    h = convolved(block.conv3, norm_relu(block.bn3, h, modulations[2]))
    h = convolved(block.conv4, norm_relu(block.bn4, h, modulations[3]))
    return h + (resampled(x)[:, : h.shape[1]] if block.conv_sc is None else convolved(block.conv_sc, resampled(x)))


def plain_discriminator_block(block: Any, x: Tensor) -> Tensor:
    shortcut = F.relu(x) if block.preactivation and block.shortcut_relu else x
    h = convolved(block.conv1, F.relu(x) if block.preactivation else x)
    h = convolved(block.conv2, F.relu(h))
    out = h + (shortcut if isinstance(block.conv_sc, nn.Identity) else convolved(block.conv_sc, shortcut))
    return pooled(out) if block.downsample else out


def plain_deep_discriminator_block(block: Any, x: Tensor) -> Tensor:
    resampled = pooled if block.downsample else lambda x: x
    h = convolved(block.conv3, F.relu(convolved(block.conv2, F.relu(convolved(block.conv1, F.relu(x))))))
    # StudioGAN's block pools before the last ReLU.
    h = convolved(block.conv4, F.relu(resampled(h)) if block.projection else resampled(F.relu(h)))
    kept = resampled(F.relu(x) if block.shortcut_relu else x)
    added = kept[:, :0] if block.conv_sc is None else convolved(block.conv_sc, kept)
    return h + (torch.cat([kept, added], dim=1) if h.shape[1] != added.shape[1] else added)


PLAIN: dict[type[nn.Module], Callable[..., Tensor]] = {
    BigGANGeneratorBlock: plain_generator_block,
    BigGANDeepGeneratorBlock: plain_deep_generator_block,
    BigGANDiscriminatorBlock: plain_discriminator_block,
    BigGANDeepDiscriminatorBlock: plain_deep_discriminator_block,
}
DEEP: dict[str, Any] = {"architecture": "biggan-deep"}
PROJECTION = {**DEEP, "deep_projection_shortcut": True}
RELU = {"discriminator_shortcut_relu": True}
# Of what a block is made: its class, the arguments after the configuration, the configuration.
BLOCKS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "generator": (BigGANGeneratorBlock, (8, 4), {}),
    "deep generator": (BigGANDeepGeneratorBlock, (16, 16, False), DEEP),
    "deep generator, up": (BigGANDeepGeneratorBlock, (16, 8, True), DEEP),
    "projecting generator": (BigGANDeepGeneratorBlock, (16, 8, False), PROJECTION),
    "projecting generator, up": (BigGANDeepGeneratorBlock, (16, 8, True), PROJECTION),
    "discriminator, first, down": (BigGANDiscriminatorBlock, (3, 8, True, True), {}),
    "discriminator, down": (BigGANDiscriminatorBlock, (4, 8, True, False), {}),
    "narrow discriminator, down": (
        BigGANDiscriminatorBlock,
        (4, 8, True, False),
        {"discriminator_wide": False, **RELU},
    ),
    "discriminator": (BigGANDiscriminatorBlock, (8, 8, False, False), {}),
    "discriminator, wider": (BigGANDiscriminatorBlock, (4, 8, False, False), RELU),
    "deep discriminator, down": (BigGANDeepDiscriminatorBlock, (8, 16, True), DEEP),
    "deep discriminator": (BigGANDeepDiscriminatorBlock, (16, 16, False), {**DEEP, **RELU}),
    "projecting discriminator, down": (BigGANDeepDiscriminatorBlock, (8, 16, True), {**PROJECTION, **RELU}),
    "projecting discriminator": (BigGANDeepDiscriminatorBlock, (16, 16, False), PROJECTION),
}


def build_block(name: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    kind, arguments, own = BLOCKS[name]
    block = kind(tiny_config(**own, **overrides), *arguments).to(dtype)
    for norm in getattr(block, "norms", []):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return block


def fast_and_plain(name: str, block: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Functions of the map, and of a generator's condition."""
    plain = PLAIN[BLOCKS[name][0]]
    if "discriminator" in name:
        return block, functools.partial(plain, block)

    def by_hand(condition: Tensor) -> list[Modulation]:
        return [(1 + condition @ normalised(n.gain).T, condition @ normalised(n.bias).T) for n in block.norms]

    return (
        lambda x, condition: block(x, modulations(block.norms, condition), None),
        lambda x, condition: plain(block, x, by_hand(condition)),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_the_plain_one(name: str, dtype: torch.dtype) -> None:
    block = build_block(name, dtype)
    inputs = [torch.randn(2, BLOCKS[name][1][0], *((4, 6) if "down" in name else (3, 5)), dtype=dtype)]
    if "generator" in name:
        inputs.append(torch.randn(2, block.bn1.gain.in_features, dtype=dtype))
    fast, plain = fast_and_plain(name, block)
    for training in (True, False):
        block.train(training)
        assert_same_with_gradients(fast, plain, inputs, block)
    assert_same_with_kept_kernels(fast, plain, inputs, block)


@pytest.mark.parametrize("resample", ["up", "down"])
@pytest.mark.parametrize("channels", [PRODUCT - 1, PRODUCT])
def test_no_images_at_all(resample: Resample, channels: int) -> None:
    layer, size = Conv2d(channels, 2, 3, resample=resample), {"up": 8, "down": 2}[resample]
    maps = torch.ones(0, channels, 4, 4, requires_grad=True)
    layer(maps).sum().backward()
    assert layer(maps).shape == (0, 2, size, size) and maps.grad is not None


def test_evaluation_norm_is_one_operation_of_the_map() -> None:
    norm, maps = layers.BatchNorm2d(3, 1e-5).eval(), torch.randn(2, 3, 4, 4)
    with OfMaps(maps.shape) as operations, torch.no_grad():
        norm(maps)
    assert operations.names == ["addcmul"]


def test_a_gpu_takes_one_product_for_all_norms() -> None:
    for device, number in (("meta", 1), ("cpu", 6)):  # what is no CPU is taken for a GPU
        with torch.device(device), torch.no_grad(), Operations() as operations:
            norms = [layers.ConditionalBatchNorm2d(channels, 6, 1e-5, sn_eps=None) for channels in (3, 4, 5)]
            found = modulations(norms, torch.ones(2, 6))
        assert operations.names.count("mm") == number, operations.names
        assert [pair[0].shape for pair in found if pair] == [(2, 3), (2, 4), (2, 5)]


# Networks


@pytest.mark.skipif(not can_pack(torch.ones(1)), reason="this torch has no packed convolutions for this CPU")
@pytest.mark.parametrize("name", ["biggan_shared", "biggan_deep", "studiogan_deep_studiogan"])
@torch.no_grad()
def test_originals_answers_by_tiles_and_products(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels=1)
    monkeypatch.setattr(layers, "PRODUCT_CHANNELS", 1)
    folder, expected = convert(convert_any, ORIGINALS / name, tmp_path / "model"), answers(ORIGINALS / name)
    generator = BigGANModel.from_pretrained(folder)
    discriminator = BigGANDiscriminator.from_pretrained(folder, subfolder="discriminator")
    with Operations() as operations:
        assert_close(generator(expected["latents"], expected["labels"]).images, expected["images_ema"])
        assert_close(discriminator(expected["disc_inputs"], expected["labels"]).logits, expected["disc_scores"])
    convolutions = [m for network in (generator, discriminator) for m in network.modules() if isinstance(m, Conv2d)]
    plain = [layer._kept for layer in convolutions if layer.resample is None and layer.kernel_size == (3, 3)]
    assert plain and all(kept is not None and kept.kernel.ndim == 3 for kept in plain)
    # The deep discriminator of the paper pools between its convolutions.
    for operation, resample in (("col2im", "up"), ("im2col", "down")):
        resampling = sum(layer.resample == resample for layer in convolutions)
        assert operations.names.count(operation) == resampling
        assert resampling or (name, resample) == ("biggan_deep", "down")


# How much is done


class OfMaps(Operations):
    """Those whose result is of a shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if result.shape == self.shape:
            self.names.append(function.overloadpacket.__name__)
        return result


class Cost(NamedTuple):
    """Of a block that resamples, for a sample and a pixel of its smaller map, which is a quarter of the larger."""

    multiplications: int  # nine of a 3x3 beside the resampling, 4 · 9 of others on the larger map; shortcuts' once
    kept_values: float  # for the backward pass: inputs of norms and convolutions, outputs of ReLUs


# Where the smaller map has 16x16 pixels, for sums of windows of the larger one have a row and a column more.
COSTS = {
    "generator": Cost(8 * 4 + 9 * 8 * 4 + 4 * 9 * 4 * 4, 2 * 8 + 4 * 2 * 4),
    "deep generator, up": Cost(16 * 4 + 9 * 4 * 4 + 4 * (9 * 4 * 4 + 4 * 8), 2 * 16 + 2 * 4 + 4 * 4 * 4),
    "projecting generator, up": Cost(
        16 * 8 + 16 * 4 + 9 * 4 * 4 + 4 * (9 * 4 * 4 + 4 * 8), 2 * 16 + 2 * 4 + 4 * 4 * 4
    ),
    "discriminator, down": Cost(4 * 8 + 4 * 9 * 4 * 8 + 9 * 8 * 8, 4 + 4 * (4 + 8) + (33 / 16) ** 2 * 8),
    "deep discriminator, down": Cost(8 * 8 + 4 * (8 * 4 + 2 * 9 * 4 * 4) + 4 * 16, 8 + 4 * (8 + 3 * 4) + 4),
    "projecting discriminator, down": Cost(
        8 * 16 + 4 * (8 * 4 + 9 * 4 * 4) + 9 * 4 * 4 + 4 * 16, 8 + 4 * (8 + 2 * 4) + (33 / 16) ** 2 * 4 + 4
    ),
}


def costed(name: str, samples: int, size: tuple[int, int], dtype: torch.dtype) -> tuple[nn.Module, Tensor, Any]:
    """A block without spectral norm, its input (the smaller map has `size`), and its forward."""
    block = build_block(name, dtype, generator_spectral_norm=False, discriminator_spectral_norm=False)
    factor = 2 if "discriminator" in name else 1
    maps = torch.randn(samples, BLOCKS[name][1][0], *(factor * n for n in size), dtype=dtype)
    if "discriminator" in name:
        return block, maps, block
    given = [(torch.ones(samples, n.num_features), torch.zeros(samples, n.num_features)) for n in block.norms]
    return block, maps, lambda x: block(x, given, None)


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize("name", COSTS)
def test_multiplications(name: str, by_product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_product:
        monkeypatch.setattr(layers, "PRODUCT_CHANNELS", 1)
    block, maps, forward = costed(name, samples=2, size=(2, 3), dtype=torch.float64)
    expected = 2 * COSTS[name].multiplications * 2 * 2 * 3  # FLOPs, samples, pixels
    with FlopCounterMode(display=False) as counter:
        out = forward(maps.clone().requires_grad_())
        assert counter.get_total_flops() == expected
        out.sum().backward()
        assert counter.get_total_flops() == 3 * expected
    with torch.no_grad(), kept_kernels(block.eval()), FlopCounterMode(display=False) as counter:
        forward(maps)
    assert counter.get_total_flops() == expected


def of_a_product(left: Sequence[int], right: Sequence[int], *_: object, **__: object) -> int:
    return 2 * left[0] * left[1] * right[0]


@pytest.mark.skipif(not can_pack(torch.ones(1)), reason="this torch has no packed convolutions for this CPU")
@torch.no_grad()
def test_tiles_take_four_ninths_of_the_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_from(monkeypatch, channels=1)
    layer, maps = build(Case(2, (7, 5), (4, 6)))
    with kept_kernels(layer.eval()):
        layer(maps)
        with FlopCounterMode(
            display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: of_a_product}
        ) as counter:
            layer(maps)
    assert counter.get_total_flops() == 4 * 7 * 5 * 2 * 2 * 4 * 6  # of nine


@pytest.mark.parametrize("name", COSTS)
def test_maps_that_are_kept_for_the_gradient(name: str) -> None:
    block, maps, forward = costed(name, samples=8, size=(16, 16), dtype=torch.float32)
    kept = saved_for_the_gradient(lambda: forward(maps.requires_grad_()))
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    values = sum(size for pointer, size in storages.items() if pointer not in parameters) / 4
    assert values < 1.02 * COSTS[name].kept_values * 8 * 16 * 16  # statistics and kernels are small beside the maps


@pytest.mark.parametrize("name", COSTS)
def test_relu_is_in_place_but_of_the_input_of_a_block(name: str) -> None:
    _, maps, forward = costed(name, samples=1, size=(2, 2), dtype=torch.float32)
    with Operations() as operations:
        forward(maps)
    assert operations.names.count("relu") == ("discriminator" in name) and "relu_" in operations.names


def test_every_relu_of_a_generator_is_in_place() -> None:
    model = tiny_generator().train()
    with Operations() as operations:
        model(*tiny_inputs(model))
    assert "relu" not in operations.names and "relu_" in operations.names


@pytest.mark.parametrize("name", [name for name in COSTS if "generator" in name])
@torch.no_grad()
def test_sampling_makes_no_upsampled_copy(name: str) -> None:
    block, maps, forward = costed(name, samples=1, size=(2, 2), dtype=torch.float32)
    with Operations() as operations, kept_kernels(block.eval()):
        forward(maps)
    assert not [name for name in operations.names if "upsample" in name]


@pytest.mark.parametrize("build_network", [tiny_generator, tiny_discriminator])
@pytest.mark.parametrize("overrides", [{}, DEEP], ids=["plain", "deep"])
def test_layers_of_one_shape_take_two_products_at_the_start(
    build_network: Callable[..., Any], overrides: dict[str, Any]
) -> None:
    network = build_network(**overrides).train()
    normed = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    shapes = {(layer.weight.flatten(1).shape, layer.spectral_norm_eps) for layer in normed}
    with Operations() as alone:
        iterate_in_training(network)
    assert alone.names.count("bmm") == 2 * len(shapes) < 2 * len(normed) and not {"mm", "addmm"} & {*alone.names}
    with Operations() as whole:
        network(*tiny_inputs(network))
    start = whole.names.index("bmm") - alone.names.index("bmm")
    assert whole.names[start : start + len(alone.names)] == alone.names
    assert not {"mm", "addmm", "convolution"} & {*whole.names[:start]}
    assert whole.names.count("linalg_vector_norm") == alone.names.count("linalg_vector_norm")


@pytest.mark.parametrize(("decay", "name"), [(0.9, "_foreach_lerp_"), (0.0, "_foreach_copy_")])
def test_averaging_is_one_operation_however_many_the_weights(decay: float, name: str) -> None:
    ema, model = tiny_generator(), tiny_generator()
    with Operations() as operations:
        update_ema(ema, model, decay)
    assert [other for other in operations.names if other != "detach"] == [name]
