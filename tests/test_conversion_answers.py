"""Converted models answer as the original programs did."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_common import FIXTURES, ORIGINALS, SHARED, answers, assert_close, convert

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.conversion import convert as convert_any
from biggan_hf.conversion import convert_biggan_pytorch as biggan_pytorch
from biggan_hf.conversion import convert_pretrained_biggan as pretrained_biggan


FOLDERS = sorted([*ORIGINALS.iterdir(), *(FIXTURES / "golden").iterdir()])


def options(folder: Path, chosen: str) -> list[str] | None:
    """The options of one conversion; `None` if the folder has no such weights."""
    if (folder / "pytorch_model.bin").exists():
        return ["--stats-interpolation", "mirrored"] if chosen == "ema" else None
    suffix = ["--suffix", "end"] if (folder / "G_end.pth").exists() else []
    pattern = {"ema": "*G_ema*", "live": "*G[-._][!eo]*"}[chosen]
    return [*suffix, "--weights", chosen] if any(folder.glob(pattern)) else None


def conversions(folders: list[Path]) -> list[Any]:
    """Folder and options of every conversion that the folders allow."""
    return [
        pytest.param(folder, arguments, id=f"{folder.name}-{chosen}")
        for folder in folders
        for chosen in ("ema", "live")
        if (arguments := options(folder, chosen)) is not None
    ]


SHARED_CASES = conversions(sorted(path for path in SHARED.glob("*") if path.is_dir()))


def check(folder: Path, arguments: list[str], output: Path) -> None:
    convert(convert_any, folder, output, *arguments)
    expected = answers(folder)
    model = BigGANModel.from_pretrained(output)
    labels = expected["labels"] if model.config.num_labels else None
    checked = 0
    with torch.no_grad():
        for key in [key for key in expected if key.startswith("images_trunc_")]:
            truncation = float(key.rpartition("_")[2])
            assert_close(model(expected["latents"], labels, truncation=truncation).images, expected[key])
            checked += 1
        key = "images_g" if "live" in arguments else "images_ema"
        if key in expected:
            assert_close(model(expected["latents"], labels).images, expected[key])
            checked += 1
        if "live" in arguments and "images_g_mixed_embedding" in expected and labels is not None:
            embeddings = (model.class_embedding(labels) + model.class_embedding(labels.flip(0))) / 2
            images = model(expected["latents"], class_embeddings=embeddings).images
            assert_close(images, expected["images_g_mixed_embedding"])
        if "disc_scores" in expected:
            discriminator = BigGANDiscriminator.from_pretrained(output, subfolder="discriminator")
            assert_close(discriminator(expected["disc_inputs"], labels).logits, expected["disc_scores"])
            checked += 1
    assert checked


@pytest.mark.parametrize(("folder", "arguments"), conversions(FOLDERS))
def test_fixtures(folder: Path, arguments: list[str], tmp_path: Path) -> None:
    check(folder, arguments, tmp_path / "model")


@pytest.mark.skipif(not SHARED_CASES, reason=f"{SHARED} does not exist: no further original checkpoints")
@pytest.mark.parametrize(("folder", "arguments"), SHARED_CASES)
def test_shared_cases(folder: Path, arguments: list[str], tmp_path: Path) -> None:
    check(folder, arguments, tmp_path / "model")


def test_all_weights_are_found() -> None:
    ids = {case.id for case in conversions(FOLDERS)}
    assert ids > {"biggan_shared-ema", "biggan_shared-live", "studiogan_c10-ema", "studiogan_c10-live"}
    assert len(ids) == len(FOLDERS) + 2


# pytorch-pretrained-biggan's interpolation


def test_linear_interpolation_is_the_default_and_right(tmp_path: Path) -> None:
    folder = ORIGINALS / "pretrained_biggan"
    model = BigGANModel.from_pretrained(convert(pretrained_biggan, folder, tmp_path / "model"))
    expected = answers(folder)
    latents, labels = expected["latents"], expected["labels"]
    assert model.config.standing_interpolation == "linear"
    assert model.config.truncation_mode == "scale"
    assert model.config.standing_truncations == [row / 50 for row in range(51)]

    # 0.43 lies midway, where the two agree; 0.995 does not; 0.14 is a row, which the program's rounding misses.
    @torch.no_grad()
    def difference(truncation: float) -> float:
        images = model(latents, labels, truncation=truncation).images
        return (images - expected[f"images_trunc_{truncation}"]).abs().max().item()

    assert difference(0.43) < 1e-5 and difference(1.0) < 1e-5
    with torch.no_grad():  # without truncation the last row counts
        assert_close(model(latents, labels).images, expected["images_trunc_1.0"])
    assert difference(0.995) > 1e-2 and difference(0.14) > 1e-2
    bn = model.output_bn
    row = model._standing_row(0.995)
    assert row is not None
    torch.testing.assert_close(bn.statistics(row)[0], 0.25 * bn.standing_mean[49] + 0.75 * bn.standing_mean[50])


# What the configuration says


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        (
            "biggan_shared",
            {
                "z_dim": 20,  # 23 rounded to even chunks
                "image_size": 32,
                "class_embedding_dim": 6,
                "generator_base_channels": 2,
                "generator_attention_resolutions": [8, 16],
                "discriminator_attention_resolutions": [16, 8],
                "discriminator_attention_stages": None,
                "spectral_norm_eps": 1e-6,
                "batch_norm_eps": 1e-5,
            },
        ),
        (
            "biggan_thin",
            {"shared_class_embedding": False, "discriminator_wide": False, "generator_spectral_norm": False},
        ),
        ("biggan_deep", {"architecture": "biggan-deep", "generator_blocks_per_stage": 2, "z_dim": 9}),
        ("studiogan_unconditional", {"discriminator_attention_stages": [1, 3], "discriminator_shortcut_relu": True}),
        ("studiogan_deep_studiogan", {"deep_projection_shortcut": True, "batch_norm_eps": 1e-4}),
        ("studiogan_deep_legacy", {"deep_projection_shortcut": False, "discriminator_attention_stages": [2]}),
        ("pretrained_biggan", {"generator_channel_multipliers": [16, 8, 4, 2, 1], "generator_base_channels": 4}),
    ],
)
def test_fields(case: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = BigGANConfig.from_pretrained(convert(convert_any, ORIGINALS / case, tmp_path / "model"))
    assert {name: getattr(config, name) for name in fields} == fields


def test_multiplied_gain_of_cross_replica(tmp_path: Path) -> None:
    # The two answers of one checkpoint differ: what the program computes in eval mode, and what it trained with.
    folder = ORIGINALS / "biggan_cross_replica"
    output = convert(biggan_pytorch, folder, tmp_path / "model", "--cross_replica_gain", "multiply")
    model, expected = BigGANModel.from_pretrained(output), answers(folder)
    assert model.config.generator_spectral_norm
    with torch.no_grad():
        images = model(expected["latents"], expected["labels"]).images
    assert (images - expected["images_ema"]).abs().max() > 0.1
