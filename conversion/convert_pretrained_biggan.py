"""Converts a generator of pytorch-pretrained-biggan (`config.json` and `pytorch_model.bin`) to a model folder."""

import argparse
import json
from pathlib import Path
from typing import Any

from biggan_hf.conversion.architecture import (
    Findings,
    find_class_names,
    find_generator,
    no_discriminator,
    standing_truncations,
)
from biggan_hf.conversion.reading import check_folder, hint, load_state
from biggan_hf.conversion.rename import (
    add_running_statistics,
    deepmind_layouts,
    fold_spectral_norm,
    keep_three_channels,
    rename,
)
from biggan_hf.conversion.repositories import HubFolder
from biggan_hf.conversion.writing import Conversion, Source, convert_and_write, parser, run


SOURCE = Source(
    "pytorch-pretrained-biggan",
    "https://github.com/huggingface/pytorch-pretrained-BigGAN",
    "A port of DeepMind's TFHub modules under the Apache 2.0 licence. DeepMind released no discriminator.",
)

MODULES = {
    "embeddings": "class_embedding",
    "generator.gen_z": "linear",
    "generator.bn": "output_bn",
    "generator.conv_to_rgb": "output_conv",
}
NAMES = [
    (r"running_(mean|var)s", r"standing_\1"),
    (r"snconv1x1_(theta|phi|g)\.(weight)", r"\1.\2"),
    (r"snconv1x1_o_conv\.(weight)", r"o.\1"),
    (r"(weight|bias|gamma)", r"\1"),
]
BLOCK_MODULES = {
    module: ours
    for i in range(4)
    for module, ours in {
        f"conv_{i}": f"conv{i + 1}",
        f"bn_{i}": f"bn{i + 1}",
        f"bn_{i}.scale": f"bn{i + 1}.gain",
        f"bn_{i}.offset": f"bn{i + 1}.bias",
    }.items()
}
SETTINGS = ("z_dim", "channel_width", "layers", "attention_layer_position", "eps")


def read_settings(path: Path) -> dict[str, Any]:
    """The program's `config.json`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}, which a model of pytorch-pretrained-biggan has{hint(path.parent)}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    missing = [name for name in SETTINGS if not isinstance(settings, dict) or name not in settings]
    if missing:
        raise ValueError(
            f"{str(path)!r} has no {missing[0]!r}, expected a configuration of pytorch-pretrained-biggan"
            f"{hint(path.parent)}"
        )
    return settings


def needed(folder: HubFolder, args: argparse.Namespace) -> list[str]:
    """The files of a folder on the Hub that the conversion reads; raises for those of another program."""
    read_settings(folder.fetch(["config.json"]) / "config.json")
    return ["config.json", "pytorch_model.bin"]


def stage_modules(layers: list[list[Any]], attention: int) -> dict[str, str]:
    """
    The names of the program's layers, which are numbered, and ours. The layer that upsamples is the last of a stage.

    Args:
        layers: (upsamples, input width, output width) of each layer.
        attention: The number of the layer before which self-attention stands, as a layer of its own.

    Raises:
        ValueError: The stages have different lengths, or self-attention stands within one.
    """
    ends = [i + 1 for i, layer in enumerate(layers) if layer[0]]
    depth = ends[0] if ends else 0
    if ends != list(range(depth, len(layers) + 1, depth or 1)):
        raise ValueError(f"the layers upsample after {ends} of {len(layers)}, expected stages of one length")
    if 0 <= attention < len(layers) and (attention == 0 or attention % depth):
        raise ValueError(f"self-attention before layer {attention} stands within a stage of {depth} layers")
    modules = {}
    for i in range(len(layers)):
        theirs = f"generator.layers.{i + (i >= attention)}"
        for module, ours in BLOCK_MODULES.items():
            modules[f"{theirs}.{module}"] = f"stages.{i // depth}.blocks.{i % depth}.{ours}"
    modules[f"generator.layers.{attention}"] = f"stages.{attention // depth - 1}.attention"
    return modules


def convert(args: argparse.Namespace) -> Conversion:
    """What the script reads, under this project's names; raises `ValueError` or `OSError` for a wrong source."""
    check_folder(args.source)
    settings = read_settings(args.source / "config.json")
    weights = args.source / "pytorch_model.bin"
    findings = Findings()
    modules = MODULES | stage_modules(settings["layers"], settings["attention_layer_position"])
    state = fold_spectral_norm(load_state(weights, "a pytorch-pretrained-biggan generator"))
    state = rename(state, modules, NAMES, {}, findings)
    state["class_embedding.weight"] = state["class_embedding.weight"].t()
    keep_three_channels(state)
    deepmind_layouts(state, deep=True)
    add_running_statistics(state)
    find_generator(state, findings)
    findings.add("config.json", batch_norm_eps=float(settings["eps"]), spectral_norm_eps=float(settings["eps"]))
    findings.add("fixed in the program", truncation_mode="scale", standing_truncations=standing_truncations(state))
    findings.add("flag", standing_interpolation=args.stats_interpolation)
    find_class_names("ImageNet", findings)
    no_discriminator(findings)
    findings.remark("spectral norm is folded into the weights")
    return Conversion(SOURCE, findings, state, None, [weights, args.source / "config.json"])


def options() -> argparse.ArgumentParser:
    """The script's options."""
    arguments = parser(__doc__, "DIR", "the folder with config.json and pytorch_model.bin")
    arguments.add_argument(
        "--stats_interpolation",
        choices=["linear", "mirrored"],
        default="linear",
        help="between two rows of statistics: linear is right, mirrored exchanges the weights of the rows, as that "
        "program does (default: %(default)s)",
    )
    return arguments


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    convert_and_write(convert, options().parse_args(argv))


if __name__ == "__main__":
    run(main)
