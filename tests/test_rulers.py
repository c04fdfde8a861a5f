"""What tells a degradation with 500 pictures: on real ones (slow), and the intervals of numbers."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from biggan_hf.evaluation import kernel_distance, load_extractor, monge_distance
from biggan_hf.evaluation.comparing import score
from biggan_hf.evaluation.metrics import frechet_distance_of_features
from biggan_hf.evaluation.resampling import Pool, deviations


REPO = Path(__file__).parents[1]
sys.path.append(str(REPO / "benchmarks"))

import rulers  # noqa: E402


# What 500 pictures do not tell (docs/evaluation.md): a Fréchet distance is then mostly bias.
NOT_CLEAR = {("fid", "noise"), ("fid", "blur"), ("fid", "missing classes"), ("fwd", "missing classes")}


@pytest.mark.slow  # a network sees 16,000 pictures
def test_each_ruler_puts_degradations_of_real_pictures_in_order() -> None:
    data = REPO.parent / "shared" / "data" / "cifar10_jpeg"
    if not data.is_dir():
        pytest.skip(f"needs the CIFAR-10 pictures at {data}")
    number, extractor = 500, load_extractor("lite0")
    real, _ = rulers.load(str(data), "train", rulers.FLOORS * number)
    others, labels = rulers.load(str(data), "test", rulers.FLOORS * number)
    above = rulers.above_floor(*rulers.distances(real, others, labels, extractor, number))
    assert above.keys() == {"fid", "kid", "mind", "fwd", "score"}
    for key, kinds in above.items():
        for kind, values in kinds.items():
            assert values == sorted(values), (key, kind)
            assert values[0] > rulers.CLEAR or (key, kind) in NOT_CLEAR, (key, kind)
            assert values[-1] > rulers.CLEAR, (key, kind)


def test_the_table_marks_what_is_not_clear_and_not_in_order() -> None:
    floors = [{"fid": 1.0, "kid": 0.0, "mind": 1.0, "fwd": 1.0, "score": 1.0}]
    floors += [{key: value + 0.1 for key, value in floors[0].items()}]
    weak, strong = (dict.fromkeys(floors[0], value) for value in (1.2, 9.0))
    table = rulers.table("Lite", floors, {"noise": [("a", weak), ("b", strong), ("c", weak)]})
    first, second, third = (line.split("|")[2].strip() for line in table.splitlines()[3:])
    assert (first, third) == ("(2.1)", "(2.1*)") and second == "112.4"
    # Degraded sets have the size of the others, and their strengths differ.
    images = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8)
    sets = rulers.degradations(images, torch.arange(30) % 10, 6)
    assert {kind: len(of) for kind, of in sets.items()} == dict.fromkeys(sets, 3) and len(sets) == 4
    assert all(x.shape == (6, 3, 32, 32) and x.dtype == torch.uint8 for of in sets.values() for _, x in of)


def test_the_score_is_the_geometric_mean_of_ratios() -> None:
    distances = {"fid": 8.0, "mind": 2.0, "fwd": 3.0, "kid": 7.0}
    floors = {"fid": 1.0, "mind": 2.0, "fwd": 3.0, "kid": -0.1}
    assert score(distances, floors) == pytest.approx(2)  # (8 · 1 · 1)^⅓; KID has no ratio
    assert score({"fid": 3.0}, {"fid": 2.0}) == 1.5
    assert all(map(torch.isnan, map(torch.tensor, (score({"fid": 3.0}, {"fid": 0.0}), score({}, {})))))


# Intervals


def gaussian(seed: int, number: int, shift: float) -> Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_the_deviation_is_that_of_other_draws() -> None:
    def numbers(real: Pool, fake: Pool) -> dict[str, float]:
        assert real.features is not None and fake.features is not None
        return {
            "mean": float(fake.features.mean()),
            "fid": frechet_distance_of_features(fake.features, real.features),
            "kid": kernel_distance(real.features, fake.features, 1, len(fake))[0],
            "mind": monge_distance(real.features, fake.features),
        }

    def pools(draw: int) -> list[Pool]:
        pairs = (gaussian(2 * draw, 120, 0), gaussian(2 * draw + 1, 120, 1.0))
        return [Pool(len(features), len(features), features, None) for features in pairs]

    drawn = [numbers(*pools(draw)) for draw in range(60)]
    found = [deviations(numbers, pools(draw)) for draw in range(4)]
    for key in drawn[0]:
        actual = float(torch.tensor([values[key] for values in drawn]).std())
        estimated = sum(values[key] for values in found) / len(found)
        assert 0.7 < estimated / actual < 1.5, (key, estimated, actual)
    assert deviations(numbers, pools(0)) == found[0]  # the seed is fixed


def test_the_deviation_of_a_part_is_scaled_to_the_whole() -> None:
    def mean(pool: Pool) -> dict[str, float]:
        assert pool.features is not None
        return {"mean": float(pool.features.mean())}

    features = gaussian(0, 400, 0)
    (whole,) = deviations(mean, [Pool(400, 400, features, None)]).values()
    # By 1 / √N. "fid" is of all images, "mean" of those whose features are kept.
    (part,) = deviations(mean, [Pool(90_000, 40_000, features, None)]).values()
    assert part == pytest.approx(whole / 10)
    (of_sums,) = deviations(
        lambda pool: {"floor_fid": mean(pool)["mean"]}, [Pool(90_000, 400, features, None)]
    ).values()
    assert of_sums == pytest.approx(whole / 15)
    assert whole == pytest.approx(1 / (400 * 6) ** 0.5, rel=0.5)
