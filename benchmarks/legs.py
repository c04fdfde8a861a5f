"""A leg of `quality.py`: one program that trains with one seed, in a folder of its own, and what it leaves there."""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from measuring import environment
from peers import BIGGAN_PYTORCH, OriginalTraining, write_biggan_pytorch
from torch import Tensor
from training import joined, told

from biggan_hf import BigGANConfig, BigGANModel
from biggan_hf.cards import public_name
from biggan_hf.conversion import convert_biggan_pytorch
from biggan_hf.data import LabelledImages, load_labelled_images
from biggan_hf.files import checksum_of_weights, replaced_folder, save_archive, write_file, write_text
from biggan_hf.finite import wrong_tensor
from biggan_hf.presets import PRESETS
from biggan_hf.training import DataArguments, ModelArguments, TrainingArguments
from biggan_hf.training.batches import BatchSource, counter_seed
from biggan_hf.training.loop import train_step
from biggan_hf.training.set_up import set_up


PRESET = "cifar10"  # BigGAN-PyTorch's launch_cifar_ema.sh
SPEED = ("mixed_precision", "compile", "channels_last")  # of our side alone
SETTINGS, LOG = "leg.json", "log.jsonl"

Row = dict[str, Any]


class Program(Protocol):
    """A training between two iterations. It goes on from its last checkpoint, if there is one."""

    @property
    def images(self) -> int:
        """Real pictures that the discriminator has been shown."""

    def step(self) -> Mapping[str, Tensor | float]:
        """One iteration; among others the losses of its last updates."""

    def average(self) -> BigGANModel: ...

    def save(self) -> None: ...


class Ours:
    """The project's own run, step by step."""

    def __init__(self, leg: Path, options: argparse.Namespace, images: LabelledImages):
        start = None if options.biggan_pytorch is None else str(leg / "start" / "ours")
        widths = [] if start else [f"{name}={width}" for name, width in widths_of(options).items()]
        networks = ModelArguments(PRESET, init_from=start, config_overrides=widths)
        args = arguments(options, output_dir=str(leg / "training"), resume_from_checkpoint="latest")
        self.run = set_up(networks, DataArguments(options.dataset_name, horizontal_flip=True), args)
        self.run.batches.images = images  # the decoded ones
        self.run.batches.start(self.run.batch_seed, self.images)

    @property
    def images(self) -> int:
        return self.run.batches.samples_seen

    def step(self) -> Mapping[str, Tensor | float]:
        return train_step(self.run)

    def average(self) -> BigGANModel:
        return self.run.ema

    def save(self) -> None:
        self.run.checkpoint()


class Theirs:
    """The original's training function. Its draws follow from the seed and the images, so that it can go on."""

    def __init__(self, leg: Path, options: argparse.Namespace, images: LabelledImages):
        device, self.args, self.start = torch.device(options.device), arguments(options), leg / "start" / "theirs"
        given = {**told(self.args), "ema_start": self.args.ema_start_step}
        self.program = OriginalTraining(options.biggan_pytorch, self.start, given, device)
        place = {"z_dim": 0, "num_labels": 0, "seed": options.seed, "rank": 0, "world_size": 1}
        batch = self.args.per_device_batch_size
        self.batches = BatchSource(images, batch_size=batch, device=device, horizontal_flip=True, **place)
        self.checkpoint = leg / "training.pt"
        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.batches.start(options.seed, state.pop("images"))
            self.program.restore(state)

    @property
    def images(self) -> int:
        return self.batches.samples_seen

    def step(self) -> Mapping[str, Tensor | float]:
        torch.manual_seed(counter_seed(self.args.seed, self.images))
        losses = self.program.train(
            *joined([self.batches.pictures() for _ in range(self.args.num_discriminator_steps)])
        )
        both = losses["D_loss_real"] + losses["D_loss_fake"]
        return {"discriminator_loss": both, "generator_loss": losses["G_loss"]}

    def average(self) -> BigGANModel:
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder = Path(name)
            torch.save({name: t.cpu() for name, t in self.program.average.state_dict().items()}, folder / "G.pth")
            shutil.copy(self.start / "state_dict.pth", folder)
            convert_biggan_pytorch.main([str(folder), "--output", str(folder / "ours")])
            return BigGANModel.from_pretrained(folder / "ours")

    def save(self) -> None:
        with write_file(self.checkpoint) as unfinished:
            save_archive({**self.program.state(), "images": self.images}, unfinished)


# The start


def widths_of(options: argparse.Namespace) -> dict[str, int]:
    names = ("generator_base_channels", "discriminator_base_channels")
    return {} if options.channels is None else dict.fromkeys(names, options.channels)


def arguments(options: argparse.Namespace, **run: Any) -> TrainingArguments:
    given = {name: getattr(options, name) for name in ("ema_decay", "ema_start_step")}
    given["per_device_batch_size"] = options.batch_size
    row = PRESETS[PRESET].training | {name: value for name, value in given.items() if value is not None}
    row |= {name: getattr(options, name) for name in SPEED} | run
    return TrainingArguments(**row, seed=options.seed, checkpoints_total_limit=1, on_collapse="ignore")


def load_pictures(dataset_name: str) -> LabelledImages:
    config = BigGANConfig.preset(PRESET)
    return load_labelled_images(dataset_name, image_size=config.image_size, num_channels=config.num_channels)


def open_leg(leg: Path, options: argparse.Namespace, device: torch.device) -> Program:
    """Writes `leg.json` and the first weights; raises `ValueError` where the leg began with other settings."""
    if options.whose == "theirs" and options.biggan_pytorch is None:
        raise ValueError(f"training theirs needs --biggan_pytorch, a checkout of {BIGGAN_PYTORCH}")
    images = load_pictures(options.dataset_name)
    for rows in torch.arange(len(images)).split(1000):  # decodes all, which then takes no time of the training
        images.__getitems__(rows.tolist())
    if options.biggan_pytorch is not None and not (leg / "start").is_dir():
        torch.manual_seed(options.seed)
        config = BigGANConfig.preset(PRESET, id2label=dict(enumerate(images.class_names)), **widths_of(options))
        with replaced_folder(leg / "start") as folder:
            write_biggan_pytorch(options.biggan_pytorch, config, folder, discriminator=True)
    names = ("whose", "seed", "channels", "batch_size", "ema_decay", "ema_start_step", "tf32")
    settings = {name: getattr(options, name) for name in (*names, *(SPEED if options.whose == "ours" else ()))}
    settings |= {"pictures": public_name(options.dataset_name), "number": len(images)}
    settings["start"] = checksum_of_weights(leg / "start" / "ours") if (leg / "start").is_dir() else None
    before = read_settings(leg)["settings"] if (leg / SETTINGS).is_file() else settings
    for name, value in settings.items():
        if before[name] != value:
            raise ValueError(f"the leg {str(leg)!r} began with {name}={before[name]!r}, now it is {value!r}")
    where = environment(device, ["accelerate"])
    del where["command"]  # it names folders of this machine
    write_text(leg / SETTINGS, json.dumps({"settings": settings, "environment": where}, indent=2) + "\n")
    return (Ours if options.whose == "ours" else Theirs)(leg, options, images)


# What it leaves


def write_snapshot(leg: Path, program: Program) -> None:
    """The average, with weights in half precision and statistics in full; then the checkpoint."""
    average = program.average()
    if why := wrong_tensor(average):
        raise ValueError(f"the average of {leg.name} after {program.images:,} images: {why}")
    learned = {name for name, _ in average.named_parameters()}
    weights = {
        name: (tensor.half() if name in learned else tensor).cpu() for name, tensor in average.state_dict().items()
    }
    average.save_pretrained(snapshot(leg, program.images), state_dict=weights)
    program.save()


def snapshot(leg: Path, images: int) -> Path:
    return leg / "snapshots" / f"{images:09}"


def read_settings(leg: Path) -> dict[str, Any]:
    return json.loads((leg / SETTINGS).read_text(encoding="utf-8"))


def read_log(leg: Path) -> list[Row]:
    lines = (leg / LOG).read_text(encoding="utf-8").splitlines() if (leg / LOG).is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last one off
