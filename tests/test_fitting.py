"""Too little memory: what is said of it, and the largest batch that fits."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import ON_CPU, REPO, Capture, Patch, arguments, launcher, write_pictures

from biggan_hf.memory import is_out_of_memory, refused_before_it_is_gone
from biggan_hf.training import fitting, main, parse_arguments, set_up
from biggan_hf.training.ending import what_to_lower
from biggan_hf.training.fitting import sizes


def test_errors_that_tell_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55)
    assert all(map(is_out_of_memory, (error.value, MemoryError(), torch.OutOfMemoryError(), OSError(12, "fork"))))
    assert not any(map(is_out_of_memory, (RuntimeError("shape"), OSError(28, "disk"), KeyError("out of memory"))))


def short_of_memory(folder: Path, *flags: str, num_processes: int = 0) -> subprocess.CompletedProcess[str]:
    """A run of 192 pictures in an update, whose last process may use 500 MiB more than before it has networks."""
    pictures = write_pictures(folder / "pictures", number=200)
    channels = ["generator_base_channels=32", "discriminator_base_channels=32"]
    argv = [
        "--preset",
        "demo",
        "--config_overrides",
        *channels,
        "--dataset_name",
        str(pictures),
        "--output_dir",
        str(folder / "model"),
    ]
    argv += ["--max_train_steps", "1", "--per_device_batch_size", str(192 // max(num_processes, 1)), *flags]
    python = launcher(num_processes) if num_processes else [sys.executable]
    command = [*python, str(REPO / "tests" / "short_of_memory.py"), "500", *argv]
    # What is freed goes back: the C library does not keep it.
    environment = ON_CPU | {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=300)


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    done = short_of_memory(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    advice = "try --per_device_batch_size 96 --global_batch_size 192 (the update stays the same), --auto_batch_size, "
    assert f"error: out of memory at step 1 with per_device_batch_size=192: {advice}--gradient_check" in done.stderr


def test_a_smaller_batch_needs_the_search_to_end(pictures: Path, tmp_path: Path) -> None:
    run = set_up(*parse_arguments(arguments(pictures, tmp_path / "model")))
    assert "--per_device_batch_size 2 --global_batch_size 4 (the" in what_to_lower(run)
    run.args = dataclasses.replace(run.args, auto_batch_size=True)
    assert "--per_device_batch_size 2 --global_batch_size 4 --no_auto_batch_size (the" in what_to_lower(run)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [0, 2])
def test_auto_batch_size_finds_what_fits(tmp_path: Path, num_processes: int) -> None:
    done = short_of_memory(tmp_path, "--auto_batch_size", num_processes=num_processes)
    assert done.returncode == 0, done.stderr[-2000:]
    _, line = [line for line in done.stdout.splitlines() if line.startswith("auto_batch_size: ")]
    size, processes = int(line.split()[1]), max(num_processes, 1)
    forwards = 192 // processes // size
    assert forwards > 1 and f"(forwards: {forwards}, processes: {processes}, update: 192)" in line


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse memory themselves")
def test_a_cpu_refuses_memory_before_it_is_gone(monkeypatch: Patch) -> None:
    import resource

    monkeypatch.setattr("biggan_hf.memory.available_memory", lambda: 2**31)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with refused_before_it_is_gone(processes=2):
        assert torch.empty(2**27, dtype=torch.uint8).numel()
        with pytest.raises(RuntimeError) as refused:
            torch.empty(2**31, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert torch.empty(2**31, dtype=torch.uint8).numel() and resource.getrlimit(resource.RLIMIT_AS) == limits


def test_divisors_are_tried_from_the_largest() -> None:
    assert list(sizes(12, None)) == [12, 6, 4, 3, 2, 1] and list(sizes(12, 4)) == [4, 3, 2, 1]
    assert list(sizes(12, 5)) == [12, 6, 4, 3, 2, 1]  # the update has another size than before


def test_the_search_changes_nothing_else(pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    real = fitting.fits
    monkeypatch.setattr(fitting, "fits", lambda args, *others: real(args, *others) and args.per_device_batch_size < 4)
    by_hand = ["--per_device_batch_size", "2", "--global_batch_size", "4"]
    for name, flags in {"found": ["--auto_batch_size"], "given": by_hand}.items():
        main(arguments(pictures, tmp_path / name, "--r1_gamma", "1", *flags))
    assert (
        "auto_batch_size: 2 pictures fit in a forward (forwards: 2, processes: 1, update: 4)"
        in capsys.readouterr().out
    )
    found, given = (load_file(tmp_path / name / "model.safetensors") for name in ("found", "given"))
    assert all(torch.equal(found[name], weight) for name, weight in given.items())


def test_a_dry_run_does_not_look(pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(fitting, "fits", lambda *_: pytest.fail("a dry run tries no batch"))
    main(arguments(pictures, tmp_path / "model", "--auto_batch_size", "--dry_run"))
    assert "auto_batch_size: a run looks for the largest forward that fits" in capsys.readouterr().out


def test_nothing_fits(pictures: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(fitting, "fits", lambda *_: False)
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, tmp_path / "model", "--auto_batch_size"))
    assert stop.value.code == 2 and "error: out of memory before the first step: " in capsys.readouterr().err
