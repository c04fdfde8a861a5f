"""Pictures of any source, decoded once and for all, into a prepared folder (see `prepared`)."""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..bars import open_bar
from ..cards import public_name
from ..files import (
    LOCK,
    UNFINISHED,
    locked_folder,
    remove_unfinished,
    sha256_of_file,
    write_bytes,
    write_file,
    write_text,
)
from ..pictures import square_of
from ..processes import end_with_parent
from .describing import found_rows, lines_of, printable
from .labelled_images import LabelledImages
from .loading import load_labelled_images
from .pixels import Shards, npy_header
from .prepared import (
    MANIFEST,
    PLAN,
    SPLIT_NAME,
    Manifest,
    Shard,
    Split,
    find_prepared,
    in_words,
    labels_file,
    shard_of,
    spread_digest,
)
from .tars import stamp


READ_AT_ONCE = 16  # encoded pictures in the memory of a process
SAME = ("num_pictures", "fingerprint", "class_names", "labels_sha256")  # of a split that is gone on with
OURS = re.compile(rf"{SPLIT_NAME.pattern}-(\d+-\d{{3}}\.npy|labels\.npy|\d{{3}}\.json)")

Say = Callable[[str], None]


def prepare(
    source: str,
    output: str | os.PathLike[str],
    image_sizes: Sequence[int],
    *,
    num_channels: int = 3,
    splits: Sequence[str] = ("train",),
    dataset_config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    on_unreadable_image: str = "skip",
    num_workers: int = 0,
    overwrite: bool = False,
    force_unlock: bool = False,
    say: Say = print,
) -> None:
    """
    Writes the pictures of a source into a folder that [`load_labelled_images`] takes for the source, at these sizes.

    What is there of the same pictures stays: a call after a kill goes on, and a call on a finished folder compares all
    files with their hashes and writes those anew that are missing or have changed. The bytes are the same for every
    number of processes.

    Args:
        source, dataset_config_name, image_column, label_column, on_unreadable_image, num_channels: As for
            `load_labelled_images`. A picture that is skipped keeps its place, and is named.
        image_sizes: px.
        splits: Whole splits, such as "train" and "validation".
        num_workers: Processes that decode and write; 0: this one does.
        overwrite: Replaces prepared pictures of another source, or other sizes of them.
        force_unlock: As for `locked_folder`.

    Raises:
        ValueError, FileNotFoundError: As for `load_labelled_images`; or the folder holds something else.
        FileExistsError: Another process prepares into the folder.
        OSError: The disk has too little space, which is known before anything is written, or a file can't be written.
    """
    folder, sizes = Path(output), sorted(set(image_sizes))
    if not sizes or sizes[0] < 1 or num_workers < 0:
        raise ValueError(f"expected image_sizes >= 1 and num_workers >= 0, got {image_sizes} and {num_workers}")
    if slices := [split for split in splits if not SPLIT_NAME.fullmatch(split)]:
        raise ValueError(f"split {slices[0]!r} is a part: prepare whole splits, of which a training can take parts")
    _check_folder(folder)
    if find_prepared(source) is not None:
        raise ValueError(f"{source!r} is prepared already: its pictures are cropped; name the source of them")
    shown: dict[str, Any] = {"num_channels": num_channels, "max_cache_bytes": 0}
    named: dict[str, Any] = {
        "dataset_config_name": dataset_config_name,
        "image_column": image_column,
        "label_column": label_column,
    }
    opened = {
        split: load_labelled_images(
            source,
            image_size=sizes[-1],
            split=split,
            on_unreadable_image=on_unreadable_image,
            **shown,
            **named,
        )
        for split in dict.fromkeys(splits)
    }
    plan = Manifest(public_name(source), sizes, num_channels, named, {name: _plan(opened[name]) for name in opened})
    with locked_folder(folder, force_unlock):
        try:
            _write(folder, plan, opened, num_workers, overwrite, say)
        finally:
            remove_unfinished(folder)
    for split in opened:
        rows = found_rows(load_labelled_images(str(folder), image_size=sizes[0], split=split, **shown), source)
        say("\n".join(printable(line) for line in lines_of([row for row in rows if row.text], [], most=4)))


def _plan(images: LabelledImages) -> Split:
    labels, contents = images.labels, images.contents
    return Split(
        num_pictures=len(images),
        fingerprint=images.fingerprint,
        class_names=images.class_names,
        class_values=[value if isinstance(value, int | str) else str(value) for value in images.class_values],
        label_source=contents.label_source,
        left_out=contents.left_out,
        remarks=contents.source_remarks,
        probed=[*images.probed],
        labels_sha256=None if labels is None else hashlib.sha256(_npy_of(labels.numpy())).hexdigest(),
    )


def _npy_of(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, labels)
    return file.getvalue()


# The folder


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the output {str(folder)!r} is a file, expected a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not name.startswith((LOCK, UNFINISHED))}
    if names & {MANIFEST, PLAN} or not names:
        return
    if all(map(OURS.fullmatch, names)):
        raise ValueError(
            f"{str(folder)!r} has lost its {MANIFEST}, which says what the pictures are: put it back, or remove the "
            f"folder, or name another one"
        )
    raise ValueError(f"{str(folder)!r} holds something that is no prepared pictures: name another folder")


def _read_before(folder: Path, overwrite: bool) -> Manifest | None:
    """What the folder holds already, or will hold."""
    for path in (folder / MANIFEST, folder / PLAN):
        try:
            if path.is_file():
                return Manifest.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            if not overwrite:
                raise ValueError(f"{str(path)!r}: {error}; --overwrite prepares all anew") from error
    return None


def _difference(before: Manifest, plan: Manifest) -> str | None:
    """What `before` holds that differs from the plan, in words."""
    for name in (name for name in plan.splits if name in before.splits):
        if any(getattr(before.splits[name], what) != getattr(plan.splits[name], what) for what in SAME):
            return f"other pictures, labels or class names of split {name!r}, of {before.source}"
    for what in ("splits", "image_sizes", "num_channels", "crop", "resampling"):
        there, wanted = getattr(before, what), getattr(plan, what)
        if what == "splits":
            there, wanted = sorted(there), sorted(wanted)
        if there != wanted:
            return f"{what} {there!r} and not {wanted!r}"
    return None


def _remove_prepared(folder: Path) -> None:
    for path in [folder / MANIFEST, folder / PLAN, *folder.iterdir()]:  # the first two first: what is left is no set
        if path.is_file() and (path.name in (MANIFEST, PLAN) or OURS.fullmatch(path.name)):
            path.unlink()


# Files of pictures


class Job(NamedTuple):
    """A file for each size."""

    split: str
    number: int
    first: int  # row
    last: int

    def note(self, folder: Path) -> Path:
        """Where the hashes of the finished files wait for the manifest."""
        return folder / f"{self.split}-{self.number:03}.json"

    def paths(self, folder: Path, manifest: Manifest) -> dict[int, Path]:
        """By size."""
        return {size: manifest.files(folder, self.split, size)[self.number][0] for size in manifest.image_sizes}


def _jobs(manifest: Manifest) -> list[Job]:
    jobs = []
    for name, split in manifest.splits.items():
        ends = np.cumsum([0, *split.shard_lengths]).tolist()
        jobs += [Job(name, number, *ends[number : number + 2]) for number in range(len(ends) - 1)]
    return jobs


def _write(
    folder: Path, plan: Manifest, opened: Mapping[str, LabelledImages], workers: int, overwrite: bool, say: Say
) -> None:
    before = _read_before(folder, overwrite)
    if before is not None and (other := _difference(before, plan)) and not overwrite:
        raise ValueError(f"{str(folder)!r} holds {other}: name another folder, or replace them with --overwrite")
    is_kept = before is not None and other is None
    remove_unfinished(folder)
    jobs = _jobs(plan)
    known = _known_shards(before, jobs) if before is not None and is_kept else {}
    done = _right_shards(folder, before, jobs, opened, workers) if before is not None and is_kept else {}
    missing = [job for job in jobs if job not in done]
    if before is not None and is_kept and missing and before.pillow != plan.pillow:
        raise ValueError(
            f"{str(folder)!r} was prepared with pillow {before.pillow}, and {plan.pillow} is installed, which may "
            f"compute other pixels: install the former, or prepare all anew with --overwrite"
        )
    say(f"{in_words(plan)}: {_size(plan.num_bytes())} in {len(jobs) * len(plan.image_sizes)} files")
    _check_space(folder, plan, missing, [] if is_kept else [*folder.iterdir()])
    if not is_kept:
        _remove_prepared(folder)
    if not (folder / MANIFEST).is_file():
        write_text(folder / PLAN, plan.to_json())
    for name, images in opened.items():
        if images.labels is not None:
            write_bytes(labels_file(folder, name), _npy_of(images.labels.numpy()))
    if done:
        say(f"{len(done)} of {len(jobs)} parts are there, and are as they were written")
    total = sum(job.last - job.first for job in missing)
    with open_bar(total=total, unit="img", desc="preparing", dynamic_ncols=True, disable=not total) as bar:
        for job, shard in _in_processes(partial(_write_shard, folder, plan, opened, known), missing, workers):
            done[job] = shard
            bar.update(shard.pictures)
    _finish(folder, plan, done)


def _finish(folder: Path, plan: Manifest, done: Mapping[Job, Shard]) -> None:
    """Writes the manifest, and removes what was for the way there."""
    splits = {}
    for name, split in plan.splits.items():
        shards = [done[job] for job in sorted(done) if job.split == name]
        spread = {
            str(size): spread_digest(Shards(plan.files(folder, name, size), plan.shape(size)))
            for size in plan.image_sizes
        }
        splits[name] = replace(split, shards=shards, spread_sha256=spread)
    if not (folder / MANIFEST).is_file():
        write_text(folder / MANIFEST, replace(plan, splits=splits).to_json())
    for path in [folder / PLAN, *(job.note(folder) for job in done)]:
        path.unlink(missing_ok=True)


def _known_shards(before: Manifest, jobs: list[Job]) -> dict[Job, Shard]:
    """Those of a finished folder; none of an unfinished one."""
    return {job: before.splits[job.split].shards[job.number] for job in jobs if before.splits[job.split].shards}


def _right_shards(
    folder: Path, before: Manifest, jobs: list[Job], opened: Mapping[str, LabelledImages], workers: int
) -> dict[Job, Shard]:
    """The parts whose files have the right hashes and, until all are there, were made of what the source holds now."""
    known = _known_shards(before, jobs)
    for job in jobs if not known else ():
        with suppress(OSError, ValueError, TypeError, KeyError):  # there is none, or a power cut has damaged it
            note = json.loads(job.note(folder).read_text(encoding="utf-8"))
            if note.pop("source") == _source_digest(opened[job.split], job):
                known[job] = shard_of(note)
    right: dict[Job, Shard] = {}
    with open_bar(total=len(known), unit="part", desc="checking", delay=2, dynamic_ncols=True) as bar:
        for job, is_right in _in_processes(partial(_is_right, folder, before, known), list(known), workers):
            right |= {job: known[job]} if is_right else {}
            bar.update()
    return right


def _is_right(folder: Path, manifest: Manifest, known: Mapping[Job, Shard], job: Job) -> bool:
    paths = job.paths(folder, manifest)
    return all(
        path.is_file() and sha256_of_file(path) == known[job].sha256.get(str(size)) for size, path in paths.items()
    )


def _write_shard(
    folder: Path, plan: Manifest, opened: Mapping[str, LabelledImages], known: Mapping[Job, Shard], job: Job
) -> Shard:
    """Where a finished folder is mended, the pictures must be those that were there. If not, its files stay."""
    images, digests = opened[job.split], {size: hashlib.sha256() for size in plan.image_sizes}
    source = _source_digest(images, job)  # before they are decoded: what changes meanwhile differs from it
    with ExitStack() as stack:
        files: dict[int, BinaryIO] = {}
        for size, path in job.paths(folder, plan).items():
            files[size] = stack.enter_context(stack.enter_context(write_file(path)).open("wb"))
            header = npy_header(job.last - job.first, plan.shape(size))
            files[size].write(header)
            digests[size].update(header)
        for picture in _pictures(images, job):
            for size, file in files.items():
                pixels = np.zeros(plan.shape(size), np.uint8) if picture is None else square_of(picture, size)
                data = np.ascontiguousarray(pixels).data
                file.write(data)
                digests[size].update(data)
        rows = sorted(row for row in images.unreadable if job.first <= row < job.last)
        shard = Shard(
            pictures=job.last - job.first,
            sha256={str(size): digest.hexdigest() for size, digest in digests.items()},
            unreadable=[(row, images.unreadable[row].public_name, images.unreadable[row].reason) for row in rows],
        )
        if known.get(job, shard) != shard:
            raise ValueError(
                f"the source has changed: some pictures of split {job.split!r} are no longer those that were "
                f"prepared; prepare all anew with --overwrite"
            )
    write_text(job.note(folder), json.dumps({"source": source, **asdict(shard)}))
    return shard


def _source_digest(images: LabelledImages, job: Job) -> str:
    """Of the bytes of a part's pictures, or of the states of their files."""
    digest = hashlib.sha256()
    for row in range(job.first, job.last):
        cell = images.pictures[row]["image"]
        if cell and cell["bytes"] is not None:
            digest.update(hashlib.sha256(cell["bytes"]).digest())
        elif cell:
            with suppress(OSError):  # a picture that is missing
                digest.update(repr(stamp(cell["path"])).encode())
        digest.update(b";")
    return digest.hexdigest()


def _pictures(images: LabelledImages, job: Job) -> Iterator[Image.Image | None]:
    """The picture of each row; `None` where it can't be read."""
    for first in range(job.first, job.last, READ_AT_ONCE):
        rows = [*range(first, min(first + READ_AT_ONCE, job.last))]
        for row, cell in zip(rows, images.pictures[rows]["image"], strict=True):
            yield images.open_row(row, cell)


# Processes


class _Calls(torch.utils.data.Dataset[Any]):
    """A function of each of the jobs. Mistakes are returned, since a worker would dress them up."""

    def __init__(self, function: Callable[[Job], Any], jobs: Sequence[Job]) -> None:
        self.function, self.jobs = function, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(self.jobs[index])
        except (OSError, ValueError) as error:
            return error


def _in_processes(function: Callable[[Job], Any], jobs: list[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    """The jobs with their results, in order. The processes end with this one, whatever it ends by."""
    workers = min(workers, len(jobs)) if min(workers, len(jobs)) > 1 else 0
    calls = _Calls(function, jobs)
    loader = torch.utils.data.DataLoader(
        calls, None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=end_with_parent
    )
    results = iter(loader)
    try:
        for job in jobs:
            yield job, _or_raised(next(results))
    except RuntimeError as error:
        if not workers:
            raise
        raise OSError(f"a process that decodes has ended; the same command goes on ({error})") from error
    finally:
        del results  # now, and so the workers


def _or_raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def _as_it_is(result: Any) -> Any:
    return result


# Space


def _check_space(folder: Path, plan: Manifest, missing: Sequence[Job], replaced: Sequence[Path]) -> None:
    """Before anything is written. `replaced` are files that make room."""
    needed = sum(plan.file_bytes(size, job.last - job.first) for job in missing for size in plan.image_sizes)
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in replaced)
    if needed > free:
        raise OSError(f"{_size(needed)} are to be written to {str(folder)!r}, and {_size(free)} are free there")


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
