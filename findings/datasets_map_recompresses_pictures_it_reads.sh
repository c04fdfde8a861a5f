#!/usr/bin/env bash
# datasets 5.2.0: a `map` that only looks at pictures stores them anew, as JPEG of quality 75 if they came as JPEG.
#
# The guess: `data.map(lambda row: {"width": row["image"].width})` adds a column and leaves the pictures as they are, as
# `map` does with each column that the function does not return. (`filter` with the same look does leave them.)
# What happens: a row is decoded column by column as the function reads it, and `map` writes the decoded columns, not
# the stored ones. A picture whose bytes lie in the table, as in every Parquet file and so in most data sets of the Hub,
# is thereby encoded with Pillow's defaults for the format that it came in: quality 75 with halved colour for JPEG,
# lossy of quality 80 for WebP, even if that was lossless. The photograph here falls to a third of its bytes and to 30
# dB from the original; further such maps take a little more. Nothing is said, a training runs on the worse pictures,
# and the reference of a FID is computed from them. It is not the column that is returned which matters: a map that does
# not read the picture leaves its bytes, to the last. Files that are loaded by their path keep that path, and PNG keeps
# its pixels, so a test with either finds nothing. Streamed, the same map gives the original.
# `cast_column("image", Image(decode=False))` before the map, and a look by one's own, leaves the bytes.
# Seen with: datasets 5.2.0, Pillow 13.0.0, Python 3.11, Linux, 2026-11-29. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0 numpy==2.4.0
# For a photograph in a JPEG file; it is not imported.
"$folder/venv/bin/pip" install --quiet --no-deps scikit-learn==1.9.1
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 \
    "$folder/venv/bin/python" - "$folder/pictures.parquet" <<'PYTHON'
import io
import sys
from importlib.metadata import distribution, version

import numpy
import PIL.Image
from datasets import Dataset, Features, Image, Value, load_dataset

parquet = sys.argv[1]


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(data):
    return numpy.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


jpeg = distribution("scikit-learn").locate_file("sklearn/datasets/images/china.jpg").read_bytes()
photograph = PIL.Image.open(io.BytesIO(jpeg))
originals = {
    "JPEG": jpeg,
    "lossless WebP": encoded(photograph, "WEBP", lossless=True),
    "PNG": encoded(photograph, "PNG"),
}
rows = [{"image": {"bytes": data, "path": None}, "label": label} for label, data in enumerate(originals.values())]
Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("int64")})).to_parquet(parquet)
data = load_dataset("parquet", data_files=parquet, split="train")


def size(picture):
    return PIL.Image.open(io.BytesIO(picture["bytes"])).width


maps = {
    "as loaded": data,
    "map that reads the label": data.map(lambda row: {"double": 2 * row["label"]}),
    "filter that reads the width": data.filter(lambda row: row["image"].width > 0),
    "map with decode=False": data.cast_column("image", Image(decode=False)).map(
        lambda row: {"width": size(row["image"])}
    ),
    "map that reads the width": data.map(lambda row: {"width": row["image"].width}),
    "the same in batches": data.map(lambda rows: {"width": [image.width for image in rows["image"]]}, batched=True),
}

print(f"datasets {version('datasets')}, pillow {version('pillow')}")
same, signal = {}, {}
for name, result in maps.items():
    stored = [row["image"]["bytes"] for row in result.cast_column("image", Image(decode=False))]
    for (kind, original), now in zip(originals.items(), stored, strict=True):
        error = numpy.square(decoded(original) - decoded(now)).mean()
        same[name, kind] = original == now
        signal[name, kind] = 10 * numpy.log10(255**2 / error) if error else float("inf")
        print(f"{name}, {kind}: {len(original)} bytes, then {len(now)}, {signal[name, kind]:.1f} dB")

# A file that is named by its path, in place of its bytes.
path = parquet.replace("pictures.parquet", "china.jpg")
open(path, "wb").write(jpeg)
files_by_path = Dataset.from_dict({"image": [path]}).cast_column("image", Image())
by_path = files_by_path.map(lambda row: {"width": row["image"].width}).cast_column("image", Image(decode=False))
print(f"the JPEG by its path: stored as path {by_path[0]['image']['path'] == path}")
streamed = load_dataset("parquet", data_files=parquet, split="train", streaming=True)
picture = next(iter(streamed.map(lambda row: {"width": row["image"].width})))["image"]
streamed_same = bool((numpy.asarray(picture.convert("RGB")) == decoded(jpeg)).all())
print(f"the JPEG streamed through the map: the same pixels {streamed_same}")

untouched = list(maps)[:4]
reading = list(maps)[4:]
as_described = (
    all(same[name, kind] for name in untouched for kind in originals)
    and all(signal[name, kind] < 35 for name in reading for kind in ("JPEG", "lossless WebP"))
    and all(signal[name, "PNG"] == float("inf") for name in reading)
    and by_path[0]["image"]["path"] == path
    and streamed_same
)
sys.exit(not as_described)
PYTHON
