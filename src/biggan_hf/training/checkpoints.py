"""Checkpoints: what a run needs to go on, as model folders that load like any other, and their rotation.

`checkpoint-{step}/` holds the averaged generator at its root and the discriminator beside it, as in a finished model,
the generator as trained in `generator/`, and `training_state.pt`: optimisers and counters, tensors and numbers only.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


TRAINING_STATE = "training_state.pt"
SETTINGS = "training_settings.json"


def save_checkpoint(
    folder: Path,
    *,
    ema: BigGANModel,
    generator: BigGANModel,
    discriminator: BigGANDiscriminator,
    training_state: dict[str, Any],
) -> None:
    """Writes the checkpoint under another name and renames it when it is whole; one that is there goes last."""
    unfinished, replaced = (folder.with_name(f"{word}-{folder.name}") for word in ("unfinished", "replaced"))
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    ema.save_pretrained(unfinished)
    generator.save_pretrained(unfinished / "generator")
    discriminator.save_pretrained(unfinished / "discriminator")
    torch.save(training_state, unfinished / TRAINING_STATE)
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def rotate_checkpoints(output_dir: Path, total_limit: int | None) -> None:
    """Removes the oldest checkpoints beyond a number."""
    if total_limit is not None:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)


def load_training_state(folder: Path) -> dict[str, Any]:
    """
    The optimisers' states and the counters.

    Raises:
        ValueError: The file is damaged, or has code in it, which is refused and not run.
    """
    try:
        return torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in the reader
        raise ValueError(f"{str(folder / TRAINING_STATE)!r} can't be read: {type(error).__name__}: {error}") from error


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, by ascending step."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / TRAINING_STATE).is_file()), key=step_of)


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
    if not (folder / TRAINING_STATE).is_file():
        raise FileNotFoundError(f"no training checkpoint at {resume_from_checkpoint!r}: it has no {TRAINING_STATE}")
    if folder.resolve().parent != output_dir.resolve():
        _check_empty(output_dir)
    return folder


def _check_empty(output_dir: Path) -> None:
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"output_dir {str(output_dir)!r} is not empty: choose another, or go on with a run that has a checkpoint "
            "there by --resume_from_checkpoint latest"
        )


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
