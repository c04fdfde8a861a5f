"""Polishing: what learns, what judges, what goes on after a stop, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from common import in_two_processes, tiny_generator
from evaluation_common import TINY_SOURCE, save_pictures, tiny_extractor
from PIL import Image
from torch import Tensor

from biggan_hf import BigGANModel
from biggan_hf.cli import main
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import GeneratedImages, Measure, Report, add_to_card, evaluate
from biggan_hf.files import save_archive
from biggan_hf.polishing import LOG, STATE, Polishing, PolishSettings, polish
from biggan_hf.processes import joined


SETTINGS = PolishSettings(num_rounds=2, batch_size=16, learning_rate=1e-3, population=100, evaluation_images=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("polishing") / "pictures"
    save_pictures(folder, 160, 3)
    return folder


def model_of(**changes: Any) -> BigGANModel:
    names = {label: f"class {label}" for label in range(3)}
    return tiny_generator(num_labels=3, id2label=names, num_channels=1, **changes)


def polishing_of(pictures: Path, settings: PolishSettings = SETTINGS, **changes: Any) -> Polishing:
    model = changes.pop("model", None) or model_of()
    images = load_labelled_images(str(pictures), image_size=model.config.image_size, num_channels=1)
    judge = tiny_extractor(name="judge")
    return Polishing(model, images, [changes.get("extractor") or tiny_extractor()], judge, settings)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_it_comes_closer_to_the_pictures(pictures: Path, tmp_path: Path) -> None:
    best = polish(polishing_of(pictures, dataclasses.replace(SETTINGS, num_rounds=6)), tmp_path)
    distances = [line["FD-tiny N=100, before the round"] for line in lines(tmp_path)[1:]]
    assert distances[-1] < 0.5 * distances[0]
    judged = [line["KD-judge N=32"] for line in lines(tmp_path)]
    assert [line["round"] for line in lines(tmp_path)] == [*range(7)] and judged[best] < judged[0] and best > 0
    polished, start = BigGANModel.from_pretrained(tmp_path), model_of()
    assert any(not torch.equal(x, y) for x, y in zip(polished.parameters(), start.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(polished.buffers(), start.buffers(), strict=True))


def weights(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / STATE, weights_only=True)
    return {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in state[part].items()}


def test_a_stopped_one_goes_on_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    polish(polishing_of(pictures), whole)
    polish(polishing_of(pictures, dataclasses.replace(SETTINGS, num_rounds=1)), parts)
    polish(polishing_of(pictures), parts)
    expected, found = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert lines(whole) == lines(parts)
    with pytest.raises(
        ValueError, match=r"holds a polishing with learning_rate=0.001, and now it is 0.1.*--overwrite"
    ):
        polish(polishing_of(pictures, dataclasses.replace(SETTINGS, learning_rate=0.1)), parts)


def in_a_process(rank: int, pictures: Path, folder: Path) -> None:
    with joined(on_gpu=False):
        polish(polishing_of(pictures), folder)


def test_two_processes_do_what_one_does(pictures: Path, tmp_path: Path) -> None:
    polish(polishing_of(pictures), tmp_path / "one")
    in_two_processes(in_a_process, tmp_path, pictures, tmp_path / "both")
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "both")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=5e-3)  # Adam enlarges rounding


def test_where_nothing_gets_better_the_start_stays(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ever_worse(polishing: Polishing) -> dict[str, float]:
        polishing.verdicts.append(1.0 + polishing.rounds)
        return {}

    monkeypatch.setattr(Polishing, "verdict", ever_worse)
    polishing = polishing_of(pictures, dataclasses.replace(SETTINGS, num_rounds=9, patience=2))
    assert polish(polishing, tmp_path) == 0 and polishing.rounds == 2
    for name, tensor in BigGANModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, model_of().state_dict()[name])


def test_the_anchor_holds_the_weights(pictures: Path) -> None:
    def moved(anchor: float) -> float:
        polishing = polishing_of(pictures, dataclasses.replace(SETTINGS, anchor=anchor))
        polishing.learn(polishing.draw()[0])
        pairs = zip(polishing.parameters, polishing.start, strict=True)
        return sum((now - start).square().sum().item() for now, start in pairs)

    assert moved(0.2) < 0.5 * moved(0.0)


def test_a_model_without_classes(pictures: Path, tmp_path: Path) -> None:
    model = tiny_generator(num_labels=0, num_channels=1)
    polish(polishing_of(pictures, model=model), tmp_path)
    assert [line["round"] for line in lines(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be at least 1, got 0"),
        ({"anchor": 1.0}, "expected 0 <= anchor < 1"),
        ({"learning_rate": float("nan")}, "learning_rate > 0, got 0.0 and nan"),
        ({"evaluation_images": 1}, "evaluation_images must be at least 2, got 1"),
        ({"population": 15}, "tiny has 12 features: their moments need more than 15 real pictures, got 15"),
    ],
)
def test_bad_settings(pictures: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polishing_of(pictures, dataclasses.replace(SETTINGS, **changes))


def test_a_model_in_bfloat16_is_refused(pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a model in float32, got torch.bfloat16: model.float\(\) is one"):
        polishing_of(pictures, model=model_of().bfloat16())


def test_the_judge_sees_classes_as_often_as_in_the_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polishing = polishing_of(pictures, dataclasses.replace(SETTINGS, num_rounds=1))
    theirs = polishing.real.images.labels
    assert theirs is not None
    theirs[:] = torch.tensor([0] * 120 + [1] * 35 + [2] * 5)
    judged: list[Any] = []

    def noted(samples: Any, real: Any, *rest: Any) -> Any:
        judged.append((samples, real))
        return evaluate(samples, real, *rest)

    monkeypatch.setattr("biggan_hf.polishing.evaluate", noted)
    polish(polishing, tmp_path)
    (samples, real), (again, _) = judged
    shares = theirs[real.rows].bincount(minlength=3) / len(real)
    assert ((samples.labels.bincount(minlength=3) / 32 - shares).abs() <= 1 / 32).all()
    assert torch.equal(samples.labels, again.labels) and torch.equal(samples.latents, again.latents)
    uniform = GeneratedImages(samples.model, 32, seed=samples.seed)
    assert samples.fingerprint != uniform.fingerprint
    # Verdicts of other samples are not to be compared with these.
    state = polishing.state()
    identity = {name: value for name, value in json.loads(state["identity"]).items() if name != "judged"}
    save_archive({**state, "identity": json.dumps(identity)}, tmp_path / STATE)
    with pytest.raises(ValueError, match="holds a polishing with judged=None, and now it is 'classes as often as"):
        polish(polishing, tmp_path)


def test_an_encoder_without_gradients(pictures: Path) -> None:
    blind = tiny_extractor(function=lambda images: tiny_extractor().function(images.detach()))
    with pytest.raises(ValueError, match="extractor 'tiny' passes no gradient"):
        polishing_of(pictures, extractor=blind)


def test_the_command(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "tiny_features.py").write_text(TINY_SOURCE)
    (tmp_path / "other_features.py").write_text(TINY_SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("biggan_hf.commands.polish.CACHE", tmp_path / "cache")
    model_of().bfloat16().save_pretrained("model")
    command = ["polish", "model", "--dataset_name", str(pictures), "--output", "polished", "--device", "cpu"]
    command += ["--extractors", "tiny_features:extract", "--judge", "other_features:extract"]
    command += "--num_rounds 1 --batch_size 16 --population 100 --evaluation_images 32".split()
    main(command)
    told = capsys.readouterr().out
    assert told.endswith("polished\n") and "judge" in told
    assert {path.name for path in Path("polished").iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    assert Image.open("polished/before-and-after.png").width > 500
    assert BigGANModel.from_pretrained("polished").dtype == torch.float32
    protocol = {"reference": {"source": "user/data", "split": "train"}, "samples": {"number": 10}}
    add_to_card(Report([Measure("fid", "FID", 12.5)], protocol), Path("polished/README.md"), "polished")
    evaluated = Path("polished/README.md").read_text()
    main(command)  # there is nothing left to do
    assert Path("polished/README.md").read_text() == evaluated and "model-index" in evaluated
    before = Path("polished", STATE).read_bytes()
    with pytest.raises(SystemExit):
        main([*command, "--overwrite", "--dataset_name", "no-such-folder/at/all"])
    assert Path("polished", STATE).read_bytes() == before and Path("polished", LOG).exists()
    capsys.readouterr()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main([*command, "--output", "taken"])
    assert "'taken' already holds something" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--judge", "tiny_features:extract"])
    assert "is learnt from, too" in capsys.readouterr().err
