"""Infers the architecture of a checkpoint from the shapes of its tensors.

All functions read tensors that have this project's names already, so the converters of all formats share them.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch

from biggan_hf import BigGANConfig
from biggan_hf.conversion.reading import State
from biggan_hf.presets import CHANNEL_MULTIPLIERS, CIFAR10_CLASSES


class Findings:
    """What a converter knows of a model: the fields of its configuration, the origin of each, and remarks."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.remarks: list[str] = []

    def add(self, origin: str, **fields: Any) -> None:
        """Adds fields of the configuration, and where they come from."""
        self.fields.update(fields)
        self.origins.update(dict.fromkeys(fields, origin))

    def remark(self, text: str) -> None:
        """Adds a line for the screen and the card."""
        self.remarks.append(text)

    def config(self) -> BigGANConfig:
        """The configuration; raises `ValueError` where the fields fit no architecture."""
        return BigGANConfig(**self.fields)

    def table(self) -> str:
        """The fields as lines: name, value, origin."""
        rows = [
            (name, f"{len(value)} values" if len(str(value)) > 40 else str(value), self.origins[name])
            for name, value in self.fields.items()
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(f"  {n:<{widths[0]}}  {v:<{widths[1]}}  {origin}" for n, v, origin in rows)


# Reading names and shapes


def number_of_blocks(source_state: State) -> int:
    """The number of blocks of a source that calls them `blocks.0`, `blocks.1` and so on."""
    return len({key.split(".")[1] for key in source_state if re.match(r"blocks\.\d+\.", key)})


def is_deep(state: State) -> bool:
    """Whether a generator is one of the deep architecture."""
    return "stages.0.blocks.0.conv3.weight" in state


def stage_numbers(state: State) -> list[int]:
    """The numbers of the stages, ascending."""
    return sorted({int(key.split(".")[1]) for key in state if key.startswith("stages.")})


def blocks_per_stage(state: State) -> int:
    """The number of blocks in each stage."""
    return max(int(key.split(".")[3]) for key in state if re.match(r"stages\.\d+\.blocks\.", key)) + 1


def attention_stages(state: State) -> list[int]:
    """The stages that self-attention follows."""
    return [stage for stage in stage_numbers(state) if f"stages.{stage}.attention.theta.weight" in state]


def stage_outputs(state: State) -> list[int]:
    """The output width of each stage: that of the last convolution of its last block."""
    last = blocks_per_stage(state) - 1
    conv = "conv4" if is_deep(state) else "conv2"
    return [rows(state, f"stages.{stage}.blocks.{last}.{conv}.weight") for stage in stage_numbers(state)]


def rows(state: State, name: str) -> int:
    """The output width of a weight."""
    return shape(state, name)[0]


def shape(state: State, name: str) -> torch.Size:
    """The shape of a weight; raises `ValueError` if it is missing, or neither a matrix nor a convolution."""
    if name not in state:
        raise ValueError(f"{name} is missing: the shapes fit no BigGAN")
    if state[name].ndim < 2:
        raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, expected a matrix or a convolution")
    return state[name].shape


def attention_stage(outputs: list[int], width: int) -> int:
    """The one stage with this output width; raises `ValueError` where attention of this width fits none or several."""
    fitting = [stage for stage, output in enumerate(outputs) if output == width]
    if len(fitting) != 1:
        raise ValueError(f"attention of {width} channels fits {len(fitting)} of the stages of {outputs} channels")
    return fitting[0]


def width_and_multipliers(channels: list[int], table: list[int]) -> tuple[int, list[int]]:
    """The base width and the multiples of it: the table's if they fit, else over the greatest common divisor."""
    width = max(channels[0] // table[0], 1)
    if channels == [width * multiple for multiple in table]:
        return width, table
    width = math.gcd(*channels)
    return width, [channel // width for channel in channels]


def deep_blocks_per_stage(widths: list[int]) -> int:
    """
    The number of blocks in each stage of a deep generator, from the input widths of all its blocks.

    The programs that let the user choose this number build any at 32 pixels, where all widths are equal, and only 2
    at the other sizes.
    """
    return len(widths) // 3 if len(set(widths)) == 1 else 2


# The fields of the configuration


def find_generator(state: State, findings: Findings, has_classes: bool = True) -> None:
    """
    Adds the fields of the generator.

    Args:
        state: Its tensors.
        findings: Takes the fields.
        has_classes: Whether a generator without a shared class embedding has an embedding in each batch norm; if not,
            it is unconditional.

    Raises:
        ValueError: The shapes fit no architecture.
    """
    stages = stage_numbers(state)
    size = 4 * 2 ** len(stages)
    if size not in CHANNEL_MULTIPLIERS or stages != list(range(len(stages))):
        raise ValueError(f"a generator of {len(stages)} stages fits no image size; expected 3 (32 px) to 7 (512 px)")
    channels = [rows(state, "linear.weight") // 16, *stage_outputs(state)]
    width, multipliers = width_and_multipliers(channels, CHANNEL_MULTIPLIERS[size][0])
    findings.add(
        "tensor shapes",
        architecture="biggan-deep" if is_deep(state) else "biggan",
        image_size=size,
        num_channels=rows(state, "output_conv.weight"),
        generator_base_channels=width,
        generator_channel_multipliers=multipliers,
        generator_attention_resolutions=[8 * 2**stage for stage in attention_stages(state)],
        generator_spectral_norm="linear.u0" in state,
        **({"generator_blocks_per_stage": blocks_per_stage(state)} if is_deep(state) else {}),
        **_conditioning(state, has_classes),
    )


def _conditioning(state: State, has_classes: bool) -> dict[str, Any]:
    """The fields that say how classes and latents enter."""
    stem = shape(state, "linear.weight")[1]
    gain = shape(state, "stages.0.blocks.0.bn1.gain.weight")
    chunks = 1 if is_deep(state) else len(stage_numbers(state)) + 1
    if "class_embedding.weight" in state:
        number, width = shape(state, "class_embedding.weight")[:2]
        if is_deep(state):
            return {"num_labels": number, "class_embedding_dim": width, "z_dim": stem - width}
        split = gain[1] > width
        return {
            "num_labels": number,
            "class_embedding_dim": width,
            "hierarchical_latents": split,
            "z_dim": stem * chunks if split else stem,
        }
    if has_classes:
        per_layer = {"shared_class_embedding": False, "hierarchical_latents": False}
        return {"num_labels": gain[0], "z_dim": stem, **per_layer}
    return {"num_labels": 0, "z_dim": stem * chunks}


def find_discriminator(state: State, findings: Findings) -> None:
    """Adds the fields of the discriminator. Call it after `find_generator`, whose fields it must agree with."""
    size = findings.fields["image_size"]
    channels = stage_outputs(state)
    if is_deep(state):
        channels = [rows(state, "input_conv.weight"), *channels]
    table = CHANNEL_MULTIPLIERS[size][1]
    if len(channels) != len(table) or is_deep(state) != (findings.fields["architecture"] == "biggan-deep"):
        raise ValueError(f"the discriminator of {len(stage_numbers(state))} stages does not belong to {size} pixels")
    number = rows(state, "class_embedding.weight") if "class_embedding.weight" in state else 0
    if number != findings.fields["num_labels"]:
        raise ValueError(f"the discriminator has {number} classes, the generator {findings.fields['num_labels']}")
    width, multipliers = width_and_multipliers(channels, table)
    convs = [f"stages.{stage}.blocks.0.conv{{}}.weight" for stage in stage_numbers(state)]
    findings.add(
        "tensor shapes",
        discriminator_base_channels=width,
        discriminator_channel_multipliers=multipliers,
        discriminator_spectral_norm="linear.u0" in state,
        discriminator_wide=is_deep(state) or all(rows(state, c.format(1)) == rows(state, c.format(2)) for c in convs),
        **({"discriminator_blocks_per_stage": blocks_per_stage(state)} if is_deep(state) else {}),
        **_discriminator_attention(attention_stages(state), len(convs), size),
    )


def _discriminator_attention(stages: list[int], number: int, image_size: int) -> dict[str, Any]:
    """The output sizes of the stages with attention; and their numbers, if other stages have these sizes too."""
    smallest = 8 if image_size == 32 else 4
    sizes = [max(image_size // 2 ** (stage + 1), smallest) for stage in range(number)]
    chosen = list(dict.fromkeys(sizes[stage] for stage in stages))
    implied = [stage for stage in range(number) if sizes[stage] in chosen]
    return {
        "discriminator_attention_resolutions": chosen,
        "discriminator_attention_stages": None if implied == stages else stages,
    }


def no_discriminator(findings: Findings) -> None:
    """Adds the fields of a discriminator that the source lacks: the usual one, as wide as the generator."""
    fields = findings.fields
    size, width = fields["image_size"], fields["generator_base_channels"]
    outputs = CHANNEL_MULTIPLIERS[size][1][1 if fields["architecture"] == "biggan-deep" else 0 :]
    widths = {size // 2 ** (stage + 1): multiple * width for stage, multiple in enumerate(outputs)}
    attention = [size for size in fields["generator_attention_resolutions"] if widths.get(size, 0) >= 8]
    findings.add(
        "none in the source",
        discriminator_base_channels=width,
        discriminator_attention_resolutions=[] if size == 32 else attention,
    )
    findings.remark("the source holds no discriminator, so none was written")


# Statistics and class names


def standing_truncations(state: State) -> list[float]:
    """
    The truncations of the rows of statistics of a deep module, evenly from 0 to 1.

    Raises:
        ValueError: There is one row alone, which says of no truncation that it is its own.
    """
    table = state["output_bn.standing_mean"]
    if len(table) < 2:
        name = f"the table of statistics of the last batch norm is {tuple(table.shape)}"
        raise ValueError(f"{name}, expected a row for each of at least 2 truncations, from 0 to 1")
    return [row / (len(table) - 1) for row in range(len(table))]


def find_class_names(data_set: str, findings: Findings) -> None:
    """Adds the class names of "CIFAR10" or "ImageNet", if the generator has as many classes as that data set."""
    names = {"CIFAR10": dict(enumerate(CIFAR10_CLASSES)), "ImageNet": imagenet_classes()}.get(data_set, {})
    if names and len(names) == findings.fields["num_labels"]:
        findings.add(data_set, id2label=names)


def imagenet_classes() -> dict[int, str]:
    """ImageNet's 1000 classes in ascending order of their WordNet ids; commas separate synonyms."""
    text = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(enumerate(text.splitlines()))
