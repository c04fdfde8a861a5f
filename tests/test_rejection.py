"""`best_of`: of several candidates one, which the discriminator chooses."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from common import seeded, tiny_discriminator, tiny_generator
from evaluation_common import tiny_extractor

from biggan_hf import BigGANPipeline, sample_latents
from biggan_hf.cli import main
from biggan_hf.modeling_biggan import BigGANDiscriminatorOutput
from biggan_hf.rejection import chosen_by, draw_odds


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import rejection  # noqa: E402


MODEL = tiny_generator().eval()
DISCRIMINATOR = tiny_discriminator().eval()
PIPE = BigGANPipeline(MODEL, DISCRIMINATOR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MODEL.save_pretrained(tmp_path / "model")
    DISCRIMINATOR.save_pretrained(tmp_path / "model" / "discriminator")
    return tmp_path / "model"


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_discriminator_chooses(batch_size: int | None) -> None:
    options: dict[str, Any] = {"output_type": "pt", "truncation": 1.0, "batch_size": batch_size}
    candidates = PIPE([1, 3], num_images_per_prompt=8, generator=seeded(0), **options)
    generator = seeded(0)
    chosen = PIPE([1, 3], num_images_per_prompt=2, best_of=4, generator=generator, **options)
    after_latents = seeded(0)
    sample_latents(16, MODEL.config.z_dim, 1.0, generator=after_latents)
    odds = draw_odds(4, 4, after_latents)
    with torch.no_grad():
        logits = DISCRIMINATOR(candidates.images * 2 - 1, candidates.class_labels).logits.view(4, 4)
    best = (logits + odds).argmax(1) + torch.arange(0, 16, 4)
    assert len(set(best.tolist())) == 4 and not torch.equal(best, torch.arange(0, 16, 4))
    torch.testing.assert_close(chosen.latents, candidates.latents[best], rtol=0, atol=0)
    torch.testing.assert_close(chosen.images, candidates.images[best])
    assert chosen.class_labels.tolist() == [1, 1, 3, 3]
    alone = PIPE([1, 3], num_images_per_prompt=2, best_of=1, generator=seeded(0), **options)
    plain = PIPE([1, 3], num_images_per_prompt=2, generator=seeded(0), **options)
    torch.testing.assert_close(alone.images, plain.images)


class Shade(torch.nn.Module):
    """Its logit is three times the mean of an image: grey levels 1 and 0 have a ratio of odds of e³."""

    device = torch.device("cpu")

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None) -> Any:
        return BigGANDiscriminatorOutput(logits=3 * images.mean(dim=(1, 2, 3))[:, None])


def test_the_odds_are_those_of_the_logits() -> None:
    images = torch.tensor([0.0, 1.0, 0.5]).repeat(4_000)[:, None, None, None]
    rows = chosen_by(cast(Any, Shade().eval()), images.split(1_000), None, draw_odds(4_000, 3, seeded(0)))
    shares = torch.bincount(rows % 3, minlength=3) / 4_000
    expected = torch.tensor([0.0, 3.0, 1.5]).softmax(0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)  # four standard deviations


def test_a_generator_an_image() -> None:
    images = PIPE([1, 3], best_of=3, generator=[seeded(5), seeded(6)], output_type="pt").images
    torch.testing.assert_close(images[1:], PIPE([3], best_of=3, generator=[seeded(6)], output_type="pt").images)


def test_random_classes_and_none() -> None:
    assert PIPE(num_images_per_prompt=3, best_of=2, output_type="pt").images.shape[0] == 3
    pipe = BigGANPipeline(tiny_generator(num_labels=0), tiny_discriminator(num_labels=0))
    assert pipe(num_images_per_prompt=3, best_of=2, output_type="pt").class_labels is None


def test_the_judge_stays_as_it_is_and_is_not_part_of_the_graph() -> None:
    network = tiny_discriminator().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = BigGANPipeline(MODEL, network)(3, best_of=2, output_type="pt").images
    assert network.training and not images.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_loaded_pipeline_finds_its_own(folder: Path) -> None:
    pipe = BigGANPipeline.from_pretrained(folder)
    assert pipe.discriminator is None
    options: dict[str, Any] = {"output_type": "pt", "best_of": 4}
    images = pipe([1, 3], generator=seeded(0), **options).images
    torch.testing.assert_close(images, PIPE([1, 3], generator=seeded(0), **options).images)
    assert pipe.discriminator is not None


def test_engines_have_it_too(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    images = BigGANPipeline.from_pretrained(folder, engine="onnx")([1, 3], best_of=4, generator=seeded(0)).latents
    torch.testing.assert_close(images, PIPE([1, 3], best_of=4, generator=seeded(0)).latents)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best_of needs a discriminator: BigGANPipeline\(model, discriminator\)"):
        BigGANPipeline(MODEL)(3, best_of=2)
    MODEL.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="best_of needs a discriminator: .* no discriminator in subfolder='discr"):
        BigGANPipeline.from_pretrained(tmp_path)(3, best_of=2)
    number: Any
    for number in (0, True, 1.5):
        with pytest.raises(ValueError, match="best_of must be an integer of at least 1"):
            PIPE(3, best_of=number)
    with pytest.raises(ValueError, match="best_of draws latents itself"):
        PIPE({1: 0.5, 3: 0.5}, best_of=2)
    with pytest.raises(ValueError, match="best_of draws latents itself"):
        PIPE(3, latents=torch.zeros(1, MODEL.config.z_dim), best_of=2)


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = ["sample", str(folder), "--images_per_class", "2", "--output"]
    main([*sheet, str(tmp_path / "chosen.png"), "--best_of", "4"])
    assert "--best_of 4" in capsys.readouterr().out  # the next command's
    main([*sheet, str(tmp_path / "drawn.png")])
    assert (tmp_path / "chosen.png").read_bytes() != (tmp_path / "drawn.png").read_bytes()
    main(["npz", str(folder), "--num_images", "4", "--best_of", "2", "--output", str(tmp_path / "chosen.npz")])
    with pytest.raises(SystemExit) as ended:
        main([*sheet, str(tmp_path / "more.png"), "--best_of", "4", "--same_latents"])
    assert ended.value.code == 2 and "--same_latents and --best_of exclude each other" in capsys.readouterr().err


def test_the_curves(folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "load_extractor", lambda *_, **__: tiny_extractor())
    argv = [str(folder), "--dataset_name", str(pictures), "--num_images", "10", "--output", str(tmp_path / "a.png")]
    monkeypatch.setattr("sys.argv", ["rejection.py", *argv, "--truncations", "1", "0.5", "--best_of", "1", "3"])
    rejection.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert {way: [point["strength"] for point in points] for way, points in found.items()} == {
        "truncation": [1, 0.5],
        "best of": [1, 3],
        "highest logit": [3],
    }
    one, three = ({name: x for name, x in point.items() if name != "strength"} for point in found["best of"])
    assert one != three and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
