#!/usr/bin/env bash
# pillow 13.0.0: a WebP or AVIF file whose second half is zeros loads without a word, and `verify()` finds nothing.
#
# The guess: a picture that lost its end fails in `load()`, as a JPEG or PNG does, so a data set that was decoded once is
# whole. A power cut or a download into a file of full length leaves such files: the right size, zeros at the end.
# What happens: of JPEG and PNG `load()` raises. WebP and AVIF give a picture of the right size, wrong below some row.
# The decoders take zeros for compressed pixels. Only a file that is too short is refused. Zeros at the end tell nothing
# either: a whole WebP file of a black picture of 1024 px ends with a hundred of them. Keep checksums of the files, or
# convert before they are copied.
# Seen with: pillow 13.0.0 (libjpeg-turbo 3.2.0), Python 3.11, Linux, 2026-11-28; pillow 12.3.0 does the same.
# Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import io

import numpy as np
from PIL import Image

draw = np.random.default_rng(0)
soft = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
black = Image.new("RGB", (1024, 1024))


def encoded(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def told(data):
    """What reading says, and how many of the 256 rows are wrong by more than 16 levels."""
    try:
        Image.open(io.BytesIO(data)).verify()
        found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)
    except (OSError, SyntaxError) as error:
        return type(error).__name__, None
    return "read", int((np.abs(found - np.asarray(soft, dtype=int)).mean((1, 2)) > 16).sum())


seen = {}
for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
    whole = encoded(soft, kind)
    half = len(whole) // 2
    seen[kind] = told(whole), told(whole[:half] + bytes(len(whole) - half)), told(whole[:half])
    print(f"{kind:4}: whole {seen[kind][0]}, second half zeros {seen[kind][1]}, cut {seen[kind][2]}")
file = encoded(black, "WEBP")
zeros = len(file) - len(file.rstrip(b"\0"))
print(f"a whole black WebP of 1024 px ends with {zeros} zeros")

assert all(whole == ("read", 0) for whole, _, _ in seen.values())
assert all(cut[0] != "read" for _, _, cut in seen.values())
assert all(seen[kind][1][0] != "read" for kind in ("JPEG", "PNG"))
for kind in ("WEBP", "AVIF"):
    what, wrong_rows = seen[kind][1]
    assert what == "read" and wrong_rows > 50
assert zeros > 50
PYTHON
