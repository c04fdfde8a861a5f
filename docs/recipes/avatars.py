"""
The pictures for docs/recipes/avatars.yaml: avatars of DiceBear's styles that are in the public domain (CC0 1.0).

    pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0
    python docs/recipes/avatars.py avatar-pictures
    python train.py docs/recipes/avatars.yaml --dataset_name avatar-pictures --output_dir avatars-biggan

A seed chooses the parts, colours and angles of an avatar. The same seeds draw the same pictures.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import resvg_py
from dicebear.avatar import Avatar
from dicebear.style import Style


STYLES = ["critters", "landscape", "marbles", "moods", "pixel-art", "planets", "sprouts", "thumbs"]
NUMBER = {"train": 1500, "test": 250}  # of each style
SIZE = 32


def write_pictures(output: Path) -> None:
    """Writes a folder a split, and in it a folder of PNG files a class, as `train.py` reads them."""
    for name in STYLES:
        style = Style(json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text(encoding="utf-8")))
        for split, number in NUMBER.items():
            folder = output / split / name.replace("-", " ")
            folder.mkdir(parents=True)
            for index in range(number):
                (folder / f"{index:04d}.png").write_bytes(_drawn(style, f"{split} {index}"))


def _drawn(style: Style, seed: str) -> bytes:
    drawing = Avatar(style, {"seed": seed}).to_string()
    return bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=SIZE, height=SIZE, background="white"))


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]))
