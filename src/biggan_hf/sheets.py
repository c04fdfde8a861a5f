"""The sheets of pictures that a card shows: samples of the first classes, and a truncation sweep."""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .files import write_file
from .images import image_grid, sample_sheet
from .latents import sample_latents


MOST_BYTES = 500_000  # of a sheet: a card shall open at once
TRUNCATIONS = (2, 1, 0.5, 0.04)  # the paper's, figure 2a


def write_sheets(model: Any, folder: Path, seed: int = 0) -> None:
    """Writes the sheets that are not there yet, as small as a card wants them."""
    for name, draw in _SHEETS.items():
        if not (folder / name).exists():
            save_small(draw(model, seed), folder / name)


def save_small(sheet: Image.Image, path: Path) -> None:
    """As PNG of at most `MOST_BYTES`: a sheet that takes more is made smaller."""
    with write_file(path) as unfinished:
        sheet.save(unfinished)
        while (size := unfinished.stat().st_size) > MOST_BYTES:
            scale = 0.95 * math.sqrt(MOST_BYTES / size)
            width, height = (max(int(side * scale), 1) for side in sheet.size)
            sheet = sheet.resize((width, height), Image.Resampling.LANCZOS)
            sheet.save(unfinished)


def samples(model: Any, seed: int = 0) -> Image.Image:
    return sample_sheet(model, rows=8, columns=4, seed=seed)


def truncation_sweep(model: Any, seed: int = 0) -> Image.Image:
    """
    A row for each of four classes, spread over all; in its columns one draw at each truncation. A model with standing
    statistics shows truncations that these cover.
    """
    config, table = model.config, list(model.config.standing_truncations)
    covered = [t for t in TRUNCATIONS if not table or table[0] <= t <= table[-1]] or table[:: -(-len(table) // 4)]
    rows = min(config.num_labels or 4, 4)
    classes = [row * config.num_labels // rows for row in range(rows)] if config.num_labels else None
    columns = []
    for truncation in covered:
        generator = torch.Generator().manual_seed(seed)
        latents = sample_latents(rows, config.z_dim, truncation, config.truncation_mode, generator, model.device)
        told = truncation if table else None  # without standing statistics it says nothing more to the model
        columns.append(model.sample(classes, 1 if classes else rows, truncation=told, latents=latents))
    images = torch.stack(columns, dim=1).flatten(0, 1).cpu()
    names = [config.id2label[label] for label in classes] if classes else None
    return image_grid(images, len(covered), names, column_labels=[f"{truncation:g}" for truncation in covered])


_SHEETS = {"samples.png": samples, "truncation.png": truncation_sweep}
