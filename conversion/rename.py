"""Turns another program's tensors into this project's: names, spectral norm and layouts.

A format is data: which module of the source is which module here (`modules`), what the tensors of a module are called
(`names`), and which tensors are left out, with the reason (`dropped`).
"""

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from biggan_hf.conversion.architecture import Findings, attention_stage
from biggan_hf.conversion.reading import State


# Names


def rename(
    state: State, modules: dict[str, str], names: list[tuple[str, str]], dropped: dict[str, str], findings: Findings
) -> State:
    """
    The tensors under this project's names.

    Args:
        state: The tensors under the source's names.
        modules: The source's names of modules, and ours. Of several that a key begins with, the longest counts.
        names: Patterns that must match the whole rest of a key, and what replaces it. The first that matches counts.
        dropped: Patterns of whole keys that are left out, with the reason.
        findings: Takes a remark for each reason.

    Raises:
        ValueError: A key has no place, or two keys have the same.
    """
    renamed: State = {}
    unknown: list[str] = []
    reasons: Counter[str] = Counter()
    for key, tensor in state.items():
        reason = next((reason for pattern, reason in dropped.items() if re.fullmatch(pattern, key)), None)
        if reason is not None:
            reasons[f"{key.rsplit('.', 1)[-1]}: {reason}"] += 1
            continue
        target = _target(key, modules, names)
        if target is None or target in renamed:
            unknown.append(key)
            continue
        renamed[target] = tensor
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(state)} tensors have no place in a BigGAN: {abbreviated(unknown)}")
    for text, number in reasons.items():
        findings.remark(f"left out {number} × {text}")
    return renamed


def _target(key: str, modules: dict[str, str], names: list[tuple[str, str]]) -> str | None:
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = modules.get(".".join(parts[:length]))
        if module is not None:
            matches = ((re.fullmatch(pattern, ".".join(parts[length:])), ours) for pattern, ours in names)
            return next((f"{module}.{match.expand(ours)}" for match, ours in matches if match), None)
    return None


def abbreviated(names: list[str]) -> str:
    """The first four names."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


# Spectral norm


def _normalized_layers(state: State, channels_last: bool = False) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """
    The layers that torch's `spectral_norm` wraps: name with a dot, weight, u, and the σ of the source's eval mode.

    This σ is uᵀWv with u and v as they are stored. Those of an averaged generator are not even unit vectors, so a
    power iteration would give another σ.

    Args:
        channels_last: v runs over (height, width, channel), as in TensorFlow.
    """
    for key, weight in state.items():
        if not key.endswith("weight_orig"):
            continue
        layer = key.removesuffix("weight_orig")
        for name in (f"{layer}weight_u", f"{layer}weight_v"):
            if name not in state:
                raise ValueError(f"{name} is missing: a spectrally normalised weight needs its two singular vectors")
        u, v = state[f"{layer}weight_u"].flatten(), state[f"{layer}weight_v"].flatten()
        matrix = weight.permute(0, 2, 3, 1) if channels_last and weight.ndim == 4 else weight
        yield layer, weight, u, torch.dot(u, torch.mv(matrix.flatten(1), v))


def _others(state: State) -> State:
    return {key: value for key, value in state.items() if not re.search(r"\bweight_(orig|u|v)$", key)}


def fold_spectral_norm(state: State, channels_last: bool = False) -> State:
    """Replaces `weight_orig`, `weight_u` and `weight_v` by W / σ, the weight that the source's eval mode uses."""
    layers = _normalized_layers(state, channels_last)
    return _others(state) | {f"{layer}weight": weight / sigma for layer, weight, _, sigma in layers}


def keep_spectral_norm(state: State) -> State:
    """Renames them to `weight`, `u0` and `sv0`. The model can be trained on, and estimates σ anew."""
    kept = _others(state)
    for layer, weight, u, sigma in _normalized_layers(state):
        kept |= {f"{layer}weight": weight, f"{layer}u0": u[None].clone(), f"{layer}sv0": sigma.reshape(1)}
    return kept


def power_step(weight: Tensor, u: Tensor, eps: float) -> Tensor:
    """σ after one power iteration from u (1, rows), which BigGAN-PyTorch's layers and ours take in eval mode."""
    weight = weight.flatten(1)
    v = torch.nn.functional.normalize(u @ weight, eps=eps)
    return (v @ weight.t()).norm()


def fold_power_step(state: State, eps: float) -> State:
    """Replaces each weight that has a `u0` by W / σ, with σ after one power iteration from it."""
    folded = {key: value for key, value in state.items() if not re.search(r"\.(u0|sv0)$", key)}
    for key, u in state.items():
        if key.endswith(".u0"):
            name = key.removesuffix("u0") + "weight"
            folded[name] = state[name] / power_step(state[name], u, eps)
    return folded


def fill_in_singular_values(state: State, eps: float) -> None:
    """Adds an `sv0` to each `u0` that has none. It logs σ, and the network's function does not depend on it."""
    for layer in [key.removesuffix("u0") for key in state if key.endswith(".u0")]:
        if f"{layer}sv0" not in state:
            state[f"{layer}sv0"] = power_step(state[f"{layer}weight"], state[f"{layer}u0"], eps).reshape(1)


# Layouts


def output_gain(state: State) -> None:
    """The parameters of the last batch norm, which other programs call weight and bias, gamma and beta, and so on."""
    for theirs, ours in {"weight": "gain", "gamma": "gain", "scale": "gain", "beta": "bias", "offset": "bias"}.items():
        if f"output_bn.{theirs}" in state:
            state[f"output_bn.{ours}"] = state.pop(f"output_bn.{theirs}")


def class_first(state: State, deep: bool) -> None:
    """The columns of every map of the condition, from (latents, class) to this project's (class, latents)."""
    width = state["class_embedding.weight"].shape[1]
    pattern = r".*\.bn\d\.(gain|bias)\.weight" + (r"|linear\.weight" if deep else "")
    for name, weight in state.items():
        if re.fullmatch(pattern, name):
            state[name] = weight.roll(width, dims=1)


# What DeepMind's modules and the ports of them share


def deepmind_blocks(
    state: State, block: str, modules: dict[str, str], bias: str, theta: str, depth: int
) -> dict[str, str]:
    """
    The modules of the blocks, which are called `GBlock`, `GBlock_1` and so on, and of self-attention.

    Args:
        state: The tensors under the source's names.
        block: The name of the first block.
        modules: The source's names of the modules in a block, and ours.
        bias: The bias of a block's last convolution. Its size tells which stage has the width of self-attention, whose
            place the names do not tell.
        theta: The weight of self-attention's first convolution.
        depth: The number of blocks in a stage.
    """
    numbers = sorted(
        {int(match[1] or 0) for key in state if (match := re.match(rf"{re.escape(block)}(?:_(\d+))?\.", key))}
    )
    blocks = [f"{block}_{number}" if number else block for number in numbers]
    result = {
        f"{name}.{module}": f"stages.{number // depth}.blocks.{number % depth}.{ours}"
        for number, name in enumerate(blocks)
        for module, ours in modules.items()
    }
    if theta in state:
        outputs = [len(state[f"{name}.{bias}"]) for name in blocks[depth - 1 :: depth]]
        stage = attention_stage(outputs, state[theta].shape[1])
        result[theta.rsplit(".", 2)[0]] = f"stages.{stage}.attention"
    return result


def deepmind_layouts(state: State, deep: bool) -> None:
    """Columns, rows and the names of the last batch norm, from DeepMind's order to this project's."""
    output_gain(state)
    class_first(state, deep)
    # The rows of the first linear map, from (height, width, channel) to (channel, height, width).
    for name in ("linear.weight", "linear.bias", "linear.u0"):
        if name in state:
            rows = state[name].movedim(-1, 0) if name.endswith("u0") else state[name]
            rows = rows.unflatten(0, (4, 4, -1)).movedim(2, 0).flatten(0, 2)
            state[name] = (rows.movedim(0, -1) if name.endswith("u0") else rows).contiguous()


def keep_three_channels(state: State) -> None:
    """
    The last convolution of a deep module, with only those of its channels that are used. Fold its spectral norm
    before, since σ is that of all channels.
    """
    for name in ("output_conv.weight", "output_conv.bias"):
        state[name] = state[name][:3].clone()


def add_running_statistics(state: State) -> None:
    """The last row of the standing statistics, that of truncation 1. It counts where no truncation is given."""
    for name in [name for name in state if re.search(r"\.standing_(mean|var)$", name)]:
        state[name.replace("standing_", "running_")] = state[name][-1].clone()
