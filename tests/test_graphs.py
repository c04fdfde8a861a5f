"""Updates as CUDA graphs: what is recorded, replayed and given up, with a stand-in for the GPU that a CPU runs."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from training_runs import arguments, write_pictures

from biggan_hf.training import parse_arguments, set_up
from biggan_hf.training.graphs import WARM_UP, Graphs, Scalars, tensors_of
from biggan_hf.training.loop import train_step
from biggan_hf.training.run import Run
from biggan_hf.training.steps import Latents, Pictures


class OnACpu:
    """Records nothing before the first replay, as a GPU computes nothing while it is recorded."""

    def __init__(self) -> None:
        self.warm_ups, self.replays, self.recordings = 0, 0, 0

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        self.warm_ups += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1

        def replay() -> Tensor:
            self.replays += 1
            return work().clone()

        return replay


class Refuses(OnACpu):
    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def new_run(pictures: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    folders = (tmp_path / f"run-{number}" for number in itertools.count())

    def build(*flags: str) -> Run:
        AcceleratorState._reset_state(reset_partial_state=True)  # the precision of a process is set once
        line = arguments(pictures, next(folders), "--num_discriminator_steps", "1", *flags, steps=20)
        return set_up(*parse_arguments(line))

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


def state_of(run: Run) -> list[Tensor]:
    moments = [value for o in run.players.optimizers.values() for s in o.state.values() for value in s.values()]
    weights = [tensor for network in run.networks for tensor in network.state_dict().values()]
    return [tensor.detach().clone() for tensor in (*weights, *moments)]


SETTINGS: dict[str, list[str]] = {
    "plain": [],
    "two micro-batches": ["--global_batch_size", "8"],
    "R1 every other step": ["--r1_gamma", "1", "--r1_interval", "2"],
    "relativistic": ["--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1", "--r1_interval", "1"],
    "consistent": ["--consistency", "10"],
    "augmented": ["--diff_augment", "--horizontal_flip"],
    "recomputed": ["--gradient_checkpointing"],
    "bfloat16": ["--mixed_precision", "bf16"],
    "the average begins": ["--ema_start_step", "5", "--ema_decay", "0.9"],
}


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_replayed_steps_are_those_of_a_run_without(new_run: Any, flags: list[str]) -> None:
    plain, replayed = new_run(*flags), new_run(*flags)
    replayed.graphs = Graphs(recorder := OnACpu())
    steps = 9 if {"2", "--ema_start_step"} & set(flags) else 5  # five of each kind, or four
    for _ in range(steps):
        expected, metrics = train_step(plain), train_step(replayed)
        assert metrics.keys() == expected.keys()
        assert all(torch.equal(metrics[name], expected[name]) for name in expected)
    for ours, theirs in zip(state_of(replayed), state_of(plain), strict=True):
        assert torch.equal(ours, theirs)
    kinds = {5: 2, 9: 4 if "--r1_interval" in flags else 3}[steps]
    assert recorder.recordings == kinds and recorder.warm_ups == WARM_UP * kinds
    assert recorder.warm_ups + recorder.replays == 2 * steps


def test_inputs_are_copied_and_outputs_are_kept() -> None:
    seen: list[Tensor] = []

    def update(changed: Any, inputs: Any, factor: float) -> Scalars:
        latents, real = inputs[0]
        seen.append(latents.z)
        return {"sum": latents.z.sum() * factor, "labels": real.class_labels.sum().float()}

    graphs = Graphs(OnACpu())
    given = []
    for number in range(WARM_UP + 3):
        z = torch.full((2, 3), float(number))
        pair = Latents(z, None), Pictures(torch.zeros(2, 1, 4, 4), torch.tensor([number, 1]))
        given.append(graphs(update, None, [pair], 2.0))
    assert [float(scalars["sum"]) for scalars in given] == [12.0 * number for number in range(WARM_UP + 3)]
    assert [float(scalars["labels"]) for scalars in given] == [number + 1.0 for number in range(WARM_UP + 3)]
    assert len({tensor.data_ptr() for tensor in seen[WARM_UP:]}) == 1
    assert len(tensors_of([pair])) == 3


def test_writes_of_a_replay_are_counted() -> None:
    def update(changed: Any, inputs: Any) -> Scalars:
        return {"loss": inputs[0].sum()}

    weight = torch.zeros(2)
    graphs = Graphs(OnACpu(), [weight])
    versions = []
    for _ in range(WARM_UP + 2):
        graphs(update, None, [torch.ones(2)])
        versions.append(weight._version)
    assert versions == sorted(versions) and versions[-1] > versions[WARM_UP - 1]


def test_a_rollback_records_anew(new_run: Any) -> None:
    run = new_run()
    run.graphs = Graphs(recorder := OnACpu())
    for _ in range(WARM_UP + 1):
        train_step(run)
    state = run.state()
    assert recorder.recordings == 2
    run.restore(state)
    for _ in range(WARM_UP + 1):
        train_step(run)
    assert recorder.recordings == 4


def test_what_cannot_be_recorded_is_said_and_computed(new_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain, run = new_run(), new_run()
    run.graphs = Graphs(Refuses())
    for _ in range(WARM_UP + 1):
        train_step(plain)
        train_step(run)
    assert all(torch.equal(a, b) for a, b in zip(state_of(run), state_of(plain), strict=True))
    (said,) = [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()]
    assert said.endswith("operation not permitted when stream is capturing; the run goes on without")
    run.graphs = Graphs(Refuses(), required=True)
    with pytest.raises(ValueError, match="cuda_graphs=on: an update can't be recorded"):
        for _ in range(WARM_UP + 1):
            train_step(run)


def test_on_where_there_is_no_gpu(new_run: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graphs=on is not possible: the device is cpu"):
        new_run("--cuda_graphs", "on")
    assert not list(tmp_path.iterdir())
    assert new_run("--cuda_graphs", "off").graphs.recorder is None
