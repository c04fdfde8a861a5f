"""
What torch has compiled for a run, kept in a folder for later runs (`--compile_cache`).

A cache is compiled code: torch runs what it finds there. So a run reads one only from a folder that its user names
anew at every start, never because a checkpoint or a repository on the Hub says so.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..files import write_file


class CompileCache:
    """
    A folder with files of torch's portable cache. Each holds what one process had compiled when it saved, after a
    checksum, and is named after torch's version, the device and its contents. So versions, devices and networks share
    a folder, and no file is ever replaced: what torch (2.13) saves a second time, it loads without the first part.

    Torch gets what is there for its version and this device. It compiles the rest. `found` says what was there.

    Raises `ValueError` where this can't be a folder.
    """

    def __init__(self, folder: str, device: torch.device):
        self.folder = Path(folder)
        if folder.startswith("hub:"):
            raise ValueError(
                f"compile_cache must be a folder, got {folder!r}: a cache is compiled code, and from the Hub torch "
                f"would run a stranger's"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"compile_cache must be a folder, got the file {folder!r}")
        self.kind = _slug(f"torch-{torch.__version__}-{_device(device)}")
        self.known: set[tuple[str, str]] = set()  # what the folder has: kinds of parts, and their keys in torch
        self.is_kept = False
        self.found = self._load()

    def _load(self) -> str:
        files = {path for path in self.folder.glob("*.cache") if path.name.startswith(f"{self.kind}-")}
        damaged = [path.name for path in sorted(files) if not self._load_file(path)]
        others = len(list(self.folder.glob("*.cache"))) - len(files)
        said = f"{len(self.known)} parts are there, in {str(self.folder)!r}"
        if not self.known:
            said = f"the first step compiles all: {str(self.folder)!r} has nothing for {self.kind}"
        said += f"; {others} files there are of another torch or device" if others else ""
        return said + (f"; damaged and passed over: {', '.join(damaged)}" if damaged else "")

    def _load_file(self, path: Path) -> bool:
        checksum, _, content = path.read_bytes().partition(b"\n")
        if _checksum(content) != checksum:
            return False
        info = torch.compiler.load_cache_artifacts(content)
        self.known |= _parts(info)
        return info is not None

    def keep_once(self) -> None:
        """As `keep`, but not a second time."""
        if not self.is_kept:
            self.keep()

    def keep(self) -> None:
        """Writes what this process has compiled, if it is new, and says so. Where it can't, it says that."""
        self.is_kept = True
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or (parts := _parts(saved[1])) <= self.known:
            return
        content = saved[0]
        name = hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.kind}-{name}.cache"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with write_file(path) as unfinished:
                unfinished.write_bytes(_checksum(content) + b"\n" + content)
        except OSError as error:  # the run needs no cache
            tqdm.write(f"compile_cache: not written: {error}")
            return
        self.known |= parts
        tqdm.write(f"compile_cache: {len(parts)} parts, {len(content) / 1e6:.1f} MB, are now in {str(path)!r}")


def _device(device: torch.device) -> str:
    """Devices of one name run the same compiled code."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}-{torch.backends.cpu.get_cpu_capability()}"


def _slug(words: str) -> str:
    return re.sub(r"[^\w.+]+", "-", words)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _parts(info: Any) -> set[tuple[str, str]]:
    return {(kind, key) for kind, keys in info.artifacts.items() for key in keys} if info is not None else set()
