#!/usr/bin/env bash
# datasets 5.2.0: a picture in a WebDataset shard is replaced by a file of its name in the working directory.
#
# The guess: `load_dataset("webdataset", data_files="pictures.tar")` reads the pictures that are in the shard, wherever
# the program is started.
# What happens: a member becomes a cell with its bytes and, as its path, its name in the shard. When the cell is
# encoded, a path that is that of a file counts as the picture's place, and the bytes are dropped. A relative path is
# that of a file if there is such a file in the working directory. So whoever packs a folder of pictures after another
# treatment, as smaller or cropped ones, and starts the training beside the originals, trains on the originals; and
# where the numbered names of two data sets meet, on the pictures of one with the labels of the other. It is so from
# the cache, streamed, and for a generator that yields {"bytes": …, "path": …}. Nothing is said. Start elsewhere, or
# give paths that are no files, as with the shard's name in front.
# Seen with: datasets 5.2.0, Pillow 13.0.0, Python 3.11, Linux, 2026-11-29. Exits with 1 if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0 numpy==2.4.0
mkdir "$folder/originals" "$folder/elsewhere"
cat > "$folder/seen.py" <<'PYTHON'
import io
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as Pillow

place = Path(sys.argv[1])
shard, cache = place / "pictures.tar", str(place / f"cache of {Path.cwd().name}")


def png(size, colour):
    file = io.BytesIO()
    Pillow.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


# Red originals of 64 px beside a shard of blue pictures of 8 px with the same names.
for name in ("0.png", "1.png"):
    (place / "originals" / name).write_bytes(png(64, "red"))
with tarfile.open(shard, "w") as tar:
    for name in ("0.png", "1.png"):
        data = png(8, "blue")
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def generated():
    for name in ("0.png", "1.png"):
        yield {"image": {"bytes": png(8, "blue"), "path": name}}


def size_and_colour(picture):
    return picture.size[0], {(255, 0, 0): "red", (0, 0, 255): "blue"}[picture.convert("RGB").getpixel((0, 0))]


loaded = load_dataset("webdataset", data_files=str(shard), split="train", cache_dir=cache)
streamed = load_dataset("webdataset", data_files=str(shard), split="train", streaming=True)
made = Dataset.from_generator(generated, features=Features({"image": Image()}), cache_dir=cache)
seen = [
    size_and_colour(loaded[0]["png"]),
    size_and_colour(next(iter(streamed))["png"]),
    size_and_colour(made[0]["image"]),
]
print(f"datasets {version('datasets')}, pillow {version('pillow')}, in {Path.cwd().name}:")
for kind, (size, colour) in zip(("the shard", "streamed", "a generator"), seen, strict=True):
    print(f"  {kind}: {colour}, {size} px")
own, other = (8, "blue"), (64, "red")
sys.exit(seen != [other if Path.cwd().name == "originals" else own] * 3)
PYTHON
for there in elsewhere originals; do
    (cd "$folder/$there" && HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 \
        "$folder/venv/bin/python" "$folder/seen.py" "$folder")
done
