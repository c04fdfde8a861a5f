"""Trains `cifar10` for some minutes by train.py, or by BigGAN-PyTorch's own functions, and packs what is made of it.

    python benchmarks/speedrun.py ours --dataset_name uoft-cs/cifar10 --minutes 5 --output ours.zip --compile
    python benchmarks/speedrun.py theirs --dataset_name uoft-cs/cifar10 --minutes 5 --output theirs.zip \
        --biggan_pytorch PATH

The zip holds the averaged generator in float16, a folder that `biggan-hf evaluate` takes, with its log and a sheet of
samples. Other arguments go to train.py. The other program gets all pictures decoded on the device before its minutes
begin; ours reads them within.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import positive, run
from peers import OriginalTraining, biggan_pytorch_config, write_biggan_pytorch

from biggan_hf import BigGANModel
from biggan_hf.conversion import convert_biggan_pytorch
from biggan_hf.data import load_labelled_images
from biggan_hf.images import sample_sheet
from biggan_hf.presets import PRESETS
from biggan_hf.training.batches import to_pixel_values


TRAIN = Path(__file__).parents[1] / "train.py"
LOGGING_STEPS = 50


def train_ours(options: argparse.Namespace, others: list[str], folder: Path) -> None:
    """Leaves the model of a run of train.py, also of one that ended badly; raises `ValueError` where there is none."""
    settings = [] if options.settings is None else [str(options.settings)]
    command = [
        sys.executable,
        str(TRAIN),
        *settings,
        *others,
        "--preset",
        "cifar10",
        "--dataset_name",
        options.dataset_name,
    ]
    command += ["--output_dir", str(folder), "--max_train_minutes", str(options.minutes)]
    command += ["--checkpointing_steps", "0", "--sample_steps", "0", "--logging_steps", str(LOGGING_STEPS)]
    if options.channels is not None:
        widths = [f"{network}_base_channels={options.channels}" for network in ("generator", "discriminator")]
        command += ["--config_overrides", *widths]
    status = subprocess.run(command).returncode
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"train.py ended with exit status {status} and left no model")


def train_theirs(options: argparse.Namespace, folder: Path) -> None:
    """The same of the other program, with the settings of its launch_cifar_ema.sh."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row = PRESETS["cifar10"].training
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in its train.py
    checkout = options.biggan_pytorch
    config = biggan_pytorch_config("cifar10", options.channels)
    start = folder / "start"
    start.mkdir()
    write_biggan_pytorch(checkout, config, start, discriminator=True)
    batch_size, updates = row["per_device_batch_size"], row["num_discriminator_steps"]
    told = {
        "batch_size": batch_size,
        "num_D_steps": updates,
        "G_lr": row["generator_learning_rate"],
        "D_lr": row["discriminator_learning_rate"],
        "adam_eps": row["adam_epsilon"],
        "ema_decay": row["ema_decay"],
        "ema_start": row["ema_start_step"],
    }
    program = OriginalTraining(checkout, start / "theirs", told, device)
    images = load_labelled_images(options.dataset_name, image_size=config.image_size)
    every = images.__getitems__(range(len(images)))
    assert every["class_labels"] is not None
    pictures, labels = every["pixel_values"].to(device), every["class_labels"].to(device)
    begun, step = time.monotonic(), 0
    with (folder / "log.jsonl").open("w", encoding="utf-8") as log:
        while time.monotonic() < begun + 60 * options.minutes:
            rows = torch.randint(len(labels), (batch_size * updates,), device=device)
            losses = program.train(to_pixel_values(pictures[rows], device), labels[rows])
            step += 1
            if step % LOGGING_STEPS == 0:
                line = {"step": step, "seconds": time.monotonic() - begun, "samples_seen": step * len(rows), **losses}
                print(json.dumps(line), file=log, flush=True)
    print(f"{step} steps in {time.monotonic() - begun:.0f} s")
    trained = folder / "trained"
    shutil.copytree(start / "theirs", trained)
    torch.save(program.average.state_dict(), trained / "G.pth")
    torch.save(program.discriminator.state_dict(), trained / "D.pth")
    convert_biggan_pytorch.main([str(trained), "--output", str(folder / "model")])


def pack(folder: Path, files: Path, output: Path) -> None:
    """The model's folder in float16, and of the other folder what tells of the run."""
    model = BigGANModel.from_pretrained(folder)
    packed = files / "packed"
    sample_sheet(model).save(files / "samples.png")
    model.half().save_pretrained(packed)
    for name in ("log.jsonl", "samples.png", "report.txt", "training_settings.json"):
        if (files / name).is_file():
            shutil.copy(files / name, packed)
    shutil.make_archive(str(output.with_suffix("")), "zip", packed)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("program", choices=["ours", "theirs"])
    parser.add_argument("--dataset_name", required=True, help="CIFAR-10, as for train.py")
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.zip", help="replaced if it is there")
    parser.add_argument("--channels", type=positive, help="base width (default: the preset's)")
    parser.add_argument("--settings", type=Path, metavar="FILE.yaml", help="of train.py, for ours")
    parser.add_argument("--biggan_pytorch", type=Path, metavar="FOLDER", help="a checkout, for theirs")
    options, others = parser.parse_known_args(argv)
    if others and options.program == "theirs":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.program == "ours":
            train_ours(options, others, folder / "ours")
            pack(folder / "ours", folder / "ours", options.output)
        else:
            train_theirs(options, folder)
            pack(folder / "model", folder, options.output)


if __name__ == "__main__":
    run(main)
