"""Tensors to pictures."""

from typing import Any

import numpy as np
import pytest
import torch

from biggan_hf.images import image_grid, to_pil, to_uint8


def ramp(num: int, channels: int = 3, height: int = 4, width: int = 4) -> torch.Tensor:
    """uint8 pictures that differ in every pixel."""
    return torch.arange(num * channels * height * width).view(num, channels, height, width).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_uint8_rounds_and_clamps(dtype: torch.dtype) -> None:
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype=dtype).view(1, 1, 1, -1)
    assert to_uint8(values).dtype == torch.uint8
    # 127.5 rounds half to even: 128; 63.75 to 64; 191.25 to 191
    assert to_uint8(values).flatten().tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_every_grey_level_survives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels)


def test_to_uint8_refuses_integers_and_single_images() -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(ramp(1))
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        to_uint8(torch.zeros(3, 4, 4))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_to_pil_keeps_pixels(channels: int, mode: str) -> None:
    images = ramp(2, channels, height=3, width=5)
    pictures = to_pil(images)
    assert [picture.mode for picture in pictures] == [mode, mode]
    assert pictures[0].size == (5, 3)
    pixels = np.stack([np.asarray(picture).reshape(3, 5, channels) for picture in pictures])
    assert np.array_equal(pixels, images.permute(0, 2, 3, 1).numpy())
    assert [p.tobytes() for p in to_pil(images / 127.5 - 1)] == [p.tobytes() for p in pictures]


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 8, 8)])
def test_to_pil_names_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=str(shape)[1:-1]):
        to_pil(torch.zeros(shape))


def test_grid_places_each_tile() -> None:
    images = ramp(5)
    sheet = np.asarray(image_grid(images, columns=3, padding=2, scale=2))
    assert sheet.shape == (2 * (8 + 2) + 2, 3 * (8 + 2) + 2, 3)
    for index, image in enumerate(images):
        top, left = 2 + 10 * (index // 3), 2 + 10 * (index % 3)
        tile = sheet[top : top + 8, left : left + 8]
        enlarged = image.permute(1, 2, 0).numpy().repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(tile, enlarged)
    assert (sheet[12:, 22:] == 255).all(), "the missing sixth tile is white"


@pytest.mark.parametrize(("side", "tile"), [(28, 84), (32, 64), (64, 64), (128, 128)])
def test_grid_enlarges_small_pictures(side: int, tile: int) -> None:
    assert image_grid(ramp(1, 1, side, side), columns=4, padding=0).size == (tile, tile)


def test_grid_labels_stand_left_and_long_ones_are_cut() -> None:
    plain = image_grid(ramp(4), columns=2)
    short = image_grid(ramp(4), columns=2, row_labels=["cat", ""])
    long = image_grid(ramp(4), columns=2, row_labels=["cat", "a name\nthat goes on " * 50])
    assert plain.width < short.width < long.width < plain.width + 200
    assert plain.height == short.height == long.height
    margin = short.width - plain.width
    pixels = np.asarray(short)
    assert np.array_equal(pixels[:, margin:], np.asarray(plain))
    assert (pixels[:66, :margin] < 128).any() and (pixels[66:, :margin] == 255).all()
    beside_long = np.asarray(long)[:66, : long.width - plain.width]
    assert np.array_equal(beside_long[:, -margin:], pixels[:66, :margin]), "labels end where the pictures begin"
    assert (beside_long[:, :-margin] == 255).all()


def test_a_label_is_one_line() -> None:
    two_lines, one_line = (image_grid(ramp(1), columns=1, row_labels=[text]) for text in ("a\nb", "a b"))
    assert two_lines.size == one_line.size and two_lines.tobytes() == one_line.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": 0}, "columns >= 1"),
        ({"columns": 2, "scale": 0}, "scale >= 1"),
        ({"columns": 2, "row_labels": ["one"]}, "1 row labels for 2 rows"),
    ],
)
def test_grid_names_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(ramp(4), **arguments)


def test_grid_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(ramp(0), columns=2)


def test_titles_stand_above_their_columns() -> None:
    images = ramp(4, height=64, width=64)
    plain = np.asarray(image_grid(images, 2, ["a", "b"]))
    titled = np.asarray(image_grid(images, 2, ["a", "b"], column_labels=["one", "two"]))
    added = len(titled) - len(plain)
    assert 12 <= added <= 30 and titled.shape[1] == plain.shape[1]
    assert np.array_equal(titled[added:], plain)
    ink = np.flatnonzero((titled[:added] < 255).any(axis=(0, 2)))
    right = plain.shape[1] - 67  # the gap between the two columns
    for columns, middle in ((ink[ink < right], right - 33), (ink[ink > right], right + 33)):
        assert abs(columns.mean() - middle) < 6
    with pytest.raises(ValueError, match="got 1 column labels for 2 columns"):
        image_grid(images, 2, column_labels=["one"])
