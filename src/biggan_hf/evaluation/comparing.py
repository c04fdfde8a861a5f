"""From the statistics of two sets, and of a floor, to named numbers with their intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from .extractors import FeatureExtractor
from .metrics import (
    LEAST,
    frechet_distance,
    frechet_distance_of_features,
    kernel_distance,
    manifold_scores,
    moments_of,
    monge_distance,
    saturation,
    wavelet_distance,
)
from .reports import Measure
from .resampling import OF_SUMS, SIDE, Pool, deviations, pool_of
from .settings import EvaluationSettings
from .statistics import Measurements
from .wavelets import num_steps


# Their ratios to the floor make the score. KID is unbiased: its floor is 0 but for chance, and has no ratio.
SCORED = ("fid", "mind", "fwd")


@dataclass(frozen=True)
class Comparison:
    settings: EvaluationSettings
    extractor: FeatureExtractor
    is_reference_known: bool  # whether its extractor is

    def measures(self, real: Measurements, fake: Measurements, floor: Measurements | None) -> list[Measure]:
        """The numbers of the samples, then those of other real images in their place."""
        values = self._distances(real, fake)
        measures = [self._measure(key, *numbers, fake) for key, numbers in values.items()]
        if "is" in self.settings.metrics:
            measures += self._inception_scores(real, fake, floor)
        if "prdc" in self.settings.metrics:
            assert real.kept is not None and fake.kept is not None
            scores = manifold_scores(real.kept, fake.kept)
            measures += [self._measure(key, value, None, fake) for key, value in scores.items()]
        if floor is not None:
            floors = self._distances(real, floor)
            # The distances have a bias that depends on the number of images.
            if not set(SCORED).isdisjoint(self.settings.metrics) and fake.num_images == floor.num_images:
                ratios = score(*({key: value for key, (value, _) in of.items()} for of in (values, floors)))
                measures.append(self._measure("score", ratios, None, fake))
            number = "" if floor.num_images == fake.num_images else f" with {floor.num_images} images"
            for key, numbers in floors.items():
                measure = self._measure(key, *numbers, floor)
                name = f"{measure.label}, real against real{number}"
                measures.append(replace(measure, key=f"floor_{key}", label=name))
        return self._with_intervals(measures, real, fake, floor) if self.settings.intervals else measures

    def _measure(self, key: str, value: float, deviation: float | None, fake: Measurements) -> Measure:
        if key == "fwd":
            assert fake.image_shape is not None
            name = f"FWD-log-Haar@{num_steps(fake.image_shape)}"
        elif key == "saturation":
            name = key
        else:
            name = label(key, self.extractor, key != "fid" or self.is_reference_known)
        number = fake.num_images if key in OF_SUMS or fake.kept is None else len(fake.kept)
        return Measure(key, name, value, deviation, num_images=number)

    def _distances(self, real: Measurements, fake: Measurements) -> dict[str, tuple[float, float | None]]:
        """The distances that are asked for, by key, each with its deviation over subsets, if it has some."""
        values: dict[str, tuple[float, float | None]] = {}
        if "fid" in self.settings.metrics:
            values["fid"] = frechet_distance_of(real, fake), None
        if "kid" in self.settings.metrics:
            assert real.kept is not None and fake.kept is not None
            values["kid"] = kernel_distance(
                real.kept, fake.kept, self.settings.kid_subsets, self.settings.kid_subset_size
            )
        if "mind" in self.settings.metrics:
            assert real.kept is not None and fake.kept is not None
            values["mind"] = monge_distance(real.kept, fake.kept), None
        if "fwd" in self.settings.metrics:
            assert real.packet_means is not None and real.packet_covariances is not None
            assert fake.packet_means is not None and fake.packet_covariances is not None
            moments = fake.packet_means, fake.packet_covariances, real.packet_means, real.packet_covariances
            values["fwd"] = wavelet_distance(*moments), None
        if "saturation" in self.settings.metrics:
            assert real.ends is not None and fake.ends is not None
            values["saturation"] = saturation(real.ends, fake.ends), None
        return values

    def _inception_scores(self, real: Measurements, fake: Measurements, floor: Measurements | None) -> list[Measure]:
        name = label("is", self.extractor)
        sets = [("is", name, fake)]
        for key, what, others in (("reference_is", "real images", real), ("floor_is", "floor", floor)):
            if others is not None:
                split = others.description.get("split") or others.description["source"]
                number = "" if others.num_images == fake.num_images else f", {others.num_images} images"
                sets.append((key, f"{name} of the {what} ({split}{number})", others))
        return [
            Measure(key, text, *mean_and_deviation(images.class_scores), num_images=images.num_images)
            for key, text, images in sets
            if images.class_scores is not None
        ]

    # Intervals

    def _with_intervals(
        self, measures: list[Measure], real: Measurements, fake: Measurements, floor: Measurements | None
    ) -> list[Measure]:
        spread: dict[str, float] = {}
        pools = [pool_of(measured) for measured in (real, fake, floor) if measured is not None]
        if None not in pools:
            spread = deviations(self._of_halves, [pool for pool in pools if pool is not None])
        for key, measured in {"is": fake, "reference_is": real, "floor_is": floor}.items():
            if measured is not None and measured.halves_scores is not None:
                spread[key] = float(measured.halves_scores.std())

        def interval(one: Measure) -> tuple[float, float] | None:
            side = SIDE * spread.get(one.key, math.nan)
            low, high = one.value - side, one.value + side
            if one.key.removeprefix("floor_") in ("precision", "recall", "coverage", "saturation"):  # shares
                low, high = max(low, 0.0), min(high, 1.0)
            return (low, high) if math.isfinite(side) else None

        return [replace(one, interval=interval(one)) for one in measures]

    def _of_halves(self, real: Pool, fake: Pool, floor: Pool | None = None) -> dict[str, float]:
        """The same numbers, by key, of halves of the sets."""
        numbers = self._distances_of_halves(real, fake)
        if "prdc" in self.settings.metrics and min(len(real), len(fake)) >= LEAST["prdc"]:
            assert real.features is not None and fake.features is not None
            scores = manifold_scores(real.features, fake.features)
        else:
            scores = {}
        if floor is not None:
            floors = self._distances_of_halves(real, floor)
            numbers |= {"score": score(numbers, floors)} | {f"floor_{key}": value for key, value in floors.items()}
        return numbers | scores

    def _distances_of_halves(self, real: Pool, fake: Pool) -> dict[str, float]:
        values: dict[str, float] = {}
        if real.features is not None and fake.features is not None:
            if "fid" in self.settings.metrics:
                values["fid"] = frechet_distance_of_features(fake.features, real.features)
            if "kid" in self.settings.metrics:
                values["kid"], _ = kernel_distance(real.features, fake.features, 1, min(len(real), len(fake)))
            if "mind" in self.settings.metrics:
                values["mind"] = monge_distance(real.features, fake.features)
        if real.packets is not None and fake.packets is not None:
            values["fwd"] = wavelet_distance(*moments_of(fake.packets), *moments_of(real.packets))
        if real.ends is not None and fake.ends is not None and "saturation" in self.settings.metrics:
            values["saturation"] = saturation(real.ends, fake.ends)
        return values


def frechet_distance_of(real: Measurements, fake: Measurements) -> float:
    assert real.covariance is not None and fake.covariance is not None
    return frechet_distance(fake.mean, fake.covariance, real.mean.to(fake.mean), real.covariance.to(fake.mean))


def score(distances: Mapping[str, float], floors: Mapping[str, float]) -> float:
    """
    The geometric mean of the distances over those of real images, by key: 1 is as good as real. NaN if a distance is
    not above 0, as of a set to itself.
    """
    pairs = [(distances[key], floors[key]) for key in SCORED if key in distances and key in floors]
    if not pairs or min(map(min, pairs)) <= 0:
        return math.nan
    return math.prod(distance / floor for distance, floor in pairs) ** (1 / len(pairs))


def mean_and_deviation(values: Tensor) -> tuple[float, float | None]:
    """No deviation of one value, or of values that are equal but for rounding."""
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return mean, deviation if deviation > 1e-9 * abs(mean) else None


def label(key: str, extractor: FeatureExtractor, is_reference_known: bool = True) -> str:
    """
    The name of a number. One network defines FID, KID, MIND and IS; with another network, or against moments that
    another network may have measured, the name includes the extractor's.
    """
    short = {"fid": "FD", "kid": "KD", "mind": "MIND", "is": "IS", "intra_class_fid": "intra-class FD"}
    if key not in short:
        return f"{key}-{extractor.name}"  # no network defines precision, recall, density and coverage
    if not is_reference_known:
        return f"{short[key]}-{extractor.name} (reference of an unknown extractor)"
    if extractor.is_standard:
        return {"intra_class_fid": "intra-class FID"}.get(key, key.upper())
    return f"{short[key]}-{extractor.name}"
