"""Converts a checkpoint of BigGAN-PyTorch, `BigGAN.py` or `BigGANdeep.py`, to a model folder."""

import argparse
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.conversion.architecture import (
    Findings,
    deep_blocks_per_stage,
    find_class_names,
    find_discriminator,
    find_generator,
    no_discriminator,
    number_of_blocks,
)
from biggan_hf.conversion.reading import State, check_folder, hint, load, load_state
from biggan_hf.conversion.rename import class_first, fill_in_singular_values, fold_power_step, rename
from biggan_hf.conversion.repositories import HubFolder
from biggan_hf.conversion.training_state import adam_state, counters
from biggan_hf.conversion.writing import Conversion, Source, convert_and_write, parser, run


SOURCE = Source(
    "BigGAN-PyTorch",
    "https://github.com/ajbrock/BigGAN-PyTorch",
    "The program is under the MIT licence. The licence of the weights is up to those who publish them.",
)

# The names of the tensors in a module. With `--mybn` and `--cross_replica`, a batch norm has a module for statistics.
NAMES = [
    (r"(bn\d\.)?(?:bn\.)?(?:stored|running)_(mean|var)", r"\1running_\2"),
    (r"((?:\w+\.)*(?:weight|bias|gain|gamma|u0|sv0))", r"\1"),
]
DROPPED = {
    r".*\.(u|sv)[1-9]\d*": "a further singular vector or value, which is logged and no part of the function",
    r".*\.num_batches_tracked": "a count of batches, no part of the function",
    r".*\.accumulation_counter": "the count of --accumulate_stats, which the program does not use in a new process",
}

# The program does not pass its `BN_eps` to the last batch norm.
OUTPUT_BATCH_NORM_EPS = 1e-5
DEFAULT_EPS = {"batch_norm_eps": ("BN_eps", 1e-5), "spectral_norm_eps": ("SN_eps", 1e-8)}
INITIALIZERS = {"ortho": "orthogonal", "N02": "normal", "glorot": "xavier_uniform", "xavier": "xavier_uniform"}


@dataclass
class Checkpoint:
    """The files of one copy of the weights."""

    generator: Path
    discriminator: Path | None
    counters: Path | None
    weights: str

    @property
    def files(self) -> list[Path]:
        """Those of the files that are there."""
        return [path for path in (self.generator, self.discriminator, self.counters) if path is not None]


# Finding the files


def find_checkpoint(source: Path, weights: str | None, suffix: str) -> Checkpoint:
    """
    Args:
        source: The experiment's folder, or one generator file.
        weights: "ema", "live", or `None`: "ema" if there is such a file.
        suffix: What follows `G_` in the file names, such as "best0"; "" for nothing.

    Raises:
        FileNotFoundError: There is no such folder, or no such generator in it; the error names those that are.
    """
    if source.is_file():
        match = re.fullmatch(r"G(_ema)?(_(?!ema).+)?", source.stem)
        tail = (match[2] or "") if match else ""
        counters = source.with_name(f"state_dict{tail}.pth")
        implied = "ema" if match and match[1] else "live"
        return Checkpoint(source, None, counters if counters.is_file() else None, weights or implied)
    check_folder(source)
    return choose(source, {path.name for path in source.iterdir() if path.is_file()}, weights, suffix)


def choose(folder: Path, held: Collection[str], weights: str | None, suffix: str) -> Checkpoint:
    """`find_checkpoint` among the names of the files that a folder holds, which may be on the Hub."""
    tail = f"_{suffix.removeprefix('_')}" if suffix else ""
    paths = {name: folder / f"{name}{tail}.pth" for name in ("G", "G_ema", "D", "state_dict")}
    existing = {name: path for name, path in paths.items() if path.name in held}
    chosen = weights or ("ema" if "G_ema" in existing else "live")
    network = "G_ema" if chosen == "ema" else "G"
    if network not in existing:
        found = sorted(name for name in held if re.match(r"G(_(?!optim).*)?\.pth$", name))
        known = f"; there are {', '.join(found)}: choose with --suffix and --weights" if found else hint(folder)
        wanted = paths[network].name
        raise FileNotFoundError(
            f"{str(folder)!r} holds no {wanted}, so it is no such checkpoint of BigGAN-PyTorch{known}"
        )
    return Checkpoint(existing[network], existing.get("D"), existing.get("state_dict"), chosen)


def needed(folder: HubFolder, args: argparse.Namespace) -> list[str]:
    """The files of a folder on the Hub that the conversion reads."""
    files = choose(Path(str(folder)), folder.names, args.weights, args.suffix).files
    tail = files[0].stem.removeprefix("G_ema").removeprefix("G")
    of_training = [f"{name}{tail}.pth" for name in ("G", "G_optim", "D_optim") if args.training_state]
    return [path.name for path in files] + [name for name in of_training if name in folder.names]


# Names, also for the exporter


def generator_modules(num_stages: int, depth: int) -> dict[str, str]:
    """The program's modules and ours. It numbers the blocks through all stages; attention follows the last of one."""
    modules = {
        "shared": "class_embedding",
        "linear": "linear",
        "output_layer.0": "output_bn",
        "output_layer.2": "output_conv",
    }
    for stage in range(num_stages):
        for block in range(depth):
            modules[f"blocks.{stage * depth + block}.0"] = f"stages.{stage}.blocks.{block}"
        modules[f"blocks.{(stage + 1) * depth - 1}.1"] = f"stages.{stage}.attention"
    return modules


def discriminator_modules(num_stages: int, depth: int) -> dict[str, str]:
    """The program's modules of the discriminator, and ours."""
    modules = {"embed": "class_embedding", "linear": "linear", "input_conv": "input_conv"}
    for stage in range(num_stages):
        for block in range(depth):
            modules[f"blocks.{stage}.{block}"] = f"stages.{stage}.blocks.{block}"
        modules[f"blocks.{stage}.{depth}"] = f"stages.{stage}.attention"
    return modules


def rename_generator(state: State, findings: Findings) -> State:
    """The generator's tensors under this project's names."""
    number = number_of_blocks(state)
    depth = 1
    if "blocks.0.0.conv3.weight" in state:
        convs = [state.get(f"blocks.{block}.0.conv1.weight") for block in range(number)]
        depth = deep_blocks_per_stage([conv.shape[1] for conv in convs if conv is not None])
    return rename(state, generator_modules(number // depth, depth), NAMES, DROPPED, findings)


def rename_discriminator(state: State, findings: Findings) -> State:
    """The discriminator's tensors under this project's names."""
    depths = [int(match[1]) for key in state if (match := re.match(r"blocks\.\d+\.(\d+)\.conv1\.weight", key))]
    modules = discriminator_modules(number_of_blocks(state), max(depths, default=0) + 1)
    return rename(state, modules, NAMES, DROPPED, findings)


# What the shapes do not tell


def read_settings(path: Path | None) -> dict[str, Any]:
    """The settings that the program stored; `{}` without a file."""
    if path is None:
        return {}
    content = load(path)
    settings = content.get("config") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"{str(path)!r} holds no 'config', expected the counters and settings of BigGAN-PyTorch")
    return settings


def find_settings(settings: dict[str, Any], given: dict[str, float | None], findings: Findings) -> None:
    """Adds the epsilons (from a flag, from the settings, or by default), the initialisation and the class names."""
    for field, (name, default) in DEFAULT_EPS.items():
        if given[field] is not None:
            findings.add("flag", **{field: given[field]})
        elif name in settings:
            findings.add("state_dict", **{field: float(settings[name])})
        else:
            findings.add("the program's default", **{field: default})
    # `z_var` is the program's only way to draw other latents: the standard deviation of a normal distribution.
    findings.add("fixed in the program", output_batch_norm_eps=OUTPUT_BATCH_NORM_EPS, truncation_mode="normal")
    if settings.get("G_init") in INITIALIZERS:
        findings.add("state_dict", initializer=INITIALIZERS[settings["G_init"]])
    data = str(settings.get("dataset"))
    is_imagenet = re.fullmatch(r"I\d+(_hdf5)?", data) is not None  # I128 and so on
    find_class_names("CIFAR10" if data == "C10" else "ImageNet" if is_imagenet else data, findings)


def fold_added_gain(state: State, eps: float, sn_eps: float) -> State:
    """
    The tensors with which a batch norm that multiplies by its gain answers as one of `--cross_replica` in eval mode.

    That one adds its gain (issue 96 of the program): bn(x) + gain + bias. So the gain is added to the bias, and 1
    takes its place. A conditional gain holds a constant 1, which is added here too: it moves into the mean, since
    (x - mean) / s + 1 = (x - (mean - s)) / s.
    """
    state = fold_power_step(state, sn_eps)
    for name in [name for name in state if name.endswith(".running_mean")]:
        module = name.removesuffix(".running_mean")
        suffix = "" if module == "output_bn" else ".weight"
        gain, bias = f"{module}.gain{suffix}", f"{module}.bias{suffix}"
        state[bias] = state[bias] + state[gain]
        if module == "output_bn":
            state[gain] = torch.ones_like(state[gain])
        else:
            state[gain] = torch.zeros_like(state[gain])
            state[name] = state[name] - (state[f"{module}.running_var"] + eps).sqrt()
    return state


# All of it


def convert(args: argparse.Namespace) -> Conversion:
    """What the script reads, under this project's names; raises `ValueError` or `OSError` for a wrong source."""
    checkpoint = find_checkpoint(args.source, args.weights, args.suffix)
    settings = read_settings(checkpoint.counters)
    findings = Findings()
    raw = load_state(checkpoint.generator, "a BigGAN-PyTorch generator")
    generator = rename_generator(raw, findings)
    find_generator(generator, findings)
    find_settings(settings, {field: getattr(args, field) for field in DEFAULT_EPS}, findings)
    fields = findings.fields
    if args.condition_order == "zy":
        class_first(generator, fields["architecture"] == "biggan-deep")
    fill_in_singular_values(generator, fields["spectral_norm_eps"])
    if any(key.endswith(".bn1.bn.running_mean") for key in raw) and args.cross_replica_gain == "add":
        generator = fold_added_gain(generator, fields["batch_norm_eps"], fields["spectral_norm_eps"])
        findings.add("folded", generator_spectral_norm=False)
        findings.remark(
            "--cross_replica: the program adds the gain in eval mode and multiplies by it in training on several GPUs;"
            " this model answers as eval mode does (--cross_replica_gain multiply converts the other)"
        )
    discriminator = None
    if checkpoint.discriminator is None:
        no_discriminator(findings)
    else:
        raw = load_state(checkpoint.discriminator, "a BigGAN-PyTorch discriminator")
        discriminator = rename_discriminator(raw, findings)
        fill_in_singular_values(discriminator, fields["spectral_norm_eps"])
        find_discriminator(discriminator, findings)
    conversion = Conversion(SOURCE, findings, generator, discriminator, checkpoint.files, checkpoint.weights)
    if args.training_state:
        add_training_state(conversion, args, checkpoint)
    return conversion


def add_training_state(conversion: Conversion, args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """
    Adds what training needs to go on: the live generator, the state of both optimisers, and the counters.

    Raises:
        ValueError: A file of the training is missing, or an option changed the weights.
    """
    if args.source.is_file() or checkpoint.counters is None or conversion.discriminator is None:
        raise ValueError("--training_state needs a folder with G, D, state_dict and both optimisers' files")
    if args.condition_order != "yz" or conversion.findings.fields.get("generator_spectral_norm") is False:
        raise ValueError("--training_state needs weights as they were trained: no folding, no --condition_order zy")
    tail = checkpoint.counters.stem.removeprefix("state_dict")
    files = {name: args.source / f"{name}{tail}.pth" for name in ("G", "G_optim", "D_optim")}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(f"--training_state needs {', '.join(missing)}, which {str(args.source)!r} does not hold")
    findings = Findings()  # not those of the conversion, which hold the remarks already
    live = rename_generator(load_state(files["G"], "a BigGAN-PyTorch generator"), findings)
    fill_in_singular_values(live, conversion.findings.fields["spectral_norm_eps"])
    assert checkpoint.discriminator is not None
    raw = load_state(checkpoint.discriminator, "a BigGAN-PyTorch discriminator")
    renamed = rename_discriminator(raw, findings)
    saved = load(checkpoint.counters)

    def training_state(generator: BigGANModel, discriminator: BigGANDiscriminator) -> dict[str, Any]:
        return {
            **counters(saved["config"], saved["itr"]),
            "generator_optimizer": adam_state(files["G_optim"], live, generator),
            "discriminator_optimizer": adam_state(files["D_optim"], renamed, discriminator),
        }

    conversion.live_generator, conversion.training_state = live, training_state
    conversion.findings.remark(f"optimisers and counters are those of step {saved['itr']}")


def options() -> argparse.ArgumentParser:
    """The script's options."""
    arguments = parser(__doc__, "CHECKPOINT_DIR", "the folder with G.pth, G_ema.pth, D.pth …, or a generator's file")
    arguments.add_argument("--weights", choices=["ema", "live"], help="default: ema if there is such a file")
    arguments.add_argument("--suffix", default="", metavar="NAME", help="what follows G_, such as best0 or copy1")
    arguments.add_argument(
        "--training_state",
        action="store_true",
        help="write a checkpoint from which train.py --init_from DIR --resume_from_checkpoint DIR goes on",
    )
    for field, (name, default) in DEFAULT_EPS.items():
        arguments.add_argument(
            f"--{field}", type=float, metavar="EPS", help=f"default: {name} in state_dict.pth, else {default:g}"
        )
    arguments.add_argument(
        "--condition_order",
        choices=["yz", "zy"],
        default="yz",
        help="yz: the class comes before the latents in a condition; zy: after them, as in forks that follow TFHub "
        "(default: %(default)s)",
    )
    arguments.add_argument(
        "--cross_replica_gain",
        choices=["add", "multiply"],
        default="add",
        help="what a checkpoint of --cross_replica does with the gain: add is the program's eval mode, multiply its "
        "training on several GPUs (default: %(default)s)",
    )
    return arguments


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    convert_and_write(convert, options().parse_args(argv))


if __name__ == "__main__":
    run(main)
