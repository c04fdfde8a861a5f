"""What a training needs, computed without a device: memory by a formula, work by torch's counter of FLOPs.

python benchmarks/needs.py                                            # the tables of docs/your-own-pictures.md
python benchmarks/needs.py --dollars_an_hour 5                        # the table of docs/jobs.md
MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/needs.py --measure 64  # a tiny model: computed, and on a CPU
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.presets import preset_row
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.choosing import RULES, Found, choose
from biggan_hf.training.fitting import update
from biggan_hf.training.losses import LOSSES
from biggan_hf.training.players import build_players


GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """
    Of one process in float32, without CUDA graphs. The orthogonal penalty is left out: it takes its memory when the
    activations are gone.
    """

    weights: int  # bytes: parameters and buffers of both networks
    learning: int  # bytes: gradients and the two moments of Adam
    average: int  # bytes: the averaged generator
    activations: int  # bytes: what the larger of the two updates keeps for its backward pass
    passing: int  # bytes: gradients of activations, of which the largest and its successor are there at once
    flops: int  # of an iteration: all updates of the discriminator, one of the generator

    @property
    def memory(self) -> int:
        """Bytes at the most."""
        return self.weights + self.learning + self.average + self.activations + self.passing


def needs_of(config: BigGANConfig, batch: int, forward: int, discriminator_steps: int) -> Needs:
    """
    Args:
        batch: Pictures in an update.
        forward: Pictures in a forward of the one process.
    """
    with torch.device("meta"):
        networks: dict[str, Any] = {"generator": BigGANModel(config), "discriminator": BigGANDiscriminator(config)}
        fake = _Updates(**networks, size=forward)
    for network in networks.values():
        network.train()
    both = [tensor for network in networks.values() for tensor in (*network.parameters(), *network.buffers())]
    parameters = [tensor for network in networks.values() for tensor in network.parameters()]
    kept = [_kept(update, both) for update in (fake.discriminator_step, fake.generator_step)]
    work = [measuring.count_flops(update) for update in (fake.discriminator_step, fake.generator_step)]
    return Needs(
        weights=_bytes(both),
        learning=3 * _bytes(parameters),
        average=_bytes(networks["generator"].state_dict().values()),
        activations=max(sum(sizes) for sizes in kept),
        passing=2 * max(size for sizes in kept for size in sizes),
        flops=(discriminator_steps * work[0] + work[1]) * batch // forward,
    )


def needs_of_preset(name: str, forward: int | None = None, **overrides: Any) -> Needs:
    """`forward` is by default that of the preset."""
    row = preset_row(name).training
    forward = forward or row["per_device_batch_size"]
    batch = row["global_batch_size"] or row["per_device_batch_size"]
    return needs_of(BigGANConfig.preset(name, **overrides), batch, forward, row["num_discriminator_steps"])


@dataclass
class _Updates:
    """The two updates as `training/steps.py` makes them, on a device without values."""

    generator: nn.Module
    discriminator: nn.Module
    size: int

    def _latents(self) -> tuple[Tensor, Tensor | None]:
        config: Any = self.generator.config
        labels = torch.zeros(self.size, dtype=torch.int64, device="meta") if config.num_labels else None
        return torch.zeros(self.size, config.z_dim, device="meta"), labels

    def discriminator_step(self) -> None:
        latents, labels = self._latents()
        with torch.no_grad():
            fake = self.generator(latents, labels).images
        pictures = torch.cat([fake, torch.zeros_like(fake)])
        logits = self.discriminator(pictures, None if labels is None else torch.cat([labels, labels])).logits
        LOSSES["hinge"].of_discriminator(*logits.split(self.size)).backward()

    def generator_step(self) -> None:
        self.discriminator.requires_grad_(False)
        latents, labels = self._latents()
        logits = self.discriminator(self.generator(latents, labels).images, labels).logits
        LOSSES["hinge"].of_generator(logits, logits).backward()
        self.discriminator.requires_grad_(True)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _kept(update: Callable[[], None], known: Sequence[Tensor]) -> list[int]:
    """Bytes of each storage that autograd keeps in the update, but for those of the weights."""
    own = {tensor.untyped_storage()._cdata for tensor in known}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that no other one takes its place
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        update()
    return [size for _, size in kept.values()]


# Against a run


def measured_memory(config: BigGANConfig, forward: int) -> int:
    """
    Bytes that two updates of each network add to this process at the most, on a CPU. To be called in a process that
    has done nothing yet, with MALLOC_MMAP_THRESHOLD_=65536: then the C library keeps nothing that was freed.
    """
    accelerator = Accelerator(cpu=True)
    args = TrainingArguments(per_device_batch_size=forward, generator_orthogonality=0.0)
    grid = torch.zeros(1, 8, 8, 8)
    torch.nn.functional.conv2d(grid, torch.zeros(8, 8, 3, 3))  # the library of convolutions is loaded
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is there now
    before = _most_so_far()
    players, ema = build_players(accelerator, config, args, None, None)
    for _ in range(2):  # only the second one meets the moments of Adam
        update(args, players, ema)
    return _most_so_far() - before


def _most_so_far() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# The tables of docs/your-own-pictures.md


@dataclass(frozen=True)
class Device:
    name: str
    gib: float  # of memory; 0: a CPU
    rate: float  # FLOP/s of a training


# Measured: pictures a second of `cifar10` on an H200 in bfloat16 (docs/benchmarks.md), 200 pictures and
# FLOPS_OF_CIFAR10 an iteration. Two cores: 10 pictures a forward in 2.90 s an iteration (docs/training.md).
FLOPS_OF_CIFAR10 = 2.014e12
CIFAR10_IN_BF16 = 8_535
H200 = CIFAR10_IN_BF16 / 200 * FLOPS_OF_CIFAR10
TWO_CORES = FLOPS_OF_CIFAR10 * 10 / 50 / 2.90
# As many times slower as the card has less of what it lacks most beside an H200 (989 TFLOP/s, 4,800 GB/s, dense
# bfloat16 with sums in float32): RTX 3070 40.6 and 448, RTX 3090 71 and 936 (NVIDIA's white paper of GA102), A100 with
# 80 GB 312 and 2,039 (its data sheet).
DEVICES = [
    Device("CPU, 2 cores", 0, TWO_CORES),
    Device("8 GB (RTX 3070)", 8, H200 * min(40.6 / 989, 448 / 4_800)),
    Device("24 GB (RTX 3090)", 24, H200 * min(71 / 989, 936 / 4_800)),
    Device("80 GB (A100)", 80, H200 * min(312 / 989, 2_039 / 4_800)),
]


def table_of_presets(names: Sequence[str]) -> Iterator[str]:
    yield "| preset | batch | pictures a forward | weights and their like | activations | together | TFLOP a step |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        row = preset_row(name).training
        batch = row["global_batch_size"] or row["per_device_batch_size"]
        for forward in (row["per_device_batch_size"], row["per_device_batch_size"] // 2):
            needs = needs_of_preset(name, forward, num_labels=0)
            fixed, moving = needs.weights + needs.learning + needs.average, needs.activations + needs.passing
            memory = " | ".join(f"{size / GIB:.2f}" for size in (fixed, moving, needs.memory))
            yield f"| `{name}` | {batch:,} | {forward} | {memory} | {needs.flops / 1e12:.3g} |"


def table_of_times(needs: dict[str, Needs]) -> Iterator[str]:
    yield f"| pictures | px | augmented | {' | '.join(device.name for device in DEVICES)} |"
    yield f"|---|---|---|{'---|' * len(DEVICES)}"
    for pictures in (300, 3_000, 30_000, 300_000):
        for side in (32, 64, 128):
            chosen = [choose(Found(pictures, side, True, [], device.gib))[0] for device in DEVICES]
            cells = []
            for settings, device in zip(chosen, DEVICES, strict=True):
                name, steps = settings["preset"], settings["max_train_steps"]
                time = _duration(needs[name].flops * steps / device.rate)
                cells.append(f"`{name}`, {steps:,} steps, {time}")
            augmented = "yes" if chosen[0]["diff_augment"] else "no"
            yield f"| {pictures:,} | {side} | {augmented} | {' | '.join(cells)} |"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds / 60, 1):.0f} min"


# The table of docs/jobs.md


@dataclass(frozen=True)
class Training:
    """A training whose rate was measured on an H200."""

    name: str
    pictures: int  # that the discriminator sees, generated ones not counted
    rate: float  # pictures a second

    @property
    def hours(self) -> float:
        return self.pictures / self.rate / 3_600


def measured_trainings() -> list[Training]:
    row = preset_row("cifar10").training
    pictures = row["max_train_steps"] * row["num_discriminator_steps"] * row["per_device_batch_size"]
    return [
        Training("`cifar10`, bfloat16, channels last", pictures, CIFAR10_IN_BF16),
        Training("`cifar10`, TF32", pictures, 6_173),
        # The model that comes with the package, by its card: 3.1 minutes beside four other trainings.
        Training("`docs/recipes/fashion-mnist.yaml`, beside four other trainings", 373_504, 373_504 / (3.1 * 60)),
    ]


def table_of_costs(dollars_an_hour: float) -> Iterator[str]:
    yield "| training | pictures | images/s, measured | minutes | dollars |"
    yield "|---|---|---|---|---|"
    for training in measured_trainings():
        numbers = f"{training.pictures:,} | {training.rate:,.0f} | {60 * training.hours:.1f}"
        yield f"| {training.name} | {numbers} | {training.hours * dollars_an_hour:.2f} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=int, metavar="N", help="Measure the memory, N pictures a forward.")
    parser.add_argument("--preset", default="cifar10", help="With --measure. (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=16, help="With --measure. (default: %(default)s)")
    text = "What an hour of the GPU costs: prints what trainings cost."
    parser.add_argument("--dollars_an_hour", type=float, metavar="X", help=text)
    args = parser.parse_args(argv)
    if args.dollars_an_hour is not None:
        print("\n".join(table_of_costs(args.dollars_an_hour)))
        return
    widths = {f"{network}_base_channels": args.channels for network in ("generator", "discriminator")}
    if args.measure:
        config = BigGANConfig.preset(args.preset, **widths)
        computed = needs_of(config, args.measure, args.measure, 1).memory
        print(json.dumps({"computed": computed, "measured": measured_memory(config, args.measure)}))
        return
    names = list(dict.fromkeys(rule.preset for rule in RULES))
    print("\n".join(table_of_presets(names)), "\n")
    print("\n".join(table_of_times({name: needs_of_preset(name, num_labels=0) for name in names})), "\n")
    narrow = {"generator_base_channels": 32, "discriminator_base_channels": 32, "num_labels": 0}
    night = needs_of_preset("cifar10", **narrow).flops * 10_000 / TWO_CORES
    print(f"cifar10 of 32 channels, 10,000 steps on two cores: {_duration(night)}")


if __name__ == "__main__":
    main()
