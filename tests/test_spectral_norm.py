import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biggan_hf import spectral_norm
from biggan_hf.kernels import kept_kernels
from biggan_hf.layers import SNConv2d, SNEmbedding, SNLinear
from biggan_hf.spectral_norm import SpectralNorm, power_iteration


SPECTRAL: dict[str, Callable[[], SpectralNorm]] = {
    "conv": lambda: SNConv2d(3, 8, 3),
    "up": lambda: SNConv2d(3, 8, 3, resample="up"),
    "linear": lambda: SNLinear(12, 7),
    "embedding": lambda: SNEmbedding(9, 6),
}
INPUTS = {
    "conv": torch.randn(2, 3, 4, 4),
    "up": torch.randn(2, 3, 4, 4),
    "linear": torch.randn(2, 12),
    "embedding": torch.tensor([3, 0, 3]),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def matrix(layer: SpectralNorm) -> Tensor:
    return layer.weight.detach().flatten(1)


def converged(layer: SpectralNorm) -> SpectralNorm:
    for _ in range(500):
        power_iteration([layer.train()])
    return layer


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*layer.named_buffers()]}


# The estimate


@pytest.mark.parametrize("kind", SPECTRAL)
def test_sigma_is_the_largest_singular_value(kind: str) -> None:
    layer = converged(SPECTRAL[kind]())
    largest = torch.linalg.svdvals(matrix(layer))[0]
    assert torch.allclose(layer.sv0, largest[None], rtol=1e-5, atol=0)
    assert torch.allclose(layer.normalized_weight(), layer.weight / largest, rtol=1e-5, atol=0)
    assert torch.allclose(layer.eval().normalized_weight(), layer.weight / largest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_in_double_precision(kind: str, training: bool) -> None:
    # Where the vectors have converged, σ's dependence on them is of second order, and the whole map can be checked.
    layer = converged(SPECTRAL[kind]().double()).train(training)
    inputs = INPUTS[kind].double() if INPUTS[kind].is_floating_point() else INPUTS[kind]
    weight = layer.weight.detach().requires_grad_()

    def forward(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, inputs)

    assert torch.autograd.gradcheck(forward, weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_gradient_is_that_of_constant_vectors(kind: str) -> None:
    layer = SPECTRAL[kind]().train()  # far from convergence, where the vectors are what autograd must not see
    upstream = torch.randn_like(layer.weight)
    (ours,) = torch.autograd.grad(layer.normalized_weight(), layer.weight, upstream)
    sigma = layer.u0 @ layer.weight.flatten(1) @ layer.v0.T
    (expected,) = torch.autograd.grad(layer.weight / sigma.squeeze(), layer.weight, upstream)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_second_derivative_of_the_weight_is_refused() -> None:
    layer = SNLinear(12, 7)
    (gradient,) = torch.autograd.grad(layer(INPUTS["linear"]).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_training_stores_the_step_that_evaluation_only_takes() -> None:
    layer = SNLinear(12, 7)
    before = state(layer)
    evaluated = layer.eval().normalized_weight()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())

    trained = layer.train().normalized_weight()
    assert torch.equal(trained, evaluated)  # the same step from the same u0
    v = F.normalize(before["u0"] @ matrix(layer), eps=1e-12)
    assert torch.allclose(layer.v0, v, atol=1e-6)
    assert torch.allclose(layer.u0, F.normalize(v @ matrix(layer).T, eps=1e-12), atol=1e-6)
    assert torch.allclose(layer.sv0, layer.u0 @ matrix(layer) @ layer.v0.T, atol=1e-6)
    assert not torch.equal(layer.eval().normalized_weight(), trained)  # the next step


def test_training_without_iterating_serves_the_last_step_again() -> None:
    layer = SNLinear(12, 7).train()
    weight, before = layer.normalized_weight(), state(layer)
    layer.iterates = False
    assert torch.allclose(layer.normalized_weight(), weight, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())


def test_a_later_step_leaves_the_gradient_of_the_last_steps_vectors() -> None:
    layer, upstream = SNLinear(12, 7).train(), torch.randn(7, 12)
    power_iteration([layer])
    layer.iterates = False
    first, second = layer.normalized_weight(), layer.normalized_weight()
    (expected,) = torch.autograd.grad(first, layer.weight, upstream)
    layer.iterates = True
    power_iteration([layer])
    assert torch.equal(torch.autograd.grad(second, layer.weight, upstream)[0], expected)


def test_layers_take_their_steps_together_as_each_would_alone() -> None:
    # One of them with an eps that bounds its norms.
    together = [build() for build in [*SPECTRAL.values()] * 2] + [SNLinear(12, 7, eps=10.0)]
    alone = copy.deepcopy(together)
    power_iteration(together)
    for ours, theirs in zip(together, alone, strict=True):
        expected = theirs.train().normalized_weight()
        assert torch.allclose(ours.train().normalized_weight(), expected, atol=1e-6)
        for name, buffer in ours.named_buffers():
            assert torch.allclose(buffer, theirs.get_buffer(name), atol=1e-6), name
        assert torch.equal(ours.u0, state(ours)["u0"]) and not torch.equal(ours.u0, ours.normalized_weight())


def test_layers_compute_with_the_normalised_weight() -> None:
    for kind, function in {
        "conv": lambda x, w, layer: F.conv2d(x, w, layer.bias, padding=1),
        "linear": lambda x, w, layer: F.linear(x, w, layer.bias),
        "embedding": lambda x, w, layer: F.embedding(x, w),
    }.items():
        layer = SPECTRAL[kind]().eval()
        expected = function(INPUTS[kind], layer.normalized_weight(), layer)
        assert torch.equal(layer(INPUTS[kind]), expected)
        with torch.no_grad():
            assert torch.equal(layer(INPUTS[kind]), expected)


@pytest.mark.parametrize("training", [False, True])
def test_sigma_stays_in_float32_under_autocast(training: bool) -> None:
    layer, pixels = SNConv2d(3, 8, 3).train(training), torch.randn(2, 3, 5, 5)
    expected = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.normalized_weight()
        assert layer(pixels).dtype == torch.bfloat16
    assert weight.dtype == torch.float32 and torch.equal(weight, expected.normalized_weight())
    assert layer.u0.dtype == layer.sv0.dtype == torch.float32


def test_a_bfloat16_weight_keeps_its_dtype() -> None:
    layer = SNLinear(12, 7).to(torch.bfloat16)
    weight = layer.normalized_weight()
    assert weight.dtype == torch.bfloat16 and layer.u0.dtype == layer.sv0.dtype == torch.float32
    (gradient,) = torch.autograd.grad(weight.float().square().sum(), layer.weight)
    assert gradient.dtype == torch.bfloat16


def test_eps_bounds_the_norm_of_a_vanishing_vector() -> None:
    layer = SNLinear(4, 4, eps=1e-4)
    layer.weight.data.mul_(1e-12)
    power_iteration([layer.train()])
    assert layer.v0.norm() < 1e-7 and layer.u0.isfinite().all()


# The kernel that is kept in eval mode


class Counted(SNLinear):
    made = 0

    def arrange(self, weight: Tensor) -> Tensor:
        self.made += 1
        return weight


@torch.no_grad()
def test_kernel_is_made_once_in_eval_mode() -> None:
    layer, rows = Counted(12, 7).eval(), INPUTS["linear"]
    first = layer(rows)
    assert torch.equal(layer(rows), first) and layer.made == 1
    with torch.inference_mode():
        assert torch.equal(layer(rows), first) and layer.made == 1
    layer.train()(rows)
    layer(rows)
    assert layer.made == 3


@pytest.mark.parametrize("kind", SPECTRAL)
@torch.no_grad()
def test_making_a_kernel_leaves_the_weight_as_it_is(kind: str) -> None:
    layer = SPECTRAL[kind]().eval()
    before = layer.weight.clone()
    layer(INPUTS[kind])
    assert layer._kept is not None and torch.equal(layer.weight, before)


@torch.no_grad()
def scaled_in_place(layer: SpectralNorm) -> None:
    layer.weight[0].mul_(3)


def scaled_in_inference_mode(layer: SpectralNorm) -> None:
    with torch.inference_mode():
        layer.weight[0].mul_(3)


def replaced(layer: SpectralNorm) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def data_replaced(layer: SpectralNorm) -> None:
    layer.weight.data = torch.randn_like(layer.weight)


def loaded(layer: SpectralNorm) -> None:
    layer.load_state_dict({name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()})


def assigned(layer: SpectralNorm) -> None:
    layer.load_state_dict({name: torch.randn_like(x) for name, x in layer.state_dict().items()}, assign=True)


def optimised(layer: SpectralNorm, fused: bool = False) -> None:
    layer.weight.grad = torch.randn_like(layer.weight)
    torch.optim.Adam([layer.weight], lr=0.1, fused=fused).step()


def optimised_in_one_kernel(layer: SpectralNorm) -> None:
    optimised(layer, fused=True)


def averaged(layer: SpectralNorm) -> None:
    torch._foreach_lerp_([layer.state_dict()["weight"]], [torch.randn_like(layer.weight)], 0.5)


def given_another_vector(layer: SpectralNorm) -> None:
    layer.u0.copy_(torch.randn_like(layer.u0))


def written_through_data(layer: SpectralNorm) -> None:
    layer.weight.data[0].mul_(3)
    layer.eval()


def trained(layer: SpectralNorm) -> None:
    power_iteration([layer.train()])
    layer.eval()


def cast(layer: SpectralNorm) -> None:
    layer.double().float()
    layer.weight.data[0].mul_(3)


CHANGES = [
    *(scaled_in_place, scaled_in_inference_mode, replaced, data_replaced, loaded, assigned, optimised),
    *(optimised_in_one_kernel, averaged, given_another_vector, written_through_data, trained, cast),
]


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_kernel_is_never_stale(change: Callable[[SpectralNorm], None], kind: str) -> None:
    layer, inputs = SPECTRAL[kind]().eval(), INPUTS[kind]
    with torch.no_grad():
        before = layer(inputs)
    change(layer)
    expected = layer(inputs).detach()  # where gradients are wanted nothing is kept
    assert not torch.allclose(expected, before, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(layer(inputs), expected, atol=1e-6)
        with kept_kernels(layer):
            assert torch.allclose(layer(inputs), expected, atol=1e-6)


def written(layer: SpectralNorm, weight: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)


def given(layer: SpectralNorm, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight)


@pytest.mark.parametrize("change", [written, given])  # of which versions tell, and places in memory
def test_a_change_that_is_too_small_for_the_sums_is_seen(change: Callable[[SpectralNorm, Tensor], None]) -> None:
    layer, rows = SNLinear(12, 7).double().eval(), INPUTS["linear"].double()
    layer.weight = nn.Parameter(layer.weight.detach().clone())  # never written to, like the one that is given
    with torch.no_grad():
        before = layer(rows)
    change(layer, layer.weight.detach() + 1e-9)  # as of a finite difference
    expected = layer(rows).detach()
    assert not torch.allclose(expected, before, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(layer(rows), expected, rtol=0, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "change"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_small_change_of_any_column_through_data_is_seen(dtype: torch.dtype, change: float) -> None:
    layer, rows = SNLinear(800, 7).to(dtype).eval(), torch.randn(3, 800, dtype=dtype)
    for column in range(800):
        before = layer(rows)
        layer.weight.data[0, column] += change
        assert not torch.equal(layer(rows), before), column


@torch.no_grad()
def test_an_exchange_of_columns_through_data_is_seen() -> None:
    layer, rows = SNLinear(800, 7).eval(), torch.randn(3, 800)
    layer.weight.copy_(torch.randint(-3, 4, layer.weight.shape))  # integers: their plain sum would be the same
    for column in range(1, 800, 7):
        before = layer(rows)
        layer.weight.data[:, [0, column]] = layer.weight.detach()[:, [column, 0]]
        assert not torch.equal(layer(rows), before), column


def test_nothing_is_kept_where_a_gradient_is_wanted() -> None:
    layer, rows = SNLinear(12, 7).eval(), INPUTS["linear"]
    with torch.no_grad():
        layer(rows)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()
    with torch.no_grad():
        other = torch.randn_like(layer.weight)
        out = torch.func.functional_call(layer, {"weight": other}, rows)
        assert torch.allclose(out, F.linear(rows, other / estimate(layer, other), layer.bias), atol=1e-6)
    frozen = SNLinear(12, 7).eval().requires_grad_(False)
    assert frozen(rows.clone().requires_grad_()).requires_grad  # the input's gradient passes a kernel that is kept


def estimate(layer: SpectralNorm, weight: Tensor) -> Tensor:
    """σ after one step from the layer's u0."""
    return (F.normalize(layer.u0 @ weight) @ weight.T).norm()


@torch.no_grad()
def test_copies_make_their_own_kernel() -> None:
    layer, rows = SNLinear(12, 7).eval(), INPUTS["linear"]
    before = layer(rows)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(rows), before)
        other.weight.mul_(torch.arange(1.0, 13))
        assert not torch.allclose(other(rows), before) and torch.equal(layer(rows), before)


def test_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = SNLinear(12, 7).eval()
        before = layer(INPUTS["linear"])
        layer.weight[0].mul_(3)
        assert not torch.allclose(layer(INPUTS["linear"]), before)


def test_a_kernel_made_in_inference_mode_hands_on_gradients_after_it() -> None:
    layer, rows = SNLinear(12, 7).eval().requires_grad_(False), INPUTS["linear"].clone().requires_grad_()
    with torch.inference_mode():
        layer(rows)
    kept = layer._kept
    (gradient,) = torch.autograd.grad(layer(rows).sum(), rows)
    assert gradient.any() and layer._kept is kept


def test_vmap_over_an_ensemble_of_weights() -> None:
    layer, rows = SNLinear(12, 7).eval(), INPUTS["linear"]
    weights = torch.randn(3, 7, 12)

    def forward(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, rows)

    together = torch.func.vmap(forward)(weights)
    assert torch.allclose(together, torch.stack([forward(weight) for weight in weights]), atol=1e-6)


def test_large_weights_are_not_copied_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = [SNLinear(12, 7) for _ in range(3)]
    single = copy.deepcopy(stacked)
    power_iteration(stacked)
    monkeypatch.setattr(spectral_norm, "STACKED_WEIGHT", {})
    monkeypatch.setattr(torch, "stack", None)
    power_iteration(single)
    for ours, theirs in zip(stacked, single, strict=True):
        assert torch.allclose(ours.u0, theirs.u0, atol=1e-6) and torch.allclose(ours.sv0, theirs.sv0, atol=1e-6)
