# /// script
# requires-python = ">=3.11"
# dependencies = ["biggan_hf[train] @ file:///wheels/biggan_hf-0.1.0-py3-none-any.whl"]
#
# [tool.hf-jobs]
# flavor = "h200"
# timeout = "2h"
# secrets = ["HF_TOKEN"]
# volumes = ["./dist:/wheels"]
# ///
"""
Trains where the disk is lost at the end, as in a Job of Hugging Face: `job.py hf://buckets/user/runs/NAME --preset …`.
The options are those of train.py. The run's folder comes from the bucket before the first step, and goes there every
ten minutes and at the end: the same command goes on with the run. docs/jobs.md shows it.
"""

__program__ = "biggan_hf"  # biggan_hf then sets how torch's threads wait, which a library must not do

import re
import sys
import threading
from pathlib import Path

from huggingface_hub import sync_bucket

from biggan_hf.files import LEFTOVERS
from biggan_hf.training import main


FOLDER, SECONDS = "run", 600.0


def train(bucket: str = "", *options: str) -> None:
    # A folder of its own, since what is not in the run's folder is removed from there.
    if not re.fullmatch(r"hf://buckets/[^/]+/[^/]+/.+", bucket):
        raise SystemExit(f"error: the first argument must be hf://buckets/USER/BUCKET/FOLDER, got {bucket!r}")
    Path(FOLDER).mkdir(exist_ok=True)
    sync_bucket(bucket, FOLDER, quiet=True)
    is_over = threading.Event()
    sender = threading.Thread(target=send_every_so_often, args=(bucket, is_over))
    sender.start()
    try:
        main([*options, "--output_dir", FOLDER, "--resume_from_checkpoint", "latest"])
    finally:  # also after SIGTERM, which leaves a checkpoint
        is_over.set()
        sender.join()
        send(bucket)


def send_every_so_often(bucket: str, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS):
        send(bucket)


def send(bucket: str) -> None:
    """What fails is told, and tried again the next time: a checkpoint may be removed while it is being sent."""
    try:
        sync_bucket(FOLDER, bucket, delete=True, exclude=LEFTOVERS, quiet=True)
    except Exception as error:
        print(f"not sent to {bucket}: {error}", file=sys.stderr)


if __name__ == "__main__":
    train(*sys.argv[1:])
