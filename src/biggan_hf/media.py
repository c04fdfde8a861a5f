"""Pictures, films and arrays to files."""

import itertools
import zipfile
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import write_file


def save_png(image: Image.Image, path: Path) -> None:
    with write_file(path) as unfinished:
        image.save(unfinished, format="PNG", optimize=True)


def check_frames_per_second(frames_per_second: float) -> None:
    """Raises `ValueError` outside 1 to 100, since a GIF counts hundredths of a second."""
    if not 1 <= frames_per_second <= 100:
        raise ValueError(f"a film has from 1 to 100 frames a second, got {frames_per_second}")


def save_gif(frames: Sequence[Image.Image], path: Path, frames_per_second: float) -> None:
    """A GIF that repeats for ever. Each frame ends at the hundredth of a second that is closest to its time."""
    check_frames_per_second(frames_per_second)
    ends = [round(100 * index / frames_per_second) for index in range(len(frames) + 1)]
    milliseconds = [10 * (end - start) for start, end in pairwise(ends)]
    with write_file(path) as unfinished:
        first, *others = frames
        first.save(unfinished, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)


def save_mp4(frames: Sequence[Image.Image], path: Path, frames_per_second: float) -> None:
    """H.264, which every player knows; needs PyAV."""
    check_frames_per_second(frames_per_second)
    av = import_av()
    # 4:2:0 stores one colour for two by two pixels, so both sides must be even.
    width, height = (side + side % 2 for side in frames[0].size)
    with write_file(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=round(frames_per_second), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            canvas = Image.new("RGB", (width, height), "white")
            canvas.paste(frame)
            film.mux(stream.encode(av.VideoFrame.from_image(canvas)))
        film.mux(stream.encode())


def import_av() -> Any:
    """PyAV; raises an `ImportError` that says what to install."""
    try:
        import av
    except ImportError as error:
        raise ImportError('an .mp4 needs PyAV: pip install "biggan_hf[video]"; a .gif needs nothing more') from error
    return av


FILMS: dict[str, Callable[[Sequence[Image.Image], Path, float], None]] = {".gif": save_gif, ".mp4": save_mp4}


def save_npz(batches: Iterable[tuple[np.ndarray, np.ndarray | None]], number: int, path: Path) -> None:
    """
    Writes images and labels for metric tools, batch by batch: memory holds one batch.

    Args:
        batches: Pairs of images, uint8 (N, H, W, C), and labels, int64 (N,) or `None`.
        number: Images in all.
        path: An uncompressed `.npz`: `x`, uint8 (number, H, W, C), and `y`, int64 (number,), where there are labels.
    """
    batches = iter(batches)
    first = next(batches)
    header = {"descr": "|u1", "fortran_order": False, "shape": (number, *first[0].shape[1:])}
    labels = []
    with write_file(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images, batch_labels in itertools.chain([first], batches):
                file.write(np.ascontiguousarray(images).data)
                labels += [] if batch_labels is None else [batch_labels]
        if labels:
            with archive.open("y.npy", "w", force_zip64=True) as file:
                np.save(file, np.concatenate(labels))
