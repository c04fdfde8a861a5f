#!/usr/bin/env bash
# litdata 0.2.76: the pictures in a data set are not those that the function returned to `optimize`.
#
# The guess: `optimize(fn, …)` stores the pictures that `fn` returns, of whatever mode, as they are when it returns them.
# What happens: of a picture that Pillow opened from a JPEG, litdata reads the file again. What was done to the picture
# in place, as by `thumbnail`, is not stored: a data set of thumbnails holds the pictures in full size. And a picture
# with a palette, as PNG has, loses its palette: red becomes black. Nothing is said. `convert("RGB")` of either gives a new
# picture, which is stored as it is.
# Seen with: litdata 0.2.76, pillow 12.3.0, torch 2.13.0, Python 3.11, 2026-11-28. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 litdata==0.2.76 pillow==12.3.0 numpy==2.4.0
cd "$folder"
cat > store.py <<'PYTHON'
import io
import sys
from pathlib import Path

import litdata
from PIL import Image


def opened(name):
    picture = Image.open(name)
    if name.endswith(".jpg"):
        picture.thumbnail((16, 16))  # in place
    return {"picture": picture}


def converted(name):
    return {"picture": opened(name)["picture"].convert("RGB")}


def stored(folder):
    """The one picture of a data set. That of a JPEG is read from the chunk: litdata itself needs torchvision for it."""
    (chunk,) = Path(folder).glob("*.bin")
    content = chunk.read_bytes()
    if (start := content.find(b"\xff\xd8\xff")) >= 0:
        return Image.open(io.BytesIO(content[start:]))
    return litdata.StreamingDataset(folder)[0]["picture"]


if __name__ == "__main__":
    Image.new("RGB", (64, 64), "red").save("large.jpg")
    Image.new("RGB", (16, 16), "red").quantize(2).save("palette.png")
    seen = {}
    for how in (opened, converted):
        for name in ("large.jpg", "palette.png"):
            folder = f"{how.__name__}-{name}"
            litdata.optimize(how, [name], output_dir=folder, num_workers=1, chunk_bytes="1MB")
            picture = stored(folder)
            colour = picture.convert("RGB").getpixel((8, 8))
            seen[how.__name__, name] = picture.size, colour[0] > 200 and max(colour[1:]) < 50
            print(f"{how.__name__}, {name}: stored with size {picture.size} and colour {colour}")
    expected = {
        ("opened", "large.jpg"): ((64, 64), True),
        ("opened", "palette.png"): ((16, 16), False),
        ("converted", "large.jpg"): ((16, 16), True),
        ("converted", "palette.png"): ((16, 16), True),
    }
    sys.exit(seen != expected)
PYTHON
"$folder/venv/bin/python" store.py
