"""From another program's tensors to this project's: names, layouts and spectral norm.

A format is data: which module of the source is which module here (`modules`), how the tensors within a module are
called (`names`), and what is left out (`dropped`, with the reason).
"""

import re
from collections import Counter

import torch
from torch import Tensor

from biggan_hf.conversion.architecture import Findings
from biggan_hf.conversion.reading import State


# Names


def rename(
    state: State, modules: dict[str, str], names: list[tuple[str, str]], dropped: dict[str, str], findings: Findings
) -> State:
    """
    The tensors under this project's names.

    Args:
        state: Tensors by their source's names.
        modules: The source's module names, to this project's; the longest that a key begins with counts.
        names: Patterns of the rest of a key, which must match the whole of it, and what replaces them; the first that
            matches counts.
        dropped: Patterns of whole keys that are left out, with the reason.
        findings: Takes the remarks on what was left out.

    Raises:
        ValueError: A key that has no place, or a place with two keys.
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
        if module is None:
            continue
        tail = ".".join(parts[length:])
        for pattern, replacement in names:
            match = re.fullmatch(pattern, tail)
            if match:
                return f"{module}.{match.expand(replacement)}"
        return None
    return None


def abbreviated(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


# Spectral norm


def stored_sigma(weight: Tensor, u: Tensor, v: Tensor, channels_last: bool = False) -> Tensor:
    """uᵀWv with the vectors as they are stored: what torch's `spectral_norm` divides by in eval mode."""
    if channels_last and weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)
    return torch.dot(u, torch.mv(weight.flatten(1), v))


def fold_spectral_norm(state: State, channels_last: bool = False) -> State:
    """
    Replaces `weight_orig`, `weight_u` and `weight_v` by the weight that the source's eval mode uses, W / uᵀWv.

    Stored vectors need not be the weight's own (an averaged generator's are not even unit vectors), so a power
    iteration of ours would answer otherwise.

    Args:
        state: Tensors by their source's names.
        channels_last: v runs over (height, width, channel), as in TensorFlow.
    """
    folded = {key: value for key, value in state.items() if not re.search(r"\bweight_(orig|u|v)$", key)}
    for key, weight in state.items():
        if key.endswith("weight_orig"):
            module = key.removesuffix("weight_orig")
            u, v = (_partner(state, module + name) for name in ("weight_u", "weight_v"))
            folded[module + "weight"] = weight / stored_sigma(weight, u.flatten(), v.flatten(), channels_last)
    return folded


def keep_spectral_norm(state: State) -> State:
    """The same layers as weight, `u0` and `sv0`: ready for training on, where σ is estimated anew."""
    kept = {key: value for key, value in state.items() if not re.search(r"\bweight_(orig|u|v)$", key)}
    for key, weight in state.items():
        if key.endswith("weight_orig"):
            module = key.removesuffix("weight_orig")
            u, v = (_partner(state, module + name).flatten() for name in ("weight_u", "weight_v"))
            kept |= {
                module + "weight": weight,
                module + "u0": u[None].clone(),
                module + "sv0": stored_sigma(weight, u, v).reshape(1),
            }
    return kept


def _partner(state: State, key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"{key} is missing: a spectrally normalised weight needs its two singular vectors")
    return state[key]


def power_step(weight: Tensor, u: Tensor, eps: float) -> Tensor:
    """σ after one power iteration from u (1, rows), as BigGAN-PyTorch's layers and ours take it in eval mode."""
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


def fill_in_singular_values(state: State, eps: float) -> int:
    """Adds each missing `sv0` beside its `u0` (a log of σ, no part of the function); returns how many were missing."""
    missing = [key.removesuffix("u0") for key in state if key.endswith(".u0")]
    missing = [module for module in missing if module + "sv0" not in state]
    for module in missing:
        state[module + "sv0"] = power_step(state[module + "weight"], state[module + "u0"], eps).reshape(1)
    return len(missing)


# Layouts


def stem_from_hwc(state: State) -> None:
    """Rows of the first linear map, from TensorFlow's order (height, width, channel) to (channel, height, width)."""
    for name in ("linear.weight", "linear.bias", "linear.u0"):
        if name in state:
            rows = state[name].movedim(-1, 0) if name.endswith("u0") else state[name]
            rows = rows.unflatten(0, (4, 4, -1)).movedim(2, 0).flatten(0, 2)
            state[name] = (rows.movedim(0, -1) if name.endswith("u0") else rows).contiguous()


def class_first(state: State, class_embedding_dim: int, deep: bool) -> None:
    """The columns of every map of the condition, from [latents, class] to this project's [class, latents]."""
    pattern = r".*\.bn\d\.(gain|bias)\.weight" + (r"|linear\.weight" if deep else "")
    for name, weight in state.items():
        if re.fullmatch(pattern, name):
            state[name] = weight.roll(class_embedding_dim, dims=1)


def output_gain(state: State, gain: str = "weight", bias: str = "bias") -> None:
    """The last batch norm's two parameters, from the source's names for them."""
    for ours, theirs in (("gain", gain), ("bias", bias)):
        if f"output_bn.{theirs}" in state:
            state[f"output_bn.{ours}"] = state.pop(f"output_bn.{theirs}")


def scalar_gamma(state: State) -> None:
    for name, value in state.items():
        if name.endswith(".gamma"):
            state[name] = value.reshape(())


def run_on_standing_row(state: State, row: int) -> None:
    """The running statistics, which count where no truncation is given, are a row of the standing ones."""
    for name in [name for name in state if re.search(r"\.standing_(mean|var)$", name)]:
        state[name.replace("standing_", "running_")] = state[name][row].clone()
