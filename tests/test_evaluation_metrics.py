"""The measures against closed forms, against torchmetrics and against the definitions written out."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from evaluation_common import noise, noise_source, tiny_extractor
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from biggan_hf.evaluation import (
    frechet_distance,
    kernel_distance,
    manifold_scores,
    monge_distance,
    read_moments,
    write_moments,
)
from biggan_hf.evaluation.classifying import accuracy_of_classifier
from biggan_hf.evaluation.metrics import frechet_distance_of_features, moments_of, wavelet_distance
from biggan_hf.evaluation.statistics import Measurements, RunningStatistics
from biggan_hf.evaluation.wavelets import log_packets, packets, packets_shape


def features(num_images: int, width: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """float64, with variances over four decades, as those of pooled activations."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    mixed = torch.randn(num_images, width, generator=generator, dtype=torch.float64) * scale
    turn, _ = torch.linalg.qr(torch.sin(torch.arange(width**2, dtype=torch.float64)).reshape(width, width))
    return mixed @ turn + shift


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.cov(x.T)


# Fréchet distance


def test_frechet_distance_of_gaussians_with_different_axes() -> None:
    # In two dimensions tr √M = √(tr M + 2 √det M), with M = Σa Σb.
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    mean_a, mean_b = torch.tensor([0.0, 1.0]).double(), torch.tensor([2.0, -1.0]).double()
    product = a @ b
    root_trace = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = 8 + float(a.trace() + b.trace()) - 2 * root_trace
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_images", [400, 40])  # fewer than dimensions: rounding alone would cost 1e-4
def test_identical_sets_are_at_distance_zero(num_images: int) -> None:
    x = 10 * features(num_images, 100)
    assert frechet_distance(*moments(x), *moments(x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_images", [300, 30])
def test_frechet_distance_agrees_with_torchmetrics(num_images: int) -> None:
    real, fake = features(500, 60), features(num_images, 60, seed=1, shift=0.05)
    metric = FrechetInceptionDistance(feature=_Features(60)).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    got = frechet_distance(*moments(fake), *moments(real))
    assert got == pytest.approx(float(metric.compute()), rel=1e-6)


class _Features(nn.Identity):
    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def test_features_of_two_extractors_have_no_distance() -> None:
    with pytest.raises(ValueError, match="width, 3 and 4"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(4), torch.eye(4))


# Kernel distance


def test_kernel_distance_agrees_with_torchmetrics_and_the_definition() -> None:
    real, fake = features(40, 6), features(50, 6, seed=1, shift=0.3)
    # One subset of all images: the unbiased estimate, and no draw.
    size = 40
    got, deviation = kernel_distance(real, fake[:size], num_subsets=3, subset_size=1000)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 6 + 1) ** 3

    within = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (size * (size - 1)) for x in (real, fake[:size]))
    expected = float(within - 2 * kernel(real, fake[:size]).mean())
    assert got == pytest.approx(expected, rel=1e-9) and deviation is None

    metric = KernelInceptionDistance(feature=nn.Identity(), subsets=20, subset_size=10)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    torch.manual_seed(7)
    mean, spread = metric.compute()
    assert kernel_distance(real, fake, 20, 10, seed=7) == pytest.approx((float(mean), float(spread)), rel=1e-6)


def test_kernel_distance_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kernel_distance(features(20, 4), features(20, 4, seed=1), 2, 5)
    assert torch.equal(torch.get_rng_state(), before)


# MIND, the sliced distance of sorted projections


def test_monge_distance_of_closed_forms() -> None:
    # A shift by s moves each projection by s·u, whose mean square over directions is |s|² / d.
    x, shift = features(300, 8), torch.linspace(-1, 1, 8, dtype=torch.float64)
    assert monge_distance(x, x) == 0 and monge_distance(x, x.flip(0)) < 1e-20
    expected = 3 * float(shift.square().sum())
    assert monge_distance(x, x + shift) == pytest.approx(expected, rel=0.05)  # √(2 / 1000) over the directions
    # On a line there is one direction: three times the mean square of sorted differences, whatever the order.
    a, b = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([[2.0], [5.0], [2.0]])
    assert monge_distance(a, b) == pytest.approx(3 * (2**2 + 1**2 + 2**2) / 3, rel=1e-6)
    # Isotropic Gaussians of deviations 1 and 2: (2 - 1)² on every line.
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4_000, 4, generator=generator) for _ in range(2))
    assert monge_distance(first, 2 * second) == pytest.approx(3 * 4, rel=0.1)
    with pytest.raises(ValueError, match="width, 3 and 4"):
        monge_distance(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="MIND needs at least 2 images, got 1"):
        monge_distance(x[:1], x)


def test_kid_and_mind_agree_with_torch_fidelity() -> None:
    try:
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_mind import mind_features_to_metric
    except Exception as error:  # it needs torchvision, which raises more than ImportError where torch is another
        pytest.skip(f"torch-fidelity with MIND does not run here: {type(error).__name__}: {error}")
    generator = torch.Generator().manual_seed(0)
    for number in (400, 300):  # of two sizes, as many of each are compared
        real = torch.randn(400, 640, generator=generator).relu()
        fake = (1.05 * torch.randn(number, 640, generator=generator) + 0.02).relu()
        options = {"cuda": False, "rng_seed": 5, "verbose": False}
        (expected,) = mind_features_to_metric(fake, real, mind_num_projections=1000, **options).values()
        assert monge_distance(real, fake, seed=5) == pytest.approx(expected, rel=1e-6)
    real, fake, one = real.double(), fake.double(), {"kid_subsets": 1, "kid_subset_size": 300}
    expected = kid_features_to_metric(fake, real[:300], **one, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(real[:300], fake)[0] == pytest.approx(expected, rel=1e-6)


# Wavelets


@pytest.mark.parametrize(("height", "width", "steps"), [(16, 16, 2), (21, 13, 2), (8, 12, 1)])
def test_packets_are_those_of_pywavelets(height: int, width: int, steps: int) -> None:
    images = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tree = pywt.WaveletPacket2D(images.numpy(), "haar", mode="symmetric", maxlevel=steps, axes=(-2, -1))
    expected = [tree["".join(path)].data for path in itertools.product("avhd", repeat=steps)]
    got = packets(images, steps)
    assert torch.allclose(got, torch.from_numpy(np.stack(expected, 1)), rtol=1e-12, atol=1e-14)
    assert packets_shape((3, 16, 16)) == (16, 48) and packets_shape((1, 28, 28)) == (16, 49)
    if height == width:
        assert float(got.square().sum()) == pytest.approx(float(images.square().sum()), rel=1e-12)
        assert got.flatten(2).shape[1:] == packets_shape((3, height, width))


def test_log_packets_of_flat_pictures() -> None:
    # A flat picture of value v has v · 2^steps in the coarsest packet, and zeros, which count as one grey level.
    images = torch.full((1, 1, 32, 32), 51, dtype=torch.uint8)
    flat = log_packets(images)
    assert flat.shape == (1, 64, 16)
    assert torch.allclose(flat[0, 0], torch.full((16,), math.log(0.2 * 8 + 1 / 255)), atol=1e-5)
    assert torch.allclose(flat[0, 1:], torch.full((63, 16), math.log(1 / 255)), atol=1e-3)


def test_wavelet_distance_is_the_mean_over_packets() -> None:
    a, b = (torch.stack([features(60, 5, seed), 2 * features(60, 5, seed + 9)], 1) for seed in (0, 1))
    expected = [frechet_distance(*moments(a[:, packet]), *moments(b[:, packet])) for packet in (0, 1)]
    assert wavelet_distance(*moments_of(a), *moments_of(b)) == pytest.approx(sum(expected) / 2, rel=1e-12)
    # Equal but for their scale and place: |Δμ|² + tr Σ (1 - s)² in each packet.
    scale, shift = 1.5, 0.3
    means, covariances = moments_of(a)
    expected_distance = (scale * means + shift - means).square().sum(1).mean()
    expected_distance += (1 - scale) ** 2 * covariances.diagonal(dim1=1, dim2=2).sum(1).mean()
    got = wavelet_distance(means, covariances, *moments_of(scale * a + shift))
    assert got == pytest.approx(float(expected_distance), rel=1e-9)


@pytest.mark.parametrize("num_images", [80, 12])
def test_frechet_distance_of_features_is_that_of_their_moments(num_images: int) -> None:
    a, b = features(num_images, 20), features(num_images + 5, 20, seed=1, shift=0.2)
    got = frechet_distance_of_features(a, b)
    assert got == pytest.approx(frechet_distance(*moments(a), *moments(b)), rel=1e-9)


# Precision, recall, density, coverage


@pytest.mark.parametrize("block", [7, 1024])
def test_manifold_scores_are_what_their_papers_define(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biggan_hf.evaluation.metrics.BLOCK", block)
    real, fake = features(30, 3).numpy(), features(40, 3, seed=1, shift=0.4).numpy()

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - y[None], axis=-1)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]  # the 0-th neighbour is the point itself

    cross = distances(fake, real)
    expected = {
        "precision": (cross <= radii(real, 3)).any(1).mean(),
        "recall": (cross <= radii(fake, 3)[:, None]).any(0).mean(),
        "density": (cross < radii(real, 5)).sum() / (5 * 40),
        "coverage": (cross < radii(real, 5)).any(0).mean(),
    }
    got = manifold_scores(torch.from_numpy(real), torch.from_numpy(fake))
    assert got == pytest.approx(expected)
    assert 0.1 < got["precision"] < 0.9 and 0.1 < got["recall"] < 0.9


def test_manifold_scores_of_the_same_set_and_of_sets_apart() -> None:
    x = features(50, 4)
    same = manifold_scores(x, x)
    assert all(value == 1 for value in same.values())
    # Rounding decides no tie, and what stands six times has no room around it.
    assert manifold_scores(x, x.flip(0)) == same
    assert manifold_scores(x.repeat(6, 1), x.repeat(6, 1))["density"] == 0
    for seed in range(4):
        wide = torch.randn(200, 64, generator=torch.Generator().manual_seed(seed)).repeat(10, 1)
        tenfold = manifold_scores(wide, wide)
        assert tenfold["precision"] == tenfold["recall"] == 1
    assert all(value == 0 for value in manifold_scores(x, x + 100).values())
    # Far from the origin, too, where squares lose the distances to rounding.
    y = features(40, 4, seed=1)
    assert manifold_scores(x + 1e8, y + 1e8) == pytest.approx(manifold_scores(x, y), abs=0.05)
    with pytest.raises(ValueError, match="at least 6 images"):
        manifold_scores(x[:5], x)


# Accuracy of a classifier


def test_the_classifier_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    # Three classes that overlap, and a feature that never varies.
    labels = torch.arange(240) % 3
    noisy = torch.randn(240, 6, generator=torch.Generator().manual_seed(2))
    x = torch.cat([noisy + 2 * torch.eye(3, 6)[labels], torch.ones(240, 1)], 1).double()
    got = accuracy_of_classifier(x[:120], labels[:120], x[120:], labels[120:], 3)
    scale = x[:120].std(0).where(x[:120].std(0) > 0, 1)
    scaled = ((x - x[:120].mean(0)) / scale).numpy()
    expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(scaled[:120], labels[:120])
    assert got == pytest.approx(expected.score(scaled[120:], labels[120:])) and 0.5 < got < 0.95
    # Of labels that say nothing, nothing is learnt.
    turned = labels[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    assert accuracy_of_classifier(x[:120], turned[:120], x[120:], labels[120:], 3) < 0.5


# Sums over images


def statistics_of(x: Tensor, logits: Tensor, *, splits: int, kept: int = 4, batch: int = 7) -> RunningStatistics:
    extractor = tiny_extractor(num_features=x.shape[1], num_classes=logits.shape[1])
    statistics = RunningStatistics(len(x), kept, splits, extractor)
    for start in range(0, len(x), batch):
        rows = range(start, min(start + batch, len(x)))
        images = torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)
        statistics.update(x[rows.start : rows.stop].float(), logits[rows.start : rows.stop], rows, images)
    return statistics


def test_the_mean_and_the_covariance_of_a_stream() -> None:
    x = features(50, 8, shift=3.0).float()
    statistics = statistics_of(x, torch.zeros(50, 2), splits=1)
    measured = statistics.finish(noise_source(50), tiny_extractor())
    mean, covariance = moments(x.double())
    assert torch.allclose(measured.mean, mean, rtol=1e-12)
    assert measured.covariance is not None
    assert torch.allclose(measured.covariance, covariance, rtol=1e-10, atol=1e-14)
    assert measured.num_images == 50
    kept = measured.kept
    assert kept is not None and len(kept) == 4
    assert all((row == x).all(1).any() for row in kept)
    assert not torch.equal(kept, x[:4])  # of a sorted set the first would be one class


def test_inception_score_of_one_split_agrees_with_torchmetrics() -> None:
    logits = 3 * torch.randn(60, 7, generator=torch.Generator().manual_seed(0))
    metric = InceptionScore(feature=nn.Identity(), splits=1)
    metric.update(logits.double())
    scores = statistics_of(torch.zeros(60, 2), logits, splits=1).class_scores()
    assert scores is not None
    assert float(scores[0]) == pytest.approx(float(metric.compute()[0]), rel=1e-9)


@pytest.mark.parametrize("num_splits", [1, 5, 10])
def test_the_inception_score_does_not_depend_on_the_order(num_splits: int) -> None:
    # Sure of one of c classes: IS = c, whether the classes are sorted, in turn or shuffled.
    number = num_splits * 500
    in_turn = torch.arange(number) % 5
    shuffled = in_turn[torch.randperm(number, generator=torch.Generator().manual_seed(0))]
    for classes in (in_turn, in_turn.sort().values, shuffled):
        scores = statistics_of(torch.zeros(number, 2), 100 * torch.eye(5)[classes], splits=num_splits).class_scores()
        assert scores is not None and len(scores) == num_splits and ((scores > 4.9) & (scores <= 5 + 1e-9)).all()


def test_a_small_set_has_one_inception_score() -> None:
    logits = torch.eye(4).repeat_interleave(15, 0)
    assert len(statistics_of(torch.zeros(60, 2), logits, splits=10).class_scores()) == 1  # type: ignore[arg-type]


def test_what_is_not_asked_for_is_not_gathered() -> None:
    statistics = RunningStatistics(20, 0, 1, tiny_extractor(), covariance=False)
    assert {"outer", "kept", "packet_outer", "pictures"}.isdisjoint(statistics.sums)
    statistics.update(torch.rand(20, 12), torch.rand(20, 5), range(20), noise(20))
    measured = statistics.finish(noise_source(20), tiny_extractor())
    assert measured.covariance is None and measured.kept is None and measured.class_scores is not None
    with pytest.raises(ValueError, match="no covariance"):
        write_moments(measured, "moments.npz")


# Files of moments


def test_moments_files_are_those_of_biggan_pytorch(tmp_path: Path) -> None:
    x = features(40, 5).numpy()
    # Its calculate_inception_moments.py.
    np.savez(tmp_path / "C10_inception_moments.npz", mu=np.mean(x, axis=0), sigma=np.cov(x, rowvar=False))
    read = read_moments(tmp_path / "C10_inception_moments.npz")
    assert read.covariance is not None and read.extractor is None and read.num_images is None
    assert frechet_distance(read.mean, read.covariance, *moments(torch.from_numpy(x))) == pytest.approx(0, abs=1e-9)

    identity = tiny_extractor().identity
    description = {"source": "cifar10", "split": "train"}
    written = Measurements(description, read.mean, read.covariance, 40, (3, 32, 32), extractor=identity)
    write_moments(written, tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as file:
        assert np.array_equal(file["mu"], read.mean.numpy()) and file["sigma"].shape == (5, 5)
    again = read_moments(tmp_path / "own.npz")
    assert (again.num_images, again.image_shape, again.extractor) == (40, (3, 32, 32), identity)
    assert again.description == {**description, "moments": str(tmp_path / "own.npz")}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "has the arrays x, expected mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got \(3,\) and \(4, 4\)"),
        ({"sigma": np.full((2, 2), np.nan)}, "NaN"),
        ({"protocol": np.array("{}")}, "protocol that can't be read"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "no .npz file of arrays"),  # an object: code
        ({"sigma": np.eye(2) + 1j}, "must be floating-point numbers, got float64 and complex128"),
        ({"mu": np.array(["a", "b"])}, "must be floating-point numbers, got <U1 and float64"),
        ({"protocol": np.array('{"reference": {}, "num_images": null, "image_shape": null, "extractor": 3}')}, "is 3"),
    ],
)
def test_what_is_no_file_of_moments(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    if "x" not in arrays:
        arrays = {"mu": np.zeros(2), "sigma": np.eye(2), **arrays}
    np.savez(tmp_path / "moments.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        read_moments(tmp_path / "moments.npz")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_moments(tmp_path / "missing.npz")
