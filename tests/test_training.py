"""Whole runs: by `accelerate launch` with one process and with two, cut off and resumed, pushed, and refused."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file
from training_runs import EVALUATION, ON_CPU, Capture, Patch, arguments, error_line, launcher, read_log

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.training import main
from biggan_hf.training.quality import Quality


REPO = Path(__file__).parents[1]


def launch(num_processes: int, argv: list[str]) -> subprocess.CompletedProcess[str]:
    command = [*launcher(num_processes), str(REPO / "train.py"), *argv]
    return subprocess.run(command, env=ON_CPU, cwd=REPO, capture_output=True, text=True, timeout=300)


def load_completely(network: Any, folder: Path, **where: str) -> Any:
    model, loading = network.from_pretrained(folder, output_loading_info=True, **where)
    assert not any(loading.values()), loading
    return model


@pytest.mark.parametrize("num_processes", [1, 2])
def test_launched_run_leaves_a_model_folder(pictures: Path, tmp_path: Path, num_processes: int) -> None:
    output = tmp_path / "model"
    done = launch(num_processes, arguments(pictures, output))
    assert done.returncode == 0, done.stderr[-3000:]

    assert json.loads((output / "training_settings.json").read_text())["num_processes"] == num_processes
    lines = read_log(output)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[-1]["samples_seen"] == 2 * 4 * num_processes
    assert all(np.isfinite(line["discriminator_loss"]) for line in lines)

    model = load_completely(BigGANModel, output)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.sample([0, 1], truncation=0.5).shape == (2, 1, 32, 32)
    load_completely(BigGANDiscriminator, output, subfolder="discriminator")
    assert Image.open(output / "samples" / "step-0000002.png").size == Image.open(output / "samples.png").size
    assert "library_name: biggan_hf" in (output / "README.md").read_text(encoding="utf-8")


def networks(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder / "model.safetensors", folder / "discriminator" / "model.safetensors"]
    files += sorted(folder.glob("checkpoint-*/generator/model.safetensors"))[-1:]
    return {f"{file.parent.name}/{name}": t for file in files for name, t in load_file(file).items()}


def test_resumed_run_is_the_uninterrupted_run_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    flags = ["--horizontal_flip", "--num_discriminator_steps", "2", "--global_batch_size", "8"]
    # The gradient of least squares never vanishes, as hinge's does on so little noise; and the checkpoint's average is
    # no copy any more.
    flags += ["--loss", "least_squares", "--ema_start_step", "2"]
    main(arguments(pictures, tmp_path / "whole", *flags, steps=4))
    main(arguments(pictures, tmp_path / "parts", *flags, steps=2))
    main(arguments(pictures, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest", steps=4))
    whole, parts = networks(tmp_path / "whole"), networks(tmp_path / "parts")
    assert whole.keys() == {name.replace("parts", "whole") for name in parts}
    for name, value in parts.items():
        assert torch.equal(value, whole[name.replace("parts", "whole")]), name
    assert [line["step"] for line in read_log(tmp_path / "parts")] == [1, 2, 3, 4]


def test_time_limit_ends_a_run_with_a_model(pictures: Path, tmp_path: Path) -> None:
    main(arguments(pictures, tmp_path / "model", "--max_train_minutes", "1e-9", steps=1000))
    assert len((tmp_path / "model" / "log.jsonl").read_text().splitlines()) == 1
    assert BigGANModel.from_pretrained(tmp_path / "model").config.num_labels == 2


def test_pictures_without_classes_train_an_unconditional_model(pictures: Path, tmp_path: Path) -> None:
    main(arguments(pictures, tmp_path / "model", "--label_column", "none"))
    model = BigGANModel.from_pretrained(tmp_path / "model")
    assert model.config.num_labels == 0 and model.sample(num_images_per_label=3).shape == (3, 1, 32, 32)


def test_pushed_run_comes_back_from_the_hub(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    main(arguments(pictures, tmp_path / "model", "--push_to_hub", "--hub_model_id", "user/cats"))
    model = BigGANModel.from_pretrained("user/cats")
    saved = BigGANModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)
    BigGANDiscriminator.from_pretrained("user/cats", subfolder="discriminator")


def test_a_run_that_can_not_start_reserves_no_repository(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    flags = ["--push_to_hub", "--hub_model_id", "user/cats", "--held_out_split", "validation"]
    with pytest.raises(SystemExit):
        main(arguments(pictures, tmp_path / "model", *flags))
    assert not fake_hub.repos


def test_unreadable_picture_in_the_middle_is_skipped_or_stops(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "pictures"
    for path in pictures.rglob("*.png"):
        copy = folder / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no picture" if path.name == "4.png" else path.read_bytes())
    for workers in ("0", "2"):
        output = tmp_path / f"skipped-{workers}"
        main(arguments(folder, output, "--dataloader_num_workers", workers, steps=4))
        assert (output / "model.safetensors").exists()
        assert read_log(output)[-1]["unreadable_pictures"] == 1
    line = error_line(arguments(folder, tmp_path / "stopped", "--on_unreadable_image", "error", steps=4), capsys)
    assert "unreadable picture" in line and "4.png" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "biggan-7"], "unknown preset 'biggan-7'; the presets are biggan-128"),
        (["--config_overrides", "image_size=48"], "image_size must be one of 32, 64, 128, 256, 512, got 48"),
        (["--config_overrides", "z_dim=63"], "z_dim=63 does not divide into 4 equal chunks"),
        (["--config_overrides", "generator_attention_resolutions=[64]"], "names 64, but no stage"),
        (["--config_overrides", "widht=3"], "BigGANConfig has no field 'widht'"),
        (["--config_overrides", 'z_dim="big"'], "Field 'z_dim' expected int, got str (value: 'big')"),
        (
            ["--config_overrides", "num_labels=5"],
            "the classes come from the data: config_overrides can't set num_labels",
        ),
        (["--dataset_name", "{empty}"], "cannot load split 'train'"),
        (["--dataset_name", "{corrupt}"], "is corrupt: none of 1 probed pictures can be read"),
        (["--dataset_name", "{labels}"], "label column 'label' has a label 5, expected 0 to 1"),
        (["--label_column", "image"], "label column 'image' is Image"),
        (["--global_batch_size", "10"], "global_batch_size=10 does not divide"),
        (["--compile", "--r1_gamma", "10"], "compile or R1"),
        (["--sigma_clamp", "1", "--sigma_clamp_ratio", "2"], "two ways to clamp; give one"),
        (
            ["--evaluation_steps", "1", *EVALUATION, "--evaluation_images", "3"],
            "evaluations would be of 3 images, fewer than the 4 features",
        ),
        (["--init_from", "/no/where/x"], "init_from must be a model's folder or Hub id, got '/no/where/x'"),
        (["--init_from", "{used}"], "which has no config.json"),
        (["--resume_from_checkpoint", "nowhere"], "no training checkpoint at 'nowhere'"),
        (["--output_dir", "{used}"], "is not empty"),
        (["--output_dir", "{used}", "--resume_from_checkpoint", "latest"], "has seed=7, this one seed=0"),
        (["--push_to_hub", "--hub_model_id", "user/x"], "can't create the repository 'user/x'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    pictures: Path, tmp_path: Path, capsys: Capture, flags: list[str], message: str
) -> None:
    names = {f"{{{name}}}": str(tmp_path / name) for name in ("empty", "corrupt", "labels", "used")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt" / "cat").mkdir(parents=True)
    (tmp_path / "corrupt" / "cat" / "0.png").write_bytes(b"no picture")
    write_labels_out_of_range(tmp_path / "labels")
    (tmp_path / "used").mkdir()
    settings = {"dataset_name": str(pictures), "dataset_config_name": None, "dataset_split": "train"}
    (tmp_path / "used" / "training_settings.json").write_text(
        json.dumps({**settings, "label_column": None, "seed": 7})
    )
    (tmp_path / "used" / "log.jsonl").write_text("of another run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = arguments(pictures, tmp_path / "model", *[names.get(flag, flag) for flag in flags])
    assert message in error_line(argv, capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_checkpoints_come_before_what_can_fail(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Quality, "measure", lambda *_: 1 / 0)
    flags = ["--evaluation_steps", "2", *EVALUATION]
    with pytest.raises(ZeroDivisionError):
        main(arguments(pictures, tmp_path / "model", *flags))
    assert (tmp_path / "model" / "checkpoint-2" / "training_state.pt").exists()


def test_a_run_without_sheets_has_curves(pictures: Path, tmp_path: Path) -> None:
    main(arguments(pictures, tmp_path / "model", "--sample_steps", "0", steps=1))
    assert (tmp_path / "model" / "curves.png").exists()


def test_one_of_two_processes_tells_a_mistake(pictures: Path, tmp_path: Path) -> None:
    done = launch(2, arguments(pictures, tmp_path / "model", "--global_batch_size", "7"))
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and "global_batch_size=7 does not divide" in line


def test_a_process_tells_last_what_it_alone_has_met(monkeypatch: Patch, capsys: Capture) -> None:
    told: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(time, "sleep", lambda seconds: told.append(capsys.readouterr().err))
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "biggan-7"])
    assert stop.value.code == 2 and told == [""]  # not before the launcher had its time
    assert capsys.readouterr().err.startswith("error: unknown preset 'biggan-7'")


def write_labels_out_of_range(folder: Path) -> None:
    """A parquet file whose labels go beyond their names, as nothing hinders them to."""
    pixels = Image.fromarray(np.zeros((32, 32), np.uint8))
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": [pixels] * 4, "label": [0, 5, 1, 0]}, features=features)
    named = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["u", "v"]))
    folder.mkdir()
    arrow = table.data.table.replace_schema_metadata(named.arrow_schema.metadata)
    pyarrow.parquet.write_table(arrow, folder / "train.parquet")


def test_cifar10_preset_runs_on_the_real_set(tmp_path: Path) -> None:
    data = REPO.parent / "shared" / "data" / "cifar10_jpeg"
    if not data.is_dir():
        pytest.skip(f"needs the CIFAR-10 pictures at {data}")
    flags = ["--preset", "cifar10", "--dataset_name", str(data), "--output_dir", str(tmp_path / "model")]
    overrides = ["--config_overrides", "generator_base_channels=8", "discriminator_base_channels=8"]
    main([*flags, *overrides, "--max_train_steps", "1", "--logging_steps", "1", "--per_device_batch_size", "8"])
    labels = BigGANModel.from_pretrained(tmp_path / "model").config.id2label
    assert labels is not None and list(labels.values())[::9] == ["airplane", "truck"]
