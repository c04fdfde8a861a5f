"""However a batch is split over processes and micro-batches, the updates are those of the whole batch."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from exact_worker import LOSSES, PENALISED, batch_norm, play
from torch import Tensor
from training_runs import arguments, launch_worker

from biggan_hf.training import steps
from biggan_hf.training.steps import Objective


Results = dict[str, dict[str, Tensor]]


def launched(num_processes: int, pictures: Path, folder: Path, batch_size: str) -> Results:
    argv = arguments(pictures, folder / "model", "--per_device_batch_size", batch_size)
    return launch_worker("exact_worker.py", num_processes, folder / "results.pt", *argv)


@pytest.fixture(scope="module")
def two_processes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launched(2, pictures, tmp_path_factory.mktemp("exact"), "4")


@pytest.fixture(scope="module")
def four_processes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launched(4, pictures, tmp_path_factory.mktemp("groups"), "2")


def one_process(accumulation: int, batch_norm: str, objective: Objective | None = None) -> dict[str, Tensor]:
    return play(Accelerator(cpu=True), accumulation, batch_norm, objective or Objective())


def assert_same(ours: dict[str, Tensor], whole: dict[str, Tensor], tolerance: float) -> None:
    """
    Every gradient and buffer, relative to its own largest entry; a gradient that is nothing but rounding, as of a bias
    before a batch norm, relative to the largest of its update.
    """
    assert ours.keys() == whole.keys()
    largest: dict[str, float] = {}
    for name, expected in whole.items():
        largest[group(name)] = max(largest.get(group(name), 0.0), float(expected.abs().max()))
    assert all(1e-2 < scale < 1e3 for update, scale in largest.items() if update != "buffer"), largest
    for name, expected in whole.items():
        own = float(expected.abs().max())
        scale = own if own > 1e-9 * largest[group(name)] else largest[group(name)]
        error = float((ours[name] - expected).abs().max()) / scale
        assert error < tolerance, f"{name}: {error}"


def group(name: str) -> str:
    """Of a gradient the update that it is of, as "0.generator"."""
    return "buffer" if name.startswith("buffer.") else ".".join(name.split(".")[:2])


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_whole_batch(loss: str) -> None:
    objective = Objective(loss=loss)
    assert_same(one_process(4, "fixed", objective), one_process(1, "fixed", objective), 1e-12)


def test_a_power_iteration_in_every_forward_does_not_add_up() -> None:
    # No mistake, but another function in each micro-batch; and it shows that the test above can fail.
    objective = Objective(iterate_every_forward=True)
    with pytest.raises(AssertionError):
        assert_same(one_process(4, "fixed", objective), one_process(1, "fixed", objective), 1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_processes_add_up_to_the_whole_batch(two_processes: Results, loss: str) -> None:
    whole = one_process(1, "fixed", Objective(loss=loss))
    assert_same(two_processes[f"{loss}-fixed-1"], whole, 1e-12)
    assert_same(two_processes[f"{loss}-fixed-2"], whole, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_cross_replica_batch_norm_sees_the_batches_of_all(two_processes: Results, loss: str) -> None:
    objective = Objective(loss=loss)
    assert_same(two_processes[f"{loss}-on-1"], one_process(1, "on", objective), 1e-12)
    # With accumulation its batch is a micro-batch of all processes, on one process as on two.
    assert_same(two_processes[f"{loss}-on-2"], one_process(2, "on", objective), 1e-12)


def test_processes_exchange_each_gradient_once_an_update(two_processes: Results) -> None:
    for name in ("exchanged-1", "exchanged-2"):  # however many micro-batches it has
        for player, (sent, weights) in two_processes[name].items():
            assert sent == weights > 0, (name, player)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_batch_norm_in_bfloat16_keeps_its_sums_in_float32(two_processes: Results, num_processes: int) -> None:
    whole = batch_norm(0, 1, torch.float64, None)
    ours = batch_norm(0, 1, torch.bfloat16, None)
    if num_processes == 2:
        both = two_processes["bfloat16"]
        assert torch.equal(*both["mean"]) and torch.equal(*both["var"])
        ours = {name: both[name].flatten(0, 1) for name in ("out", "of_maps")}
        ours |= {name: both[name].sum(0) for name in ("of_gain", "of_bias")}
        ours |= {name: both[name][0] for name in ("mean", "var")}
    for name, value in ours.items():
        # Maps are rounded to bfloat16 once, in the end.
        tolerance = 2**-8 if value.dtype == torch.bfloat16 else 1e-5
        error = (value.double() - whole[name]).abs().max() / whole[name].abs().max()
        assert error < tolerance, f"{name}: {error}"


def test_batch_norm_in_groups_sees_the_batches_of_a_group(four_processes: Results) -> None:
    # Two groups of two processes with two samples each see what two micro-batches of four do, one after the other.
    pairs, one = four_processes["pairs"], one_process(2, "on")
    gradients = [name for name in one if not name.startswith("buffer.")]
    assert_same({name: pairs[name] for name in gradients}, {name: one[name] for name in gradients}, 1e-12)


def test_run_joins_the_processes_that_it_is_told_to(two_processes: Results, four_processes: Results) -> None:
    # A process's mean keeps 0.9 of its own number (nobody broadcasts buffers), and takes in 0.1 of its group's.
    means = {**two_processes["joined"], **four_processes["joined"]}
    for setting, expected in {"on": [True], "off": [False], "2": [True, False, True]}.items():
        differences = (means[setting].diff(dim=0) - 0.9).abs().amax(dim=1)
        assert (differences < 1e-5).tolist() == expected and differences.max() < 0.2, setting


def test_running_statistics_of_processes_are_averaged(two_processes: Results) -> None:
    statistics = two_processes["statistics"]
    assert torch.equal(statistics.pop("mean"), torch.full_like(statistics["ema.output_bn.running_mean"], 0.5))
    assert len(statistics) > 10
    for name, (first, second) in statistics.items():
        assert torch.equal(first, second) and first.std() > 0, name


def test_scalars_of_the_log_are_means_over_processes(two_processes: Results) -> None:
    assert two_processes["fetched"]["rank"].tolist() == [0.5, 0.5]


def test_consistency_is_exact_under_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "shift", lambda images: images.roll(2, dims=3))  # the same one for all pictures
    whole = one_process(1, "fixed", Objective(consistency=1.0))
    assert_same(one_process(4, "fixed", Objective(consistency=1.0)), whole, 1e-12)
    with pytest.raises(AssertionError):  # it does something
        assert_same(one_process(1, "fixed"), whole, 1e-6)


def test_regularisers_are_exact_under_accumulation_and_processes(two_processes: Results) -> None:
    whole = one_process(1, "fixed", PENALISED)
    assert_same(one_process(2, "fixed", PENALISED), whole, 1e-12)
    assert_same(two_processes["penalised-fixed-2"], whole, 1e-12)
    with pytest.raises(AssertionError):  # they do something
        assert_same(one_process(1, "fixed"), whole, 1e-6)
