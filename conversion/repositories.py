"""Checkpoints of other programs on the Hub: what a repository holds, which files are needed, their conversion."""

import argparse
import hashlib
import importlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode
from huggingface_hub.utils import WeakFileLock
from transformers.utils import logging

from biggan_hf import __version__
from biggan_hf.conversion.reading import FOLDERS, recognise_source
from biggan_hf.words import abbreviated


logger = logging.get_logger(__name__)


@contextmanager
def _told_as_one(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the Hub's client raises a dozen types, some of them private
        raise OSError(f"{repo_id!r} is no file or folder here, and cannot be read on the Hub: {error}") from error


class Repository:
    """
    A repository on the Hub, at one commit.

    Args:
        repo_id: "user/name".
        place: Keywords as of `BigGANModel.from_pretrained`: revision, token, cache_dir, local_files_only.

    Raises:
        OSError: There is no such repository or revision, or the Hub is out of reach; so do the methods.
    """

    def __init__(self, repo_id: str, *, token: bool | str | None = None, revision: str | None = None, **place: Any):
        offline = bool(place.pop("local_files_only", False)) or is_offline_mode()
        self._api = HfApi(token=token)
        self._place = {**place, "local_files_only": offline, "token": token}
        self.repo_id = repo_id
        with _told_as_one(repo_id):
            self.revision = self._api.resolve_revision(
                repo_id, revision=revision, cache_dir=place.get("cache_dir"), local_files_only=offline
            )
        self.commit = self.revision.resolved

    @cached_property
    def files(self) -> list[str]:
        """The paths of all its files."""
        with _told_as_one(self.repo_id):
            return self._api.list_repo_files(self.repo_id, revision=self.commit)

    def download(self, file: str) -> Path:
        """Downloads a file to the Hub's cache, and returns its path there."""
        with _told_as_one(self.repo_id):
            return Path(hf_hub_download(self.repo_id, file, revision=self.revision, **self._place))


@dataclass(frozen=True)
class HubFolder:
    """
    A folder of a repository that holds a checkpoint of another program.

    Args:
        repository: Where it lies.
        path: The folder; "" for the root.
        kind: What the checkpoint is, in words.
        script: The script that converts it.
    """

    repository: Repository
    path: str
    kind: str
    script: str

    def __str__(self) -> str:
        return str(PurePosixPath(self.repository.repo_id, self.path))

    @property
    def names(self) -> list[str]:
        """The files in it and below, by their paths in the folder."""
        inside = f"{self.path}/" if self.path else ""
        return [file.removeprefix(inside) for file in self.repository.files if file.startswith(inside)]

    @property
    def origin(self) -> str:
        """The line of the card that says where the files come from."""
        return f"read from {self} on the Hub, commit {self.repository.commit}"

    @property
    def converter(self) -> Any:
        """The script, as a module."""
        return importlib.import_module(f"biggan_hf.conversion.{self.script.removesuffix('.py')}")

    def fetch(self, names: Sequence[str]) -> Path:
        """Downloads files, by their paths in the folder; returns the folder in the Hub's cache."""
        files = [self.repository.download(str(PurePosixPath(self.path, name))) for name in names]
        return files[0].parents[names[0].count("/")]

    def converted(self, args: argparse.Namespace) -> list[str]:
        """Downloads what is needed, and converts it to `args.output`; returns what a script prints."""
        from biggan_hf.conversion.writing import check_output, written  # here: it brings the networks

        check_output(args.output, args.overwrite)
        args.source = self.fetch(self.converter.needed(self, args))
        return written(self.converter.convert, args, self.origin)


def checkpoints(files: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The folders that hold checkpoints of other programs, by their paths; the kind and the script of each."""
    found: dict[PurePosixPath, tuple[str, str | None]] = {}
    paths = [path for path in map(PurePosixPath, sorted(files)) if not path.match("G_optim*")]
    for pattern, kind, script in FOLDERS:
        for path in paths:
            if path.match(pattern):
                found.setdefault(path.parents[pattern.count("/")], (kind, script))
    # A TFHub module keeps a checkpoint of TensorFlow in its folder `variables`.
    return {
        str(folder) if folder.name else "": (kind, script)
        for folder, (kind, script) in sorted(found.items())
        if script is not None and folder.name != "variables"
    }


def chosen(repository: Repository, subfolder: str | None = None) -> HubFolder | None:
    """
    The checkpoint in `subfolder`; by default the one at the root, or else the only one. `None` if there is none.

    Raises:
        ValueError: There are several in other folders.
    """
    found = checkpoints(repository.files)
    path = (subfolder or "").strip("/")
    if path not in found and len(found) == 1 and subfolder is None:
        (path,) = found
    if path in found:
        return HubFolder(repository, path, *found[path])
    if not found:
        return None
    below = [folder for folder in found if folder.startswith(f"{path}/")] or found
    there_are = abbreviated([f"{folder or '.'} ({found[folder][0]})" for folder in below], length=400)
    raise ValueError(
        f"{repository.repo_id!r} holds no checkpoint {f'in {path!r}' if path else 'at its root'}; "
        f"--subfolder, or in Python subfolder=, chooses one of: {there_are}"
    )


def is_another_programs(folder: Path | HubFolder, script: str) -> bool:
    """`pytorch_model.bin` is a name that many programs give; the configuration beside it says whose it is."""
    if script != "convert_pretrained_biggan.py":
        return True
    from biggan_hf.conversion.convert_pretrained_biggan import read_settings

    try:
        config = folder / "config.json" if isinstance(folder, Path) else folder.fetch(["config.json"]) / "config.json"
        return bool(read_settings(config))
    except (OSError, ValueError):
        return False


def told(source: str, subfolder: str | None = None, **place: Any) -> str | None:
    """
    What to say of a folder or a repository that holds no model of this package: that it holds another program's, and
    which command converts it. `None` if it holds none, or the Hub is out of reach.
    """
    local = Path(source, subfolder or "")
    if local.exists():
        kind, script = recognise_source(local)
        if script is None or not is_another_programs(local, script):
            return None
        return f"{str(local)!r} holds {kind}: `{_command(str(local))}` converts it"
    try:
        folder = chosen(Repository(source, **place), subfolder or None)
    except OSError:
        return None
    if folder is None or not is_another_programs(folder, folder.script):
        return None
    options = {"--subfolder": folder.path, "--revision": place.get("revision")}
    command = _command(source, *(word for name, value in options.items() if value for word in (name, value)))
    return f"{str(folder)!r} holds {folder.kind}: `{command}` converts it, and convert=True converts and loads it"


def _command(source: str, *options: str) -> str:
    return shlex.join(["biggan-hf", "convert", source, *options, "--output", "DIR"])


def converted(repo_id: str, subfolder: str | None = None, **place: Any) -> Path | None:
    """
    Converts a checkpoint on the Hub, as its converter does without options, to a folder in the cache; a later call
    finds that folder. `None` if the repository holds no checkpoint of another program.

    Raises:
        ValueError: It holds several, or one that cannot be converted.
        OSError: The Hub is out of reach.
    """
    repository = Repository(repo_id, **place)
    key = hashlib.sha256(repr((repo_id, repository.commit, subfolder or "", __version__)).encode()).hexdigest()[:16]
    target = Path(constants.HF_HOME) / "biggan_hf" / "converted" / f"{repo_id.replace('/', '--')}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f"{target.name}.lock")):
        if target.is_dir():  # another process was faster
            return target
        folder = chosen(repository, subfolder or None)
        if folder is None or not is_another_programs(folder, folder.script):
            return None
        folder.converted(folder.converter.options().parse_args([repo_id, "--output", str(target)]))
    logger.warning(f"converted {str(folder)!r}, {folder.kind}, to {str(target)!r}; its README.md says what was read")
    return target
