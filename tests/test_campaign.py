"""
The campaign of files: a thousand damaged ones of each kind, and hostile ones, each read as a user's program would.

campaign.py says what a trial may end in; docs/guarantees.md shows the table of the whole campaign.
"""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import SEED, Watch, campaign, equal
from common import tiny_generator
from conversion_common import FIXTURES, ORIGINALS
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from training_runs import write_checkpoint

from biggan_hf import BigGANConfig, BigGANModel
from biggan_hf.conversion import convert_tfhub, reading
from biggan_hf.evaluation.sources import load_npz
from biggan_hf.pictures import decode_picture
from biggan_hf.training.checkpoints import load_training_state


# The formats that hold no checksum of their values, or whose decoder does not look at it.
WITHOUT_CHECKSUMS = {"G.pth of torch 1.5", "HDF5", "graph of a TFHub module"}
PICTURES = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

# What the programs tell in one line; `TypeError` is that of a configuration.
CLEAR = (ValueError, OSError, StrictDataclassError, TypeError)

Read = Callable[[], Any]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Allows trials to write to `tmp_path / "trials"`, which is made."""
    (tmp_path / "trials").mkdir()
    return Watch(tmp_path / "trials")


@pytest.fixture(params=[pytest.param(100, id="tenth"), pytest.param(1000, marks=pytest.mark.slow, id="whole")])
def trials(request: pytest.FixtureRequest) -> int:
    return request.param


def mutated(content: bytes, dice: random.Random) -> bytes:
    """As disks, transfers and power cuts damage files."""
    at, length = dice.randrange(len(content)), dice.randint(1, 64)
    kind = dice.randrange(8)
    if kind < 4:
        return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
    if kind == 4:
        return content[:at]
    if kind == 5:
        zeros = min(length * 64, len(content) - at)
        return content[:at] + bytes(zeros) + content[at + zeros :]
    if kind == 6:
        return content[:at] + dice.randbytes(length) + content[at:]
    return content[:at] + content[at + length :]


def outcome(watch: Watch, read: Read, expected: Any, word: str, has_checksums: bool) -> str:
    watch.start()
    try:
        found, error = read(), None
    except Exception as failure:
        error = failure
    if watch.seen:
        print(watch.seen)
        return "executed"
    if isinstance(error, CLEAR) and word in str(error):
        return "clear"
    if error is not None:
        print(f"{type(error).__name__}: {error}, expected {word}")
        return "other"
    return "same" if equal(found, expected) else "silent" if has_checksums else "unseen"


# Pictures


@pytest.mark.filterwarnings("ignore")
def test_pictures(trials: int, watch: Watch) -> None:
    pixels = np.random.default_rng(SEED).integers(0, 256, (24, 20, 3), np.uint8)
    files = []
    for kind in PICTURES:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        files.append(file.getvalue())

    def trial(row: int, dice: random.Random) -> str:
        damaged, expected = mutated(files[row], dice), decoded(files[row])
        # An error of one picture is said with the picture's name by the data set.
        return outcome(watch, partial(decoded, damaged), expected, "", PICTURES[row] == "PNG")

    campaign("pictures", PICTURES, trial, trials)


def decoded(content: bytes) -> torch.Tensor:
    return decode_picture({"bytes": content, "path": None}, 16, 3)


# Configurations

WRONG: list[Any] = [-1, 0, 1.5, 7, 10**12, -(10**30), "x", "", None, [], [-1], ["x"], {}, {"a": 1}, True, float("nan")]
WRONG += [float("inf"), [10**9], "64", 1e-300, [[1]]]


def test_configurations(trials: int, watch: Watch, tmp_path: Path) -> None:
    whole = json.loads(tiny_generator().config.to_json_string(use_diff=False))
    # `label2id` follows from `id2label`, whatever a file says.
    fields = [name for name in BigGANConfig.__dataclass_fields__ if name in whole and name != "label2id"]
    folder = tmp_path / "trials"

    def trial(row: int, dice: random.Random) -> str:
        if row:
            (folder / "config.json").write_bytes(mutated(json.dumps(whole).encode(), dice))
            result = outcome(watch, partial(built, folder, None), None, "", has_checksums=False)
            return "same" if result == "unseen" else result
        name, value = dice.choice(fields), dice.choice(WRONG)
        (folder / "config.json").write_text(json.dumps({**whole, name: value}))
        result = outcome(watch, partial(built, folder, name), value, "", has_checksums=True)
        if result not in ("same", "clear"):
            print(name, value, result)
        return result

    campaign("configurations", ["one wrong value", "damaged bytes"], trial, trials)


def built(folder: Path, name: str | None) -> Any:
    """What the configuration says of a field, after a network has been built with it."""
    config = BigGANConfig.from_pretrained(folder)
    with torch.device("meta"):
        BigGANModel(config)
    return None if name is None else getattr(config, name)


# Checkpoints


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return BigGANModel.from_pretrained(folder).state_dict()


def checkpoints(folder: Path) -> Iterator[tuple[str, Path, Read]]:
    """The format, the file that is damaged, and what reads it."""
    original = next((ORIGINALS / "biggan_thin").glob("G*.pth"))
    new, old = folder / "new.pth", folder / "old.pth"
    content = torch.load(original, weights_only=True)
    torch.save(content, new)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    yield "G.pth", new, lambda: reading.load(new)
    yield "G.pth of torch 1.5", old, lambda: reading.load(old)
    checkpoint = write_checkpoint(folder, 1)
    for network in ("", "generator/"):
        path = checkpoint / network / "model.safetensors"
        yield "model.safetensors", path, partial(loaded, path.parent)
    yield "training_state.pt", checkpoint / "training_state.pt", lambda: load_training_state(checkpoint)
    module = shutil.copytree(FIXTURES / "tfhub_module" / "module", folder / "module")
    for file in ("variables.index", "variables.data-00000-of-00001"):
        yield "variables of a TFHub module", module / "variables" / file, lambda: convert_tfhub.read_variables(module)
    yield "graph of a TFHub module", module / "saved_model.pb", lambda: convert_tfhub.read_variables(module)
    try:
        import h5py
    except ImportError:
        return
    with h5py.File(folder / "x.h5", "w") as dump:
        for number in range(40):
            dump.create_dataset(f"module/Generator/{number}/w:0", data=np.random.default_rng(number).random((4, 9)))
    yield "HDF5", folder / "x.h5", lambda: convert_tfhub.read_variables(folder / "x.h5")


def test_checkpoints(trials: int, watch: Watch, tmp_path: Path) -> None:
    cases = [(kind, path, read, path.read_bytes(), read()) for kind, path, read in checkpoints(tmp_path / "trials")]

    def trial(row: int, dice: random.Random) -> str:
        kind, path, read, whole, expected = cases[row]
        path.write_bytes(mutated(whole, dice))
        try:
            return outcome(watch, read, expected, path.name.split(".")[0], kind not in WITHOUT_CHECKSUMS)
        finally:
            path.write_bytes(whole)

    campaign("checkpoints", [kind for kind, *_ in cases], trial, trials)


# Hostile files: each would make a folder beside that of the trials


class Payload:
    """Unpickling it does one of the things that a stranger's file may try, with this path."""

    def __init__(self, way: int, path: Path) -> None:
        self.way, self.path = way, str(path)

    def __reduce__(self) -> Any:
        ways: list[Any] = [
            (os.mkdir, (self.path,)),
            (open, (self.path, "w")),
            (os.system, (f"mkdir {self.path}",)),
            (subprocess.call, (["mkdir", self.path],)),
            (exec, (f"import os; os.mkdir({self.path!r})",)),
            (eval, (f"__import__('os').mkdir({self.path!r})",)),
        ]
        return ways[self.way]


WAYS = range(6)


def hostile_files(folder: Path) -> Iterator[tuple[str, Path, Callable[[Any], None], Read]]:
    """The format, the file, what writes a payload into it, and what reads it."""
    state = write_checkpoint(folder, 1)
    model = Path(shutil.copytree(state, folder / "model", ignore=shutil.ignore_patterns("model.safetensors")))
    readers: list[tuple[str, Path, Read]] = [
        ("G.pth", folder / "G.pth", lambda: reading.load(folder / "G.pth")),
        ("pytorch_model.bin", model / "pytorch_model.bin", partial(loaded, model)),
        ("training_state.pt", state / "training_state.pt", lambda: load_training_state(state)),
    ]
    for kind, path, read in readers:
        yield kind, path, lambda payload, path=path: torch.save({"x": payload}, path), read  # type: ignore[misc]
    old, array = folder / "old.pth", folder / "samples.npz"
    as_before = partial(torch.save, f=old, _use_new_zipfile_serialization=False)
    yield "G.pth of torch 1.5", old, lambda payload: as_before({"x": payload}), lambda: reading.load(old)
    yield "npz", array, lambda payload: np.savez(array, x=np.array([payload])), lambda: load_npz(array)


def test_hostile_files(trials: int, watch: Watch, tmp_path: Path) -> None:
    marker, cases = tmp_path / "executed", list(hostile_files(tmp_path / "trials"))

    def trial(row: int, dice: random.Random) -> str:
        _, path, write, read = cases[row]
        write(Payload(dice.choice(WAYS), marker))
        if dice.random() < 0.5:
            path.write_bytes(mutated(path.read_bytes(), dice))
        result = outcome(watch, read, None, "", has_checksums=True)
        return "executed" if marker.exists() else result

    campaign("hostile", [kind for kind, *_ in cases], trial, trials)


@pytest.mark.parametrize("way", WAYS)
def test_the_watch_sees_what_a_file_executes(way: int, watch: Watch, tmp_path: Path) -> None:
    content = pickle.dumps(Payload(way, tmp_path / "executed"))

    def trial(row: int, dice: random.Random) -> str:
        return outcome(watch, lambda: pickle.loads(content), None, "", has_checksums=True)

    with pytest.raises(AssertionError, match="'executed': 1"):
        campaign("watch", ["plain pickle"], trial, 1)
    assert (tmp_path / "executed").exists()
