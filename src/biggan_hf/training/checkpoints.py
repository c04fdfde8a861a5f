"""Checkpoints: what a run needs to go on, as model folders that load like any other, and their rotation.

`checkpoint-{step}/` holds the averaged generator at its root and the discriminator beside it, as in a finished model,
the generator as trained in `generator/`, and `training_state.pt`: optimisers and counters, tensors and numbers only.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


TRAINING_STATE = "training_state.pt"
SETTINGS = "training_settings.json"
_UNFINISHED, _REPLACED = "unfinished-", "replaced-"
_NETWORKS = ("", "generator/", "discriminator/")
_FILES = tuple(network + file for network in _NETWORKS for file in ("config.json", "model.safetensors"))
_STATE = (
    "global_step",
    "samples_seen",
    "rollbacks",
    "num_pictures",
    "generator_optimizer",
    "discriminator_optimizer",
)


def save_checkpoint(
    folder: Path,
    *,
    ema: BigGANModel,
    generator: BigGANModel,
    discriminator: BigGANDiscriminator,
    training_state: dict[str, Any],
) -> None:
    """
    Writes the checkpoint under another name and renames it when it is whole and on the disk; one that is there goes
    last, and comes back if a kill left neither, see `find_checkpoint`.

    Raises:
        OSError: It can't be written, as on a full disk; nothing of it stays, and what was there does.
    """
    unfinished, replaced = (folder.with_name(prefix + folder.name) for prefix in (_UNFINISHED, _REPLACED))
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        ema.save_pretrained(unfinished)
        generator.save_pretrained(unfinished / "generator")
        discriminator.save_pretrained(unfinished / "discriminator")
        torch.save(training_state, unfinished / TRAINING_STATE)
        for path in unfinished.rglob("*"):
            _flush(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a writer each
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"can't save {str(folder)!r}: {' '.join(str(error).split())}") from error
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """Waits until a file is on the disk: a power cut could else leave its name without its content."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Replaces a file, which is at every moment either as it was or whole."""
    unfinished = path.with_name(_UNFINISHED + path.name)
    unfinished.write_text(text, encoding="utf-8")
    _flush(unfinished)
    unfinished.replace(path)


def rotate_checkpoints(output_dir: Path, total_limit: int | None, onset: int | None = None) -> None:
    """
    Removes the oldest checkpoints beyond a number, but for two, if they are not among those anyway: the newest up to
    `onset`, to which a rollback would return, and the one after it, which takes its place when `onset` has come there.
    """
    if total_limit is None:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = checkpoints[-total_limit:]
    if onset is not None:
        old_enough = sum(step_of(folder) <= onset for folder in checkpoints)
        kept += checkpoints[max(old_enough - 1, 0) : old_enough + 1]
    for folder in checkpoints:
        if folder not in kept:
            shutil.rmtree(folder.rename(free_name(folder.with_name(_UNFINISHED + folder.name))))


def remove_unfinished(output_dir: Path) -> None:
    """What kills have left of checkpoints that were being written or removed."""
    for folder in output_dir.glob(f"{_UNFINISHED}checkpoint-*"):
        shutil.rmtree(folder)


def set_aside(output_dir: Path, step: int, name: str) -> list[Path]:
    """
    Renames the checkpoints after a step, to which a run has gone back, to `{name}-{their step}`: neither "latest" nor
    the rotation shall meet them among those that the run writes now.

    Returns:
        Where they are, the newest first.
    """
    moved = []
    for folder in reversed(_checkpoint_folders(output_dir)):
        if step_of(folder) > step:
            # What a kill left of one that was replaced would else come back as this one.
            shutil.rmtree(folder.with_name(_REPLACED + folder.name), ignore_errors=True)
            moved.append(folder.rename(free_name(output_dir / f"{name}-{step_of(folder)}")))
    return moved


def free_name(path: Path) -> Path:
    """The path, or if it is taken the first of path-2, path-3, … that is not."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], numbered) if not free.exists())


def load_training_state(folder: Path) -> dict[str, Any]:
    """
    The optimisers' states and the counters.

    Raises:
        ValueError: The file is damaged, holds something else, or has code in it, which is refused and not run.
    """
    path = folder / TRAINING_STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in the reader
        raise ValueError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    missing = [name for name in _STATE if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(f"{str(path)!r} is no state of a training: it has no {missing[0]!r}")
    return state


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, by ascending step."""
    return [path for path in _checkpoint_folders(output_dir) if missing_file(path) is None]


def _checkpoint_folders(output_dir: Path) -> list[Path]:
    """Whatever has a checkpoint's name, by ascending step."""
    found = output_dir.glob("checkpoint-*")
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def missing_file(folder: Path) -> str | None:
    """The first file that a checkpoint must have and this folder has not."""
    return next((name for name in (TRAINING_STATE, *_FILES) if not (folder / name).is_file()), None)


def damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being read, by the first file that is missing, cut off or not what it should be."""
    missing = missing_file(folder)
    if missing is not None:
        return f"it has no {missing}"
    for name in _FILES:
        try:
            _check_readable(folder / name)
        except (OSError, ValueError, SafetensorError) as error:
            return f"its {name} can't be read: {error}"
    try:
        load_training_state(folder)
    except ValueError as error:
        return str(error)
    return None


def _check_readable(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    else:
        with safe_open(path, "pt"):  # compares the file's length with its header
            pass


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint to go on from; `None` to start anew, as "latest" does for a run that was cut off before its first.
    "latest" passes over checkpoints that are damaged, with a warning.

    Raises:
        FileExistsError: The output folder holds something else than the run that is to be resumed.
        FileNotFoundError: The checkpoint that was named is not there.
        ValueError: "latest" finds damaged checkpoints alone.
    """
    if resume_from_checkpoint is None:
        _check_empty(output_dir)
        return None
    _restore_replaced(output_dir)
    if resume_from_checkpoint == "latest":
        return _latest(output_dir)
    folder = Path(resume_from_checkpoint)
    missing = missing_file(folder)
    if missing is not None:
        raise FileNotFoundError(f"no training checkpoint at {resume_from_checkpoint!r}: it has no {missing}")
    if folder.resolve().parent != output_dir.resolve():
        _check_empty(output_dir)
    return folder


def _restore_replaced(output_dir: Path) -> None:
    """Gives a checkpoint its name back that a kill between the two renames of `save_checkpoint` left without it."""
    for replaced in output_dir.glob(f"{_REPLACED}checkpoint-*"):
        folder = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if not folder.exists():
            with contextlib.suppress(FileNotFoundError):  # another process of the run was faster
                replaced.rename(folder)


def _latest(output_dir: Path) -> Path | None:
    folders = _checkpoint_folders(output_dir)
    for folder in reversed(folders):
        why = damage(folder)
        if why is None:
            return folder
        warn(f"{str(folder)!r} is passed over: {why}")
    if folders:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"no checkpoint in {str(output_dir)!r} can be read: {names}; to start anew, move them away")
    cut_off = (output_dir / SETTINGS).is_file() and not (output_dir / "config.json").exists()
    if not cut_off:
        _check_empty(output_dir)
    return None


def warn(text: str) -> None:
    """A line on standard error, by the first of the run's processes: all find the same."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)


def _check_empty(output_dir: Path) -> None:
    if output_dir.exists() and not (output_dir.is_dir() and all(map(_is_unfinished, output_dir.iterdir()))):
        raise FileExistsError(
            f"output_dir {str(output_dir)!r} is not empty: choose another, or go on with a run that has a checkpoint "
            "there by --resume_from_checkpoint latest"
        )


def _is_unfinished(path: Path) -> bool:
    """What a run that was cut off leaves behind, and what nobody misses."""
    return path.name.startswith(_UNFINISHED)


def check_same_architecture(folder: Path, config: BigGANConfig) -> None:
    """
    Raises `ValueError` that names the first field in which the checkpoint's networks differ from `config`. Classes
    without names of their own, as a converted checkpoint has them, take the data's.
    """
    saved = BigGANConfig.from_pretrained(folder)
    passed_over = {"architectures", "dtype", "transformers_version", "label2id", "truncation_mode"}
    if list((saved.id2label or {}).values()) == [f"LABEL_{label}" for label in range(config.num_labels or 0)]:
        passed_over.add("id2label")
    for name in BigGANConfig.__dataclass_fields__:
        there, here = getattr(saved, name), getattr(config, name)
        if name not in passed_over and there != here:
            if name == "id2label":  # the first of perhaps a thousand classes
                label = next(label for label in {**there, **here} if there.get(label) != here.get(label))
                name, there, here = f"id2label[{label}]", there.get(label), here.get(label)
            raise ValueError(f"the checkpoint {str(folder)!r} has {name}={there!r}, this run {name}={here!r}")
