import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biggan_hf.layers import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    Conv2d,
    OneHotLabels,
    SelfAttention,
    SNConv2d,
    SNConv2dPool,
    SNLinear,
    StandingRow,
    UpsampleConv2d,
    conv2d,
    linear,
    move_running_statistics,
)
from biggan_hf.spectral_norm import iterate_in_training


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
    assert type(conv2d(3, 4, 3, None, resample="up")) is UpsampleConv2d
    assert type(conv2d(3, 4, 3, 1e-3, resample="down")) is SNConv2dPool
    with pytest.raises(ValueError, match="kernel_size must be 3 with resample='up', got 1"):
        conv2d(3, 4, 1, None, resample="up")


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


def test_batch_norm_is_that_of_torch() -> None:
    norm, reference = randomised(BatchNorm2d(6, eps=1e-2)).train(), nn.BatchNorm2d(6, eps=1e-2)
    names = {"gain": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    reference.load_state_dict({names[name]: tensor for name, tensor in norm.state_dict().items()}, strict=False)
    for _ in range(3):
        maps = 3 * torch.randn(4, 6, 5, 5) + 2
        assert torch.allclose(norm(maps, None), reference(maps), atol=1e-5)
        move_running_statistics(norm)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(norm.get_buffer(name), reference.get_buffer(name), atol=1e-6)
    assert torch.allclose(norm.eval()(maps, None), reference.eval()(maps), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("sn_eps", [None, 1e-8])
def test_gain_and_bias_are_maps_of_each_samples_condition(
    training: bool, per_class: bool, sn_eps: float | None
) -> None:
    conditional = ConditionalBatchNorm2d(6, 4, 1e-2, sn_eps, per_class).train(training)
    maps, condition = torch.randn(2, 6, 5, 5), torch.randn(2, 4)
    iterate_in_training(conditional)
    gain, bias = (
        condition @ layer.weight if isinstance(layer, nn.Embedding) else layer(condition)
        for layer in (conditional.gain, conditional.bias)
    )
    normalised = BatchNorm2d(6, eps=1e-2).train(training)(maps, None)
    expected = (1 + gain)[:, :, None, None] * normalised + bias[:, :, None, None]
    assert torch.allclose(conditional(maps, condition), expected, atol=1e-5)


def test_bfloat16_maps_meet_float32_statistics() -> None:
    for training in (False, True):
        norm = randomised(BatchNorm2d(6, eps=1e-2)).train(training)
        maps = torch.randn(4, 6, 5, 5)
        out = norm(maps.bfloat16(), None)
        assert out.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
        assert torch.allclose(out.float(), norm(maps, None), atol=0.1)


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
    assert torch.allclose(norm.eval()(maps, None, StandingRow(1, 2, 0.25)), expected, atol=1e-5)
    assert torch.equal(norm(maps, None), BatchNorm2d(6, eps=1e-2).eval()(maps, None))  # no row: the running ones


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


def test_running_statistics_take_no_gradient() -> None:
    """A compiled network of torch 2.11 gives statistics with gradients, which would chain one step to the next."""
    norm = BatchNorm2d(3, eps=1e-5).train()
    weight = torch.ones(3, requires_grad=True)
    norm.batch_statistics = weight * 2, weight * 3
    move_running_statistics(norm)
    assert not norm.running_mean.requires_grad and not norm.running_var.requires_grad
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 0.2))
