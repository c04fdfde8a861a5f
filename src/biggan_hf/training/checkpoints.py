"""Checkpoints: what a run needs to go on, as model folders that load like any other, and their rotation.

`checkpoint-{step}/` holds the averaged generator at its root and the discriminator beside it, as in a finished model,
the generator as trained in `generator/`, and `training_state.pt`: optimisers and counters, tensors and numbers only.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


TRAINING_STATE = "training_state.pt"
SETTINGS = "training_settings.json"
_UNFINISHED = "unfinished-"
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
    Writes the checkpoint under another name and renames it when it is whole; one that is there goes last.

    Raises:
        OSError: It can't be written, as on a full disk; nothing of it stays, and what was there does.
    """
    unfinished, replaced = folder.with_name(_UNFINISHED + folder.name), folder.with_name(f"replaced-{folder.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        ema.save_pretrained(unfinished)
        generator.save_pretrained(unfinished / "generator")
        discriminator.save_pretrained(unfinished / "discriminator")
        torch.save(training_state, unfinished / TRAINING_STATE)
    except (OSError, RuntimeError, SafetensorError) as error:  # a writer each
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"can't save {str(folder)!r}: {' '.join(str(error).split())}") from error
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Replaces a file, which is at every moment either as it was or whole."""
    unfinished = path.with_name(_UNFINISHED + path.name)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def rotate_checkpoints(output_dir: Path, total_limit: int | None) -> None:
    """Removes the oldest checkpoints beyond a number."""
    if total_limit is not None:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)


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
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if missing_file(path) is None), key=step_of)


def missing_file(folder: Path) -> str | None:
    """The first file that a checkpoint must have and this folder has not."""
    return next((name for name in (TRAINING_STATE, *_FILES) if not (folder / name).is_file()), None)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint to go on from; `None` to start anew, as "latest" does for a run that was cut off before its first.

    Raises:
        FileExistsError: The output folder holds something else than the run that is to be resumed.
        FileNotFoundError: The checkpoint that was named is not there.
    """
    if resume_from_checkpoint == "latest":
        checkpoints = list_checkpoints(output_dir)
        cut_off = (output_dir / SETTINGS).is_file() and not (output_dir / "config.json").exists()
        if not checkpoints and not cut_off:
            _check_empty(output_dir)
        return checkpoints[-1] if checkpoints else None
    if resume_from_checkpoint is None:
        _check_empty(output_dir)
        return None
    folder = Path(resume_from_checkpoint)
    missing = missing_file(folder)
    if missing is not None:
        raise FileNotFoundError(f"no training checkpoint at {resume_from_checkpoint!r}: it has no {missing}")
    if folder.resolve().parent != output_dir.resolve():
        _check_empty(output_dir)
    return folder


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
        if name not in passed_over and getattr(saved, name) != getattr(config, name):
            raise ValueError(
                f"the checkpoint {str(folder)!r} has {name}={getattr(saved, name)!r}, this run "
                f"{name}={getattr(config, name)!r}"
            )
