"""Models on their way to the Hub while a run goes on (--push_to_hub_every)."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import UNFINISHED
from ..hub import upload_folder
from .checkpoints import warn


BRANCH = "training"  # on the Hub
THREAD = "upload to the Hub"
# Seconds for which the end of a run waits for the last upload: of one that is done, and of one that was stopped.
PATIENCE, LITTLE_PATIENCE = 300.0, 5.0


class Uploads:
    """
    Uploads copies of the networks to a branch, in a thread, one at a time. While one is on its way, others are left
    out. What fails is told once, until an upload succeeds again; it stops no run.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._is_failing = False

    def start(self, save: Callable[[Path], None], output_dir: Path, step: int, repo_id: str, **options: Any) -> None:
        """
        Uploads what `save` writes into an empty folder, before this returns. It lies in `output_dir`, where the next
        start removes what a kill leaves.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        copy = tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=output_dir)
        try:
            save(Path(copy.name))
        except OSError as error:  # the disk is full
            copy.cleanup()
            return self._failed(step, error)
        given = (copy, step, repo_id, options)
        self._thread = threading.Thread(target=self._upload, args=given, name=THREAD, daemon=True)
        self._thread.start()

    def _upload(self, copy: Any, step: int, repo_id: str, options: dict[str, Any]) -> None:
        try:
            with copy as folder:
                commit = upload_folder(folder, repo_id, revision=BRANCH, commit_message=f"Step {step}", **options)
        except Exception as error:  # the Hub's client raises a dozen types
            self._failed(step, error)
        else:
            self._is_failing = False
            tqdm.write(f"step {step} on the Hub: {commit.commit_url}")

    def _failed(self, step: int, error: Exception) -> None:
        if not self._is_failing:
            warn(f"step {step} is not on the Hub, and the run goes on: {type(error).__name__}: {error}")
        self._is_failing = True

    def finish(self, seconds: float) -> None:
        """Waits so long for the last upload."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                warn(f"the last upload to the branch {BRANCH!r} takes longer than {seconds:g} s, and is given up")
