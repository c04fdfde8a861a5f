"""What a user's program does from its start: it loads a pipeline, makes images and tells that they are there.

Then, for each line on stdin, it makes them again and tells its memory. `engines.py` runs it.
"""

import sys
from pathlib import Path

import numpy as np

from biggan_hf import BigGANPipeline


# Times that the images are made again before the memory is told.
BATCHES = 3


def most_memory() -> int:
    """The most bytes that this process has held in memory since its start or the last `forget` (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    folder, engine, precision, latents_file, images_file = sys.argv[1:]
    pipe = BigGANPipeline.from_pretrained(folder, engine=engine, precision=precision)  # type: ignore[arg-type]
    latents = np.load(latents_file)
    labels = [*range(len(latents))]

    def sample() -> np.ndarray:
        return pipe(labels, latents=latents, batch_size=len(labels), output_type="np", progress_bar=False).images

    images = sample()
    print("the images are there", flush=True)
    np.save(images_file, images)
    for _ in sys.stdin:
        since_start = most_memory()
        forget()
        for _ in range(BATCHES):
            sample()
        print(since_start, most_memory(), flush=True)


if __name__ == "__main__":
    main()
