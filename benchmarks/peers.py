"""The peers, built with random weights, and this project's networks with the same weights by way of conversion/.

Both networks of a pair compute one function: the peer's weights are written as the peer writes them, and converted as
a user would convert them.
"""

import contextlib
import functools
import importlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from biggan_hf import BigGANConfig, BigGANModel
from biggan_hf.conversion import convert_biggan_pytorch, convert_pretrained_biggan
from biggan_hf.conversion.export_biggan_pytorch import check_exportable, discriminator_problem, settings


BIGGAN_PYTORCH = "BigGAN-PyTorch"
PRETRAINED_BIGGAN = "pytorch-pretrained-biggan"
PRETRAINED_BIGGAN_SIZES = (128, 256, 512)

# Training forwards that bring statistics and singular vectors near those of a trained network.
SETTLING_FORWARDS = 8
SETTLING_BATCH = 4
# In a new network attention has no weight, and would be neither checked nor, by a clever program, computed.
ATTENTION_WEIGHT = 0.5
# pytorch-pretrained-biggan wants one; all rows of its statistics are equal here.
TRUNCATION = 0.5

Sample = Callable[[Any, Tensor, Tensor], Tensor]


@dataclass
class Pair:
    """
    One generator in two programs, both in float32 on the CPU.

    Args:
        peer: The other program's name.
        ours: In eval mode.
        theirs: In eval mode.
        sample_ours: (`ours`, latents (N, z_dim), labels (N,)) to images (N, 3, H, W).
        sample_theirs: The same for `theirs`.
        folder: With the peer's files in `theirs/` and the converted model in `ours/`.
    """

    peer: str
    ours: BigGANModel
    theirs: nn.Module
    sample_ours: Sample
    sample_theirs: Sample
    folder: Path


def sample_biggan_hf(network: BigGANModel, latents: Tensor, labels: Tensor, truncation: float | None = None) -> Tensor:
    """By the model's own method, which normalises the weights once."""
    return network.sample(labels, latents=latents, truncation=truncation)


# BigGAN-PyTorch: a folder of files, not a package


@functools.cache
def import_checkout(folder: Path | None, *names: str) -> tuple[ModuleType, ...]:
    """
    Modules of a checkout of BigGAN-PyTorch.

    Its files have names that belong to others too, such as `utils` and `datasets`: afterwards `sys.path` and
    `sys.modules` are as they were, and the modules keep what they imported. torchvision, and the data sets that need
    it, are replaced by empty modules: neither sampling nor a training iteration touches them.

    Raises:
        FileNotFoundError: The folder is no such checkout.
    """
    if folder is None or not (folder / "BigGAN.py").is_file():
        raise FileNotFoundError(
            f"--biggan_pytorch must be a checkout of https://github.com/ajbrock/BigGAN-PyTorch, got {str(folder)!r}"
        )
    empty = {name: _empty_module(name) for name in ("torchvision", "torchvision.transforms", "datasets")}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    own = {path.stem for path in folder.glob("*.py")} | packages | {"torchvision", "datasets"}

    def take_own() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in own}

    hidden = take_own()
    sys.path.insert(0, str(folder))
    sys.modules.update(empty)
    try:
        return tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(folder))
        take_own()
        sys.modules.update(hidden)


def _empty_module(name: str) -> ModuleType:
    """A module in which every name is there and means nothing."""
    module = ModuleType(name)
    module.__dict__["__getattr__"] = lambda attribute: object
    return module


def biggan_pytorch_settings(config: BigGANConfig) -> dict[str, Any]:
    """What the program's networks are built with, with ReLU in place as in its scripts for ImageNet."""
    check_exportable(config)
    return {**settings(config), "G_activation": nn.ReLU(inplace=True), "D_activation": nn.ReLU(inplace=True)}


def biggan_pytorch_config(preset: str, channels: int | None) -> BigGANConfig:
    """The architecture of a preset with the epsilons of the program's scripts and quickly drawn weights."""
    config = BigGANConfig.preset(preset)
    width = channels or config.generator_base_channels
    eps = {} if preset == "cifar10" else {"batch_norm_eps": 1e-5, "spectral_norm_eps": 1e-6}
    # Spectral norm makes the scale of weights irrelevant, and orthogonal ones take minutes to draw.
    return BigGANConfig.preset(
        preset, generator_base_channels=width, discriminator_base_channels=width, initializer="normal", **eps
    )


def write_biggan_pytorch(checkout: Path | None, config: BigGANConfig, folder: Path, discriminator: bool) -> None:
    """Writes `theirs/`, a checkpoint of the program with settled random weights, and `ours/`, the converted model."""
    (program,) = import_checkout(checkout, "BigGAN")
    kwargs = biggan_pytorch_settings(config)
    problem = discriminator_problem(config) if discriminator else None
    if problem:
        raise ValueError(f"BigGAN-PyTorch can't build this discriminator: {problem}")
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        generator = program.Generator(**kwargs, no_optim=True)
        fill_attention(generator)
        states = {"G": generator.state_dict()}
        images = torch.empty(0)
        for _ in range(SETTLING_FORWARDS):
            latents, labels = draw(config, SETTLING_BATCH)
            images = generator(latents, generator.shared(labels))
        if discriminator:
            judge = program.Discriminator(**kwargs)
            fill_attention(judge)
            states["D"] = judge.state_dict()
            for _ in range(SETTLING_FORWARDS):
                judge(images, labels)
        theirs = folder / "theirs"
        theirs.mkdir()
        for name, state in states.items():
            torch.save(state, theirs / f"{name}.pth")
        torch.save({"config": settings(config)}, theirs / "state_dict.pth")
        convert_biggan_pytorch.main([str(theirs), "--output", str(folder / "ours")])


def biggan_pytorch_pair(checkout: Path | None, config: BigGANConfig, folder: Path) -> Pair:
    """
    The plain generator beside that of a checkout.

    Args:
        checkout: Folder of BigGAN-PyTorch.
        config: From `biggan_pytorch_config`.
        folder: An empty folder, for the checkpoints.
    """
    write_biggan_pytorch(checkout, config, folder, discriminator=False)
    theirs = load_biggan_pytorch(checkout, folder / "theirs")
    ours = BigGANModel.from_pretrained(folder / "ours")
    return Pair(BIGGAN_PYTORCH, ours, theirs, sample_biggan_hf, sample_biggan_pytorch, folder)


def sample_biggan_pytorch(network: Any, latents: Tensor, labels: Tensor) -> Tensor:
    return network(latents, network.shared(labels))


def load_biggan_pytorch(checkout: Path | None, source: Path) -> nn.Module:
    """As the program's `sample.py` makes a generator ready: built without initialisation, then filled."""
    (program,) = import_checkout(checkout, "BigGAN")
    kwargs = torch.load(source / "state_dict.pth")["config"]
    kwargs |= {"G_activation": nn.ReLU(inplace=True), "skip_init": True, "no_optim": True}
    with contextlib.redirect_stdout(io.StringIO()):
        generator = program.Generator(**kwargs)
    generator.load_state_dict(torch.load(source / "G.pth"))
    return generator.eval()


class OriginalTraining:
    """
    The program's training function as its `train.py` makes it ready.

    Args:
        checkout: Folder of BigGAN-PyTorch.
        source: A checkpoint with `G.pth`, `D.pth` and `state_dict.pth`.
        told: Settings of the run, in the program's names; the others are its defaults.
        device: Where it trains.
        dtype: In which.
        drawn: The latents and labels of all draws; `None` lets the program draw.

    After an iteration `generator`, `discriminator` and `average` are what it has made of them.
    """

    def __init__(
        self,
        checkout: Path | None,
        source: Path,
        told: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        drawn: Sequence[tuple[Tensor, Tensor]] | None = None,
    ):
        program, functions, utils = import_checkout(checkout, "BigGAN", "train_fns", "utils")
        config = vars(utils.prepare_parser().parse_args([])) | torch.load(source / "state_dict.pth")["config"] | told
        config |= {"G_activation": nn.ReLU(inplace=True), "D_activation": nn.ReLU(inplace=True), "skip_init": True}
        with contextlib.redirect_stdout(io.StringIO()):
            generator = self.generator = program.Generator(**config).to(device, dtype)
            discriminator = self.discriminator = program.Discriminator(**config).to(device, dtype)
            self.average = program.Generator(**{**config, "no_optim": True}).to(device, dtype)
            for name, network in (("G", generator), ("D", discriminator)):
                network.load_state_dict(torch.load(source / f"{name}.pth"))
            ema = utils.ema(generator, self.average, config["ema_decay"], config["ema_start"])
        draws = utils.prepare_z_y(config["batch_size"], generator.dim_z, config["n_classes"], device=device)
        if drawn is not None:
            draws = tuple(_replayed(column) for column in zip(*drawn, strict=True))
        both = program.G_D(generator, discriminator)
        self._state = {"itr": 0}
        self._train = functions.GAN_training_function(generator, discriminator, both, *draws, ema, self._state, config)

    def train(self, pixel_values: Tensor, class_labels: Tensor) -> dict[str, float]:
        """One iteration on the pictures of all its updates; the program's losses."""
        self._state["itr"] += 1
        return self._train(pixel_values, class_labels)

    def state(self) -> dict[str, Any]:
        """What an iteration depends on, beside its pictures and draws."""
        return {**self._state, **{name: part.state_dict() for name, part in self._parts().items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._state["itr"] = state["itr"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        networks: dict[str, Any] = {"G": self.generator, "D": self.discriminator}
        optimizers = {f"{name}_optim": network.optim for name, network in networks.items()}
        return {**networks, "G_ema": self.average, **optimizers}


def _replayed(draws: Sequence[Tensor]) -> Tensor:
    """What the program draws into, a tensor with a method `sample_`; its own class is in the way of counting FLOPs."""
    following = iter(draws)
    tensor: Any = torch.empty_like(draws[0])
    tensor.sample_ = lambda: tensor.copy_(next(following))
    return tensor


# pytorch-pretrained-biggan: a package


def import_pretrained_biggan() -> ModuleType:
    try:
        return importlib.import_module("pytorch_pretrained_biggan")
    except ImportError as error:
        raise ImportError(f"{PRETRAINED_BIGGAN} can't be imported ({error}): pip install '.[bench]'") from error


def pretrained_biggan_config(image_size: int, channels: int | None) -> BigGANConfig:
    """The deep preset of a size that the program has; raises `ValueError` for another."""
    if image_size not in PRETRAINED_BIGGAN_SIZES:
        *sizes, largest = PRETRAINED_BIGGAN_SIZES
        raise ValueError(
            f"{PRETRAINED_BIGGAN} has generators of {', '.join(map(str, sizes))} and {largest} pixels, got "
            f"{image_size}; --peers {BIGGAN_PYTORCH} leaves it out"
        )
    overrides = {} if channels is None else {"generator_base_channels": channels}
    return BigGANConfig.preset(f"biggan-deep-{image_size}", **overrides)


def pretrained_biggan_pair(config: BigGANConfig, folder: Path) -> Pair:
    """
    The deep generator beside that of the package, in the package's own layout.

    Args:
        config: From `pretrained_biggan_config`.
        folder: An empty folder, for the checkpoints.
    """
    package = import_pretrained_biggan()
    own = package.BigGANConfig(**pretrained_biggan_settings(config))
    theirs = package.BigGAN(own)
    settle_pretrained_biggan(theirs, config)
    source = folder / "theirs"
    source.mkdir()
    torch.save(theirs.state_dict(), source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps(own.to_dict()), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        convert_pretrained_biggan.main([str(source), "--output", str(folder / "ours")])
    ours = BigGANModel.from_pretrained(folder / "ours")
    sample_ours = functools.partial(sample_biggan_hf, truncation=TRUNCATION)
    return Pair(PRETRAINED_BIGGAN, ours, theirs.eval(), sample_ours, sample_pretrained_biggan, folder)


def load_pretrained_biggan(source: Path) -> nn.Module:
    """By the package's own method."""
    return import_pretrained_biggan().BigGAN.from_pretrained(str(source)).eval()


def sample_pretrained_biggan(network: Any, latents: Tensor, labels: Tensor) -> Tensor:
    one_hot = nn.functional.one_hot(labels, network.config.num_classes).to(latents.dtype)
    return network(latents, one_hot, TRUNCATION)


def pretrained_biggan_settings(config: BigGANConfig) -> dict[str, Any]:
    """The program's `config.json` of this architecture, which is from `pretrained_biggan_config`."""
    multipliers = list(config.generator_channel_multipliers or ())
    layers = []
    for wide, narrow in zip(multipliers, multipliers[1:], strict=False):
        layers += [[False, wide, wide], [True, wide, narrow]]
    (attention,) = config.generator_attention_resolutions
    return {
        "output_dim": config.image_size,
        "z_dim": config.z_dim,
        "class_embed_dim": config.class_embedding_dim,
        "channel_width": config.generator_base_channels,
        "num_classes": config.num_labels,
        "layers": layers,
        "attention_layer_position": 2 * (config.generator_resolutions.index(attention) + 1),
        "eps": config.batch_norm_eps,
        "n_stats": 51,
    }


@torch.no_grad()
def settle_pretrained_biggan(network: Any, config: BigGANConfig) -> None:
    """
    Statistics and singular vectors of training forwards. The program measures no statistics, and leaves its last batch
    norm's gain and bias unset.
    """
    fill_attention(network)
    network.generator.bn.weight.fill_(1)
    network.generator.bn.bias.zero_()

    def measure(module: Any, inputs: tuple[Any, ...]) -> None:
        module.running_means.copy_(inputs[0].mean((0, 2, 3)).expand_as(module.running_means))
        module.running_vars.copy_(inputs[0].var((0, 2, 3)).expand_as(module.running_vars))

    norms = [module for module in network.modules() if hasattr(module, "running_means")]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    for _ in range(SETTLING_FORWARDS):
        sample_pretrained_biggan(network.train(), *draw(config, SETTLING_BATCH))
    for hook in hooks:
        hook.remove()


# What both share


def draw(config: BigGANConfig, number: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Latents and labels from torch's global generator."""
    labels = torch.randint(config.num_labels or 1, (number,))
    return torch.randn(number, config.z_dim).to(device), labels.to(device)


def fill_attention(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(ATTENTION_WEIGHT)
