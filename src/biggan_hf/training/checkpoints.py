"""Checkpoints: what a run needs to go on, in model folders that load like any other.

`checkpoint-{step}/` holds the averaged generator at its root and the discriminator beside it, as a finished model
does. It also holds the generator as trained in `generator/`, and `training_state.pt`: the optimisers and the counters,
which are tensors and numbers only.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_biggan import BigGANConfig
from ..files import REPLACED, UNFINISHED, free_name, remove_folder, replaced_folder, restore_replaced
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from ..processes import is_main_process


TRAINING_STATE = "training_state.pt"
SETTINGS = "training_settings.json"
_NETWORKS = ("", "generator/", "discriminator/")
_FILES = tuple(network + file for network in _NETWORKS for file in ("config.json", "model.safetensors"))
_STATE = ("global_step", "samples_seen", "rollbacks", "num_pictures", "generator_optimizer", "discriminator_optimizer")


# Writing, and making room


def save_checkpoint(
    folder: Path,
    *,
    ema: BigGANModel,
    generator: BigGANModel,
    discriminator: BigGANDiscriminator,
    training_state: dict[str, Any],
) -> None:
    """Writes a checkpoint whole or not at all; raises `OSError` where it can't, as on a full disk."""
    with replaced_folder(folder) as unfinished:
        ema.save_pretrained(unfinished)
        generator.save_pretrained(unfinished / "generator")
        discriminator.save_pretrained(unfinished / "discriminator")
        torch.save(training_state, unfinished / TRAINING_STATE)


def rotate_checkpoints(output_dir: Path, total_limit: int | None, onset: int | None = None) -> None:
    """
    Keeps the newest checkpoints and removes the others.

    Args:
        output_dir: The folder of the run.
        total_limit: How many to keep; `None` keeps all.
        onset: The step before which a collapse may have begun. Two more are kept for it: the newest up to this step,
            to which a rollback returns, and the next one, which takes its place when `onset` has moved on.
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
            remove_folder(folder)


def set_aside(output_dir: Path, step: int, name: str) -> list[Path]:
    """
    Renames the checkpoints after a step, to which a run goes back, to `{name}-{their step}`. So neither "latest" nor
    the rotation takes them for checkpoints of what the run does from here on.

    Returns:
        Their new places, the newest first.
    """
    later = [folder for folder in reversed(_checkpoint_folders(output_dir)) if step_of(folder) > step]
    for leftover in (folder.with_name(REPLACED + folder.name) for folder in later):
        if leftover.exists():  # a kill left it, and it would come back under the free name
            remove_folder(leftover)
    return [folder.rename(free_name(output_dir / f"{name}-{step_of(folder)}")) for folder in later]


# Reading


def load_training_state(folder: Path) -> dict[str, Any]:
    """
    The states of the optimisers, and the counters.

    Raises:
        ValueError: The file is damaged, holds something else, or holds code. Code is refused and never runs.
    """
    path = folder / TRAINING_STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may fail anywhere in the reader
        raise ValueError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    missing = [name for name in _STATE if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(f"{str(path)!r} is no state of a training: it has no {missing[0]!r}")
    return state


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints that have all their files, by ascending step."""
    return [path for path in _checkpoint_folders(output_dir) if missing_file(path) is None]


def _checkpoint_folders(output_dir: Path) -> list[Path]:
    """The folders with a checkpoint's name, by ascending step."""
    found = output_dir.glob("checkpoint-*")
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def missing_file(folder: Path) -> str | None:
    """The first of a checkpoint's files that is not in this folder."""
    return next((name for name in (TRAINING_STATE, *_FILES) if not (folder / name).is_file()), None)


def why_unreadable(folder: Path) -> str | None:
    """The first file of a checkpoint that is missing, cut off or not what it should be; `None` if all can be read."""
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
    The checkpoint from which a run goes on, or `None` for a new run. "latest" is the newest that can be read. It is
    `None` for a run that ended before its first checkpoint.

    Raises:
        FileExistsError: The output folder holds something else than the run that is to be resumed.
        FileNotFoundError: The checkpoint that was named is not there.
        ValueError: "latest" finds checkpoints, but can read none.
    """
    if resume_from_checkpoint is None:
        _check_empty(output_dir)
        return None
    restore_replaced(output_dir)
    if resume_from_checkpoint == "latest":
        return _latest(output_dir)
    folder = Path(resume_from_checkpoint)
    missing = missing_file(folder)
    if missing is not None:
        raise FileNotFoundError(f"no training checkpoint at {resume_from_checkpoint!r}: it has no {missing}")
    if folder.resolve().parent != output_dir.resolve():
        _check_empty(output_dir)
    return folder


def _latest(output_dir: Path) -> Path | None:
    folders = _checkpoint_folders(output_dir)
    for folder in reversed(folders):
        why = why_unreadable(folder)
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
    """A line on standard error. Only the first process prints it, since all of them find the same."""
    if is_main_process():
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)


def _check_empty(output_dir: Path) -> None:
    is_empty = not output_dir.exists() or (
        output_dir.is_dir() and all(path.name.startswith(UNFINISHED) for path in output_dir.iterdir())
    )
    if not is_empty:
        raise FileExistsError(
            f"output_dir {str(output_dir)!r} is not empty: choose another, or go on with a run that has a checkpoint "
            "there by --resume_from_checkpoint latest"
        )


def check_same_architecture(folder: Path, config: BigGANConfig) -> None:
    """
    Raises a `ValueError` that names the first field in which the checkpoint's networks differ from `config`. A
    converted checkpoint may have no names of classes; then it takes those of the data.
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
