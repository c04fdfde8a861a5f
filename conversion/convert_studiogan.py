"""Converts a checkpoint of StudioGAN, backbone `big_resnet` or one of the two deep ones, to a model folder."""

import argparse
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from biggan_hf.conversion.architecture import (
    Findings,
    deep_blocks_per_stage,
    find_class_names,
    find_discriminator,
    find_generator,
    no_discriminator,
    number_of_blocks,
)
from biggan_hf.conversion.reading import State, check_folder, hint, load_state
from biggan_hf.conversion.rename import fold_spectral_norm, keep_spectral_norm, output_gain, rename
from biggan_hf.conversion.repositories import HubFolder
from biggan_hf.conversion.writing import Conversion, Source, convert_and_write, parser, run
from biggan_hf.presets import CHANNEL_MULTIPLIERS


SOURCE = Source(
    "StudioGAN",
    "https://github.com/POSTECH-CVLab/PyTorch-StudioGAN",
    "The program is under the MIT licence. The licence of the weights is up to those who publish them.",
)

BACKBONES = ("big_resnet", "big_resnet_deep_legacy", "big_resnet_deep_studiogan")
GENERATOR_MODULES = {
    "shared": "class_embedding",
    "linear0": "linear",
    "bn4": "output_bn",
    "conv2d5": "output_conv",
}
DISCRIMINATOR_MODULES = {"input_conv": "input_conv", "linear1": "linear", "embedding": "class_embedding"}
NAMES = [
    (r"conv2d0\.(weight|bias|u0|sv0)", r"conv_sc.\1"),
    (r"conv2d([1-4])\.(weight|bias|u0|sv0)", r"conv\1.\2"),
    (r"conv1x1_attn\.(weight|u0|sv0)", r"o.\1"),
    (r"conv1x1_(theta|phi|g)\.(weight|u0|sv0)", r"\1.\2"),
    (r"sigma", "gamma"),
    (r"(bn\d)\.bn\.running_(mean|var)", r"\1.running_\2"),
    (r"((?:bn\d\.(?:gain|bias)\.)?(?:weight|bias|u0|sv0|running_mean|running_var))", r"\1"),
]
DROPPED = {r".*\.num_batches_tracked": "a count of batches, no part of the function"}
# Discriminators that do more than ours: a pattern of their tensors' names, and what those tensors are.
OTHER_HEADS = {
    r"linear2\..*": "a classifier or an embedding head (AC, 2C, D2DCE)",
    r"(linear|embedding)_mi\..*": "a second head (TAC)",
    r"info_.*": "InfoGAN's head",
    r"blocks\.\d+\.0\.bn\d\..*": "batch norms (apply_d_sn: false)",
}


@dataclass
class Checkpoint:
    """The files of one step, and what they hold."""

    generator: Path
    discriminator: Path | None
    step: int
    weights: str


# Finding the files


def find_checkpoint(source: Path, weights: str | None, step: int | None, prefer: str = "best") -> Checkpoint:
    """
    The files of one step.

    Args:
        source: The folder with the checkpoints of a run.
        weights: "ema", "live", or `None`: "ema" if there is such a file.
        step: The step; `None`: the newest.
        prefer: "best" or "current": which files to take where there are both of this step.

    Raises:
        FileNotFoundError: There is no such folder, or no generator in it.
    """
    check_folder(source)
    return choose(source, {path.name for path in source.iterdir()}, weights, step, prefer)


def choose(
    folder: Path, held: Collection[str], weights: str | None, step: int | None, prefer: str = "best"
) -> Checkpoint:
    """`find_checkpoint` among the names of the files that a folder holds, which may be on the Hub."""
    found: dict[tuple[str, int], Path] = {}
    for name in sorted(held, key=lambda name: f"-{prefer}-" in name):  # the last of one step counts
        match = re.fullmatch(r"model=(G|G_ema|D)-(best|current)-weights-step=(\d+)\.pth", name)
        if match:
            found[match[1], int(match[3])] = folder / name
    networks = {"ema": ["G_ema"], "live": ["G"], None: ["G_ema", "G"]}[weights]
    steps = sorted({number for network, number in found if network in networks})
    if not steps or (step is not None and step not in steps):
        wanted = " or ".join(f"model={network}-…-weights-step={step or 'N'}.pth" for network in networks)
        known = f"; there are the steps {', '.join(map(str, steps))}" if steps else hint(folder)
        raise FileNotFoundError(f"{str(folder)!r} holds no {wanted}, so it is no such checkpoint of StudioGAN{known}")
    step = steps[-1] if step is None else step
    network = next(network for network in networks if (network, step) in found)
    return Checkpoint(found[network, step], found.get(("D", step)), step, "ema" if network == "G_ema" else "live")


def needed(folder: HubFolder, args: argparse.Namespace) -> list[str]:
    """The files of a folder on the Hub that the conversion reads."""
    checkpoint = choose(Path(str(folder)), folder.names, args.weights, args.step, args.prefer)
    networks = [path.name for path in (checkpoint.generator, checkpoint.discriminator) if path is not None]
    settings = [name for name in folder.names if re.fullmatch(r"[^/]+\.ya?ml", name)]
    return networks + (settings if len(settings) == 1 and args.config is None else [])


def read_settings(given: Path | None, source: Path) -> dict[str, Any]:
    """The YAML file of the run: the given one, or the only one beside the checkpoints; `{}` if there is none."""
    beside = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    path = given or (beside[0] if len(beside) == 1 else None)
    if path is None:
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no YAML") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("MODEL"), dict):
        raise ValueError(f"{str(path)!r} has no section MODEL, expected a configuration of StudioGAN")
    return settings


def check_settings(settings: dict[str, Any]) -> None:
    """Raises `ValueError` where the settings name a function that the tensors do not show and our model lacks."""
    model = settings.get("MODEL", {})
    if model.get("backbone", BACKBONES[0]) not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {model['backbone']!r}")
    for name in ("g_act_fn", "d_act_fn"):
        if model.get(name, "ReLU") != "ReLU":
            raise ValueError(f"{name} must be ReLU, got {model[name]!r}")


# Names


def _blocks(state: State, modules: dict[str, str], blocks_per_stage: int) -> dict[str, str]:
    """Adds the program's blocks. It numbers them through all stages, and counts self-attention as a block."""
    result, number = dict(modules), 0
    for index in range(number_of_blocks(state)):
        if f"blocks.{index}.0.sigma" in state:
            result[f"blocks.{index}.0"] = f"stages.{(number - 1) // blocks_per_stage}.attention"
        else:
            result[f"blocks.{index}.0"] = f"stages.{number // blocks_per_stage}.blocks.{number % blocks_per_stage}"
            number += 1
    return result


def _first_convolutions(state: State) -> list[str]:
    """The keys of the first convolution of each residual block."""
    keys = [f"blocks.{index}.0.conv2d1.weight" for index in range(number_of_blocks(state))]
    return [key for key in keys if key in state]


def rename_generator(state: State, findings: Findings) -> State:
    """The generator's tensors under this project's names."""
    depth = 1
    if "blocks.0.0.conv2d3.weight" in state:
        depth = deep_blocks_per_stage([state[key].shape[1] for key in _first_convolutions(state)])
    state = rename(state, _blocks(state, GENERATOR_MODULES, depth), NAMES, DROPPED, findings)
    output_gain(state)
    return state


def rename_discriminator(state: State, image_size: int, findings: Findings) -> State:
    """The discriminator's tensors under this project's names."""
    deep = "blocks.0.0.conv2d3.weight" in state
    stages = len(CHANNEL_MULTIPLIERS[image_size][1]) - deep
    depth = max(len(_first_convolutions(state)) // stages, 1)
    return rename(state, _blocks(state, DISCRIMINATOR_MODULES, depth), NAMES, DROPPED, findings)


def what_ours_lacks(state: State, num_labels: int) -> str | None:
    """What the discriminator has and ours can't have; `None` if our discriminator can hold it."""
    for pattern, what in OTHER_HEADS.items():
        if any(re.fullmatch(pattern, key) for key in state):
            return what
    if len(state["linear1.bias"]) != 1:
        return "an output for each class (MH, MD)"
    names = ("embedding.weight", "embedding.weight_orig")
    embeddings = next((len(value) for key, value in state.items() if key in names), 0)
    if embeddings != num_labels:
        return f"{embeddings} class embeddings for {num_labels} classes"
    return None


def find_settings(state: State, settings: dict[str, Any], findings: Findings) -> None:
    """Adds what is fixed in the program, and the class names of the data set."""
    findings.add("fixed in the program", batch_norm_eps=1e-4, spectral_norm_eps=1e-6, discriminator_shortcut_relu=True)
    if "stages.0.blocks.0.conv3.weight" in state:
        findings.add("tensor names", deep_projection_shortcut="stages.0.blocks.0.conv_sc.weight" in state)
    find_class_names(str((settings.get("DATA") or {}).get("name")), findings)


def convert(args: argparse.Namespace) -> Conversion:
    """What the script reads, under this project's names; raises `ValueError` or `OSError` for a wrong source."""
    checkpoint = find_checkpoint(args.source, args.weights, args.step, args.prefer)
    settings = read_settings(args.config, args.source)
    check_settings(settings)
    normalize = fold_spectral_norm if args.spectral_norm == "fold" else keep_spectral_norm
    findings = Findings()
    findings.remark(f"step {checkpoint.step}")
    generator = rename_generator(normalize(load_state(checkpoint.generator, "a StudioGAN generator")), findings)
    find_generator(generator, findings, has_classes=False)
    find_settings(generator, settings, findings)
    files, discriminator = [checkpoint.generator], None
    if checkpoint.discriminator is None:
        no_discriminator(findings)
    else:
        state = load_state(checkpoint.discriminator, "a StudioGAN discriminator")
        reason = what_ours_lacks(state, findings.fields["num_labels"])
        if reason:
            no_discriminator(findings)
            findings.remark(f"left out {checkpoint.discriminator.name}, which has {reason}")
        else:
            discriminator = rename_discriminator(normalize(state), findings.fields["image_size"], findings)
            find_discriminator(discriminator, findings)
            files.append(checkpoint.discriminator)
    findings.remark(
        "spectral norm is folded into the weights, so that the model answers as the program does"
        if args.spectral_norm == "fold"
        else "spectral norm is kept for training; σ is estimated anew, so the model answers only nearly as the program"
    )
    return Conversion(SOURCE, findings, generator, discriminator, files, checkpoint.weights)


def options() -> argparse.ArgumentParser:
    """The script's options."""
    arguments = parser(__doc__, "CHECKPOINT_DIR", "the folder with model=G-best-weights-step=N.pth and so on")
    arguments.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="the configuration of the run, for class names",
    )
    arguments.add_argument("--weights", choices=["ema", "live"], help="default: ema if there is such a file")
    arguments.add_argument("--step", type=int, metavar="N", help="default: the newest")
    text = "which files to take where a step has both (default: %(default)s)"
    arguments.add_argument("--prefer", choices=["best", "current"], default="best", help=text)
    arguments.add_argument(
        "--spectral_norm",
        choices=["fold", "keep"],
        default="fold",
        help="fold it into the weights, and the model answers as the program does; or keep it, and the model can be "
        "trained further (default: %(default)s)",
    )
    return arguments


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    convert_and_write(convert, options().parse_args(argv))


if __name__ == "__main__":
    run(main)
