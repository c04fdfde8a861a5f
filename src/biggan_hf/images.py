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
    """Maps floats (N, C, H, W) in [-1, 1] to 0..255 by round((x + 1) * 127.5), and values outside to 0 or 255."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images is {images.dtype} of shape {tuple(images.shape)}, expected floats of (N, C, H, W)")
    # In bfloat16, which has 8 significant bits, the arithmetic would lose grey levels.
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """From (N, C, H, W), floats in [-1, 1] or uint8, to N pictures, grey (C = 1) or RGB (C = 3)."""
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
    caption: str | None = None,
) -> Image.Image:
    """
    Puts images on one white sheet, row by row.

    Args:
        images: As for `to_pil`.
        columns: Images in a row; the last row may be shorter.
        row_labels: A line of text left of each row; a long one ends in an ellipsis.
        padding: px around each tile.
        scale: How many times images are enlarged, by nearest neighbours; default as often as a tile of 64 px needs.
        column_labels: A line of text above each column.
        caption: A line of text below all; a long one ends in an ellipsis.
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
    labels = _strips(row_labels or [], width, height, above=False)
    titles = _strips(column_labels or [], width, height, above=True)
    left = max((label.width for label in labels), default=0) + padding
    top = max((title.height for title in titles), default=0) + padding
    sheet_size = (left + columns * (width + padding), top + rows * (height + padding))
    (note,) = _strips([caption], sheet_size[0], height, above=True) if caption else [None]
    sheet = Image.new("RGB", (sheet_size[0], sheet_size[1] + (note.height if note else 0)), BACKGROUND)
    if note is not None:
        sheet.paste(note, (0, sheet_size[1]))
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
    model: Any,
    rows: int = 10,
    columns: int = 8,
    truncation: float | None = None,
    seed: int = 0,
    caption: str | None = None,
) -> Image.Image:
    """
    A sheet of a generator's samples: a row for each of its first classes, with the class's name, and below all a
    caption. An unconditional model fills as many rows.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    names = list(model.config.id2label.values())[:rows]
    labels: list[int | None] = list(range(len(names))) if names else [None] * rows
    # A row at a time, since a whole sheet of a large model may not fit into memory.
    images = [model.sample(label, columns, truncation=truncation, generator=generator).cpu() for label in labels]
    return image_grid(torch.cat(images), columns, names or None, caption=caption)


def _strips(labels: Sequence[str], tile_width: int, tile_height: int, above: bool) -> list[Image.Image]:
    """
    A white strip with text for each label. Above a column it is as wide as a tile and as high as a line; beside a row
    it is as high as a tile and as wide as its text, but at most about two tiles.
    """
    size = min(max(12, tile_height // 6), 28, tile_height)
    font, gap = ImageFont.load_default(size=size), size // 2
    strips = []
    for label in labels:
        text = _shorten(" ".join(label.split()), font, tile_width if above else max(2 * tile_width, 10 * size))
        width = tile_width if above else math.ceil(font.getlength(text)) + 2 * gap
        height = size + gap if above else tile_height
        place, anchor = ((width // 2, height // 2), "mm") if above else ((gap, height // 2), "lm")
        strip = Image.new("RGB", (width, height), BACKGROUND)
        ImageDraw.Draw(strip).text(place, text, INK, font, anchor=anchor)
        strips.append(strip)
    return strips


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: int) -> str:
    """The longest beginning of the text that fits, with an ellipsis where something is left out."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1].rstrip()
    return text + "…"
