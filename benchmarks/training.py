"""One training iteration beside BigGAN-PyTorch's own: same weights, latents and pictures, losses compared first.

    python benchmarks/training.py --biggan_pytorch PATH --preset cifar10 --batch_size 50
    python benchmarks/training.py --biggan_pytorch PATH --image_size 128 --batch_size 64 --mixed_precision bf16

An iteration is what both programs count as one: the discriminator's updates, the generator's, the moving average.
Reading pictures is left out; they wait on the device.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measuring import (
    Contestant,
    Result,
    compare,
    count_flops,
    environment,
    matrix_product,
    parser,
    positive,
    profile,
    report,
    require_same,
    run,
    set_up,
    tensor_float32,
    timed,
    weigh,
)
from peers import BIGGAN_PYTORCH, OriginalTraining, biggan_pytorch_config, write_biggan_pytorch
from torch import Tensor
from transformers.utils import logging

from biggan_hf import BigGANConfig, BigGANModel, sample_latents
from biggan_hf.training.arguments import TRAINING_PRESETS, TrainingArguments
from biggan_hf.training.batches import counter_generator
from biggan_hf.training.ema import update_ema
from biggan_hf.training.players import adam, build_players, networks_to_fine_tune
from biggan_hf.training.steps import Batch, Players, Rules, discriminator_step, generator_step


# BigGAN-PyTorch, scripts/launch_BigGAN_bs256x8.sh, in one accumulated forward
IMAGENET: dict[str, Any] = {
    "num_discriminator_steps": 1,
    "generator_learning_rate": 1e-4,
    "discriminator_learning_rate": 4e-4,
    "generator_orthogonality": 0.0,
    "ema_start_step": 20_000,
}
# Of losses after an iteration of updates by Adam, which divides noise by noise where a gradient is nothing else.
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Game:
    """What both programs are told; `folder` holds both checkpoints."""

    config: BigGANConfig
    args: TrainingArguments
    checkout: Path | None
    folder: Path
    device: torch.device

    @property
    def images(self) -> int:
        """Pictures that the discriminator is shown in one iteration."""
        return self.args.per_device_batch_size * self.args.num_discriminator_steps

    def pictures(self) -> list[Batch]:
        """Noise of the pictures' shape, a batch an update."""
        size, channels = self.config.image_size, self.config.num_channels
        pixels = 2 * torch.rand(self.images, channels, size, size) - 1
        labels = torch.randint(self.config.num_labels or 1, (self.images,))
        split = self.args.per_device_batch_size
        parts = zip(pixels.to(self.device).split(split), labels.to(self.device).split(split), strict=True)
        return [Batch(*part) for part in parts]

    def latents(self) -> Iterator[Batch]:
        """As the loop draws them."""
        number, labels = self.args.per_device_batch_size, self.config.num_labels or 1
        for step in itertools.count():
            generator = counter_generator(self.device, step)
            latents = sample_latents(number, self.config.z_dim, generator=generator, device=self.device)
            yield Batch(latents, torch.randint(labels, (number,), generator=generator, device=self.device))


def train_once(
    players: Players, ema: BigGANModel, args: TrainingArguments, pictures: list[Batch], latents: Iterator[Batch]
) -> dict[str, Tensor]:
    """One `global_step`, as `biggan_hf.training.loop.train_step` makes it."""
    rules = Rules(iterate_every_forward=args.power_iteration == "every_forward")
    for real in pictures:
        metrics = discriminator_step(players, [(next(latents), real)], rules)
    metrics |= generator_step(players, [next(latents)], rules)
    update_ema(ema, players.bare_generator, args.ema_decay)
    return metrics


def original(game: Game, drawn: Sequence[tuple[Tensor, Tensor]] | None = None) -> OriginalTraining:
    args = game.args
    told = {
        "batch_size": args.per_device_batch_size,
        "num_D_steps": args.num_discriminator_steps,
        "G_lr": args.generator_learning_rate,
        "D_lr": args.discriminator_learning_rate,
        "adam_eps": args.adam_epsilon,
        "ema_decay": args.ema_decay,
    }
    return OriginalTraining(game.checkout, game.folder / "theirs", told, game.device, drawn)


def check_losses(accelerator: Accelerator, game: Game) -> tuple[float, int, int]:
    """
    An iteration of each program in float32, uncompiled, from the same weights on the same inputs.

    Returns:
        The largest difference of the losses, and the FLOPs of ours and theirs.

    Raises:
        ValueError: The losses are those of two functions.
    """
    args = game.args
    pictures, latents = game.pictures(), list(itertools.islice(game.latents(), args.num_discriminator_steps + 1))
    networks = networks_to_fine_tune(str(game.folder / "ours"), game.config)
    for network in networks:
        network.train().to(device=game.device)
    generator, discriminator, ema = networks
    optimizers = (
        adam(generator, args.generator_learning_rate, args),
        adam(discriminator, args.discriminator_learning_rate, args),
    )
    # Not by `Accelerator.prepare`, which would put mixed precision around them.
    players = Players(accelerator, generator, discriminator, *optimizers)
    program = original(game, [joined([batch]) for batch in latents])
    metrics: list[dict[str, Any]] = []
    with tensor_float32(False):
        flops = count_flops(lambda: metrics.append(train_once(players, ema, args, pictures, iter(latents))))
        peer_flops = count_flops(lambda: metrics.append(program.train(*joined(pictures))))
    ours, theirs = metrics
    left = torch.stack([ours["discriminator_loss"].cpu(), ours["generator_loss"].cpu()])
    right = torch.tensor([theirs["D_loss_real"] + theirs["D_loss_fake"], theirs["G_loss"]])
    scale, what = right.abs().max().clamp(min=1), "the losses of biggan_hf and BigGAN-PyTorch"
    return require_same(left / scale, right / scale, what, LOSS_TOLERANCE), flops, peer_flops


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    labels = [batch.class_labels for batch in batches if batch.class_labels is not None]
    return torch.cat([batch.inputs for batch in batches]), torch.cat(labels)


def measure(game: Game, options: argparse.Namespace) -> Result:
    device, args = game.device, game.args
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=options.mixed_precision)
    difference, flops, peer_flops = check_losses(accelerator, game)
    pictures, latents = game.pictures(), game.latents()

    def build_ours() -> Callable[[], object]:
        players, ema = build_players(accelerator, game.config, args, None, str(game.folder / "ours"))
        return lambda: train_once(players, ema, args, pictures, latents)

    def build_theirs() -> Callable[[], object]:
        program, inputs = original(game), joined(pictures)
        return lambda: program.train(*inputs)

    (ours, memory), (theirs, peer_memory) = weigh(build_ours, device), weigh(build_theirs, device)
    precision = f"float32{' in TF32' if options.tf32 else ''}"
    setting = ", ".join([options.mixed_precision.replace("no", precision), *chosen(options)])
    product = matrix_product(device, torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32)
    peer_product = matrix_product(device, torch.float32)
    left = Contestant("biggan_hf", setting, timed(ours, device), game.images, flops, product, memory)
    right = Contestant(
        BIGGAN_PYTORCH, precision, timed(theirs, device), game.images, peer_flops, peer_product, peer_memory
    )
    config = game.config
    what = f"training {config.image_size} px, ch {config.generator_base_channels}, D {len(pictures)}:1 G"
    result = compare(what, left, right, options.repeats, difference)
    for side in (left, right) if options.profile else ():
        print(profile(side, device))
    return result


def chosen(options: argparse.Namespace) -> list[str]:
    return [name for name in ("channels_last", "compile") if getattr(options, name)]


def build_game(options: argparse.Namespace, folder: Path, device: torch.device) -> Game:
    """Writes both checkpoints into the folder."""
    preset = options.preset or f"biggan-{options.image_size}"
    row = {**(TRAINING_PRESETS[preset] if options.preset else IMAGENET)}
    row |= {"channels_last": options.channels_last, "compile": options.compile}
    if options.batch_size is not None:
        row["per_device_batch_size"] = options.batch_size
    write_biggan_pytorch(
        options.biggan_pytorch, biggan_pytorch_config(preset, options.channels), folder, discriminator=True
    )
    config = BigGANConfig.from_pretrained(folder / "ours")
    return Game(config, TrainingArguments(**row), options.biggan_pytorch, folder, device)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--biggan_pytorch", type=Path, required=True, metavar="FOLDER", help="a checkout of BigGAN-PyTorch"
    )
    which = arguments.add_mutually_exclusive_group()
    which.add_argument("--preset", choices=["cifar10"], help="its launch_cifar_ema.sh: four updates of D, batch 50")
    which.add_argument("--image_size", type=int, default=128, help="its launch_BigGAN_bs256x8.sh at so many pixels")
    arguments.add_argument("--channels", type=positive, help="base width (default: the preset's)")
    arguments.add_argument("--batch_size", type=positive, help="pictures in an update (default: the preset's, or 64)")
    arguments.add_argument("--mixed_precision", choices=["no", "bf16"], default="no", help="of our side")
    arguments.add_argument("--compile", action="store_true", help="compile our networks")
    arguments.add_argument("--profile", action="store_true", help="print where the time of one more run goes")
    arguments.add_argument("--channels_last", action="store_true", help="our convolutions in channels-last layout")
    options = arguments.parse_args(argv)
    device = set_up(options)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, tensor_float32(options.tf32):
        results = [measure(build_game(options, Path(folder), device), options)]
    report("training", results, environment(device, ["accelerate"]), options.json)


if __name__ == "__main__":
    run(main)
