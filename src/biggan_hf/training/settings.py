"""The settings that a run writes down: who goes on with the run takes them from there, and the card shows them."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..cards import is_path, names_path, public_name
from .checkpoints import SETTINGS, warn


# A resumed run is told these anew.
OF_THE_START = {"output_dir", "resume_from_checkpoint", "dry_run", "force_unlock", "compile_cache"}
# The card does not show these.
NOT_PUBLIC = {*OF_THE_START, "push_to_hub", "push_to_hub_every", "hub_model_id", "license"}
# These may name a file or a folder, by a path that means something in one working directory only.
PATHS = ("dataset_name", "init_from", "evaluation_extractor")


def settings_of(groups: Iterable[Any], num_processes: int) -> dict[str, Any]:
    """All arguments by name. Paths are absolute, so that a run can go on from another working directory."""
    settings: dict[str, Any] = {"num_processes": num_processes}
    for group in groups:
        settings |= dataclasses.asdict(group)
    return settings | {name: absolute(settings[name]) for name in PATHS}


def absolute(value: Any) -> Any:
    """A path without its working directory; other values as they are."""
    return os.path.abspath(Path(value).expanduser()) if is_path(value) else value


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """
    What others may read: nothing that has no value, and no path and no password, which would tell of the machine and
    its user.
    """
    shown = {name: value for name, value in settings.items() if name not in NOT_PUBLIC and value not in (None, [])}
    return {name: _public(value, name in (*PATHS, "dataset_config_name")) for name, value in shown.items()}


def _public(value: Any, may_be_path: bool) -> Any:
    if isinstance(value, list):
        return [_public(one, may_be_path) for one in value]
    # A word that is no path may be the name of a file here.
    if not isinstance(value, str) or not (may_be_path or names_path(value) or "://" in value):
        return value
    name = public_name(value)
    return "it names a local path" if names_path(name) else name


# Going on with a run


def run_folder(output_dir: str, resume_from_checkpoint: str) -> Path:
    """The folder of the run that is gone on with."""
    return Path(output_dir) if resume_from_checkpoint == "latest" else Path(resume_from_checkpoint).absolute().parent


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a run left in a folder; none if there are none."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not what a run writes: {type(error).__name__}: {error}") from error
    return settings


def warn_of_other_settings(saved: dict[str, Any], settings: dict[str, Any]) -> None:
    """Names the settings that differ from those of the run that is gone on with."""
    now = json.loads(json.dumps(settings))
    others = [name for name in saved if name in now and saved[name] != now[name] and name not in OF_THE_START]
    if others:
        changes = ", ".join(f"{name}={now[name]!r} (was {saved[name]!r})" for name in others)
        warn(f"the run goes on with other settings: {changes}")
    batches = [told["num_processes"] * told["per_device_batch_size"] for told in (saved, now) if _has_no_batch(told)]
    if len(batches) == 2 and batches[0] != batches[1]:
        way = what_keeps(batches[0], now["num_processes"], now["per_device_batch_size"])
        warn(
            f"without global_batch_size an update is of per_device_batch_size times num_processes: {batches[1]} "
            f"pictures now, {batches[0]} before, at the same learning rates; {way}"
        )


def what_keeps(batch: int, num_processes: int, per_device_batch_size: int) -> str:
    """What on so many processes keeps the size of an update."""
    if batch % num_processes:
        return f"{num_processes} processes can't keep it, since {batch} does not divide by {num_processes}"
    size = max(part for part in range(1, per_device_batch_size + 1) if batch // num_processes % part == 0)
    smaller = f" --per_device_batch_size {size}" if size < per_device_batch_size else ""
    return f"--global_batch_size {batch}{smaller} keeps it"


def _has_no_batch(settings: dict[str, Any]) -> bool:
    return settings.get("global_batch_size") is None and {"num_processes", "per_device_batch_size"} <= settings.keys()
