"""
The campaign: a thousand damaged files of each kind, each read as a user's program would read it.

Every trial ends in one of: `same` (it was read as it had been written), `clear` (an error of one line that names the
file or the field), `unseen` (other values, in a format without checksums), `silent` (other values, where a checksum or
a check could have told), `other` (another error), `hang`. docs/guarantees.md shows the table of the whole campaign.

    CAMPAIGN_SEED=7 pytest -s -m slow tests/test_campaign.py      # another thousand
"""

import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import tiny_generator
from conversion_common import FIXTURES, ORIGINALS
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from training_runs import write_checkpoint

from biggan_hf import BigGANConfig, BigGANModel
from biggan_hf.conversion import convert_tfhub, reading
from biggan_hf.pictures import decode_picture
from biggan_hf.training.checkpoints import load_training_state


SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
SECONDS = 20  # after which a trial hangs
# The formats that hold no checksum of their values, or whose decoder does not look at it.
WITHOUT_CHECKSUMS = {"G.pth of torch 1.5", "HDF5", "graph of a TFHub module"}
PICTURES = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

# What the programs tell in one line; `TypeError` is that of a configuration.
CLEAR = (ValueError, OSError, StrictDataclassError, TypeError)

Read = Callable[[], Any]


class HangError(BaseException): ...


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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


def outcome(read: Read, expected: Any, word: str, has_checksums: bool) -> str:
    try:
        with limited():
            found = read()
    except HangError:
        return "hang"
    except Exception as error:
        if isinstance(error, CLEAR) and word in str(error):
            return "clear"
        print(f"{type(error).__name__}: {error}, expected {word}")
        return "other"
    return "same" if equal(found, expected) else "silent" if has_checksums else "unseen"


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor | np.ndarray):
        both = np.asarray(one), np.asarray(other)
        return both[0].shape == both[1].shape and both[0].tobytes() == both[1].tobytes()
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and (one == other or one != one)


def check(name: str, table: dict[str, Counter[str]]) -> None:
    """Prints the table, and fails where something was silent, unclear or without end."""
    for row, counts in table.items():
        cells = (counts[key] for key in ("same", "clear", "unseen", "silent", "other", "hang"))
        print(f"| {name}: {row} | {sum(counts.values())} | {' | '.join(map(str, cells))} |")
    wrong = {row: dict(counts) for row, counts in table.items() if counts["silent"] + counts["other"] + counts["hang"]}
    assert wrong == {}


@pytest.fixture(params=[pytest.param(100, id="tenth"), pytest.param(1000, marks=pytest.mark.slow, id="whole")])
def trials(request: pytest.FixtureRequest) -> int:
    return request.param


# Pictures


@pytest.mark.filterwarnings("ignore")
def test_pictures(trials: int) -> None:
    dice, table = random.Random(SEED), {name: Counter[str]() for name in PICTURES}
    pixels = np.random.default_rng(SEED).integers(0, 256, (24, 20, 3), np.uint8)
    for trial in range(trials):
        kind = PICTURES[trial % len(PICTURES)]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        whole = file.getvalue()
        expected, damaged = decoded(whole), mutated(whole, dice)
        # An error of one picture is said with the picture's name by the data set.
        table[kind][outcome(partial(decoded, damaged), expected, "", kind == "PNG")] += 1
    check("pictures", table)


def decoded(content: bytes) -> torch.Tensor:
    return decode_picture({"bytes": content, "path": None}, 16, 3)


# Configurations

WRONG: list[Any] = [-1, 0, 1.5, 7, 10**12, -(10**30), "x", "", None, [], [-1], ["x"], {}, {"a": 1}, True, float("nan")]
WRONG += [float("inf"), [10**9], "64", 1e-300, [[1]]]


def test_configurations(trials: int, tmp_path: Path) -> None:
    dice, table = random.Random(SEED), {"one wrong value": Counter[str](), "damaged bytes": Counter[str]()}
    whole = json.loads(tiny_generator().config.to_json_string(use_diff=False))
    # `label2id` follows from `id2label`, whatever a file says.
    fields = [name for name in BigGANConfig.__dataclass_fields__ if name in whole and name != "label2id"]
    for trial in range(trials):
        if trial % 2:
            text = mutated(json.dumps(whole).encode(), dice)
            (tmp_path / "config.json").write_bytes(text)
            result = outcome(partial(built, tmp_path, None), None, "", has_checksums=False)
            table["damaged bytes"]["same" if result == "unseen" else result] += 1
        else:
            name, value = dice.choice(fields), dice.choice(WRONG)
            (tmp_path / "config.json").write_text(json.dumps({**whole, name: value}))
            result = outcome(partial(built, tmp_path, name), value, "", has_checksums=True)
            table["one wrong value"][result] += 1
            if result in ("other", "silent", "hang"):
                print(name, value, result)
    check("configurations", table)


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


def test_checkpoints(trials: int, tmp_path: Path) -> None:
    dice, table = random.Random(SEED), dict[str, Counter[str]]()
    cases = [(kind, path, read, path.read_bytes(), read()) for kind, path, read in checkpoints(tmp_path)]
    for trial in range(trials):
        kind, path, read, whole, expected = cases[trial % len(cases)]
        path.write_bytes(mutated(whole, dice))
        word = path.name.split(".")[0]
        result = outcome(read, expected, word, kind not in WITHOUT_CHECKSUMS)
        table.setdefault(kind, Counter())[result] += 1
        path.write_bytes(whole)
    check("checkpoints", table)
