"""Converts a checkpoint of StudioGAN, backbone `big_resnet` or one of the two deep ones, to a model folder."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from architecture import (
    Findings,
    deep_blocks_per_stage,
    find_discriminator,
    find_generator,
    imagenet_classes,
    no_discriminator,
)
from reading import State, guess, load_state, no_folder
from rename import fold_spectral_norm, keep_spectral_norm, output_gain, rename, scalar_gamma
from writing import Conversion, Source, add_reference, convert_and_write, parser, run

from biggan_hf.presets import CHANNEL_MULTIPLIERS, CIFAR10_CLASSES


SOURCE = Source(
    "StudioGAN",
    "https://github.com/POSTECH-CVLab/PyTorch-StudioGAN",
    "The program is under the MIT licence; that of the weights is their publisher's to say.",
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
# Discriminators that do more than ours: what their tensors are called, and what they are.
OTHER_HEADS = {
    r"linear2\..*": "a classifier or an embedding head (AC, 2C, D2DCE)",
    r"(linear|embedding)_mi\..*": "a second head (TAC)",
    r"info_.*": "InfoGAN's head",
    r"blocks\.\d+\.0\.bn\d\..*": "batch norms (apply_d_sn: false)",
}


@dataclass
class Checkpoint:
    generator: Path
    discriminator: Path | None
    step: int
    weights: str


# Finding the files


def find_checkpoint(source: Path, weights: str | None, step: int | None) -> Checkpoint:
    """
    The files of one step, the newest unless `step` is given; of "best" and "current" files of one step the best.

    Args:
        source: The run's folder of checkpoints.
        weights: "ema", "live", or `None`: ema where there is one.
        step: A step.

    Raises:
        FileNotFoundError: No folder, or no generator in it.
    """
    if not source.is_dir():
        raise FileNotFoundError(no_folder(source))
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(source.glob("model=*.pth"), reverse=True):  # "current" before "best"
        match = re.fullmatch(r"model=(G|G_ema|D)-(best|current)-weights-step=(\d+)", path.stem)
        if match:
            found[match[1], int(match[3])] = path
    networks = {"ema": ["G_ema"], "live": ["G"], None: ["G_ema", "G"]}[weights]
    steps = sorted({number for network, number in found if network in networks})
    if not steps or (step is not None and step not in steps):
        wanted = " or ".join(f"model={network}-…-weights-step={step or 'N'}.pth" for network in networks)
        hint = f"; there are the steps {', '.join(map(str, steps))}" if steps else guess(source)
        raise FileNotFoundError(f"{str(source)!r} holds no {wanted}, so it is no such checkpoint of StudioGAN{hint}")
    step = steps[-1] if step is None else step
    network = next(network for network in networks if (network, step) in found)
    return Checkpoint(found[network, step], found.get(("D", step)), step, "ema" if network == "G_ema" else "live")


def read_settings(given: Path | None, source: Path) -> dict[str, Any]:
    """The run's YAML, given or the only one beside the checkpoints; `{}` without one."""
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
    """Raises `ValueError` for what the tensors don't show and this model can't do."""
    model = settings.get("MODEL", {})
    if model.get("backbone", BACKBONES[0]) not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {model['backbone']!r}")
    for name in ("g_act_fn", "d_act_fn"):
        if model.get(name, "ReLU") != "ReLU":
            raise ValueError(f"{name} must be ReLU, got {model[name]!r}")


# Names


def _blocks(state: State, modules: dict[str, str], blocks_per_stage: int) -> dict[str, str]:
    """Adds the program's blocks, which are numbered through, with self-attention as a block of its own."""
    result, number = dict(modules), 0
    for index in range(_number_of_blocks(state)):
        if f"blocks.{index}.0.sigma" in state:
            result[f"blocks.{index}.0"] = f"stages.{(number - 1) // blocks_per_stage}.attention"
        else:
            result[f"blocks.{index}.0"] = f"stages.{number // blocks_per_stage}.blocks.{number % blocks_per_stage}"
            number += 1
    return result


def _number_of_blocks(state: State) -> int:
    return len({key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)})


def _convolutions(state: State) -> list[str]:
    """The first convolution of each residual block."""
    keys = [f"blocks.{index}.0.conv2d1.weight" for index in range(_number_of_blocks(state))]
    return [key for key in keys if key in state]


def rename_generator(state: State, findings: Findings) -> State:
    depth = 1
    if "blocks.0.0.conv2d3.weight" in state:
        depth = deep_blocks_per_stage([state[key].shape[1] for key in _convolutions(state)])
    state = rename(state, _blocks(state, GENERATOR_MODULES, depth), NAMES, DROPPED, findings)
    output_gain(state)
    scalar_gamma(state)
    return state


def rename_discriminator(state: State, image_size: int, findings: Findings) -> State:
    deep = "blocks.0.0.conv2d3.weight" in state
    stages = len(CHANNEL_MULTIPLIERS[image_size][1]) - deep
    depth = max(len(_convolutions(state)) // stages, 1)
    state = rename(state, _blocks(state, DISCRIMINATOR_MODULES, depth), NAMES, DROPPED, findings)
    scalar_gamma(state)
    return state


def why_not(state: State, num_labels: int) -> str | None:
    """Why this model can't hold a discriminator; `None` where it can."""
    for pattern, what in OTHER_HEADS.items():
        if any(re.fullmatch(pattern, key) for key in state):
            return what
    if len(state["linear1.bias"]) != 1:
        return "an output for each class (MH, MD)"
    embeddings = next((len(value) for key, value in state.items() if key in EMBEDDINGS), 0)
    if embeddings != num_labels:
        return f"{embeddings} class embeddings for {num_labels} classes"
    return None


EMBEDDINGS = ("embedding.weight", "embedding.weight_orig")


def find_settings(state: State, settings: dict[str, Any], findings: Findings) -> None:
    """Adds what is fixed in the program, and the class names of the data sets that it knows."""
    findings.add("fixed in the program", batch_norm_eps=1e-4, spectral_norm_eps=1e-6, discriminator_shortcut_relu=True)
    if "stages.0.blocks.0.conv3.weight" in state:
        findings.add("tensor names", deep_projection_shortcut="stages.0.blocks.0.conv_sc.weight" in state)
    data, number = (settings.get("DATA") or {}).get("name"), findings.fields["num_labels"]
    if data == "CIFAR10" and number == len(CIFAR10_CLASSES):
        findings.add(f"data set {data}", id2label=dict(enumerate(CIFAR10_CLASSES)))
    elif data == "ImageNet" and number == 1000:
        findings.add(f"data set {data}", id2label=imagenet_classes())


def convert(args: argparse.Namespace) -> Conversion:
    checkpoint = find_checkpoint(args.source, args.weights, args.step)
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
        reason = why_not(state, findings.fields["num_labels"])
        if reason:
            no_discriminator(findings)
            findings.remark(f"left out {checkpoint.discriminator.name}, which has {reason}")
        else:
            discriminator = rename_discriminator(normalize(state), findings.fields["image_size"], findings)
            find_discriminator(discriminator, findings)
            files.append(checkpoint.discriminator)
    findings.remark(
        "spectral norm is folded into the weights, so that the answer is the program's"
        if args.spectral_norm == "fold"
        else "spectral norm is kept for training on; σ is estimated anew, so the answer is near the program's only"
    )
    return Conversion(SOURCE, findings, generator, discriminator, files, checkpoint.weights)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__, "CHECKPOINT_DIR", "the run's folder with model=G-best-weights-step=N.pth …")
    arguments.add_argument("--config", type=Path, metavar="YAML", help="the run's configuration, for class names")
    arguments.add_argument("--weights", choices=["ema", "live"], help="default: ema where there is one")
    arguments.add_argument("--step", type=int, metavar="N", help="default: the newest")
    arguments.add_argument(
        "--spectral_norm",
        choices=["fold", "keep"],
        default="fold",
        help="fold it into the weights, which answers as the program does, or keep it for training on "
        "(default: %(default)s)",
    )
    add_reference(arguments)
    convert_and_write(convert, arguments.parse_args(argv))


if __name__ == "__main__":
    run(main)
