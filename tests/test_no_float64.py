"""
On a device without float64, as MPS is. No such device is here: tensors of "mps" hold no numbers in these tests, and
every operation that would give one in float64 is refused, as the device refuses it.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from biggan_hf import sample_latents
from biggan_hf.devices import exact_device, in_float64
from biggan_hf.evaluation.extractors import FeatureExtractor
from biggan_hf.evaluation.loss import moments_of, with_classes
from biggan_hf.evaluation.statistics import RunningStatistics
from biggan_hf.standing_stats import _Moments, _observe


MPS = torch.device("mps:0")


# What the program would read from tensors, which hold nothing here.
READ = {torch.ops.aten._local_scalar_dense.default: 1, torch.ops.aten.equal.default: True}


class _Refusal(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READ:
            return READ[func]
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.device.type == "mps" and tensor.dtype == torch.float64:
                raise TypeError(f"Cannot convert a MPS Tensor to float64: {func}")
        return output


@pytest.fixture
def mps() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), _Refusal():
        yield


def test_the_stand_in_refuses_float64(mps: None) -> None:
    with pytest.raises(TypeError, match="Cannot convert a MPS Tensor to float64"):
        torch.zeros(2, device=MPS).double()
    with pytest.raises(TypeError, match="Cannot convert a MPS Tensor to float64"):
        torch.zeros(2, dtype=torch.float64, device=MPS)


def test_float64_is_computed_on_the_cpu(mps: None) -> None:
    assert exact_device("mps") == torch.device("cpu") and exact_device("cuda:1") == torch.device("cuda:1")
    exact = in_float64(torch.zeros(2, device=MPS))
    assert exact.device.type == "cpu" and exact.dtype == torch.float64


@pytest.mark.parametrize("mode", ["resample", "scale", "normal"])
def test_latents(mps: None, mode: Any) -> None:
    latents = sample_latents(3, 8, 0.5, mode, device=MPS)
    assert latents.device == MPS and latents.dtype == torch.float32


def test_standing_statistics(mps: None) -> None:
    observed = [(torch.empty(0), torch.empty(0))]
    used = _observe(observed, 0, torch.zeros(2, 3, 4, 4, device=MPS))
    assert {x.device for x in used} == {MPS} and {x.dtype for x in used} == {torch.float32}
    moments = _Moments(3, MPS)
    moments.add(*observed[0])
    assert moments.pooled(average_batches=False)[1].dtype == torch.float64


def test_statistics_of_features(mps: None) -> None:
    extractor = FeatureExtractor("own", nn.Flatten(), "digest", "nothing", MPS, num_features=5, num_classes=4)
    statistics = RunningStatistics(8, 0, 2, extractor, covariance=True)
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    statistics.update(torch.zeros(4, 5, device=MPS), torch.zeros(4, 4, device=MPS), range(4), images)
    assert {x.device.type for x in statistics.sums.values()} == {"cpu"}


@pytest.mark.filterwarnings("ignore:cov")  # it reads a number that is not there
def test_the_loss_of_polishing(mps: None) -> None:
    features, labels = torch.zeros(6, 3, device=MPS), torch.zeros(6, dtype=torch.int64, device=MPS)
    joined = with_classes(features, labels, 2, length=1.0)
    assert joined.shape == (6, 5) and moments_of(features).covariance.dtype == torch.float64
