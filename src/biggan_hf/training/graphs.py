"""
CUDA graphs: the host orders the kernels of an update once, and the GPU repeats them.

An iteration of the `cifar10` preset is some 2,000 kernels. A fast GPU runs them in less time than the host needs to
order them one by one. A recorded update is one order. It computes the same function on the same memory, so its inputs
are copied to where those of the recording were.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import is_dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.autograd.graph import increment_version

from .arguments import TrainingArguments


logger = logging.getLogger(__name__)

Scalars = dict[str, Tensor]
Update = Callable[..., Scalars]  # of what it changes, its inputs, and settings that can be compared

# Calls of one kind before it is recorded. The first ones choose kernels, compile, and make the optimisers' state.
WARM_UP = 3


class Recorder(Protocol):
    """What a GPU does, and in the tests a stand-in that a CPU runs."""

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        """Runs the work as it will be recorded."""

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What repeats the work. It is not run now."""


class CudaRecorder:
    """On the current device. All graphs share their memory: they never run at once, and outputs are copied."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            scalars = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return scalars

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The thread that pins pictures may allocate memory meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output.clone()

        return replay


class Graphs:
    """
    Calls updates. With a recorder, the calls of one kind are recorded once they are warm, and replayed from then on.
    A kind is the update and its settings.

    Replays write to the tensors that are `written` unseen by autograd, so their writes are counted here.
    """

    def __init__(self, recorder: Recorder | None = None, written: Sequence[Tensor] = (), required: bool = False):
        self.recorder, self.written, self.required = recorder, list(written), required
        self.forget()

    def forget(self) -> None:
        """Drops all recordings: what they read or write has moved, or their constants have changed."""
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, Callable[[Any], Scalars]] = {}

    def __call__(self, update: Update, changed: Any, inputs: Any, *settings: Hashable) -> Scalars:
        """`update(changed, inputs, *settings)`. Inputs are tensors in sequences or dataclasses, of the same shapes."""
        if self.recorder is None:
            return update(changed, inputs, *settings)
        kind = update, *settings
        self._calls[kind] += 1
        if self._calls[kind] <= WARM_UP:
            return self.recorder.warm_up(lambda: update(changed, inputs, *settings))
        if kind not in self._recordings:
            try:
                self._recordings[kind] = self._record(lambda kept: update(changed, kept, *settings), inputs)
            except RuntimeError as error:  # nothing has been computed yet
                self._give_up(error)
                return update(changed, inputs, *settings)
        return self._recordings[kind](inputs)

    def _record(self, work: Callable[[Any], Scalars], inputs: Any) -> Callable[[Any], Scalars]:
        assert self.recorder is not None
        kept: Any = copy.deepcopy(inputs)
        names: list[str] = []

        def recorded() -> Tensor:
            scalars = work(kept)
            names[:] = scalars
            return torch.stack(list(scalars.values()))

        replay, targets = self.recorder.record(recorded), tensors_of(kept)

        def repeat(inputs: Any) -> Scalars:
            torch._foreach_copy_(targets, tensors_of(inputs))
            scalars = replay()
            increment_version(self.written)
            return dict(zip(names, scalars.unbind(), strict=True))

        return repeat

    def _give_up(self, error: RuntimeError) -> None:
        why = f"an update can't be recorded as a CUDA graph: {str(error).splitlines()[0]}"
        if self.required:
            raise ValueError(f"cuda_graphs=on: {why}") from error
        logger.warning("%s; the run goes on without", why)
        self.recorder = None
        self.forget()


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = vars(inputs).values() if is_dataclass(inputs) else inputs or ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def why_not(args: TrainingArguments, accelerator: Accelerator) -> str | None:
    """Why the updates of a run cannot be recorded, or `None`."""
    reasons = {
        f"the device is {accelerator.device.type}": accelerator.device.type != "cuda",
        f"{accelerator.num_processes} processes wait for each other in an update": accelerator.num_processes > 1,
        "float16's scaler looks at the gradients": accelerator.scaler is not None,
        "sigma_clamp's decompositions wait for the host": args.sigma_clamp or args.sigma_clamp_ratio,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
