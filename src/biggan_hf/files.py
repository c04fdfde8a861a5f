"""Files and folders that are written whole or not at all: the only place where the package writes them.

What is being written has another name, which begins with `.unfinished-`. It gets its own when all of it is on the
disk. A write that fails removes it; a kill or a power cut leaves it, for `remove_unfinished`.
"""

import hashlib
import itertools
import json
import mmap
import os
import re
import shutil
import socket
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError


UNFINISHED, REPLACED, LOCK = ".unfinished-", ".replaced-", ".lock"
# What an upload must ignore, at the top of a folder and below.
LEFTOVERS = [f"{parent}{prefix}*" for parent in ("", "*/") for prefix in (UNFINISHED, REPLACED, LOCK)]


def weight_globs(variant: str | None = None) -> tuple[str, str, str]:
    """
    The names of weights: all in one file, or an index and its shards. `from_pretrained` prefers the one file, and
    `save_pretrained` removes neither of the two when it writes the other: a sharded save into the folder of an
    unsharded one would load the old weights.
    """
    part = f".{variant}" if variant else ""
    return f"model{part}.safetensors", f"model.safetensors.index{part}.json", f"model{part}-?????-of-?????.safetensors"


WEIGHT_GLOBS = weight_globs()
_WEIGHTS = re.compile(
    r"model(?:\.([\w-]+?))?(?:-.{5}-of-.{5})?\.safetensors|model\.safetensors\.index(?:\.([\w-]+))?\.json"
)


# Files


@contextmanager
def write_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yields the path of a new file in the folder of `path`. The caller writes to it, and it takes the place of `path`.
    Where the block fails, `path` stays as it was. The message of an `OSError` names `path`.
    """
    path = Path(path)
    unfinished = _unfinished(path)
    try:
        with _named_errors(path):
            yield unfinished
            _flush(unfinished)
            unfinished.replace(path)
            _flush(path.parent)
    finally:
        with suppress(OSError):  # it is there only where the write failed
            unfinished.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    with write_file(path) as unfinished:
        unfinished.write_bytes(data)


def try_to_write(folder: Path, num_bytes: int) -> None:
    """Raises `OSError` where a file of this size cannot be written to the folder, which is made. Leaves no file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(num_bytes))
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Adds a line to a file of JSON lines. A last line that a kill cut off stays a line of its own."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")
        file.write(json.dumps(values).encode() + b"\n")


def read_text(path: Path) -> str:
    """
    A file's text with its line ends as they are; empty if there is no such file. Bytes that are not UTF-8 become
    surrogates, which cannot be written.
    """
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""


# Folders


@contextmanager
def staged_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yields an empty folder. The caller saves into it, and when the block ends its files move to `folder`, where they
    replace those of the same names. Files of other names stay, but for the weights of an earlier model. Where the
    block fails, `folder` stays as it was. A folder that does not exist is made.
    """
    folder = Path(folder)
    with _named_errors(folder), _made(folder):
        # Inside `folder`, and so on the same file system: a move is a rename.
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as directory:
            staging = Path(directory)
            yield staging
            _flush_all(staging)
            written = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            for path in written:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (staging / path).replace(folder / path)
            remove_stale_weights(folder, {path.as_posix() for path in written})
        for parent in {path.parent for path in written}:
            _flush(folder / parent)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """
    Yields an empty folder. The caller saves into it, and when the block ends it becomes `folder`; what was there is
    removed. A link stays, and its folder is replaced. Where the block fails, `folder` stays as it was. A kill between
    the two renames leaves the old folder under the name `.replaced-…`, from which `restore_replaced` gives it back.
    """
    target = folder.resolve()
    unfinished, replaced = _unfinished(target), target.with_name(REPLACED + target.name)
    with _named_errors(folder), _made(target.parent):
        _restore(replaced)
        try:
            unfinished.mkdir()
            yield unfinished
            _flush_all(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        _flush(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(parent: Path) -> None:
    """
    Gives the folders in `parent`, and those that links in it name, their names back that a kill in `replaced_folder`
    took from them.
    """
    links = [path.resolve() for path in parent.glob("*") if path.is_symlink() and not path.exists()]
    for replaced in [*parent.glob(f"{REPLACED}*"), *(path.with_name(REPLACED + path.name) for path in links)]:
        _restore(replaced)


def _restore(replaced: Path) -> None:
    folder = replaced.with_name(replaced.name.removeprefix(REPLACED))
    if not folder.exists():
        with suppress(FileNotFoundError):  # there is none, or another process was faster
            replaced.rename(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder. If a kill leaves some of it, that no longer has the folder's name."""
    shutil.rmtree(folder.rename(_unfinished(folder)))


def remove_unfinished(parent: Path) -> None:
    """Removes the unfinished files and folders, in `parent` and in its folders, that killed programs have left."""
    for pattern in (f"{UNFINISHED}*", f"*/{UNFINISHED}*"):
        for path in list(parent.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free_name(path: Path) -> Path:
    """The path, or if it is taken the first of path-2, path-3, … that is free."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], numbered) if not free.exists())


# Damage: what is read is compared with the checksum that was written with it


def save_archive(content: Any, path: Path) -> None:
    """`torch.save`, whose error says what the system says, such as "No space left on device"."""
    import torch  # here, since writing text needs none

    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def check_archive(path: Path) -> bool:
    """
    Compares every record of a file that `torch.save` or `numpy.savez` wrote with its checksum, which their readers do
    not. Returns whether the file has checksums: torch's files from before version 1.6 have none.

    Raises:
        ValueError: A record is damaged, or the list of records is.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive and not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return False
            damaged = archive.testzip()
    # Damage can make any part of the reader fail.
    except Exception as error:
        raise ValueError(f"{str(path)!r} is truncated or damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{str(path)!r} is damaged: its record {damaged!r} is not what was written (CRC-32)")
    return True


def checksum_of_file(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CHECKSUM, STEP = "crc32", "global_step"  # among the metadata of a safetensors file


def add_checksum(path: Path, global_step: int | None = None) -> None:
    """Adds to a safetensors file at which step of the training it was saved, and a checksum of all."""
    with _mapped(path) as (header, tensors):
        metadata = header.setdefault("__metadata__", {})
        metadata |= {} if global_step is None else {STEP: str(global_step)}
        metadata[CHECKSUM] = _checksum(header, tensors)
        _write_weights(path, header, tensors)


def without_metadata(path: Path, names_path: Callable[[str], bool]) -> list[str]:
    """Removes from a safetensors file the words about it that name a path, and returns their names."""
    try:
        with _mapped(path) as (header, tensors):
            metadata = header.get("__metadata__", {})
            private = sorted(name for name, text in metadata.items() if names_path(text) or names_path(name))
            if private:
                header["__metadata__"] = {name: text for name, text in metadata.items() if name not in private}
                _write_weights(path, header, tensors)
            return private
    except (ValueError, AttributeError, TypeError, OverflowError, MemoryError):  # who reads it is told
        return []


def _write_weights(path: Path, header: Mapping[str, Any], tensors: memoryview) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with write_file(path) as unfinished, unfinished.open("wb") as copy:
        copy.write(len(text).to_bytes(8, "little") + text)
        copy.write(tensors)


def check_weights(path: Path) -> str | None:
    """
    Compares the tensors of a safetensors file with their checksum. Returns the checksum; `None` if the file has none,
    as those of other programs.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with _mapped(path) as (header, tensors):
            written = header.get("__metadata__", {}).get(CHECKSUM)
            found = None if written is None else _checksum(header, tensors)
    except (ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is damaged: its header can't be read ({error})") from error
    if found != written:
        raise ValueError(f"{str(path)!r} is damaged: its tensors are not what was written (CRC-32)")
    return written


def checksum_of_weights(folder: Path) -> str | None:
    """
    The checksum of the generator's weights in a folder, of all its shards; `None` if there are none. A file that names
    its own is not read.
    """
    sums = []
    for path in sorted(itertools.chain.from_iterable(folder.glob(pattern) for pattern in WEIGHT_GLOBS)):
        if path.suffix == ".safetensors":
            with _mapped(path) as (header, tensors):
                sums.append(header.get("__metadata__", {}).get(CHECKSUM) or _checksum(header, tensors))
    return "-".join(sums) or None


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The folders with the name of a training's checkpoint, by ascending step."""
    found = output_dir.glob("checkpoint-*")
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def step_of_weights(path: Path) -> int | None:
    """At which step of the training a whole safetensors file was saved; `None` if it does not say."""
    with _mapped(path) as (header, _):
        step = header.get("__metadata__", {}).get(STEP)
    return None if step is None else int(step)


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[dict[str, Any], memoryview]]:
    """
    The header of a safetensors file, and the bytes of its tensors. They are mapped, as safetensors itself maps them
    into the weights that it loads: the two share the memory, and the disk is read once.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size - 8:
            raise ValueError("it is cut off")
        header = json.loads(file.read(length))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            with memoryview(content)[8 + length :] as tensors:
                yield header, tensors


def _checksum(header: Mapping[str, Any], tensors: memoryview) -> str:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if STEP in header.get("__metadata__", {}):
        entries[STEP] = header["__metadata__"][STEP]
    return f"{zlib.crc32(tensors, zlib.crc32(json.dumps(entries, sort_keys=True).encode())):08x}"


# One program in a folder


@contextmanager
def locked_folder(folder: Path, force_unlock: bool = False) -> Iterator[None]:
    """
    Inside the block, the same call by another process is refused. A folder that does not exist is made, and removed
    again where the block fails and leaves nothing in it.

    The operating system drops the lock when this process ends, even by a kill. Where a disk that several machines
    share hands no locks on to the others, the note in the lock file counts: it names machine, process and time.
    `force_unlock` passes over the note of another machine; where the block fails, that note is back.

    Raises:
        FileExistsError: Another process holds the folder; or one on another machine did and left its note.
    """
    path, own = folder / LOCK, _own_note()
    with _made(folder):
        descriptor, passed_over = _lock(path, own, force_unlock)
        try:
            with _named_errors(path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(own).encode())
            yield
        except BaseException:
            if passed_over:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, passed_over, 0)
            raise
        else:
            passed_over = b""
        finally:
            if not passed_over and _is_open_as(descriptor, path):
                path.unlink()
            os.close(descriptor)


def _lock(path: Path, own: Mapping[str, Any], force_unlock: bool) -> tuple[int, bytes]:
    """The lock file, which this process holds now, and the note of another machine that was passed over."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _try_to_lock(descriptor)
            content = os.pread(descriptor, 4096, 0)
            note = _read_note(content)
            is_elsewhere = bool(note) and note["host"] != own["host"]
            lives = locked is False or (not is_elsewhere and _lives(note, own, locked))
            if lives or (is_elsewhere and not force_unlock):
                alive = "it is alive, so end it first: --force_unlock takes the folder of a dead run only"
                way = alive if lives else "if that run is dead, --force_unlock goes on without it"
                raise FileExistsError(
                    f"another run works in {str(path.parent)!r}: process {note.get('pid', '?')} on the machine "
                    f"{note.get('host', '?')!r}, since {_time_in_words(note.get('started', '?'))}; {way}"
                )
            if _is_open_as(descriptor, path):
                return descriptor, content if is_elsewhere else b""
            os.close(descriptor)  # the other process has ended since, and removed its file
        except BaseException:
            os.close(descriptor)
            raise


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Whether nobody has removed or replaced the file at `path` since it was opened."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _try_to_lock(descriptor: int) -> bool | None:
    """Whether this process holds the lock now; `None` where the file system has no locks."""
    # A lock of the process, which forked workers do not hold on to.
    try:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


def _own_note() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _birth(os.getpid()),
        "started": round(time.time()),
    }


def _read_note(content: bytes) -> dict[str, Any]:
    """A note, with "?" in place of what no run writes. Empty where a kill came before it was written."""
    try:
        note = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(note, dict):
        return {}
    kinds = {"host": str, "pid": int, "born": str, "started": int}
    return {name: note[name] if type(note.get(name)) is kind else "?" for name, kind in kinds.items()}


def _lives(note: Mapping[str, Any], own: Mapping[str, Any], locked: bool | None) -> bool:
    """Whether the process of a note of this machine lives, and can hold the folder without a lock that is seen."""
    is_alive = bool(note) and _birth(note["pid"]) == note["born"]
    return is_alive and (locked is None or note["pid"] == own["pid"])


def _time_in_words(seconds: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def _birth(pid: Any) -> str | None:
    """When a process of this machine began; `None` where there is none. Numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


# Weights of an earlier model


def weight_patterns(files: Iterable[str]) -> list[str]:
    """Globs of all weights that may lie beside the weights among `files`, of the same variants."""
    found = ((path.parent, _WEIGHTS.fullmatch(path.name)) for path in map(PurePosixPath, files))
    kinds = {(parent, match[1] or match[2] or "") for parent, match in found if match is not None}
    return [(parent / glob).as_posix() for parent, variant in sorted(kinds) for glob in weight_globs(variant)]


def remove_stale_weights(folder: Path, written: Iterable[str]) -> None:
    """
    Deletes the weights of an earlier save, sharded or not, from the folders into which new weights were written.
    `written` holds the paths of the new save, relative to `folder`.
    """
    written = set(written)
    for pattern in weight_patterns(written):
        for path in folder.glob(pattern):
            if path.relative_to(folder).as_posix() not in written:
                path.unlink()


# Helpers


def _unfinished(path: Path) -> Path:
    # A random name, since two processes may write the same; the same suffix, which tells formats.
    return path.with_name(f"{UNFINISHED}{os.urandom(4).hex()}-{path.name}")


def _final(path: Path | str) -> str:
    """A path, or a text with paths, where files that are being written have the names that they will get."""
    return re.sub(rf"{re.escape(UNFINISHED)}\w{{8}}[-/\\]", "", str(path))


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can flush a folder
            raise
    finally:
        os.close(descriptor)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush(path)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents; where the block fails, removes those that were not there."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another program has put something there
            for path in made:
                path.rmdir()
        raise


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Writers' errors become an `OSError` that names `path`; errors about other files pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and UNFINISHED not in str(error.filename)):
            raise
        raise OSError(f"cannot write {_final(path)!r}: {error.strerror}") from error
    except (RuntimeError, SafetensorError) as error:
        # `save_archive` avoids this: torch's writer of archives has no type of error of its own.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise OSError(f"cannot write {_final(path)!r}: {_final(' '.join(str(error).split()))}") from error
