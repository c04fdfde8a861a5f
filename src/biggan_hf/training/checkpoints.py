"""Checkpoints: what a run needs to go on, in model folders that load like any other.

`checkpoint-{step}/` holds the averaged generator at its root and the discriminator beside it, as a finished model
does. It also holds the generator as trained in `generator/`, and `training_state.pt`: the optimisers and the counters,
which are tensors and numbers only. Beside adapters, these networks have them merged; then `base/` holds the frozen
networks, without adapters, and `training_state.pt` the adapters.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_biggan import BigGANConfig
from ..files import (
    LOCK,
    REPLACED,
    UNFINISHED,
    check_archive,
    check_weights,
    checkpoint_folders,
    free_name,
    remove_folder,
    replaced_folder,
    restore_replaced,
    save_archive,
    step_of,
)
from ..processes import is_main_process


TRAINING_STATE = "training_state.pt"
SETTINGS = "training_settings.json"
_FILES = [f"{network}{file}" for network in ("", "generator/", "discriminator/")
          for file in ("config.json", "model.safetensors")]  # fmt: skip
BASE = "base"
_BASE_FILES = [f"{BASE}/{name}" for name in _FILES if not name.startswith("generator/")]
_WEIGHTS = [name for name in [*_FILES, *_BASE_FILES] if name.endswith(".safetensors")]
# Fields of the configuration that change no weight.
WITHOUT_WEIGHTS = {"discriminator_dropout", "discriminator_shortcut_relu", "initializer", "spectral_norm_eps"}
WITHOUT_WEIGHTS |= {"batch_norm_eps", "output_batch_norm_eps", "truncation_mode"}
_STATE = ("global_step", "samples_seen", "rollbacks", "num_pictures", "generator_optimizer", "discriminator_optimizer")


# Writing, and making room


def save_checkpoint(folder: Path, networks: Mapping[str, Any], training_state: dict[str, Any]) -> None:
    """
    Writes a checkpoint whole or not at all, the networks into the sub-folders after which they are named ("" for the
    average). Raises `OSError` where it can't, as on a full disk.
    """
    with replaced_folder(folder) as unfinished:
        for name, network in networks.items():
            network.save_pretrained(unfinished / name, global_step=training_state["global_step"])
        # Last, with the checksums of the weights that belong to it.
        weights = {name: check_weights(unfinished / name) for name in _WEIGHTS if (unfinished / name).is_file()}
        save_archive({**training_state, "weights": weights}, unfinished / TRAINING_STATE)


def rotate_checkpoints(output_dir: Path, total_limit: int | None, onset: int | None = None) -> None:
    """
    Keeps the newest checkpoints, `total_limit` of them (`None`: all), and removes the others. A collapse may have
    begun at the step `onset`. Two more are kept for it: the newest up to this step, to which a rollback returns, and
    the next one, which takes its place when `onset` has moved on.
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
    the rotation takes them for checkpoints of what the run does from here on. Returns their new places, the newest
    first.
    """
    later = [folder for folder in reversed(checkpoint_folders(output_dir)) if step_of(folder) > step]
    for leftover in (folder.with_name(REPLACED + folder.name) for folder in later):
        if leftover.exists():  # a kill left it, and it would come back under the free name
            remove_folder(leftover)
    return [folder.rename(free_name(output_dir / f"{name}-{step_of(folder)}")) for folder in later]


# Reading


def load_training_state(folder: Path) -> dict[str, Any]:
    """
    The states of the optimisers, and the counters. Raises `ValueError` where the file is damaged, holds something
    else, or holds code. Code is refused and never runs.
    """
    path = folder / TRAINING_STATE
    check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        why = "it holds something else than tensors and numbers, and such a file could run code"
        raise ValueError(f"{str(path)!r} can't be read: {why}") from error
    except Exception as error:  # a damaged file may fail anywhere in the reader
        raise ValueError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    missing = [name for name in _STATE if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(f"{str(path)!r} is no state of a training: it has no {missing[0]!r}")
    return state


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints that have all their files, by ascending step."""
    files, folders = (TRAINING_STATE, *_FILES), checkpoint_folders(output_dir)
    return [folder for folder in folders if all((folder / name).is_file() for name in files)]


def why_unreadable(folder: Path) -> str | None:
    """The first file of a checkpoint that is missing, damaged or not what it should be; `None` if all are right."""
    checksums = {}
    for name in [*_FILES, *(_BASE_FILES if (folder / BASE).exists() else [])]:
        try:
            if name.endswith(".json"):
                read_config((folder / name).parent)
            else:
                safe_open(folder / name, "pt")  # compares the file's length with its header
                checksums[name] = check_weights(folder / name)
        except (OSError, ValueError, SafetensorError) as error:
            return f"its {name} can't be read: {error}"
    try:
        state = load_training_state(folder)
    except (OSError, ValueError) as error:
        return str(error)
    written = state.get("weights", {})  # older checkpoints and converted ones have none
    others = [name for name in checksums if written.get(name) not in (None, checksums[name])]
    if others:
        return f"its {others[0]} is of another checkpoint than its {TRAINING_STATE}"
    if re.fullmatch(r"checkpoint-\d+", folder.name) and state["global_step"] != step_of(folder):
        return f"its {TRAINING_STATE} is of step {state['global_step']}"
    return None


def read_config(folder: Path) -> BigGANConfig:
    """The configuration of a network. Raises `ValueError` where it is damaged or of something else."""
    try:
        return BigGANConfig.from_pretrained(folder)
    except Exception as error:  # damage can make any part of the reader fail
        raise ValueError(str(error) or type(error).__name__) from error


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint from which a run goes on, or `None` for a new run. "latest" is the newest that can be read. It is
    `None` for a run that ended before its first checkpoint.

    Raises:
        FileExistsError, FileNotFoundError: The output folder holds something else, or there is no such checkpoint.
        ValueError: "latest" finds checkpoints, but can read none.
    """
    if resume_from_checkpoint is None:
        _check_empty(output_dir)
        return None
    restore_replaced(output_dir)
    if resume_from_checkpoint == "latest":
        return _latest(output_dir)
    folder = Path(resume_from_checkpoint)
    why = why_unreadable(folder)
    if why is not None:
        newest = "; --resume_from_checkpoint latest goes on from the newest that is not damaged" * folder.is_dir()
        raise FileNotFoundError(f"no training checkpoint at {resume_from_checkpoint!r}: {why}{newest}")
    if folder.resolve().parent != output_dir.resolve():
        _check_empty(output_dir)
    return folder


def _latest(output_dir: Path) -> Path | None:
    folders = checkpoint_folders(output_dir)
    for folder in reversed(folders):
        why = why_unreadable(folder)
        if why is None:
            return folder
        warn(f"{str(folder)!r} is passed over: {why}")
    if folders:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"no checkpoint in {str(output_dir)!r} can be read: {names}; to start anew, move them away")
    if not (output_dir / SETTINGS).is_file() or (output_dir / "config.json").exists():
        _check_empty(output_dir)
    return None


def warn(text: str) -> None:
    """A line on standard error. Only the first process prints it, since all of them find the same."""
    if is_main_process():
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)


def _check_empty(output_dir: Path) -> None:
    files = output_dir.iterdir() if output_dir.is_dir() else [output_dir] * output_dir.exists()
    if not all(path.name.startswith((UNFINISHED, LOCK)) for path in files):
        way = ""
        if checkpoint_folders(output_dir):
            way = ", or go on with the run there by --resume_from_checkpoint latest"
        elif (output_dir / SETTINGS).is_file() and not (output_dir / "config.json").exists():
            way = ", or begin the run there anew by --resume_from_checkpoint latest: it has no checkpoint yet"
        raise FileExistsError(f"output_dir {str(output_dir)!r} is not empty: choose another{way}")


def check_same_architecture(folder: Path, config: BigGANConfig) -> dict[str, str]:
    """
    Raises a `ValueError` that names the first field in which the weights of the checkpoint differ from `config`'s. A
    converted checkpoint may have no names of classes; then it takes those of the data.

    Returns:
        The fields without weights that change, and how.
    """
    saved, changes = read_config(folder), {}
    passed_over = {"architectures", "dtype", "transformers_version", "label2id"}
    if list((saved.id2label or {}).values()) == [f"LABEL_{label}" for label in range(config.num_labels or 0)]:
        passed_over.add("id2label")
    for name in BigGANConfig.__dataclass_fields__:
        there, here = getattr(saved, name), getattr(config, name)
        if name in WITHOUT_WEIGHTS and there != here:
            changes[name] = f"{name}={here!r} (was {there!r})"
        elif name not in passed_over and there != here:
            if name == "id2label":  # the first of perhaps a thousand classes
                label = next(label for label in {**there, **here} if there.get(label) != here.get(label))
                name, there, here = f"id2label[{label}]", there.get(label), here.get(label)
            raise ValueError(f"the checkpoint {str(folder)!r} has {name}={there!r}, this run {name}={here!r}")
    return changes
