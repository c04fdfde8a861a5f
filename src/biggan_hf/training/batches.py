"""What the players see: latents, labels and pictures, as a function of seed, step, micro-batch and process.

Nothing here draws from a global random state. So a run that is stopped and resumed sees what it would have seen.
"""

import atexit
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import ImageBatch, LabelledImages, ShuffledBatches, Unreadable
from ..latents import sample_latents
from ..processes import end_with_parent
from .steps import Latents, Pictures


logger = logging.getLogger(__name__)


def counter_seed(*counters: int) -> int:
    """A hash of the counters. Neighbouring counters give unrelated seeds."""
    # The hash ignores zeros at the end, so the number of counters goes in front.
    seed = np.random.SeedSequence([len(counters), *counters]).generate_state(1, np.uint64)[0]
    return int(seed) >> 1


def counter_generator(device: torch.device, *counters: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(counter_seed(*counters))


@dataclass
class BatchSource:
    """Micro-batches of one process."""

    images: LabelledImages
    z_dim: int
    num_labels: int  # 0 for none
    batch_size: int  # samples in a micro-batch of one process
    seed: int
    rank: int
    world_size: int
    device: torch.device
    horizontal_flip: bool  # mirrors half of the pictures, chosen at random
    samples_seen: int = 0  # pictures that all processes have seen; it grows with every micro-batch
    num_workers: int = 0  # processes that decode pictures; with 0 this one does, and keeps what it has decoded
    random_crop: bool = False  # squares lie anywhere along the longer side
    class_sampling: str = "as_it_is"  # or "balanced": all classes come equally often
    label_sampling: str = "uniform"  # of the latents' labels, over classes with pictures; or "counts" of pictures

    def __post_init__(self) -> None:
        self.unreadable: dict[int, Unreadable] = {}
        self.label_counts = _counts_as_shown(self.images)
        self.start(self.seed, self.samples_seen)

    def start(self, seed: int, samples_seen: int) -> None:
        """Goes to a place in the seed's order of the pictures."""
        self.seed, self.samples_seen = seed, samples_seen
        place: dict[str, Any] = {"seed": seed, "start": samples_seen, "rank": self.rank, "world_size": self.world_size}
        if self.class_sampling == "balanced" and (labels := self.images.labels) is not None:
            place["balanced"] = torch.where(_are_shown(self.images, labels), labels, -1)
        else:
            place["runs"] = self.images.runs
        rows = ShuffledBatches(len(self.images), self.batch_size, **place)
        loader = DataLoader(
            self.images,
            batch_sampler=_Placed(rows) if self.random_crop else rows,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_worker,
        )
        others = set(multiprocessing.active_children())
        self._real: Iterator[ImageBatch] = iter(loader)
        WORKERS.extend((os.getpid(), worker) for worker in set(multiprocessing.active_children()) - others)

    def latents(self, step: int, draw: int) -> Latents:
        """
        Latents from N(0, 1), and labels: uniform over the classes with pictures, or as often as there are pictures.
        `draw` counts the draws within a step.
        """
        generator = counter_generator(self.device, self.seed, step, draw, self.rank)
        z = sample_latents(self.batch_size, self.z_dim, generator=generator, device=self.device)
        labels = None
        if self.num_labels and self.label_sampling == "counts":
            counts = self.label_counts.to(self.device)
            labels = counts.multinomial(self.batch_size, replacement=True, generator=generator)
        elif self.num_labels:
            filled = self.images.contents.filled_classes
            labels = torch.randint(len(filled), (self.batch_size,), generator=generator, device=self.device)
            if len(filled) < self.num_labels:
                labels = torch.tensor(filled, device=self.device)[labels]
        return Latents(z, labels)

    def pictures(self) -> Pictures:
        """The next pictures and their labels."""
        batch = next(self._real)
        labels = batch["class_labels"]
        pixels = to_pixel_values(batch["pixel_values"], self.device)
        self._note_unreadable(batch.get("unreadable", {}))
        if self.horizontal_flip:
            generator = counter_generator(self.device, self.seed, self.samples_seen, self.rank)
            mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=self.device) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        self.samples_seen += self.batch_size * self.world_size
        return Pictures(pixels, None if labels is None else labels.to(self.device, non_blocking=True))

    def _note_unreadable(self, rows: dict[int, Unreadable]) -> None:
        new = {row: picture for row, picture in rows.items() if row not in self.unreadable}
        self.unreadable.update(new)
        for picture in new.values() if self.num_workers else ():  # without workers the data set has warned already
            logger.warning("%s; another one takes its place", picture)


def _counts_as_shown(images: LabelledImages) -> Tensor:
    """
    How often each class comes in an epoch, float64 (classes,). An unreadable picture counts, since another one of its
    class takes its place: so it does not matter how many of them were found so far.
    """
    counts = torch.zeros(len(images.class_names), dtype=torch.float64)
    if images.labels is not None:
        counts += torch.bincount(images.labels[_are_shown(images, images.labels)], minlength=len(counts))
    return counts


def _are_shown(images: LabelledImages, labels: Tensor) -> Tensor:
    """Which labels are of a class that has a readable picture."""
    return torch.isin(labels, torch.tensor(images.contents.filled_classes))


class _Placed(torch.utils.data.Sampler[list[tuple[int, float]]]):
    """Rows with the places of their squares, which follow from the seed and the position in the stream of samples."""

    def __init__(self, batches: ShuffledBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        seed, size, ranks = self.batches.seed, self.batches.batch_size, self.batches.world_size
        positions = itertools.count(self.batches.start + self.batches.rank * size, size * ranks)
        for first, rows in zip(positions, self.batches, strict=False):
            draws = (counter_seed(seed, first + index) >> 10 for index in range(size))  # of 53 bits, as floats have
            yield [(row, draw / 2**53) for row, draw in zip(rows, draws, strict=True)]


def to_pixel_values(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 to [-1, 1]. The bytes travel to the device: they are a quarter of what floats would be."""
    return pixels.to(device, non_blocking=True).float() / 127.5 - 1


# The processes that read pictures

WORKERS: list[tuple[int, multiprocessing.process.BaseProcess]] = []  # with the process that started it


def _begin_worker(worker: int) -> None:
    """Workers ignore signals: the training process needs them until its step ends. They end with it."""
    end_with_parent(worker)
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # there may be no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def kill_workers() -> None:
    """
    Python ends them by a SIGTERM, which they ignore, and would wait for them. Their death is no error now: torch shall
    not see it.
    """
    mine = [worker for process, worker in WORKERS if process == os.getpid()]  # not those of a process that forked
    WORKERS.clear()
    hears = mine and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hears else None
    for worker in mine:
        worker.kill()
        worker.join()
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


atexit.register(kill_workers)  # it is called before Python waits for them


def _as_it_is(batch: Any) -> Any:
    return batch
