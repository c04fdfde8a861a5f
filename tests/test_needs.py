"""What a training needs, as benchmarks/needs.py computes it: on the meta device, and beside a run on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.training.choosing import RULES


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import needs  # noqa: E402


CUDA = 2.5  # GiB: of CUDA itself, and of the workspaces of convolutions (docs/your-own-pictures.md)


def test_parts_of_the_memory() -> None:
    config = BigGANConfig.preset("demo")
    few, more, most = (needs.needs_of(config, 12, forward, 1) for forward in (2, 4, 6))
    with torch.device("meta"):
        generator, discriminator = BigGANModel(config), BigGANDiscriminator(config)
    parameters = generator.num_parameters() + discriminator.num_parameters()
    assert few.learning == 3 * 4 * parameters  # gradients and both moments, in float32
    assert few.weights > 4 * parameters and few.average >= 4 * generator.num_parameters()  # buffers too
    # Each picture more takes as much as the one before. The work of the update stays, but for that of W / σ(W).
    assert more.activations - few.activations == most.activations - more.activations > 0
    assert few.flops == pytest.approx(most.flops, rel=0.01)


def test_work_of_an_iteration_follows_from_that_of_the_networks() -> None:
    iteration = needs.needs_of_preset("cifar10").flops
    assert iteration == pytest.approx(needs.FLOPS_OF_CIFAR10, rel=1e-3)
    # A forward of an image takes 2.04 GFLOP in G, 1.02 in D (docs/benchmarks.md); a backward at most twice as much.
    assert 0.9 < iteration / (50e9 * (4 * (2.04 + 3 * 2 * 1.02) + 3 * (2.04 + 1.02))) < 1


@pytest.mark.parametrize("preset", ["cifar10", "small-64", "small-128"])
def test_a_rule_of_auto_leaves_room_for_what_its_preset_needs(preset: str) -> None:
    (rule,) = [rule for rule in RULES if rule.preset == preset]
    memory = needs.needs_of_preset(preset).memory / needs.GIB + CUDA
    assert memory < rule.gpu_memory < 1.3 * memory


@pytest.mark.slow  # a process of its own, which imports torch anew and trains
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory of a process is read from Linux's /proc")
def test_a_run_needs_the_memory_that_was_computed() -> None:
    """Within a fifth: libraries keep some workspace, and gradients do not all meet at the same moment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(ROOT / "benchmarks" / "needs.py"), "--measure", "32"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert 0.8 < found["measured"] / found["computed"] < 1.2
