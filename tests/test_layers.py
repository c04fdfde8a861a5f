from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biggan_hf.layers import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    MixedEmbedding,
    OneHotLabels,
    SelfAttention,
    SNConv2d,
    SNEmbedding,
    SNLinear,
    SpectralNorm,
    StandingRow,
    conv2d,
    conv2d_downsample,
    linear,
    upsample_conv2d,
)


SPECTRAL: dict[str, Callable[[], SpectralNorm]] = {
    "conv": lambda: SNConv2d(3, 8, 3),
    "linear": lambda: SNLinear(12, 7),
    "embedding": lambda: SNEmbedding(9, 6),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def matrix(layer: SpectralNorm) -> Tensor:
    return layer.weight.detach().flatten(1)


def converged(layer: SpectralNorm) -> SpectralNorm:
    for _ in range(500):
        layer.train().sigma()
    return layer


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*layer.named_buffers()]}


# Spectral normalisation


@pytest.mark.parametrize("kind", SPECTRAL)
def test_sigma_is_the_largest_singular_value(kind: str) -> None:
    layer = converged(SPECTRAL[kind]())
    largest = torch.linalg.svdvals(matrix(layer))[0]
    assert torch.allclose(layer.sigma(), largest, rtol=1e-5, atol=0)
    assert torch.allclose(layer.sv0, largest[None], rtol=1e-5, atol=0)
    assert torch.allclose(torch.linalg.svdvals(layer.normalized_weight().flatten(1))[0], torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_of_sigma_is_u_v(kind: str) -> None:
    layer = SPECTRAL[kind]().train()
    (gradient,) = torch.autograd.grad(layer.sigma(), layer.weight)
    assert torch.allclose(gradient.flatten(1), layer.u0.T @ layer.v0, atol=1e-6)
    assert not layer.u0.requires_grad and not layer.v0.requires_grad and not layer.sv0.requires_grad


@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_in_double_precision(kind: str) -> None:
    # Where the vectors have converged, σ's dependence on them is of second order, and the whole map can be checked.
    layer = converged(SPECTRAL[kind]().double()).eval()
    inputs = {
        "conv": torch.randn(2, 3, 4, 4).double(),
        "linear": torch.randn(2, 12).double(),
        "embedding": torch.tensor([3, 0, 3]),
    }[kind]
    weight = layer.weight.detach().requires_grad_()

    def forward(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, inputs)

    assert torch.autograd.gradcheck(forward, weight, atol=1e-7, rtol=1e-6)


def test_training_stores_the_step_that_evaluation_only_takes() -> None:
    layer = SNLinear(12, 7)
    before = state(layer)
    evaluated = layer.eval().sigma()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())

    trained = layer.train().sigma()
    assert torch.equal(trained, evaluated)  # the same step from the same u0
    v = F.normalize(before["u0"] @ matrix(layer), eps=1e-12)
    assert torch.allclose(layer.v0, v, atol=1e-6)
    assert torch.allclose(layer.u0, F.normalize(v @ matrix(layer).T, eps=1e-12), atol=1e-6)
    assert torch.equal(layer.sv0, trained.detach()[None])
    assert not torch.equal(layer.eval().sigma(), trained)  # the next step


def test_training_without_iterating_serves_the_last_step_again() -> None:
    layer = SNLinear(12, 7).train()
    sigma, before = layer.sigma(), state(layer)
    layer.iterates = False
    assert torch.allclose(layer.sigma(), sigma, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())


def test_layers_compute_with_the_normalised_weight() -> None:
    conv, dense = SNConv2d(3, 8, 3).eval(), SNLinear(12, 7).eval()
    pixels, rows = torch.randn(2, 3, 5, 5), torch.randn(2, 12)
    assert torch.equal(conv(pixels), F.conv2d(pixels, conv.weight / conv.sigma(), conv.bias, padding=1))
    assert torch.equal(dense(rows), F.linear(rows, dense.weight / dense.sigma(), dense.bias))


def test_embedding_is_a_row_of_the_normalised_table() -> None:
    layer, labels = SNEmbedding(9, 6).eval(), torch.tensor([8, 0, 8])
    expected = F.embedding(labels, layer.weight / layer.sigma())
    assert torch.allclose(layer(labels), expected, atol=1e-7)
    upstream = torch.randn(3, 6)
    gradients = [torch.autograd.grad(out, layer.weight, upstream)[0] for out in (layer(labels), expected)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_sigma_stays_in_float32_under_autocast(training: bool) -> None:
    layer, pixels = SNConv2d(3, 8, 3).train(training), torch.randn(2, 3, 5, 5)
    expected = SNConv2d(3, 8, 3).train(training)
    expected.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        sigma = layer.sigma()
        assert layer(pixels).dtype == torch.bfloat16
    assert sigma.dtype == torch.float32 and torch.equal(sigma, expected.sigma())
    assert layer.u0.dtype == layer.sv0.dtype == torch.float32


def test_sigma_of_a_bfloat16_weight() -> None:
    layer = SNLinear(12, 7)
    layer.weight.data = layer.weight.data.bfloat16()
    assert layer.sigma().dtype == torch.float32 and layer.normalized_weight().dtype == torch.bfloat16


def test_eps_bounds_the_norm_of_a_vanishing_vector() -> None:
    layer = SNLinear(4, 4, eps=1e-4)
    layer.weight.data.mul_(1e-12)
    layer.train().sigma()
    assert layer.v0.norm() < 1e-7 and layer.u0.isfinite().all()


def test_factories_normalise_unless_there_is_no_eps() -> None:
    assert type(conv2d(3, 4, 3, None)) is nn.Conv2d and type(linear(3, 4, None)) is nn.Linear
    sn_conv, sn_linear = conv2d(3, 4, 3, 1e-3, bias=False), linear(3, 4, 1e-3, bias=False)
    assert isinstance(sn_conv, SNConv2d) and isinstance(sn_linear, SNLinear)
    assert sn_conv.spectral_norm_eps == sn_linear.spectral_norm_eps == 1e-3
    assert sn_conv.bias is None and sn_linear.bias is None
    for kernel_size in (1, 3):
        assert conv2d(3, 4, kernel_size, None)(torch.ones(1, 3, 6, 6)).shape == (1, 4, 6, 6)


# Class labels as vectors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_one_hot_labels_pick_rows_of_a_mixed_embedding(dtype: torch.dtype) -> None:
    embedding, labels = MixedEmbedding(5, 3), torch.tensor([4, 0, 4], dtype=dtype)
    weights = OneHotLabels(5)(labels).float()
    assert torch.equal(embedding(weights), embedding.weight[labels.long()])
    assert torch.allclose(embedding(weights[:2].mean(0, keepdim=True)), embedding.weight[[0, 4]].mean(0), atol=1e-7)


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
    assert torch.allclose(conditional(maps, torch.zeros(2, 4)), plain(maps), atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gain_and_bias_are_each_samples_own(training: bool) -> None:
    conditional = ConditionalBatchNorm2d(6, 4, 1e-2, None).train(training)
    maps, condition = torch.randn(2, 6, 5, 5), torch.randn(2, 4)
    normalised = BatchNorm2d(6, eps=1e-2).train(training)(maps)
    weights = [conditional.get_parameter(f"{name}.weight") for name in ("gain", "bias")]
    gain, bias = (F.linear(condition, weight)[:, :, None, None] for weight in weights)
    assert torch.allclose(conditional(maps, condition), (1 + gain) * normalised + bias, atol=1e-5)


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


@pytest.mark.parametrize("sn_eps", [None, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("channels", "size"), [((3, 5), (4, 6)), ((8, 2), (2, 2)), ((1, 1), (8, 4))])
def test_convolution_with_resampling_is_the_two_after_each_other(
    sn_eps: float | None, dtype: torch.dtype, channels: tuple[int, int], size: tuple[int, int]
) -> None:
    conv = conv2d(*channels, 3, sn_eps).to(dtype).eval()  # eval: no vectors are stored between the two forms
    maps = torch.randn(2, channels[0], *size, dtype=dtype)
    plain = {
        upsample_conv2d: lambda x: conv(F.interpolate(x, scale_factor=2, mode="nearest")),
        conv2d_downsample: lambda x: F.avg_pool2d(conv(x), 2),
    }
    for fused, reference in plain.items():
        results = []
        for function in (lambda x, f=fused: f(conv, x), reference):
            x = maps.clone().requires_grad_()
            out = function(x)
            weights = torch.arange(out.numel(), dtype=dtype).cos().view_as(out)
            results.append([out, *torch.autograd.grad((out * weights).sum(), [x, *conv.parameters()])])
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
