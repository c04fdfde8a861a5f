"""Files and folders that are written whole or not at all."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import files_of_at_most

from biggan_hf.files import (
    add_checksum,
    append_line,
    check_archive,
    check_weights,
    free_name,
    locked_folder,
    remove_folder,
    remove_stale_weights,
    remove_unfinished,
    replaced_folder,
    restore_replaced,
    save_archive,
    staged_folder,
    step_of_weights,
    write_file,
    write_text,
)


FOLDERS = [staged_folder, replaced_folder]
Writer = Callable[[Path], AbstractContextManager[Path]]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def kill(*args: object) -> Path:
    raise KeyboardInterrupt


# Files


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    write_text(path, "one")
    with write_file(path) as unfinished:
        unfinished.write_text("two")
        assert unfinished.suffix == ".txt" and unfinished.parent == tmp_path and path.read_text() == "one"
    assert path.read_text() == "two" and names(tmp_path) == ["log.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "log.txt", "one")
    with pytest.raises(error), write_file(tmp_path / "log.txt") as unfinished:
        unfinished.write_text("half")
        raise error
    assert (tmp_path / "log.txt").read_text() == "one" and names(tmp_path) == ["log.txt"]


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    with write_file(tmp_path / "log.txt") as mine:
        mine.write_text("mine")
        write_text(tmp_path / "log.txt", "of another")
    assert (tmp_path / "log.txt").read_text() == "mine" and names(tmp_path) == ["log.txt"]


def save_text(text: str, path: Path) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("save", "content"),
    [(save_text, "two" * 1000), (torch.save, {"x": torch.zeros(10_000)}), (save_file, {"x": torch.zeros(10_000)})],
)
def test_a_file_on_a_full_disk_stays_as_it_was(
    tmp_path: Path, save: Callable[[Any, Path], None], content: Any
) -> None:
    write_text(tmp_path / "log.txt", "one")
    with files_of_at_most(1000), pytest.raises(OSError, match=f"^cannot write '{tmp_path}/log.txt': .+"):
        with write_file(tmp_path / "log.txt") as unfinished:
            save(content, unfinished)
    assert (tmp_path / "log.txt").read_text() == "one" and names(tmp_path) == ["log.txt"]


def test_a_file_in_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for parent in ("missing", "file"):
        with pytest.raises(OSError, match=f"cannot write '{tmp_path}/{parent}/x'"):
            write_text(tmp_path / parent / "x", "")


def test_an_error_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    for error, read in (
        (FileNotFoundError, lambda: open(tmp_path / "picture.png")),
        (RuntimeError, lambda: torch.zeros(2) @ torch.zeros(3)),
    ):
        with pytest.raises(error) as raised, write_file(tmp_path / "x"):
            read()
        assert "cannot write" not in str(raised.value)


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2, "name": "é"})
    path.write_bytes(path.read_bytes() + b'{"step": 3, "na')  # cut off
    append_line(path, {"step": 4})
    lines = path.read_text().splitlines()
    assert lines == ['{"step": 1}', '{"step": 2, "name": "\\u00e9"}', '{"step": 3, "na', '{"step": 4}']


# Folders


def test_a_staged_folder_keeps_other_files(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with staged_folder(tmp_path / "model") as folder:
            assert list(folder.iterdir()) == []
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(text)
        (tmp_path / "model" / "notes").touch()
    assert names(tmp_path / "model") == ["inner", "inner/file", "notes"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "two"


def test_a_replaced_folder_keeps_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with replaced_folder(tmp_path / "a" / "best") as folder:
            (folder / name).touch()
    assert names(tmp_path) == ["a", "a/best", "a/best/two"]


@pytest.mark.parametrize(
    ("write", "target"), [(staged_folder, "there"), (replaced_folder, "there"), (replaced_folder, "nowhere/yet")]
)
def test_a_link_to_a_folder_stays_one(tmp_path: Path, write: Writer, target: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(target)
    with write(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / target) == ["file"]


@pytest.mark.parametrize("write", FOLDERS)
@pytest.mark.parametrize("name", ["there", "there/a/b"])
def test_a_failed_save_changes_nothing(tmp_path: Path, write: Writer, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("one")
    for error in (OSError("disk full"), KeyboardInterrupt("stop")):
        with pytest.raises(type(error), match=str(error)), write(tmp_path / name) as folder:
            (folder / "file").write_text("two")
            raise error
        assert names(tmp_path) == ["there", "there/file"] and (tmp_path / "there" / "file").read_text() == "one"


@pytest.mark.parametrize("write", FOLDERS)
def test_a_full_disk_is_told_with_the_name_of_the_folder(tmp_path: Path, write: Writer) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match=f"cannot write '{tmp_path}/x': File too large"):
        with write(tmp_path / "x") as folder:
            (folder / "file").write_text("two" * 1000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [*FOLDERS, write_file])
def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer
) -> None:
    flushed = set()

    def fsync(descriptor: int) -> None:
        flushed.add((os.fstat(descriptor).st_ino, final.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    final = tmp_path / "new" if write is write_file else tmp_path / "new" / "file"
    with write(tmp_path / "new") as unfinished:
        (unfinished if write is write_file else unfinished / "file").write_text("text")
    parent = tmp_path / "new" if write is staged_folder else tmp_path
    assert {(final.stat().st_ino, False), (parent.stat().st_ino, True)} <= flushed


# After a kill


def test_a_kill_while_a_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(name: str) -> None:
        with replaced_folder(tmp_path / "best") as folder:
            (folder / name).touch()

    def rename(path: Path, target: Path) -> Path:
        return kill() if path.name.startswith(".unfinished-") else real_rename(path, target)

    save("one")
    real_rename = Path.rename
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        save("two")
    unfinished = next(tmp_path.glob(".unfinished-*-best")).name
    assert names(tmp_path) == [".replaced-best", ".replaced-best/one", unfinished, f"{unfinished}/two"]
    for _ in range(2):
        restore_replaced(tmp_path)
        assert (tmp_path / "best" / "one").exists() and not (tmp_path / ".replaced-best").exists()
    save("three")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["best", "best/three"]


def test_a_kill_while_the_folder_of_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere" / ".replaced-mine").mkdir(parents=True)
    (tmp_path / "runs" / "best").symlink_to(tmp_path / "elsewhere" / "mine")
    restore_replaced(tmp_path / "runs")
    assert names(tmp_path / "elsewhere") == ["mine"]


def test_a_kill_while_a_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", kill)
        remove_folder(tmp_path / "checkpoint-1")
    assert [path.match(".unfinished-*-checkpoint-1") for path in tmp_path.iterdir()] == [True]
    (tmp_path / "samples").mkdir()
    for name in (".unfinished-0123abcd-log.txt", "samples/.unfinished-0123abcd-step-3.png"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["samples"]


def test_free_name(tmp_path: Path) -> None:
    for expected in ("x", "x-2", "x-3"):
        assert free_name(tmp_path / "x").name == expected
        (tmp_path / expected).touch()


# Weights


def test_stale_weights_are_only_the_default_weights(tmp_path: Path) -> None:
    files = ["model.safetensors", "model.ema.safetensors", "model-notes.safetensors", "optimizer.bin"]
    for name in files:
        (tmp_path / name).touch()
    remove_stale_weights(tmp_path, {"README.md"})
    assert names(tmp_path) == sorted(files)
    remove_stale_weights(tmp_path, {"model.safetensors.index.json", "model-00001-of-00002.safetensors"})
    assert names(tmp_path) == sorted(files[1:])
    remove_stale_weights(tmp_path, {"model.safetensors.index.ema.json", "model.ema-00001-of-00002.safetensors"})
    assert names(tmp_path) == sorted(files[2:])


# Damage


def damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_damage_to_an_archive_is_found(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.pt"
    save_archive({"x": torch.randn(1000)}, path)
    assert check_archive(path) and torch.load(path)["x"].shape == (1000,)
    damage(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match=f"'{path}' is damaged: its record 'archive/data/0' is not what was written"):
        check_archive(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        check_archive(path)


def test_archives_without_checksums(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    torch.save({"x": torch.zeros(3)}, tmp_path / "unchecked.pt")
    torch.serialization.set_crc32_options(True)
    assert not check_archive(tmp_path / "old.pt") and not check_archive(tmp_path / "unchecked.pt")


def test_full_disk_within_an_archive(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match=f"^cannot write '{tmp_path}/x': File too large$"):
        with write_file(tmp_path / "x") as unfinished:
            save_archive({"x": torch.zeros(10_000)}, unfinished)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_damage_to_weights_is_found(tmp_path: Path, share: float) -> None:
    path, tensors = tmp_path / "model.safetensors", {"b": torch.randn(3, 40), "a": torch.randn(7).half()}
    save_file(tensors, path, {"format": "pt"})
    assert check_weights(path) is None
    add_checksum(path)
    assert len(check_weights(path) or "") == 8
    assert all(torch.equal(tensor, load_file(path)[name]) for name, tensor in tensors.items())
    damage(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match=f"'{path}' is damaged: its (tensors are not what was written|header)"):
        check_weights(path)


def test_the_step_of_weights_is_part_of_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(3)}, path, {"format": "pt"})
    assert step_of_weights(path) is None
    add_checksum(path, 1234)
    assert check_weights(path) and step_of_weights(path) == 1234
    path.write_bytes(path.read_bytes().replace(b"1234", b"1235", 1))
    with pytest.raises(ValueError, match="is damaged: its tensors are not what was written"):
        check_weights(path)


# One program in a folder

HOLDER = """
import sys, time
from pathlib import Path
from biggan_hf.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        words = f"another run works in .*process {holder.pid} on .*{socket.gethostname()}.* it is alive, so end"
        note = (folder / ".lock").read_text()
        for force_unlock in (False, True):
            with pytest.raises(FileExistsError, match=words), locked_folder(folder, force_unlock):
                pass
        assert (folder / ".lock").read_text() == note
        with pytest.raises(FileExistsError, match="another run"), locked_folder(tmp_path), locked_folder(tmp_path):
            pass
        holder.kill()
    with locked_folder(folder):
        pass
    assert names(folder) == []
    with pytest.raises(KeyError), locked_folder(tmp_path / "new" / "run"):
        assert names(tmp_path / "new") == ["run", "run/.lock"]
        raise KeyError
    assert names(tmp_path) == ["a", "a/run"]


def test_a_full_disk_is_told_with_the_name_that_the_file_would_get(tmp_path: Path) -> None:
    for writer in FOLDERS:
        with pytest.raises(OSError, match=f"cannot write '{tmp_path}/checkpoint-2/x.pt': File too large"):
            with (
                files_of_at_most(1000),
                writer(tmp_path / "checkpoint-2") as folder,
                write_file(folder / "x.pt") as file,
            ):
                file.write_bytes(bytes(2000))
    with files_of_at_most(0), pytest.raises(OSError, match=f"cannot write '{tmp_path}/run/.lock': File too large"):
        with locked_folder(tmp_path / "run"):
            pass
    assert names(tmp_path) == []


def test_what_a_kill_leaves_does_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        note = (tmp_path / ".lock").read_text()
        holder.kill()
    for left in (note, "", "[1]", note[:20], note.replace(str(holder.pid), str(os.getppid()))):
        (tmp_path / ".lock").write_text(left)
        for locks in (True, None):  # `None`: the disk has no locks
            with monkeypatch.context() as patch:
                if locks is None:
                    patch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
                with locked_folder(tmp_path):
                    pass
    (tmp_path / ".lock").write_text(json.dumps({**json.loads(note), "host": "elsewhere"}))
    with pytest.raises(FileExistsError, match="'elsewhere'.*--force_unlock goes on"), locked_folder(tmp_path):
        pass


def test_a_note_of_another_machine_is_passed_over_unless_the_run_is_refused(tmp_path: Path) -> None:
    path, note = tmp_path / ".lock", '{"host": "elsewhere", "pid": 1, "born": "1", "started": 1}'
    path.write_text(note)
    with pytest.raises(KeyError), locked_folder(tmp_path, force_unlock=True):
        assert socket.gethostname() in path.read_text()
        raise KeyError
    assert path.read_text() == note
    with locked_folder(tmp_path, force_unlock=True):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "odd", [{"started": "x"}, {"started": 1e300}, {"started": 10**300}, {"pid": [1]}, {"host": 5}, {"born": {}}]
)
def test_an_odd_note_names_the_folder_and_the_way(tmp_path: Path, odd: Any) -> None:
    note = {"host": "elsewhere", "pid": 1, "born": "1", "started": 1, **odd}
    (tmp_path / ".lock").write_text(json.dumps(note))
    with pytest.raises(FileExistsError, match=f"{tmp_path.name}.*--force_unlock goes on") as error:
        with locked_folder(tmp_path):
            pass
    assert ("?" in str(error.value)) == ("born" not in odd)
    (tmp_path / ".lock").write_text("[" * 4096)
    with locked_folder(tmp_path):
        pass


def test_a_disk_without_locks_goes_by_the_living_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(FileExistsError, match="another run"), locked_folder(tmp_path):
            pass
        holder.kill()
    with locked_folder(tmp_path):
        pass
