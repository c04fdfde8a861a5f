"""Converts a checkpoint of BigGAN-PyTorch, `BigGAN.py` or `BigGANdeep.py`, to a model folder."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architecture import (
    Findings,
    deep_blocks_per_stage,
    find_discriminator,
    find_generator,
    imagenet_classes,
    no_discriminator,
)
from reading import State, guess, load, load_state, no_folder
from rename import class_first, fill_in_singular_values, fold_power_step, rename, scalar_gamma
from training_state import adam_state, counters
from writing import Conversion, Source, add_reference, convert_and_write, parser, run

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.presets import CIFAR10_CLASSES


SOURCE = Source(
    "BigGAN-PyTorch",
    "https://github.com/ajbrock/BigGAN-PyTorch",
    "The program is under the MIT licence; that of the weights is their publisher's to say.",
)

# How the tensors within a module are called. The statistics are the module's own, or those of `--mybn` and
# `--cross_replica`, which keep them in a module of their own.
NAMES = [
    (r"(bn\d\.)?(?:bn\.)?(?:stored|running)_(mean|var)", r"\1running_\2"),
    (r"((?:\w+\.)*(?:weight|bias|gain|gamma|u0|sv0))", r"\1"),
]
DROPPED = {
    r".*\.(u|sv)[1-9]\d*": "a further singular vector or value, logged and not part of the function",
    r".*\.num_batches_tracked": "a count of batches, no part of the function",
    r".*\.accumulation_counter": "the count of --accumulate_stats, which the program does not use in a fresh process",
}

# The output batch norm does not get the program's `BN_eps`.
OUTPUT_BATCH_NORM_EPS = 1e-5
DEFAULT_EPS = {"batch_norm_eps": ("BN_eps", 1e-5), "spectral_norm_eps": ("SN_eps", 1e-8)}
INITIALIZERS = {"ortho": "orthogonal", "N02": "normal", "glorot": "xavier_uniform", "xavier": "xavier_uniform"}


@dataclass
class Checkpoint:
    """The files of one suffix."""

    generator: Path
    discriminator: Path | None
    counters: Path | None
    weights: str

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.generator, self.discriminator, self.counters) if path is not None]


# Finding the files


def find_checkpoint(source: Path, weights: str | None, suffix: str) -> Checkpoint:
    """
    Args:
        source: The experiment's folder, or one generator file.
        weights: "ema", "live", or `None`: ema where there is one.
        suffix: What stands after `G_`, such as "best0"; "" for nothing.

    Raises:
        FileNotFoundError: The folder or the generator does not exist; the line says which do.
    """
    if source.is_file():
        match = re.fullmatch(r"G(_ema)?(_(?!ema).+)?", source.stem)
        tail = (match[2] or "") if match else ""
        counters = source.with_name(f"state_dict{tail}.pth")
        implied = "ema" if match and match[1] else "live"
        return Checkpoint(source, None, counters if counters.is_file() else None, weights or implied)
    if not source.is_dir():
        raise FileNotFoundError(no_folder(source))
    tail = f"_{suffix.removeprefix('_')}" if suffix else ""
    paths = {name: source / f"{name}{tail}.pth" for name in ("G", "G_ema", "D", "state_dict")}
    there = {name: path if path.is_file() else None for name, path in paths.items()}
    chosen = weights or ("ema" if there["G_ema"] else "live")
    generator = there["G_ema" if chosen == "ema" else "G"]
    if generator is None:
        raise FileNotFoundError(_nothing_here(source, paths["G_ema" if chosen == "ema" else "G"].name))
    return Checkpoint(generator, there["D"], there["state_dict"], chosen)


def _nothing_here(source: Path, wanted: str) -> str:
    found = sorted(path.name for path in source.glob("*.pth") if re.match(r"G(_(?!optim)|\.)", path.name))
    hint = f"; there are {', '.join(found)}: choose with --suffix and --weights" if found else guess(source)
    return f"{str(source)!r} holds no {wanted}, so it is no such checkpoint of BigGAN-PyTorch{hint}"


# Names: also the exporter's


def generator_modules(num_stages: int, depth: int) -> dict[str, str]:
    """The program's modules and ours. Its blocks are numbered through; attention follows the last of a stage."""
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
    modules = {"embed": "class_embedding", "linear": "linear", "input_conv": "input_conv"}
    for stage in range(num_stages):
        for block in range(depth):
            modules[f"blocks.{stage}.{block}"] = f"stages.{stage}.blocks.{block}"
        modules[f"blocks.{stage}.{depth}"] = f"stages.{stage}.attention"
    return modules


def rename_generator(state: State, findings: Findings) -> State:
    number = _number_of_blocks(state)
    depth = 1
    if "blocks.0.0.conv3.weight" in state:
        convs = [state.get(f"blocks.{block}.0.conv1.weight") for block in range(number)]
        depth = deep_blocks_per_stage([conv.shape[1] for conv in convs if conv is not None])
    state = rename(state, generator_modules(number // depth, depth), NAMES, DROPPED, findings)
    scalar_gamma(state)  # (1,) in what the program's converter from TFHub writes
    return state


def rename_discriminator(state: State, findings: Findings) -> State:
    depths = [int(match[1]) for key in state if (match := re.match(r"blocks\.\d+\.(\d+)\.conv1\.weight", key))]
    modules = discriminator_modules(_number_of_blocks(state), max(depths, default=0) + 1)
    return rename(state, modules, NAMES, DROPPED, findings)


def _number_of_blocks(state: State) -> int:
    return len({key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)})


# What shapes don't say


def read_settings(path: Path | None) -> dict[str, Any]:
    """The program's own settings, `{}` where there are none."""
    if path is None:
        return {}
    content = load(path)
    settings = content.get("config") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"{str(path)!r} holds no 'config', expected the counters and settings of BigGAN-PyTorch")
    return settings


def find_settings(settings: dict[str, Any], given: dict[str, float | None], findings: Findings) -> None:
    """Adds the epsilons, the initialisation and the class names: from a flag, from the settings, or by default."""
    for field, (name, default) in DEFAULT_EPS.items():
        if given[field] is not None:
            findings.add("flag", **{field: given[field]})
        elif name in settings:
            findings.add("state_dict", **{field: float(settings[name])})
        else:
            findings.add("the program's default", **{field: default})
    # Its `z_var`, the one way to draw other latents, is the standard deviation of a normal.
    findings.add("fixed in the program", output_batch_norm_eps=OUTPUT_BATCH_NORM_EPS, truncation_mode="normal")
    if settings.get("G_init") in INITIALIZERS:
        findings.add("state_dict", initializer=INITIALIZERS[settings["G_init"]])
    data, number = str(settings.get("dataset", "")), findings.fields["num_labels"]
    if data == "C10" and number == len(CIFAR10_CLASSES):
        findings.add(f"data set {data}", id2label=dict(enumerate(CIFAR10_CLASSES)))
    elif data.startswith("I") and number == 1000:
        findings.add(f"data set {data}", id2label=imagenet_classes())


def fold_added_gain(state: State, eps: float, sn_eps: float) -> State:
    """
    `--cross_replica` in eval mode: bn(x) + gain + bias, where every other batch norm of the program multiplies
    (its issue 96). The same answer by multiplication: a gain of 1 and the program's gain moved to the bias, with the
    constant 1 of a conditional gain moved into the mean, since (x - mean) / s + 1 = (x - (mean - s)) / s.
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
    checkpoint = find_checkpoint(args.source, args.weights, args.suffix)
    settings = read_settings(checkpoint.counters)
    findings = Findings()
    raw = load_state(checkpoint.generator, "a BigGAN-PyTorch generator")
    generator = rename_generator(raw, findings)
    find_generator(generator, findings)
    find_settings(settings, {field: getattr(args, field) for field in DEFAULT_EPS}, findings)
    fields = findings.fields
    if args.condition_order == "zy":
        class_first(generator, fields["class_embedding_dim"], fields["architecture"] == "biggan-deep")
    fill_in_singular_values(generator, fields["spectral_norm_eps"])
    if any(key.endswith(".bn1.bn.running_mean") for key in raw) and args.cross_replica_gain == "add":
        generator = fold_added_gain(generator, fields["batch_norm_eps"], fields["spectral_norm_eps"])
        findings.add("folded", generator_spectral_norm=False)
        findings.remark(
            "--cross_replica: this program's eval mode adds the gain that its training on several GPUs multiplies by; "
            "this model answers as eval mode does (--cross_replica_gain multiply for the other)"
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
    Makes the conversion a checkpoint to train on from: the live generator, both optimisers, the counters.

    Raises:
        ValueError: A file of the training is missing, or the weights were changed on the way.
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
    findings = Findings()  # of a second reading, which would repeat the first one's remarks
    live = rename_generator(load_state(files["G"], "a BigGAN-PyTorch generator"), findings)
    fill_in_singular_values(live, conversion.findings.fields["spectral_norm_eps"])
    assert checkpoint.discriminator is not None
    judge = load_state(checkpoint.discriminator, "a BigGAN-PyTorch discriminator")
    judge = rename_discriminator(judge, findings)
    saved = load(checkpoint.counters)

    def training_state(generator: BigGANModel, discriminator: BigGANDiscriminator) -> dict[str, Any]:
        return {
            **counters(saved["config"], saved["itr"]),
            "generator_optimizer": adam_state(files["G_optim"], live, generator),
            "discriminator_optimizer": adam_state(files["D_optim"], judge, discriminator),
        }

    conversion.live_generator, conversion.training_state = live, training_state
    conversion.findings.remark(f"optimisers and counters: step {saved['itr']}")


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__, "CHECKPOINT_DIR", "the folder with G.pth, G_ema.pth, D.pth …, or one generator file")
    arguments.add_argument("--weights", choices=["ema", "live"], help="default: ema where there is one")
    arguments.add_argument("--suffix", default="", metavar="NAME", help="what follows G_, such as best0 or copy1")
    arguments.add_argument(
        "--training_state",
        action="store_true",
        help="write a checkpoint that train.py --init_from DIR --resume_from_checkpoint DIR goes on from",
    )
    for field, (name, default) in DEFAULT_EPS.items():
        arguments.add_argument(
            f"--{field}", type=float, metavar="EPS", help=f"default: {name} of state_dict.pth, else {default:g}"
        )
    arguments.add_argument(
        "--condition_order",
        choices=["yz", "zy"],
        default="yz",
        help="class or latents first in a condition; zy in forks that follow TFHub (default: %(default)s)",
    )
    arguments.add_argument(
        "--cross_replica_gain",
        choices=["add", "multiply"],
        default="add",
        help="for --cross_replica checkpoints: as in the program's eval mode, or as it trains on several GPUs "
        "(default: %(default)s)",
    )
    add_reference(arguments)
    convert_and_write(convert, arguments.parse_args(argv))


if __name__ == "__main__":
    run(main)
