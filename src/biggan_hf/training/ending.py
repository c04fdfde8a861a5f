"""How a run ends before its last step: by a signal, because its launcher is gone, or by an error."""

import contextlib
import enum
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .. import before_torch
from ..data import UnreadablePictureError
from ..files import write_text
from ..memory import is_out_of_memory
from ..processes import count, is_main_process, num_processes
from .batches import kill_workers
from .run import Run
from .uploads import THREAD


TRACEBACK = "traceback.txt"
ABORTED = 130  # as a shell reports a program that an interrupt has ended

# Seconds. Where several processes meet the same error and can't count who has told it, the first one tells it, and the
# launcher ends the others within this time.
PATIENCE = 5.0

# Seconds after which a program that has failed is ended, whatever it still waits for.
LAST_MOMENTS = 2.0

# Seconds. Two interrupts within this time are one: some wrappers pass on what the terminal has sent already.
SAME_PRESS = 0.3

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

# What a user can mend: before the first step, and later.
MISTAKES = (ValueError, TypeError, OSError, ImportError, StrictDataclassError)
BAD_FILES = (UnreadablePictureError, OSError, SafetensorError)


class Stop(enum.IntEnum):
    """Why a run stops. Where processes name different reasons, the largest counts. Signals: 128 + their number."""

    NOT = 0
    STEPS_ARE_DONE = 1
    TIME_IS_UP = 2
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143
    LAUNCHER_IS_GONE = 144
    COLLAPSED = 145


# From outside


class Interruption:
    """
    Inside `with Interruption() as interruption`, SIGINT, SIGTERM, SIGHUP and a launcher that is gone ask the run to
    stop after its step. It says so: on a signal at once, of a launcher before the next step. A second Ctrl-C raises
    `KeyboardInterrupt`: it is SIGINT again, or, from torchrun's launcher, SIGTERM. The SIGTERM of a launcher of
    several processes also comes when one of them has failed: of that it says nothing until all have agreed to stop.
    """

    def __init__(self) -> None:
        self._reason = Stop.NOT
        self._unsaid = ""
        self._first: tuple[int, float] = (0, 0.0)  # the first signal, and when it came
        self._launcher = launcher()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if number in SIGNALS[:2] or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and is_of_other_process(error):  # now: the launcher ends this process, too
            first_line = str(error).strip().partition("\n")[0]
            if may_tell(of_other=True):
                write(f"another process of this run has ended; its line or the launcher's says why: {first_line}")
            raise SystemExit(1) from error
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def reason(self) -> Stop:
        if not self._reason and self._launcher not in (None, os.getppid()):
            self._reason = Stop.LAUNCHER_IS_GONE
            say("the launcher is gone: stopping after this step")
        return self._reason

    def agreed(self) -> None:
        """To be called when all processes have agreed to stop."""
        if self._unsaid:
            say(self._unsaid)
        self._unsaid = ""

    def _handle(self, number: int, _: FrameType | None) -> None:
        now, launched = time.monotonic(), "TORCHELASTIC_RUN_ID" in os.environ
        # The launcher of several processes passes on a second Ctrl-C as SIGTERM.
        again = SIGNALS[:2] if launched and self._first[0] == signal.SIGINT else SIGNALS[:1]
        if not self.reason():
            self._reason, self._first = Stop(128 + number), (number, now)
            line = "stopping after this step" + "; press Ctrl-C again to abort" * (number == signal.SIGINT)
            if launched:
                limit = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
                line += f"; a launcher that is stopped kills this run after {os.environ.get(limit, '30')} s ({limit})"
            self._unsaid = line
            if not launched or number == signal.SIGINT:
                self.agreed()
        elif now - self._first[1] > SAME_PRESS and number in again:
            raise KeyboardInterrupt(number)


def exit_status(stop: int) -> int:
    """
    The exit status of a run that a signal, or the end of its launcher, has stopped. The first process of a machine
    tells of the signal, and no other: at a failure the launcher ends the rest. One that starts anew what has failed
    (`--max_restarts`) is told of no failure: the run shall stay stopped.
    """
    if stop == Stop.LAUNCHER_IS_GONE:
        return 1
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    return stop if is_first_of_machine() and not restarts else 0


def launcher() -> int | None:
    """The process that started this one, if it is `accelerate launch` or `torchrun`, which a run shall not outlive."""
    if not {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return None
    process, parent = before_torch.STARTED
    return parent if process == os.getpid() else os.getppid()  # a launcher may fork


def is_first_of_machine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(line: str) -> None:
    """
    A line on standard error from the first process, also from within a handler of signals. The terminal may be gone.
    """
    if is_main_process():
        write(line)


def write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


# By an error


def tell(error: BaseException, run: Run | None) -> int:
    """Prints the one line with which a program ends after an error, and returns the exit status."""
    kill_workers()
    is_first = is_first_of_machine()
    line, status = explain(error, run)
    if not is_first and error.args == (signal.SIGTERM,):  # a second Ctrl-C, to all processes
        return status
    if may_tell(is_of_other_process(error)):
        print(line if is_first else f"\n{line}", file=sys.stderr, flush=True)  # the bar is the first one's
    return status


def may_tell(of_other: bool) -> bool:
    """
    Whether this process tells why the run ends: the first one that meets an error does. One that has lost another
    process does so if no process has told of an error.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    errors = count("errors", 0 if of_other else 1)
    if errors is None:
        if of_other or not is_first_of_machine():
            time.sleep(PATIENCE)
        return True
    return errors == 0 and count("losses", 1) == 1 if of_other else errors == 1


def explain(error: BaseException, run: Run | None) -> tuple[str, int]:
    """The line, and the exit status: 2 for what the user can mend."""
    words = str(error).strip() or type(error).__name__
    first, *_, last = [*words.splitlines()] * 2
    last = last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")  # a traceback ends so
    if isinstance(error, KeyboardInterrupt):
        return f"aborted after step {run.global_step}" if run else "aborted", ABORTED
    if is_out_of_memory(error):
        return f"error: out of memory {what_to_lower(run)}", 2
    if is_of_other_process(error):
        return f"error: another process of this run has ended: {first}", 1
    if run is None and isinstance(error, MISTAKES):
        return f"error: {' '.join(words.split())}", 2
    # torch tells of a lost worker, or else its pipe breaks first.
    breaks = isinstance(error, ConnectionError | EOFError) and run is not None and run.batches.num_workers > 0
    if breaks or ("DataLoader worker" in words and "Caught" not in words):
        return f"error: a process that reads pictures (dataloader_num_workers) has ended: {first}", 1
    if isinstance(error, BAD_FILES):  # that of a process which reads pictures begins with its traceback
        return f"error: {last}", 2
    unexpected = last if "Caught" in words else first
    return f"error: {type(error).__name__}: {unexpected}; {keep_traceback(error, run)}", 1


def keep_traceback(error: BaseException, run: Run | None) -> str:
    """Where the traceback of an error that is no user's went."""
    lines = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        if run is not None:
            write_text(run.output_dir / TRACEBACK, lines)
            return f"the traceback is in {run.output_dir / TRACEBACK}"
    print(lines, file=sys.stderr)
    return "the traceback is above"


def what_to_lower(run: Run | None) -> str:
    """What a run may change that met too little memory, and what of this keeps its update the same."""
    if run is None:
        return (
            "before the first step: make the networks smaller, by another --preset with a smaller image_size, or by "
            "--config_overrides with fewer generator_base_channels and discriminator_base_channels"
        )
    args, size = run.args, run.args.per_device_batch_size
    batch = size * run.accumulation_steps * run.accelerator.num_processes
    ways = []
    if size > 1:
        smaller = max(part for part in range(1, size) if size % part == 0)
        found = " --no_auto_batch_size" if args.auto_batch_size else ""
        ways += [f"--per_device_batch_size {smaller} --global_batch_size {batch}{found} (the update stays the same)"]
        ways += ["--auto_batch_size"] * (not args.auto_batch_size)
    ways += ["--gradient_checkpointing"] * (not args.gradient_checkpointing)
    ways += ["--mixed_precision bf16"] * (run.accelerator.mixed_precision == "no")
    ways += [f"an image_size below {run.config.image_size} (another --preset)"]
    return f"at step {run.global_step + 1} with per_device_batch_size={size}: try {', '.join(ways)}"


def is_of_other_process(error: BaseException) -> bool:
    """Whether an error tells that another process of the run has ended, which this one waited for."""
    if num_processes() == 1 or not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class Lasting:
    """Standard output or error that may go, as when Ctrl-C ends `tee` too. What is written is lost then, no run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave(status: int) -> NoReturn:
    """
    Ends this program. What its libraries still wait for keeps it for some seconds at most, after a failure and where
    an upload was given up.
    """
    before_torch.status = status
    if status or any(thread.name == THREAD for thread in threading.enumerate()):
        timer = threading.Timer(LAST_MOMENTS, os._exit, [status])
        timer.daemon = True
        timer.start()
    raise SystemExit(status)
