"""What `--preset auto` chooses from pictures and device, and why."""

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

from ..data import LabelledImages
from ..presets import preset_row
from ..processes import from_main, num_processes
from ..words import counted
from .arguments import Arguments, with_chosen


GIB = 2**30


class Found(NamedTuple):
    """What the choice follows from."""

    pictures: int
    side: int  # px, the shorter side of a stored picture: the median of those that were probed
    is_coloured: bool
    class_counts: list[int]  # of pictures that are shown as the data has them; none: as often of each, or no classes
    gpu_memory: float  # GiB; 0: the device is a CPU


class Rule(NamedTuple):
    preset: str
    gpu_memory: float  # GiB at least
    side: int  # px at least: enlarged by a third at most
    pictures: int  # at least


# The first row that fits is taken. biggan-*: 70 M weights need many pictures, and a GPU that ends in weeks. The others
# need the memory that benchmarks/needs.py computes, and 2.5 GiB for CUDA and the workspaces of its convolutions.
# A CPU would train small-64 for a month.
RULES = [
    #    preset      GiB  px  pictures
    Rule("biggan-128", 40, 96, 100_000),
    Rule("biggan-64", 40, 48, 100_000),
    Rule("small-128", 6, 96, 0),
    Rule("small-64", 4, 48, 0),
    Rule("cifar10", 3.5, 0, 0),
    Rule("demo", 0, 0, 0),
]


class Length(NamedTuple):
    below: float  # pictures
    diff_augment: bool
    passes: int  # over the pictures at most


# How often each picture is shown, if the preset's steps are not fewer. Without augmentation a GAN needs 100,000 to a
# million pictures (arXiv:2006.06676, introduction). The paper's model sees ImageNet 480 times (150,000 steps).
# DiffAugment's scripts show 50 million pictures, however few there are (5,000 passes over 10,000), and keep the best
# model. These runs show 3 to 15 million.
LENGTHS = [
    Length(1_000, True, 10_000),
    Length(10_000, True, 2_500),
    Length(100_000, True, 500),
    Length(float("inf"), False, 480),
]
UNEVEN = 2  # times as many pictures in the largest class as in the smallest: then labels are drawn as in the data


def choose(found: Found, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Settings, the preset among them, and one line that says why. The `given` ones stay, and others follow them."""
    rule = next(
        rule
        for rule in RULES
        if found.gpu_memory >= rule.gpu_memory and found.side >= rule.side and found.pictures >= rule.pictures
    )
    length = next(length for length in LENGTHS if found.pictures < length.below)
    row = {**preset_row(rule.preset).training, **(given or {})}
    batch = row["global_batch_size"] or row["per_device_batch_size"] * num_processes()
    shown = batch * row["num_discriminator_steps"]
    steps = max(length.passes * found.pictures // shown, 1)
    settings: dict[str, Any] = {"preset": rule.preset, "diff_augment": length.diff_augment}
    settings["max_train_steps"] = min(steps, row["max_train_steps"])
    # Of a short run, half is averaged: biggan-* begin at step 20,000, which 100,000 pictures do not reach.
    begin = min(row["ema_start_step"], settings["max_train_steps"] // 2)
    settings |= {"ema_start_step": begin} if begin < row["ema_start_step"] else {}
    settings["config_overrides"] = [f"num_channels={3 if found.is_coloured else 1}"]
    is_uneven = bool(found.class_counts) and max(found.class_counts) > UNEVEN * min(found.class_counts)
    settings |= {"label_sampling": "counts"} if is_uneven else {}
    gpu = f"a GPU of {found.gpu_memory:.0f} GiB" if found.gpu_memory else "a CPU, for which others are too large"
    colour = "coloured" if found.is_coloured else "grey"
    why = [
        f"{counted(found.pictures, 'picture')}, {colour}, of {found.side} px; {gpu}",
        "augmented, since they are few" if length.diff_augment else "not augmented, since they are many",
        f"at most {length.passes:,} passes over them",
        *(["labels drawn as often as in the data, whose classes are uneven"] if is_uneven else []),
    ]
    return settings, f"{rule.preset}, by --preset auto: {'; '.join(why)}"


def choose_preset(arguments: Arguments, images: LabelledImages, device: torch.device) -> tuple[Arguments, str]:
    """The arguments with what was chosen below what was given. All processes take what the first one chose."""
    found = found_in(images, device)
    if arguments[1].class_sampling == "balanced":
        found = found._replace(class_counts=[])
    sizes = ("global_batch_size", "per_device_batch_size", "num_discriminator_steps")
    given = {name: getattr(arguments[2], name) for name in sizes if name in arguments[0].given}
    settings, why = from_main(choose(found, given))
    return with_chosen(arguments, settings), why


def found_in(images: LabelledImages, device: torch.device) -> Found:
    side = round(median(min(picture.height, picture.width) for picture in images.probed))
    counts = images.contents.class_counts if images.class_names else []
    is_coloured = any(picture.is_coloured for picture in images.probed)
    return Found(images.num_readable, side, is_coloured, [n for n in counts if n], gpu_memory(device))


def gpu_memory(device: torch.device) -> float:
    """GiB; of a Mac's GPU what its system lets it have."""
    if device.type == "cpu":
        return 0.0
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / GIB
    return torch.get_device_module(device).get_device_properties(device).total_memory / GIB
