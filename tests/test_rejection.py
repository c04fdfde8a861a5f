"""benchmarks/rejection.py: which candidate the discriminator chooses, and the curves."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from common import tiny_discriminator, tiny_generator
from evaluation_common import tiny_extractor

from biggan_hf.modeling_biggan import BigGANDiscriminatorOutput


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import rejection  # noqa: E402


class Shade(torch.nn.Module):
    """Its logit is three times the mean of an image."""

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
        return BigGANDiscriminatorOutput(logits=3 * images.mean(dim=(1, 2, 3))[:, None])


def test_the_odds_are_those_of_the_logits() -> None:
    greys = np.tile(np.array([0, 255, 128], np.uint8), 4_000)[:, None, None, None]
    labels = torch.zeros(12_000, dtype=torch.int64)
    rows = rejection.chosen(cast(Any, Shade()), greys, labels, 4_000, by_chance=True)
    assert torch.equal(rows // 3, torch.arange(4_000))
    shares = torch.bincount(rows % 3, minlength=3) / 4_000
    expected = torch.tensor([-3.0, 3.0, 3 * (128 / 127.5 - 1)]).softmax(0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)  # four standard deviations
    highest = rejection.chosen(cast(Any, Shade()), greys, labels, 4_000, by_chance=False)
    assert torch.equal(highest, torch.arange(4_000) * 3 + 1)


def test_the_curves(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_generator().save_pretrained(tmp_path / "model")
    tiny_discriminator().save_pretrained(tmp_path / "model" / "discriminator")
    monkeypatch.setattr(rejection, "load_extractor", lambda *_, **__: tiny_extractor())
    argv = [str(tmp_path / "model"), "--dataset_name", str(pictures), "--num_images", "10"]
    argv += ["--output", str(tmp_path / "a.png"), "--truncations", "1", "0.5", "--best_of", "1", "3"]
    monkeypatch.setattr("sys.argv", ["rejection.py", *argv])
    rejection.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert {way: [point["strength"] for point in points] for way, points in found.items()} == {
        "truncation": [1, 0.5],
        "best of": [1, 3],
        "highest logit": [3],
    }
    one, three = ({name: x for name, x in point.items() if name != "strength"} for point in found["best of"])
    assert one != three and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
