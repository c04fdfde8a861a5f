"""The configuration's fields that only converted models use: what each does to the networks' function."""

from pathlib import Path

import pytest
import torch
from common import tiny_config, tiny_discriminator, tiny_generator, tiny_inputs
from torch.nn import functional as F

from biggan_hf import BigGANDiscriminator
from biggan_hf.latents import StandingRow
from biggan_hf.layers import Conv2dPool
from biggan_hf.modeling_biggan import (
    BigGANDeepDiscriminatorBlock,
    BigGANDeepGeneratorBlock,
    BigGANDiscriminatorBlock,
)


@pytest.mark.parametrize(
    ("truncation", "lower", "upper", "fraction"),
    [
        (0.4, 20, 21, 0.0),
        (0.43, 21, 22, 0.5),
        (0.995, 49, 50, 0.25),  # 1 - 0.75: the weights of the rows exchanged
        (0.14, 7, 8, 1.0),  # 0.14 / 0.02 is a little more than 7, so the next row
        (0.58, 28, 29, 0.0),  # and 0.58 / 0.02 a little less than 29, so the row before
        (1.0, 50, 50, 0.0),
        (0.001, 0, 1, 0.95),
    ],
)
def test_mirrored_rows(truncation: float, lower: int, upper: int, fraction: float) -> None:
    table = [row / 50 for row in range(51)]
    model = tiny_generator(standing_truncations=table, standing_interpolation="mirrored")
    row = model._standing_row(truncation)
    assert row is not None
    assert (row.lower, row.upper) == (lower, upper)
    assert row.fraction == pytest.approx(fraction, abs=1e-9)


def test_linear_rows_are_not_mirrored() -> None:
    model = tiny_generator(standing_truncations=[row / 50 for row in range(51)])
    row = model._standing_row(0.995)
    assert row is not None and row[:2] == (49, 50) and row.fraction == pytest.approx(0.75)
    assert model._standing_row(0.14) == StandingRow(7, 7, 0.0)


@pytest.mark.parametrize("table", [[], [1.0], [0.5, 1.0], [0.0, 0.3, 1.0]])
def test_mirrored_rows_lie_evenly(table: list[float]) -> None:
    with pytest.raises(ValueError, match="evenly from 0 to 1"):
        tiny_config(standing_truncations=table, standing_interpolation="mirrored")


def test_shortcut_relu_of_plain_blocks() -> None:
    config = tiny_config(discriminator_shortcut_relu=True)
    maps = torch.randn(2, 16, 8, 8)
    block = BigGANDiscriminatorBlock(config, 16, 16, downsample=False, first=False).eval()
    residual = block.conv2(F.relu(block.conv1(F.relu(maps))))
    torch.testing.assert_close(block(maps), residual + F.relu(maps))
    # The first block of the network does not begin with a ReLU.
    first = BigGANDiscriminatorBlock(config, 3, 16, downsample=True, first=True).eval()
    pixels = torch.randn(2, 3, 8, 8)
    residual = first.conv2(F.relu(first.conv1(pixels)))  # pools
    torch.testing.assert_close(first(pixels), residual + first.conv_sc(F.avg_pool2d(pixels, 2)))


def test_shortcut_relu_of_deep_blocks() -> None:
    config = tiny_config(architecture="biggan-deep", discriminator_shortcut_relu=True)
    block = BigGANDeepDiscriminatorBlock(config, 16, 16, downsample=False).eval()
    maps = torch.randn(2, 16, 8, 8)
    residual = block.conv4(F.relu(block.conv3(F.relu(block.conv2(F.relu(block.conv1(F.relu(maps))))))))
    torch.testing.assert_close(block(maps), residual + F.relu(maps))


def test_attention_after_chosen_stages() -> None:
    sizes = {"discriminator_attention_resolutions": [16, 8]}
    everywhere = tiny_discriminator(**sizes)
    chosen = tiny_discriminator(**sizes, discriminator_attention_stages=[0, 2])
    assert [hasattr(stage.attention, "gamma") for stage in everywhere.stages] == [True] * 4
    assert [hasattr(stage.attention, "gamma") for stage in chosen.stages] == [True, False, True, False]


@pytest.mark.parametrize("stages", [[4], [-1], [0]])
def test_attention_stages_have_an_attention_resolution(stages: list[int]) -> None:
    with pytest.raises(ValueError, match=f"discriminator_attention_stages names {stages[0]}"):
        tiny_config(discriminator_attention_resolutions=[8], discriminator_attention_stages=stages)


def test_projection_shortcut_of_the_generator() -> None:
    config = tiny_config(architecture="biggan-deep", deep_projection_shortcut=True)
    block = BigGANDeepGeneratorBlock(config, 16, 16, upsample=True).eval()
    plain = BigGANDeepGeneratorBlock(tiny_config(architecture="biggan-deep"), 16, 16, upsample=True).eval()
    assert block.conv_sc is not None and plain.conv_sc is None
    shared = {name: tensor for name, tensor in block.state_dict().items() if "conv_sc" not in name}
    plain.load_state_dict(shared)
    maps, condition = torch.randn(2, 16, 4, 4), torch.randn(2, config.condition_dim)
    residual = plain(maps, condition, None) - F.interpolate(maps, scale_factor=2)
    shortcut = block.conv_sc(F.interpolate(maps, scale_factor=2))
    out = block(maps, condition, None)
    torch.testing.assert_close(out, residual + shortcut)


def test_projection_shortcut_of_the_discriminator() -> None:
    config = tiny_config(architecture="biggan-deep", deep_projection_shortcut=True)
    block = BigGANDeepDiscriminatorBlock(config, 8, 16, downsample=True).eval()
    maps = torch.randn(2, 8, 8, 8)
    assert isinstance(block.conv3, Conv2dPool)  # pooled before the last ReLU
    residual = block.conv3(F.relu(block.conv2(F.relu(block.conv1(F.relu(maps))))))
    residual = block.conv4(F.relu(residual))
    assert block.conv_sc is not None and block.conv_sc.out_channels == 16
    torch.testing.assert_close(block(maps), residual + F.avg_pool2d(block.conv_sc(maps), 2))
    same = BigGANDeepDiscriminatorBlock(config, 16, 16, downsample=False)
    assert same.conv_sc is None


@pytest.mark.parametrize("field", ["discriminator_shortcut_relu", "deep_projection_shortcut"])
def test_networks_with_the_field_train(field: str) -> None:
    overrides = {"architecture": "biggan-deep", field: True}
    generator, discriminator = tiny_generator(**overrides).train(), tiny_discriminator(**overrides).train()
    latents, labels = tiny_inputs(generator)
    discriminator(generator(latents, labels).images, labels).logits.sum().backward()
    networks = (generator, discriminator)
    assert all(parameter.grad is not None for network in networks for parameter in network.parameters())


def test_fields_are_saved(tmp_path: Path) -> None:
    fields = {
        "discriminator_attention_resolutions": [8],
        "discriminator_attention_stages": [2],
        "discriminator_shortcut_relu": True,
    }
    discriminator = tiny_discriminator(**fields)
    discriminator.save_pretrained(tmp_path)
    loaded = BigGANDiscriminator.from_pretrained(tmp_path)
    assert {name: getattr(loaded.config, name) for name in fields} == fields
    images, labels = tiny_inputs(discriminator)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images, labels).logits, discriminator(images, labels).logits)
