import copy

import pytest
import torch
from common import SPECTRAL
from torch import Tensor, nn
from torch.nn import functional as F

from biggan_hf import spectral_norm
from biggan_hf.layers import SNConv2d, SNLinear
from biggan_hf.spectral_norm import SpectralNorm, iterate_in_training, power_iteration


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def matrix(layer: SpectralNorm) -> Tensor:
    return layer.weight.detach().flatten(1)


def converged(layer: SpectralNorm) -> SpectralNorm:
    for _ in range(500):
        power_iteration([layer.train()])
    return layer


def stepped(layer: SpectralNorm, iterate: bool = True) -> Tensor:
    """The normalised weight of a training forward, as the first layer of a network."""
    power_iteration([layer.train()], iterate)
    return layer.normalized_weight()


class Network(nn.Module):
    """One layer, and the step that a network's training forward begins with."""

    def __init__(self, layer: SpectralNorm) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        iterate_in_training(self)
        return self.layer(inputs)


# The estimate


@pytest.mark.parametrize("kind", SPECTRAL)
def test_sigma_is_the_largest_singular_value(kind: str) -> None:
    layer = converged(SPECTRAL[kind][0]())
    largest = torch.linalg.svdvals(matrix(layer))[0]
    assert torch.allclose(layer.sv0, largest[None], rtol=1e-5, atol=0)
    assert torch.allclose(layer.normalized_weight(), layer.weight / largest, rtol=1e-5, atol=0)
    assert torch.allclose(layer.eval().normalized_weight(), layer.weight / largest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_in_double_precision(kind: str, training: bool) -> None:
    # Where the vectors have converged, σ's dependence on them is of second order, and the whole map can be checked.
    build, inputs = SPECTRAL[kind]
    layer = converged(build().double()).train(training)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    weight = layer.weight.detach().requires_grad_()

    def forward(weight: Tensor) -> Tensor:
        return torch.func.functional_call(Network(layer), {"layer.weight": weight}, inputs)

    assert torch.autograd.gradcheck(forward, weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_is_that_of_constant_vectors(kind: str) -> None:
    layer = SPECTRAL[kind][0]()  # far from convergence, where the vectors are what autograd must not see
    upstream = torch.randn_like(layer.weight)
    (ours,) = torch.autograd.grad(stepped(layer), layer.weight, upstream)
    sigma = layer.u0 @ layer.weight.flatten(1) @ layer.v0.T
    (expected,) = torch.autograd.grad(layer.weight / sigma.squeeze(), layer.weight, upstream)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_second_derivative_of_the_weight_is_refused() -> None:
    layer = SNLinear(12, 7).eval()
    (gradient,) = torch.autograd.grad(layer(SPECTRAL["linear"][1]).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_training_stores_the_step_that_evaluation_only_takes() -> None:
    layer = SNLinear(12, 7)
    before = copy.deepcopy(dict(layer.named_buffers()))
    evaluated = layer.eval().normalized_weight()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())

    trained = stepped(layer)
    assert torch.equal(trained, evaluated)  # the same step from the same u0
    v = F.normalize(before["u0"] @ matrix(layer), eps=1e-12)
    assert torch.allclose(layer.v0, v, atol=1e-6)
    assert torch.allclose(layer.u0, F.normalize(v @ matrix(layer).T, eps=1e-12), atol=1e-6)
    assert torch.allclose(layer.sv0, layer.u0 @ matrix(layer) @ layer.v0.T, atol=1e-6)
    assert not torch.equal(layer.eval().normalized_weight(), trained)  # the next step


def test_a_layer_in_training_wants_a_step() -> None:
    with pytest.raises(RuntimeError, match="needs a call of iterate_in_training first"):
        SNLinear(12, 7)(SPECTRAL["linear"][1])


def test_training_without_iterating_serves_the_last_step_again() -> None:
    layer = SNLinear(12, 7)
    weight, before = stepped(layer), copy.deepcopy(dict(layer.named_buffers()))
    estimate = layer._estimate
    assert torch.equal(stepped(layer, False), weight) and layer._estimate is estimate  # nothing is computed twice
    layer.load_state_dict(layer.state_dict())
    assert torch.allclose(stepped(layer, False), weight, atol=1e-6) and layer._estimate is not estimate
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())


def test_a_later_step_leaves_the_gradient_of_the_last_steps_vectors() -> None:
    layer, upstream = SNLinear(12, 7), torch.randn(7, 12)
    stepped(layer)
    first, second = stepped(layer, False), stepped(layer, False)
    (expected,) = torch.autograd.grad(first, layer.weight, upstream)
    power_iteration([layer])
    assert torch.equal(torch.autograd.grad(second, layer.weight, upstream)[0], expected)


def test_layers_take_their_steps_together_as_each_would_alone() -> None:
    # One of them with an eps that bounds its norms.
    together = [build() for build, _ in [*SPECTRAL.values()] * 2] + [SNLinear(12, 7, eps=10.0)]
    alone = copy.deepcopy(together)
    power_iteration(together)
    for ours, theirs in zip(together, alone, strict=True):
        expected = stepped(theirs)
        assert torch.allclose(ours.train().normalized_weight(), expected, atol=1e-6)
        for name, buffer in ours.named_buffers():
            assert torch.allclose(buffer, theirs.get_buffer(name), atol=1e-6), name


def test_layers_compute_with_the_normalised_weight() -> None:
    for kind, function in {
        "conv": lambda x, w, layer: F.conv2d(x, w, layer.bias, padding=1),
        "linear": lambda x, w, layer: F.linear(x, w, layer.bias),
        "embedding": lambda x, w, layer: F.embedding(x, w),
    }.items():
        build, inputs = SPECTRAL[kind]
        layer = build().eval()
        expected = function(inputs, layer.normalized_weight(), layer)
        assert torch.equal(layer(inputs), expected)
        with torch.no_grad():
            assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("training", [False, True])
def test_sigma_stays_in_float32_under_autocast(training: bool) -> None:
    layer, pixels = SNConv2d(3, 8, 3, eps=1e-12).train(training), torch.randn(2, 3, 5, 5)
    expected = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        weight = stepped(layer) if training else layer.normalized_weight()
        assert layer(pixels).dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    assert torch.equal(weight, stepped(expected) if training else expected.normalized_weight())
    assert layer.u0.dtype == layer.sv0.dtype == torch.float32


def test_eps_bounds_the_norm_of_a_vanishing_vector() -> None:
    layer = SNLinear(4, 4, eps=1e-4)
    layer.weight.data.mul_(1e-12)
    power_iteration([layer.train()])
    assert layer.v0.norm() < 1e-7 and layer.u0.isfinite().all()


def test_large_weights_are_not_copied_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = [SNLinear(12, 7) for _ in range(3)]
    single = copy.deepcopy(stacked)
    power_iteration(stacked)
    monkeypatch.setattr(spectral_norm, "STACKED_WEIGHT", {})
    monkeypatch.setattr(torch, "stack", None)
    power_iteration(single)
    for ours, theirs in zip(stacked, single, strict=True):
        assert torch.allclose(ours.u0, theirs.u0, atol=1e-6) and torch.allclose(ours.sv0, theirs.sv0, atol=1e-6)
