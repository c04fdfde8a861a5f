"""Tensors to pictures: uint8 images, PIL images and labelled sheets."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


MIN_TILE_SIZE = 64  # px; smaller pictures are enlarged on a sheet
BACKGROUND, INK = (255, 255, 255), (64, 64, 64)


def to_uint8(images: Tensor) -> Tensor:
    """
    Maps [-1, 1] to 0..255 by round((x + 1) * 127.5); values outside are clamped.

    Args:
        images (`Tensor` of shape `(N, C, H, W)`): floating point of any precision.

    Returns:
        `Tensor`: uint8 of the same shape, on the same device.

    Raises:
        ValueError: if `images` has another number of dimensions or is not floating point.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images is {images.dtype} of shape {tuple(images.shape)}, expected floats of (N, C, H, W)")
    # bfloat16 has 8 significant bits: the arithmetic would lose grey levels.
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """
    Args:
        images (`Tensor` of shape `(N, C, H, W)`): floats in [-1, 1], or uint8; C is 1 (grey) or 3 (RGB).

    Returns:
        `list[PIL.Image.Image]`: N pictures of mode "L" or "RGB".

    Raises:
        ValueError: if the shape or the type is another.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {tuple(images.shape)}, expected (N, 1, H, W) or (N, 3, H, W)")
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def image_grid(
    images: Tensor,
    columns: int,
    row_labels: Sequence[str] | None = None,
    padding: int = 2,
    scale: int | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """
    Puts images on one white sheet, row by row.

    Args:
        images (`Tensor` of shape `(N, C, H, W)`): as for [`to_pil`].
        columns (`int`): images a row; the last row may be shorter.
        row_labels (`Sequence[str]`, *optional*): a line of text left of each row; a long one ends in an ellipsis.
        padding (`int`): px around each tile.
        scale (`int`, *optional*): nearest-neighbour enlargement; by default just enough for tiles of at least 64 px.
        column_labels (`Sequence[str]`, *optional*): a line of text above each column.

    Returns:
        `PIL.Image.Image`: of mode "RGB".

    Raises:
        ValueError: if there is no image, a number is out of range, or there is not one label for each row
            or column.
    """
    if columns < 1 or padding < 0 or (scale is not None and scale < 1):
        raise ValueError(f"expected columns >= 1, padding >= 0, scale >= 1; got {columns}, {padding}, {scale}")
    pictures = to_pil(images)
    if not pictures:
        raise ValueError("a grid needs at least one image")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"got {len(row_labels)} row labels for {rows} rows of {columns} images")
    if column_labels is not None and len(column_labels) != columns:
        raise ValueError(f"got {len(column_labels)} column labels for {columns} columns")

    scale = scale or math.ceil(MIN_TILE_SIZE / min(pictures[0].size))
    width, height = (side * scale for side in pictures[0].size)
    labels = _draw_labels(row_labels, width, height) if row_labels is not None else []
    titles = _draw_titles(column_labels, width, height) if column_labels is not None else []
    left = max((label.width for label in labels), default=0) + padding
    top = max((title.height for title in titles), default=0) + padding
    sheet_size = (left + columns * (width + padding), top + rows * (height + padding))
    sheet = Image.new("RGB", sheet_size, BACKGROUND)
    for row, label in enumerate(labels):
        sheet.paste(label, (left - padding - label.width, top + row * (height + padding)))
    for column, title in enumerate(titles):
        sheet.paste(title, (left + column * (width + padding), 0))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        corner = (left + column * (width + padding), top + row * (height + padding))
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), corner)
    return sheet


def sample_sheet(
    model: Any, rows: int = 10, columns: int = 8, truncation: float | None = None, seed: int = 0
) -> Image.Image:
    """
    A sheet of a generator's samples: a row for each of its first classes, with their names; the same seed gives the
    same latents.

    Args:
        model (`BigGANModel`): the generator.
        rows (`int`): classes at most; an unconditional model fills so many rows.
        columns (`int`): images a row.
        truncation (`float`, *optional*): as for `BigGANModel.sample`.
        seed (`int`): of the latents.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    names = list(model.config.id2label.values())[:rows]
    labels: list[int | None] = list(range(len(names))) if names else [None] * rows
    # A row at a time: a sheet of a large model need not fit its memory.
    images = [model.sample(label, columns, truncation=truncation, generator=generator).cpu() for label in labels]
    return image_grid(torch.cat(images), columns, names or None)


def _font_size(tile_height: int) -> int:
    return min(max(12, tile_height // 6), 28, tile_height)


def _draw_labels(labels: Sequence[str], tile_width: int, tile_height: int) -> list[Image.Image]:
    """One white strip for each label: as high as a tile, as wide as its text, at most about two tiles."""
    size = _font_size(tile_height)
    font, gap = ImageFont.load_default(size=size), size // 2
    strips = []
    for label in labels:
        text = _shorten(" ".join(label.split()), font, max(2 * tile_width, 10 * size))
        strip = Image.new("RGB", (math.ceil(font.getlength(text)) + 2 * gap, tile_height), BACKGROUND)
        ImageDraw.Draw(strip).text((gap, tile_height // 2), text, INK, font, anchor="lm")
        strips.append(strip)
    return strips


def _draw_titles(titles: Sequence[str], tile_width: int, tile_height: int) -> list[Image.Image]:
    """One white strip for each title: as wide as a tile, as high as a line."""
    size = _font_size(tile_height)
    font = ImageFont.load_default(size=size)
    strips = []
    for title in titles:
        strip = Image.new("RGB", (tile_width, size + size // 2), BACKGROUND)
        text = _shorten(" ".join(title.split()), font, tile_width)
        ImageDraw.Draw(strip).text((tile_width // 2, strip.height // 2), text, INK, font, anchor="mm")
        strips.append(strip)
    return strips


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: int) -> str:
    """The longest beginning of the text that fits, with an ellipsis where something is left out."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1].rstrip()
    return text + "…"
