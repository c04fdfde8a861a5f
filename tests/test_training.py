"""Whole runs: cut off and resumed, pushed, and refused."""

import json
import shutil
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
from training_runs import EVALUATION, REPO, Capture, Patch, arguments, error_line, read_log, write_pictures

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.data import UnreadablePictureError, load_labelled_images
from biggan_hf.training import main
from biggan_hf.training.ending import explain
from biggan_hf.training.quality import Quality


def networks(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder / "model.safetensors", folder / "discriminator" / "model.safetensors"]
    files += sorted(folder.glob("checkpoint-*/generator/model.safetensors"))[-1:]
    return {f"{file.relative_to(folder)} {name}": t for file in files for name, t in load_file(file).items()}


def test_resumed_run_is_the_uninterrupted_run_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    flags = ["--horizontal_flip", "--num_discriminator_steps", "2", "--global_batch_size", "8", "--diff_augment"]
    flags += ["--config_overrides", "discriminator_dropout=0.5", "generator_base_channels=4"]
    # The gradient of least squares never vanishes, as hinge's does on so little noise; and the checkpoint's average is
    # no copy any more.
    flags += ["--loss", "least_squares", "--ema_start_step", "2"]
    main(arguments(pictures, tmp_path / "whole", *flags, steps=4))
    main(arguments(pictures, tmp_path / "parts", *flags, steps=2))
    with open(tmp_path / "parts" / "log.jsonl", "a", encoding="utf-8") as log:  # what a kill may leave
        log.write('{"step": 3, "discriminator_loss": 99.0}\n{"step": 4, "discrimi')
    main(arguments(pictures, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest", steps=4))
    whole, parts = networks(tmp_path / "whole"), networks(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    logs = [[{**line, "time": None} for line in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [1, 2, 3, 4]


def test_a_run_without_time_labels_and_sheets(pictures: Path, tmp_path: Path) -> None:
    flags = ["--max_train_minutes", "1e-9", "--label_column", "none", "--sample_steps", "0"]
    main(arguments(pictures, tmp_path / "model", *flags, steps=1000))
    assert len(read_log(tmp_path / "model")) == 1 and (tmp_path / "model" / "curves.png").exists()
    model = BigGANModel.from_pretrained(tmp_path / "model")
    assert model.config.num_labels == 0 and model.sample(num_images_per_prompt=3).shape == (3, 1, 32, 32)


def test_pushed_run_comes_back_from_the_hub(pictures: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    flags = ["--push_to_hub", "--hub_model_id", "user/cats"]
    with pytest.raises(SystemExit):  # a run that can't start reserves no repository
        main(arguments(pictures, tmp_path / "model", *flags, "--held_out_split", "validation"))
    assert not fake_hub.repos
    main(arguments(pictures, tmp_path / "model", *flags))
    model, saved = (BigGANModel.from_pretrained(where) for where in ("user/cats", tmp_path / "model"))
    torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)
    BigGANDiscriminator.from_pretrained("user/cats", subfolder="discriminator")


def test_unreadable_picture_in_the_middle_is_skipped_or_stops(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    next(folder.rglob("4.png")).write_bytes(b"no picture")
    for workers in ("0", "2"):
        output = tmp_path / f"skipped-{workers}"
        main(arguments(folder, output, "--dataloader_num_workers", workers, steps=4))
        assert (output / "model.safetensors").exists()
        assert read_log(output)[-1]["unreadable_pictures"] == 1
    line = error_line(arguments(folder, tmp_path / "stopped", "--on_unreadable_image", "error", steps=4), capsys)
    assert "unreadable picture" in line and "4.png" in line


def test_the_error_of_a_worker_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    images = load_labelled_images(str(folder), image_size=8, max_cache_bytes=0, on_unreadable_image="error")
    (folder / "cat" / "0.png").write_bytes(b"no picture")
    loader = torch.utils.data.DataLoader(images, batch_sampler=[[0]], num_workers=1)
    with pytest.raises(UnreadablePictureError, match="^unreadable picture .*away$") as caught:
        next(iter(loader))
    run: Any = object()  # it has begun
    line, status = explain(caught.value, run)
    assert line.startswith("error: unreadable picture /") and status == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_overrides", "z_dim=63"], "z_dim=63 does not divide into 4 equal chunks"),
        (["--config_overrides", "widht=3"], "BigGANConfig has no field 'widht'"),
        (["--config_overrides", 'z_dim="big"'], "Field 'z_dim' expected int, got str (value: 'big')"),
        (["--config_overrides", "num_labels=5"], "the classes come from the data: config_overrides can't set num_la"),
        (["--dataset_name", "{empty}"], "there are no pictures in"),
        (["--dataset_name", "{corrupt}"], "none of 1 probed pictures of dataset"),
        (["--dataset_name", "{labels}"], "label column 'label' has a label 5, expected 0 to 1"),
        (["--label_column", "image"], "label_column 'image' is not a column"),
        (["--global_batch_size", "10"], "global_batch_size=10 does not divide"),
        (["--per_device_batch_size", "11"], "the data set has 10 pictures, fewer than one update takes, 11"),
        (["--r1_interval", "0"], "r1_interval must be at least 1, got 0"),
        (["--freeze_discriminator_stages", "4"], "freeze_discriminator_stages must be below 4"),
        (["--train_only", "class_embeddings", "--label_column", "none"], "train_only=class_embeddings needs classes"),
        (["--report_to", "tensorboard,wandb"], "report_to names 'wandb'"),
        (["--held_out_split", "train", "--watch_steps", "0"], "held_out_split='train' is tried every watch_steps"),
        (["--cross_replica_batch_norm", "some"], "cross_replica_batch_norm must be 'off', 'on' or a number"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "0"], "on_collapse=rollback needs checkpoints"),
        (["--held_out_split", "train", "--loss", "relativistic"], "held_out_split='train' with loss=relativistic"),
        (["--sigma_clamp", "1", "--sigma_clamp_ratio", "2"], "two ways to clamp; give one"),
        (
            ["--sigma_clamp", "1", "--config_overrides", "generator_spectral_norm=false"],
            "weights that learn and have sp",
        ),
        (
            [*EVALUATION, "--evaluation_images", "1", "--evaluation_allow_few_images"],
            "evaluations would be of 1 image,",
        ),
        (
            [*EVALUATION, "--evaluation_distance", "fid", "--evaluation_images", "3"],
            "evaluations would be of 3 images, fewer than the 4 features",
        ),
        (["--init_from", "/no/where/x"], "init_from must be a model's folder or Hub id, got '/no/where/x'"),
        (["--init_from", "{used}"], "which has no config.json"),
        (["--resume_from_checkpoint", "nowhere"], "no training checkpoint at 'nowhere'"),
        (["--output_dir", "{used}"], "is not empty"),
        (["--output_dir", "{used}", "--resume_from_checkpoint", "latest", "--seed", "3"], "has seed=7, this one see"),
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
    settings = {"dataset_name": str(pictures), "dataset_config_name": None, "dataset_split": "train", "seed": 7}
    (tmp_path / "used" / "training_settings.json").write_text(json.dumps(settings))
    (tmp_path / "used" / "log.jsonl").write_text("of another run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = arguments(pictures, tmp_path / "model", *[names.get(flag, flag) for flag in flags])
    assert message in error_line(argv, capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_checkpoints_come_before_what_can_fail(pictures: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Quality, "measure", lambda *_: 1 / 0)
    flags = [*EVALUATION, "--evaluation_steps", "2"]
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, tmp_path / "model", *flags))
    assert stop.value.code == 1 and "ZeroDivisionError" in (tmp_path / "model" / "traceback.txt").read_text()
    assert (tmp_path / "model" / "checkpoint-2" / "training_state.pt").exists()


def test_a_process_tells_last_what_it_alone_has_met(monkeypatch: Patch, capsys: Capture) -> None:
    told: list[str] = []
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():  # and no store in which they could count
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: told.append(capsys.readouterr().err))
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "biggan-7"])
    assert stop.value.code == 2 and told == [""]  # not before the launcher had its time
    assert capsys.readouterr().err.startswith("\nerror: unknown preset 'biggan-7'")


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
