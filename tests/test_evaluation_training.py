"""Evaluation during training: what is measured, and the best model, which is kept apart."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import tiny_discriminator, tiny_generator
from evaluation_common import save_pictures, tiny_extractor

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.data import load_labelled_images
from biggan_hf.files import remove_unfinished
from biggan_hf.training.quality import Quality, keep_if_best


SMALL = ("kid", "mind")


def keep(folder: Path, step: int, value: float, label: str = "FID") -> bool:
    return keep_if_best(folder, step, {label: value}, tiny_generator(), tiny_discriminator())


def note(folder: Path) -> dict[str, object]:
    return json.loads((folder / "best" / "best.json").read_text())


def test_samples_are_measured_against_all_pictures_which_are_measured_once(tmp_path: Path) -> None:
    images = load_labelled_images(str(save_pictures(tmp_path / "pictures", 30)), image_size=32, num_channels=1)
    seen: list[int] = []

    def function(batch: torch.Tensor) -> object:
        seen.append(len(batch))
        return tiny_extractor().function(batch)

    extractor, cache = tiny_extractor(function=function), tmp_path / "cache"
    quality = Quality(images, extractor, SMALL, num_images=20, allow_few_images=False, cache_dir=cache)
    values = [quality.measure(tiny_generator(num_channels=1)) for _ in range(2)]
    assert list(values[0]) == ["KD-tiny N=20", "MIND-tiny N=20"] and values[0] == values[1]
    assert seen == [30, 20, 20] and len(list(cache.iterdir())) == 1
    assert [*replace(quality, metrics=("fid",)).measure(tiny_generator(num_channels=1))] == ["FD-tiny N=20"]
    # A Fréchet distance needs more images than features, the others need a pair.
    assert replace(quality, num_images=2)
    with pytest.raises(ValueError, match="of 11 images, fewer than the 12 features of tiny.* evaluation_images"):
        replace(quality, metrics=("fid",), num_images=11)
    with pytest.raises(ValueError, match="of 1 image, which is at no distance"):
        replace(quality, num_images=1)


def test_no_samples_of_classes_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pictures(tmp_path / "pictures", 30)
    images = load_labelled_images(str(folder), image_size=32, num_channels=1)
    assert images.labels is not None
    few = images.with_classes(["none", *images.class_names])
    quality = Quality(
        few, tiny_extractor(), SMALL, num_images=20, allow_few_images=False, cache_dir=tmp_path / "cache"
    )
    model = tiny_generator(num_channels=1, num_labels=len(few.class_names))
    asked: list[int] = []

    def sample(labels: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        asked.extend(labels.tolist())
        return BigGANModel.sample(model, labels, *args, **options)

    monkeypatch.setattr(model, "sample", sample)
    quality.measure(model)
    assert len(asked) == 20 and 0 not in asked


def test_the_best_model_is_kept_whole(tmp_path: Path) -> None:
    kept = [keep(tmp_path, step, value) for step, value in enumerate([5.0, 5.0, 6.0, 4.0])]
    assert kept == [True, False, False, True]
    assert note(tmp_path) == {"step": 3, "label": "FID", "value": 4.0}
    best = tmp_path / "best"
    generator = BigGANModel.from_pretrained(best)
    assert generator.saved_step == 3
    discriminator = BigGANDiscriminator.from_pretrained(best / "discriminator")
    assert torch.equal(generator.output_conv.weight, tiny_generator().output_conv.weight)
    expected = tiny_discriminator().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in discriminator.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_the_best(value: float, tmp_path: Path) -> None:
    assert [keep(tmp_path, 1, value), keep(tmp_path, 2, 5.0), keep(tmp_path, 3, value)] == [False, True, False]
    assert keep(tmp_path, 4, 4.5) and note(tmp_path)["step"] == 4


def test_numbers_of_two_rulers_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # "FID" without an N is what runs of earlier versions left.
    assert keep(tmp_path, 1, 5.0) and keep(tmp_path, 2, 100.0, "FD-Lite0@112 N=500")
    assert note(tmp_path) == {"step": 2, "label": "FD-Lite0@112 N=500", "value": 100.0}
    told = "the best model so far was chosen by FID, not by FD-Lite0@112 N=500: this evaluation replaces it"
    assert told in "".join(capsys.readouterr())


def test_the_best_is_that_of_the_geometric_mean(tmp_path: Path) -> None:
    def keep_both(step: int, kid: float, mind: float) -> bool:
        values = {"KID N=9": kid, "MIND N=9": mind}
        return keep_if_best(tmp_path, step, values, tiny_generator(), tiny_discriminator())

    assert keep_both(1, 0.02, 8.0) and note(tmp_path)["value"] == pytest.approx(0.4)
    assert not keep_both(2, 0.05, 4.0) and keep_both(3, 0.01, 10.0)
    assert not keep_both(4, math.nan, 1.0) and not keep_both(5, 0.001, -math.inf)
    # An unbiased kernel distance below 0 is none, and then MIND decides.
    assert keep_both(6, -0.001, 9.0) and not keep_both(7, -0.9, 9.5) and keep_both(8, -0.0001, 8.5)
    assert note(tmp_path)["label"] == "KID N=9 and MIND N=9"


def test_a_kill_leaves_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 1, 5.0)
    rename = Path.rename
    for survived in range(2):  # killed before the first renaming, and between the two

        def killed(self: Path, target: Path, left: list[int] = [survived]) -> Path:  # noqa: B006  # a counter
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return rename(self, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", killed)
            keep(tmp_path, 2, 4.0)
        assert list(tmp_path.glob("*best/best.json")) != []
        assert not keep(tmp_path, 3, 6.0) and note(tmp_path)["step"] == 1  # worse than what was found again
    assert keep(tmp_path, 4, 4.0)
    remove_unfinished(tmp_path)  # as the next run does
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
