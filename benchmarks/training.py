"""One training iteration beside BigGAN-PyTorch's own: same weights, latents and pictures, outcomes compared first.

    python benchmarks/training.py --biggan_pytorch PATH --preset cifar10 --batch_size 50
    python benchmarks/training.py --biggan_pytorch PATH --image_size 128 --batch_size 64 --mixed_precision bf16

An iteration is what both programs count as one: the discriminator's updates, the generator's, the moving average.
Reading pictures is left out; they wait on the device.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from biggan_hf.presets import PRESETS
from biggan_hf.training.arguments import TrainingArguments
from biggan_hf.training.batches import counter_generator
from biggan_hf.training.ema import update_ema
from biggan_hf.training.graphs import WARM_UP, Graphs
from biggan_hf.training.players import adam, build_players, networks_to_fine_tune
from biggan_hf.training.set_up import build_graphs
from biggan_hf.training.steps import Latents, Objective, Pictures, Players, discriminator_step, generator_step


# BigGAN-PyTorch, scripts/launch_BigGAN_bs256x8.sh, in one accumulated forward
IMAGENET: dict[str, Any] = {
    "num_discriminator_steps": 1,
    "generator_learning_rate": 1e-4,
    "discriminator_learning_rate": 4e-4,
    "generator_orthogonality": 0.0,
    "ema_start_step": 20_000,
}
# Of answers in float64 after updates by Adam, which divides a gradient by its own size. Where it is nothing but
# rounding, as before a batch norm, that comes near Adam's epsilon in float32: after one iteration of `cifar10`, whose
# epsilon is 1e-8, the images of both updated generators differ by 1.5e-3 (ch 16), and in float64 by 5e-11.
EXACT = 1e-8
# Of the losses in float32, which come after up to four such updates of the discriminator: 3e-5 and 2.8e-4 with two
# draws of weights for `cifar10` at batch 50.
ROUNDED = 1e-3
# Pictures of an update there: a CPU's convolutions in float64 take some three times as long.
EXACT_BATCH = 2

Answers = dict[str, Tensor]


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

    def pictures(self) -> list[Pictures]:
        """Noise of the pictures' shape, a batch an update."""
        size, channels = self.config.image_size, self.config.num_channels
        pixels = 2 * torch.rand(self.images, channels, size, size) - 1
        labels = torch.randint(self.config.num_labels or 1, (self.images,))
        split = self.args.per_device_batch_size
        parts = zip(pixels.to(self.device).split(split), labels.to(self.device).split(split), strict=True)
        return [Pictures(*part) for part in parts]

    def latents(self) -> Iterator[Latents]:
        """As the loop draws them, a batch an update."""
        number, labels = self.args.per_device_batch_size, self.config.num_labels or 1
        for step in itertools.count():
            generator = counter_generator(self.device, step)
            latents = sample_latents(number, self.config.z_dim, generator=generator, device=self.device)
            yield Latents(latents, torch.randint(labels, (number,), generator=generator, device=self.device))


def train_once(
    players: Players,
    ema: BigGANModel,
    args: TrainingArguments,
    pictures: list[Pictures],
    latents: Iterator[Latents],
    graphs: Graphs,
) -> dict[str, Tensor]:
    """One `global_step`, as `biggan_hf.training.loop.train_step` makes it."""
    objective = Objective(iterate_every_forward=args.power_iteration == "every_forward")
    for real in pictures:
        metrics = graphs(discriminator_step, players, [(next(latents), real)], objective)
    metrics |= graphs(update_generator, (players, ema), [next(latents)], objective, args.ema_decay)
    return metrics


def update_generator(
    changed: tuple[Players, BigGANModel], latents: list[Latents], objective: Objective, decay: float
) -> dict[str, Tensor]:
    players, ema = changed
    metrics = generator_step(players, latents, objective)
    update_ema(ema, players.bare_generator, decay)
    return metrics


def original(
    game: Game, dtype: torch.dtype = torch.float32, drawn: Sequence[tuple[Tensor, Tensor]] | None = None
) -> OriginalTraining:
    return OriginalTraining(game.checkout, game.folder / "theirs", told(game.args), game.device, dtype, drawn)


def told(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that the program has too, in its names."""
    return {
        "batch_size": args.per_device_batch_size,
        "num_D_steps": args.num_discriminator_steps,
        "G_lr": args.generator_learning_rate,
        "D_lr": args.discriminator_learning_rate,
        "adam_eps": args.adam_epsilon,
        "ema_decay": args.ema_decay,
    }


# One iteration of each, compared


def check_iteration(accelerator: Accelerator, game: Game) -> tuple[float, int, int]:
    """
    An iteration of each program, uncompiled, from the same weights on the same inputs: in float32 as it is timed, of
    which the losses are compared, and in float64 on few pictures, of which all is that `iterate` answers.

    Returns:
        The largest difference, relative where answers are above 1, and the FLOPs of ours and theirs.

    Raises:
        ValueError: The answers are those of two functions.
    """
    small = replace(game, args=replace(game.args, per_device_batch_size=EXACT_BATCH))
    differences = []
    with tensor_float32(False):
        for checked, dtype, tolerance in ((small, torch.float64, EXACT), (game, torch.float32, ROUNDED)):
            drawn = itertools.islice(checked.latents(), game.args.num_discriminator_steps + 1)
            pictures = [Pictures(b.pixel_values.to(dtype), b.class_labels) for b in checked.pictures()]
            latents = [Latents(b.z.to(dtype), b.class_labels) for b in drawn]
            ours, flops = iterate(accelerator, checked, dtype, pictures, latents)
            theirs, peer_flops = iterate_original(checked, dtype, pictures, latents)
            for what in ours if dtype == torch.float64 else ["losses"]:
                scale, whose = theirs[what].abs().max().clamp(min=1), f"the {what} of biggan_hf and {BIGGAN_PYTORCH}"
                differences.append(require_same(ours[what] / scale, theirs[what] / scale, whose, tolerance))
    return max(differences), flops, peer_flops


def iterate(
    accelerator: Accelerator, game: Game, dtype: torch.dtype, pictures: list[Pictures], latents: list[Latents]
) -> tuple[Answers, int]:
    """The losses of an iteration, what the networks and the average answer after it in eval mode, and its FLOPs."""
    args = game.args
    networks = networks_to_fine_tune(str(game.folder / "ours"), game.config)
    for network in networks:
        network.train().to(device=game.device, dtype=dtype)
    generator, discriminator, ema = networks
    optimizers = (
        adam(generator, args.generator_learning_rate, args),
        adam(discriminator, args.discriminator_learning_rate, args),
    )
    # Not by `Accelerator.prepare`, which would put mixed precision around them.
    players = Players(accelerator, generator, discriminator, *optimizers)
    losses: Answers = {}
    flops = count_flops(lambda: losses.update(train_once(players, ema, args, pictures, iter(latents), Graphs())))
    (pixels, of_pixels), (z, labels) = joined(pictures[:1]), joined(latents[:1])
    with torch.no_grad():
        logits = discriminator.eval()(pixels, of_pixels).logits
    return {
        "losses": torch.stack([losses["discriminator_loss"], losses["generator_loss"]]),
        "discriminator's logits": logits,
        "generator's images": generator.sample(labels, latents=z),
        "average's images": ema.sample(labels, latents=z),
    }, flops


def iterate_original(
    game: Game, dtype: torch.dtype, pictures: list[Pictures], latents: list[Latents]
) -> tuple[Answers, int]:
    """As `iterate`."""
    program = original(game, dtype, [joined([batch]) for batch in latents])
    losses: dict[str, float] = {}
    flops = count_flops(lambda: losses.update(program.train(*joined(pictures))))
    (pixels, of_pixels), (z, labels) = joined(pictures[:1]), joined(latents[:1])
    with torch.no_grad():
        logits = program.discriminator.eval()(pixels, of_pixels)
        images = [g.eval()(z, g.shared(labels)) for g in (program.generator, program.average)]
    return {
        "losses": logits.new_tensor([losses["D_loss_real"] + losses["D_loss_fake"], losses["G_loss"]]),
        "discriminator's logits": logits,
        "generator's images": images[0],
        "average's images": images[1],
    }, flops


def joined(batches: Sequence[Pictures | Latents]) -> tuple[Tensor, Tensor]:
    labels = [batch.class_labels for batch in batches if batch.class_labels is not None]
    inputs = [batch.z if isinstance(batch, Latents) else batch.pixel_values for batch in batches]
    return torch.cat(inputs), torch.cat(labels)


# Measured


def measure(game: Game, options: argparse.Namespace) -> Result:
    device, args = game.device, game.args
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=options.mixed_precision)
    difference, flops, peer_flops = check_iteration(accelerator, game)
    pictures, latents = game.pictures(), game.latents()

    def build_ours() -> Callable[[], object]:
        players, ema = build_players(accelerator, game.config, args, None, str(game.folder / "ours"))
        graphs = build_graphs(args, accelerator, [*players.networks.values(), ema])
        for _ in range(WARM_UP + 1 if graphs.recorder else 0):
            train_once(players, ema, args, pictures, latents, graphs)
        return lambda: train_once(players, ema, args, pictures, latents, graphs)

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
    return [name for name in ("channels_last", "compile", "cuda_graphs") if getattr(options, name)]


def build_game(options: argparse.Namespace, folder: Path, device: torch.device) -> Game:
    """Writes both checkpoints into the folder."""
    preset = options.preset or f"biggan-{128 if options.image_size is None else options.image_size}"
    row = {**(PRESETS[preset].training if options.preset else IMAGENET)}
    row |= {"channels_last": options.channels_last, "compile": options.compile}
    row["cuda_graphs"] = "on" if options.cuda_graphs else "off"
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
    which.add_argument("--image_size", type=int, help="its launch_BigGAN_bs256x8.sh at so many pixels (default: 128)")
    arguments.add_argument("--channels", type=positive, help="base width (default: the preset's)")
    arguments.add_argument("--batch_size", type=positive, help="pictures in an update (default: the preset's, or 64)")
    arguments.add_argument("--mixed_precision", choices=["no", "bf16"], default="no", help="of our side")
    arguments.add_argument("--compile", action="store_true", help="compile our networks")
    arguments.add_argument("--cuda_graphs", action="store_true", help="record our updates as CUDA graphs")
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
