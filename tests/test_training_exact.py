"""However a batch is split over processes and micro-batches, the updates are those of the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from exact_worker import batch_norm, play
from torch import Tensor
from training_runs import arguments

from biggan_hf.training.steps import Rules


Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def two_processes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("exact")
    return launch(2, folder / "results.pt", *arguments(pictures, folder / "model"))


def launch(num_processes: int, path: Path, *argv: str) -> Results:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(num_processes), "--multi_gpu", "--main_process_port", "0"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(Path(__file__).with_name("exact_worker.py")), str(path), *argv]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


def one_process(accumulation: int, batch_norm: str, rules: Rules | None = None) -> dict[str, Tensor]:
    return play(Accelerator(cpu=True), accumulation, batch_norm, rules or Rules())


def assert_same(ours: dict[str, Tensor], whole: dict[str, Tensor], tolerance: float) -> None:
    """Every gradient and buffer, relative to the largest gradient of its update."""
    assert ours.keys() == whole.keys()
    for name, expected in whole.items():
        prefix = ".".join(name.split(".")[:2])
        scale = max(float(value.abs().max()) for other, value in whole.items() if other.startswith(prefix))
        error = float((ours[name] - expected).abs().max()) / max(scale, 1.0)
        assert error < tolerance, f"{name}: {error}"


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    assert_same(one_process(4, "fixed"), one_process(1, "fixed"), 1e-12)


def test_a_power_iteration_in_every_forward_does_not_add_up() -> None:
    # No mistake, but another function in each micro-batch; and it shows that the test above can fail.
    rules = Rules(iterate_every_forward=True)
    with pytest.raises(AssertionError):
        assert_same(one_process(4, "fixed", rules), one_process(1, "fixed", rules), 1e-3)


def test_processes_add_up_to_the_whole_batch(two_processes: Results) -> None:
    assert_same(two_processes["fixed-1"], one_process(1, "fixed"), 1e-12)
    assert_same(two_processes["fixed-2"], one_process(1, "fixed"), 1e-12)


def test_cross_replica_batch_norm_sees_the_batches_of_all(two_processes: Results) -> None:
    assert_same(two_processes["all-1"], one_process(1, "on"), 1e-12)
    # With accumulation its batch is a micro-batch of all processes, on one process as on two.
    assert_same(two_processes["all-2"], one_process(2, "on"), 1e-12)


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


def test_batch_norm_in_groups_sees_the_batches_of_a_group(tmp_path: Path) -> None:
    # Two groups of two processes with two samples each see what two micro-batches of four do, one after the other.
    pairs, one = launch(4, tmp_path / "results.pt")["pairs"], one_process(2, "on")
    gradients = [name for name in one if not name.startswith("buffer.")]
    assert_same({name: pairs[name] for name in gradients}, {name: one[name] for name in gradients}, 1e-12)


def test_running_statistics_of_processes_are_averaged(two_processes: Results) -> None:
    statistics = two_processes["statistics"]
    assert torch.equal(statistics.pop("mean"), torch.full_like(statistics["ema.output_bn.running_mean"], 0.5))
    assert len(statistics) > 10
    for name, (first, second) in statistics.items():
        assert torch.equal(first, second) and first.std() > 0, name


def test_all_processes_hear_of_a_stop_one_step_later(two_processes: Results) -> None:
    assert two_processes["votes"]["heard"].tolist() == [[0, 0, 0, 3, 3, 3]] * 2


def test_regularisers_are_exact_under_accumulation_and_processes(two_processes: Results) -> None:
    rules = Rules(r1_gamma=1.0, generator_orthogonality=1e-2, discriminator_orthogonality=1e-2)
    whole = one_process(1, "fixed", rules)
    assert_same(one_process(2, "fixed", rules), whole, 1e-12)
    assert_same(two_processes["fixed-2-penalised"], whole, 1e-12)
    with pytest.raises(AssertionError):  # they do something
        assert_same(one_process(1, "fixed"), whole, 1e-6)
