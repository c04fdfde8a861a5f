"""benchmarks/small_data.py: the sets it draws, the changes it tries, and the way from a run to the table."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_common import TINY_SOURCE, save_pictures
from torch import Tensor
from transformers.utils import logging

from biggan_hf.data import load_labelled_images
from biggan_hf.training import steps
from biggan_hf.training.losses import LOSSES


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import small_data  # noqa: E402
from small_data import Game  # noqa: E402


HINGE = LOSSES["hinge"][0]


@pytest.fixture(autouse=True)
def bars() -> Any:
    yield
    logging.enable_progress_bar()  # which the program turns off


# The changes


def logits_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_adaptive_augmentation_follows_the_discriminator() -> None:
    torch.manual_seed(0)
    game, images = Game("adaptive", updates=50), torch.rand(64, 1, 16, 16) + 1
    assert torch.equal(game.augment(images), images)
    for _ in range(10):  # a fifth of the run, with a discriminator that is always right
        game.loss(logits_of(1, 1), logits_of(-1, -1))
    assert 0.5 < game.probability < 1
    changed = (game.augment(images) != images).flatten(1).any(dim=1)
    assert 0.7 < changed.float().mean() < 1
    for _ in range(20):
        game.loss(logits_of(1, -1), logits_of(-1, 1))
    assert game.probability == 0


def test_lecam_pulls_logits_to_the_average_of_the_other_kind() -> None:
    game = Game(lecam=0.5, updates=10)
    real, fake = logits_of(2, 3), logits_of(-2, -1)
    assert game.loss(real, fake) == HINGE(real, fake)  # the wait
    game.averages = torch.tensor([1.0, -1.0])
    # Real ones lie 3 and 4 above the average of generated ones, generated ones 3 and 2 below that of real ones.
    assert game.loss(real, fake) == HINGE(real, fake) + 0.5 * ((9 + 16) / 2 + (9 + 4) / 2)
    torch.testing.assert_close(game.averages, torch.tensor([1.0, -1.0]) + 0.01 * torch.tensor([1.5, -0.5]))


def test_a_game_is_played_and_over() -> None:
    usual = steps.diff_augment, LOSSES["hinge"]
    with Game("always").played():
        assert steps.diff_augment is not usual[0] and LOSSES["hinge"] is not usual[1]
    assert (steps.diff_augment, LOSSES["hinge"]) == usual


# From pictures to the table


def test_smaller_sets_are_parts_of_larger_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_data, "HELD_OUT", 20)
    source = save_pictures(tmp_path / "source", num_images=60, num_classes=2)
    options = small_data.argparse.Namespace(dataset_name=str(source), channels=1, held_out_split=None)
    found = {}
    for number in (8, 16):
        folder = small_data.write_pictures(options, tmp_path / str(number), number)
        for split in ("train", "test"):
            images = load_labelled_images(str(folder), image_size=32, num_channels=1, split=split)
            pixels = images.__getitems__(range(len(images)))["pixel_values"]
            found[number, split] = {picture.numpy().tobytes() for picture in pixels}
            if split == "train":
                assert images.labels is not None and images.labels.bincount().tolist() == [number // 2, number // 2]
    assert len(found[8, "test"]) == 20 and found[8, "test"] == found[16, "test"]
    assert found[8, "train"] < found[16, "train"] and not found[16, "train"] & found[16, "test"]
    with pytest.raises(ValueError, match="100 pictures were asked for, and a class has"):
        small_data.write_pictures(options, tmp_path / "100", 100)


def test_from_runs_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small_data, "HELD_OUT", 20)
    monkeypatch.chdir(tmp_path)
    Path("tiny_features.py").write_text(TINY_SOURCE)
    source = save_pictures(tmp_path / "source", num_images=120, num_classes=2)
    words = ["train", "--output", "runs", "--dataset_name", str(source), "--pictures", "40", "--steps", "1", "2"]
    words += ["--samples", "20", "--extractors", "tiny_features:extract", "--variants", "none", "diff_augment+bcr"]
    small_data.main(words)
    lines = small_data.read(Path("runs"))
    assert [(line["variant"], line["step"]) for line in lines] == [
        (variant, step) for variant in ("none", "diff_augment+bcr") for step in (1, 2)
    ]
    capsys.readouterr()
    small_data.main(words)  # nothing is left to do
    assert small_data.read(Path("runs")) == lines
    table = capsys.readouterr().out.strip().splitlines()
    assert len(table) == 2 + 4 + 1 and table[2].startswith(
        "| pictures | 40 | 2 | 1 | tiny_features:extract | 20 | none | 1 |"
    )
    assert "command" not in json.dumps(lines) and str(tmp_path) not in json.dumps(lines)
    again = [{**line, "seed": 1, "kid": line["kid"] + 4} for line in lines]
    kernel_distances = [row.split(" | ")[8] for row in small_data.table([*lines, *again]).splitlines()[2:6]]
    assert all(cell.endswith(" ± 2") for cell in kernel_distances)
