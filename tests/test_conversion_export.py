"""Back to BigGAN-PyTorch: its keys, its shapes, and in → out → in without a bit lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from common import tiny_config, tiny_discriminator, tiny_generator
from conversion_common import FIXTURES, ORIGINALS, assert_close, assert_equal, convert, weights

from biggan_hf import BigGANModel
from biggan_hf.conversion import convert_biggan_pytorch as biggan_pytorch
from biggan_hf.conversion import convert_studiogan as studiogan
from biggan_hf.conversion import export_biggan_pytorch as export
from biggan_hf.conversion import reading
from biggan_hf.presets import CIFAR10_CLASSES


CASES = ["biggan_shared", "biggan_mybn", "biggan_cross_replica", "biggan_thin", "biggan_deep"]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def plain_names(state: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of a checkpoint's tensors as without --mybn, --cross_replica and further singular vectors."""
    names = {
        key.replace(".bn.running_", ".stored_").replace(".bn.stored_", ".stored_"): value.shape
        for key, value in state.items()
    }
    extra = ("u1", "sv1", "accumulation_counter", "num_batches_tracked")
    return {name: shape for name, shape in names.items() if not name.endswith(extra)}


@pytest.mark.parametrize("case", CASES)
def test_in_out_in_is_bit_equal(case: str, tmp_path: Path) -> None:
    first = convert(biggan_pytorch, ORIGINALS / case, tmp_path / "first")
    out = convert(export, first, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["D.pth", "G.pth", "G_ema.pth", "state_dict.pth"]
    for chosen in ("ema", "live"):
        second = convert(biggan_pytorch, out, tmp_path / chosen, "--weights", chosen)
        assert_equal(weights(second), weights(first))
        assert_equal(weights(second, "discriminator"), weights(first, "discriminator"))
        assert (second / "config.json").read_text() == (first / "config.json").read_text()


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_the_programs(case: str, tmp_path: Path) -> None:
    out = convert(export, convert(biggan_pytorch, ORIGINALS / case, tmp_path / "model"), tmp_path / "out")
    for name in ("G_ema", "D"):
        exported = {key: value.shape for key, value in load(out / f"{name}.pth").items()}
        original = plain_names(load(ORIGINALS / case / f"{name}.pth"))
        if case == "biggan_cross_replica" and name == "G_ema":  # its spectral norm is folded
            original = {key: shape for key, shape in original.items() if not key.endswith(("u0", "sv0"))}
        assert exported == original


@pytest.mark.parametrize("case", ["biggan_shared", "biggan_thin", "biggan_deep"])
def test_settings_are_the_programs(case: str, tmp_path: Path) -> None:
    out = convert(export, convert(biggan_pytorch, ORIGINALS / case, tmp_path / "model"), tmp_path / "out")
    content = load(out / "state_dict.pth")
    original = reading.load(ORIGINALS / case / "state_dict.pth")
    assert content.keys() == original.keys()
    differing = {
        key: (value, original["config"][key])
        for key, value in content["config"].items()
        if key in original["config"] and value != original["config"][key]
    }
    # The number of further singular vectors, and the latents before the program rounds them.
    differing = {key: pair for key, pair in differing.items() if key not in ("num_G_SVs", "num_D_SVs", "dim_z")}
    assert differing == {}
    if case == "biggan_shared":
        assert content["config"]["dim_z"] == 20


def test_class_names_survive(tmp_path: Path) -> None:
    config = tiny_config(id2label=dict(enumerate(CIFAR10_CLASSES)))
    BigGANModel(config).save_pretrained(tmp_path / "model")
    out = convert(export, tmp_path / "model", tmp_path / "out")
    back = convert(biggan_pytorch, out, tmp_path / "back")
    assert BigGANModel.from_pretrained(back).config.id2label == dict(enumerate(CIFAR10_CLASSES))


def test_another_epsilon_is_the_same_function(tmp_path: Path) -> None:
    # The program's last batch norm has 1e-5; ours here 1e-2.
    model = tiny_generator(batch_norm_eps=1e-2)
    model.save_pretrained(tmp_path / "model")
    back = convert(biggan_pytorch, convert(export, tmp_path / "model", tmp_path / "out"), tmp_path / "back")
    loaded = BigGANModel.from_pretrained(back)
    assert loaded.config.output_batch_norm_eps == 1e-5
    latents, labels = torch.randn(3, 16), torch.tensor([0, 2, 4])
    with torch.no_grad():
        assert_close(loaded(latents, labels).images, model(latents, labels).images)


def test_what_the_program_lacks_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # StudioGAN's generator is one of BigGAN-PyTorch at 32 pixels; its discriminator is another function.
    model = convert(studiogan, FIXTURES / "golden" / "studiogan_c10", tmp_path / "model")
    out = convert(export, model, tmp_path / "out")
    assert "no D.pth: its shortcuts see the ReLU'd map" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["G.pth", "G_ema.pth", "state_dict.pth"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"num_labels": 0}, "unconditional"),
        ({"num_channels": 1}, "not RGB"),
        ({"generator_channel_multipliers": [4, 4, 4, 2]}, "other channel multipliers"),
        ({"architecture": "biggan-deep", "deep_projection_shortcut": True}, "projections for shortcuts"),
        ({"architecture": "biggan-deep", "image_size": 512}, "larger than 256 pixels"),
        ({"architecture": "biggan-deep", "image_size": 64, "generator_blocks_per_stage": 3}, "another depth than 2"),
    ],
)
def test_generators_that_the_program_cannot_build(overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"can't build this generator.*{reason}"):
        export.check_exportable(tiny_config(**{"z_dim": 48, **overrides}))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"image_size": 512}, "larger than 256 pixels"),
        ({"discriminator_spectral_norm": False}, "not spectrally normalised"),
        ({"discriminator_channel_multipliers": [4, 4, 4, 2]}, "other channel multipliers"),
        ({"discriminator_attention_resolutions": [8]}, "does not follow all stages"),
        ({"discriminator_attention_resolutions": [16, 8], "discriminator_attention_stages": [0]}, "does not follow"),
        ({"discriminator_attention_resolutions": [16, 8]}, None),
        ({}, None),
    ],
)
def test_discriminators_that_the_program_cannot_build(overrides: dict[str, Any], reason: str | None) -> None:
    problem = export.discriminator_problem(tiny_config(**{"z_dim": 48, **overrides}))
    assert problem is None if reason is None else reason in str(problem)


def test_an_earlier_discriminator_does_not_stay(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_generator().save_pretrained(model)
    tiny_discriminator().save_pretrained(model / "discriminator")
    convert(export, model, out)
    (out / "notes.txt").write_text("mine")
    assert (out / "D.pth").exists()
    tiny_generator().save_pretrained(tmp_path / "alone")
    convert(export, tmp_path / "alone", out, "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["G.pth", "G_ema.pth", "notes.txt", "state_dict.pth"]


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the folder of a biggan_hf model; it looks like a BigGAN-PyTorch"):
        convert(export, ORIGINALS / "biggan_thin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_model(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be loaded"):
        convert(export, tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("generator_depth", "discriminator_depth"), [(3, 1), (1, 3)])
def test_depths_at_32_pixels(generator_depth: int, discriminator_depth: int, tmp_path: Path) -> None:
    fields = {
        "architecture": "biggan-deep",
        "generator_blocks_per_stage": generator_depth,
        "discriminator_blocks_per_stage": discriminator_depth,
    }
    model, discriminator = tiny_generator(**fields), tiny_discriminator(**fields)
    model.save_pretrained(tmp_path / "model")
    discriminator.save_pretrained(tmp_path / "model" / "discriminator")
    back = convert(biggan_pytorch, convert(export, tmp_path / "model", tmp_path / "out"), tmp_path / "back")
    assert_equal(weights(back, "discriminator"), weights(tmp_path / "model", "discriminator"))
    loaded, original = weights(back), weights(tmp_path / "model")
    variance = "output_bn.running_var"  # for the program's epsilon
    assert {name for name in original if not torch.equal(loaded[name], original[name])} == {variance}
    config = BigGANModel.from_pretrained(back).config
    assert {name: getattr(config, name) for name in fields} == fields
