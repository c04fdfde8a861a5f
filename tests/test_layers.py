from collections.abc import Callable

import pytest
import torch
from common import saved_for_the_gradient, tiny_discriminator, tiny_generator, tiny_inputs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from biggan_hf import layers
from biggan_hf.layers import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    Conv2d,
    OneHotLabels,
    Resample,
    SelfAttention,
    SNConv2d,
    SNLinear,
    StandingRow,
    conv2d,
    linear,
    modulations,
)
from biggan_hf.modeling_biggan import BigGANDiscriminator, BigGANModel
from biggan_hf.normalization import batch_normalize
from biggan_hf.resampling import strided_product


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_factories_normalise_unless_there_is_no_eps() -> None:
    assert type(conv2d(3, 4, 3, None)) is Conv2d and type(linear(3, 4, None)) is nn.Linear
    sn_conv, sn_linear = conv2d(3, 4, 3, 1e-3, bias=False), linear(3, 4, 1e-3, bias=False)
    assert isinstance(sn_conv, SNConv2d) and isinstance(sn_linear, SNLinear)
    assert sn_conv.spectral_norm_eps == sn_linear.spectral_norm_eps == 1e-3
    assert sn_conv.bias is None and sn_linear.bias is None
    for kernel_size in (1, 3):
        assert conv2d(3, 4, kernel_size, None)(torch.ones(1, 3, 6, 6)).shape == (1, 4, 6, 6)


# Resampling


def plain_form(layer: Conv2d, maps: Tensor) -> Tensor:
    if layer.resample == "up":
        return F.conv2d(F.interpolate(maps, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    return F.avg_pool2d(F.conv2d(maps, layer.weight, layer.bias, padding=1), 2)


@pytest.mark.parametrize("resample", ["up", "down"])
@pytest.mark.parametrize("channels", [15, 16])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_sides_of_the_number_of_channels(
    resample: Resample,
    channels: int,
    dtype: torch.dtype,
    tolerance: float,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "PRODUCT_CHANNELS", 16)
    layer = Conv2d(channels, 5, 3, resample=resample)
    layer.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]  # torch declares them apart
    maps = torch.randn(2, channels, 5, 4, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        ours = layer(maps)
    assert (torch.ops.aten.convolution in counter.get_flop_counts().get("Global", {})) == (channels < 16)
    theirs = plain_form(layer, maps)
    assert ours.is_contiguous(memory_format=memory_format)
    upstream = torch.randn_like(theirs)
    leaves = [maps, *layer.parameters()]
    pairs = zip(*([out, *torch.autograd.grad(out, leaves, upstream)] for out in (ours, theirs)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1, b.abs().max().item()))


def test_strided_product_is_a_convolution_of_stride_two() -> None:
    maps, weight = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    expected = F.conv2d(maps, weight, stride=2)
    for order in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(strided_product(maps, weight.to(memory_format=order)), expected)


@pytest.mark.parametrize("build", [tiny_generator, tiny_discriminator])
@pytest.mark.parametrize("architecture", ["biggan", "biggan-deep"])
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning", "ignore:`is_grad:FutureWarning"
)
@torch.no_grad()
def test_traced(build: Callable[..., BigGANModel | BigGANDiscriminator], architecture: str) -> None:
    network = build(architecture=architecture)
    inputs = tiny_inputs(network, 5)
    (expected,) = network(*inputs, return_dict=False)  # with packed kernels, which the trace must leave alone
    traced = torch.jit.trace(network, tiny_inputs(network, 3, seed=1), strict=False)
    torch.testing.assert_close(next(iter(traced(*inputs).values())), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(*inputs, return_dict=False)[0], expected, rtol=1e-5, atol=1e-5)


# Class labels as vectors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_one_hot_labels_pick_rows(dtype: torch.dtype) -> None:
    rows, labels = torch.randn(5, 3), torch.tensor([4, 0, 4], dtype=dtype)
    assert torch.equal(OneHotLabels(5)(labels).float() @ rows, rows[labels.long()])


# Batch norm


def randomised(norm: BatchNorm2d) -> BatchNorm2d:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_evaluation_uses_the_running_statistics() -> None:
    norm, maps = randomised(BatchNorm2d(6, eps=1e-2)).eval(), 3 * torch.randn(4, 6, 5, 5) + 2
    expected = F.batch_norm(maps, norm.running_mean, norm.running_var, norm.gain, norm.bias, eps=1e-2)
    assert torch.allclose(norm(maps), expected, atol=1e-5)


def test_training_is_that_of_torch() -> None:
    norm, reference = randomised(BatchNorm2d(6, eps=1e-2)).train(), nn.BatchNorm2d(6, eps=1e-2)
    names = {"gain": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    reference.load_state_dict({names[name]: tensor for name, tensor in norm.state_dict().items()}, strict=False)
    for _ in range(3):
        maps = 3 * torch.randn(4, 6, 5, 5) + 2
        assert torch.allclose(norm(maps), reference(maps), atol=1e-5)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(norm.get_buffer(name), reference.get_buffer(name), atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("sn_eps", [None, 1e-8])
def test_conditional_norm_of_a_zero_condition_is_plain(training: bool, per_class: bool, sn_eps: float | None) -> None:
    plain = BatchNorm2d(6, eps=1e-2).train(training)
    conditional = ConditionalBatchNorm2d(6, 4, 1e-2, sn_eps, per_class).train(training)
    maps = 3 * torch.randn(2, 6, 5, 5) + 2
    (modulation,) = modulations([conditional], torch.zeros(2, 4))
    assert modulation is not None
    assert torch.allclose(conditional(maps, modulation), plain(maps), atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gain_and_bias_are_each_samples_own(training: bool) -> None:
    conditional = ConditionalBatchNorm2d(6, 4, 1e-2, None).train(training)
    maps, (gain, bias) = torch.randn(2, 6, 5, 5), torch.randn(2, 2, 6)
    normalised = BatchNorm2d(6, eps=1e-2).train(training)(maps)
    expected = gain[:, :, None, None] * normalised + bias[:, :, None, None]
    assert torch.allclose(conditional(maps, (gain, bias)), expected, atol=1e-5)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("sn_eps", [None, 1e-8])
@pytest.mark.parametrize("joint", [False, True])
def test_one_product_makes_the_gains_and_biases_of_many_norms(
    per_class: bool, sn_eps: float | None, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if joint:  # as on a GPU
        monkeypatch.setattr(layers, "_products", layers._joint_product)
    norms = [ConditionalBatchNorm2d(width, 4, 1e-2, sn_eps, per_class).eval() for width in (6, 3, 6)]
    condition = torch.randn(2, 4)
    for norm, modulation in zip(norms, modulations(norms, condition), strict=True):
        assert modulation is not None
        for name, ours, constant in zip(("gain", "bias"), modulation, (1, 0), strict=True):
            layer = norm.get_submodule(name)
            expected = condition @ layer.weight if isinstance(layer, nn.Embedding) else layer(condition)
            assert torch.allclose(ours, constant + expected, atol=1e-6)
    assert modulations(norms, None) == [None] * 3


def test_bfloat16_maps_meet_float32_statistics() -> None:
    for training in (False, True):
        norm = randomised(BatchNorm2d(6, eps=1e-2)).train(training)
        maps = torch.randn(4, 6, 5, 5)
        out = norm(maps.bfloat16())
        assert out.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
        assert torch.allclose(out.float(), norm(maps), atol=0.1)


def test_standing_statistics_are_interpolated() -> None:
    norm = BatchNorm2d(6, eps=1e-2, num_standing=3)
    norm.standing_mean.normal_()
    norm.standing_var.uniform_(0.5, 2)
    for row in range(3):
        mean, var = norm.statistics(StandingRow(row, row, 0.0))
        assert torch.equal(mean, norm.standing_mean[row]) and torch.equal(var, norm.standing_var[row])
    mean, var = norm.statistics(StandingRow(1, 2, 0.25))
    assert torch.allclose(mean, 0.75 * norm.standing_mean[1] + 0.25 * norm.standing_mean[2], atol=1e-6)
    assert torch.allclose(var, 0.75 * norm.standing_var[1] + 0.25 * norm.standing_var[2], atol=1e-6)

    maps = torch.randn(4, 6, 5, 5)
    expected = F.batch_norm(maps, mean, var, eps=1e-2)
    assert torch.allclose(norm.eval()(maps, row=StandingRow(1, 2, 0.25)), expected, atol=1e-5)
    assert torch.equal(norm(maps), BatchNorm2d(6, eps=1e-2).eval()(maps))  # no row: the running ones


# Self-attention


def attention_by_hand(layer: SelfAttention, maps: Tensor) -> Tensor:
    """Softmax of the products, without division by √d, and two batched matrix products (BigGAN-PyTorch)."""
    batch, channels, height, width = maps.shape
    theta = layer.theta(maps).reshape(batch, channels // 8, -1)
    phi = F.max_pool2d(layer.phi(maps), 2).reshape(batch, channels // 8, -1)
    g = F.max_pool2d(layer.g(maps), 2).reshape(batch, channels // 2, -1)
    weights = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
    attended = torch.bmm(g, weights.transpose(1, 2)).reshape(batch, channels // 2, height, width)
    return maps + layer.gamma * layer.o(attended)


@pytest.mark.parametrize("sn_eps", [None, 1e-8])
def test_attention_is_softmax_and_matrix_products(sn_eps: float | None) -> None:
    layer, maps = SelfAttention(16, sn_eps).eval(), torch.randn(2, 16, 6, 8)
    assert torch.equal(layer(maps), maps)  # γ = 0 at first
    layer.gamma.data.fill_(1.3)
    assert torch.allclose(layer(maps), attention_by_hand(layer, maps), atol=1e-6)
    assert not torch.allclose(layer(maps), maps, atol=1e-2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_does_not_keep_the_matrix_of_all_pairs(channels_last: bool) -> None:
    layer, maps = SelfAttention(64, None), torch.randn(1, 64, 32, 32)
    maps = maps.to(memory_format=torch.channels_last) if channels_last else maps
    kept = saved_for_the_gradient(lambda: layer(maps))
    assert max(tensor.numel() for tensor in kept) < 1024 * 256  # positions by pooled positions


def test_buffers_stay_in_float32_in_half_precision() -> None:
    layer, norm = SNConv2d(4, 8, 3), BatchNorm2d(4, eps=1e-4, num_standing=2)
    norm.running_var.copy_(torch.rand(4) + 1e-5)
    before = {name: buffer.clone() for module in (layer, norm) for name, buffer in module.named_buffers()}
    for module in (layer, norm):
        module.to(torch.bfloat16)
        assert all(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
        for name, buffer in module.named_buffers():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, before[name]), name
    assert next(norm.double().buffers()).dtype == torch.float64


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_of_batch_norm_in_double_precision(samples: int, channels_last: bool) -> None:
    maps = (3 * torch.randn(4, 3, 2, 5, dtype=torch.float64) + 2).requires_grad_()
    if channels_last:
        maps = maps.detach().to(memory_format=torch.channels_last).requires_grad_()
    gain, bias = (torch.randn(samples, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(maps: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        return batch_normalize(maps, gain, bias, running, 0.1, 1e-3)

    assert torch.autograd.gradcheck(function, (maps, gain, bias))


def test_batch_norm_keeps_one_map_for_its_gradient() -> None:
    norm = ConditionalBatchNorm2d(6, 4, 1e-2, None).train()
    maps = torch.randn(2, 6, 5, 5, requires_grad=True)
    modulation = torch.ones(2, 6, requires_grad=True), torch.zeros(2, 6)
    kept = saved_for_the_gradient(lambda: norm(maps, modulation))
    assert {x.data_ptr() for x in kept if x.shape == maps.shape} == {maps.data_ptr()}
