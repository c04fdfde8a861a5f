"""Short training runs on small pictures of noise, for the tests of training/."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.training import main, stability
from biggan_hf.training.checkpoints import save_checkpoint


REPO = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

TINY = ["--preset", "demo", "--config_overrides", "generator_base_channels=4", "discriminator_base_channels=4"]
SHORT = ["--per_device_batch_size", "4", "--logging_steps", "1", "--sample_steps", "2", "--checkpointing_steps", "2"]


def features(images: torch.Tensor) -> torch.Tensor:
    """Four features of uint8 pictures: the mean grey of each quarter."""
    return F.adaptive_avg_pool2d(images.float().mean(dim=1, keepdim=True), 2).flatten(1)


def write_pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), number: int = 10) -> Path:
    """A folder of grey 32-pixel noise, a sub-folder a class."""
    noise = np.random.default_rng(len(classes))
    for index in range(number):
        path = folder / classes[index % len(classes)] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32), np.uint8)).save(path)
    return folder


def arguments(pictures: Path, output: Path, *more: str, steps: int = 2) -> list[str]:
    """The command line of a short run; what comes later wins."""
    where = ["--dataset_name", str(pictures), "--output_dir", str(output), "--max_train_steps", str(steps)]
    return [*TINY, *SHORT, *where, *more]


EVALUATION = "--evaluation_steps 1 --evaluation_images 8 --evaluation_extractor training_runs:features".split()
ON_CPU = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

# What a checkpoint of no run holds.
STATE: dict[str, Any] = {"samples_seen": 10, "rollbacks": 0, "num_pictures": 10}
STATE |= {"generator_optimizer": {}, "discriminator_optimizer": {}}


def tiny(**overrides: Any) -> BigGANConfig:
    settings = {"num_labels": 3, "generator_base_channels": 4, "discriminator_base_channels": 4, **overrides}
    return BigGANConfig.preset("demo", **settings)


def of_the_original(channels: int) -> BigGANConfig:
    """A small model of BigGAN-PyTorch, which labels every block of its 32-pixel discriminator 16, for attention."""
    widths = {"generator_base_channels": channels, "discriminator_base_channels": channels}
    attention = {"generator_attention_resolutions": [16], "discriminator_attention_resolutions": [16, 8]}
    sizes: dict[str, Any] = {"z_dim": 20, "class_embedding_dim": 12, "num_labels": 10, **widths, **attention}
    return BigGANConfig.preset("biggan-32", batch_norm_eps=1e-5, spectral_norm_eps=1e-6, **sizes)


def write_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint of new networks."""
    model, discriminator = BigGANModel(tiny()), BigGANDiscriminator(tiny())
    checkpoint, state = folder / f"checkpoint-{step}", {**STATE, "global_step": step}
    save_checkpoint(checkpoint, {"": model, "generator": model, "discriminator": discriminator}, state)
    return checkpoint


def error_line(argv: list[str], capsys: Capture) -> str:
    """The one line with which a run ends that can't be."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and "Traceback" not in printed
    return line


def set_rule(monkeypatch: Patch, **constants: float) -> None:
    """Other constants of the rule for collapses, so that a short run meets it."""
    for name, value in constants.items():
        monkeypatch.setattr(stability, name, value)


def launcher(num_processes: int, *machine: str) -> list[str]:
    """The command that starts a script on CPUs. Its words for a machine are those of a single one by default."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    # Two processes on CPU take --multi_gpu with ACCELERATE_USE_CPU; --cpu would start one.
    command += ["--multi_gpu"] * (num_processes > 1)
    return [*command, *(machine or ("--num_machines", "1", "--main_process_port", "0"))]


def start(argv: list[str], num_processes: int = 1, *machine: str) -> subprocess.Popen[str]:
    """A run as `accelerate launch` starts it, of several processes, or of one on its own (0)."""
    python = launcher(num_processes, *machine) if num_processes else [sys.executable]
    command, output, errors = [*python, str(REPO / "train.py"), *argv], subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, env=ON_CPU, cwd=REPO, stdout=output, stderr=errors, text=True)


def launch_worker(worker: str, num_processes: int, path: Path, *argv: str) -> Any:
    """What a script of this folder, as so many processes on a CPU, saves at a path that it is given first."""
    command = [*launcher(num_processes), str(Path(__file__).with_name(worker)), str(path), *argv]
    done = subprocess.run(command, env=ON_CPU, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


def read_log(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@contextmanager
def files_of_at_most(number: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which fails as a full disk does, in the middle of writing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
