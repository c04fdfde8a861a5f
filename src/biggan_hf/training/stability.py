"""
The stability watch: what the paper measured to see a collapse coming (section 4), and the rule that calls one.

The tell-tale are the top singular values σ0, σ1, σ2 of every weight: some of the generator's σ0 explode at collapse,
the discriminator's jump, and its loss falls to nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import SpectralNorm
from .steps import Batch


Log = Sequence[Mapping[str, Any]]

# As many halvings take float16's scaler from its first scale, 2^16, to below one: what still overflows is no scale.
MAX_OVERFLOWS = 20


class Spectra:
    """
    The top singular values of every spectrally normalised weight of a network, by block power iteration that starts
    from the last call's vectors: training moves a weight a little between two calls, so a few steps follow it.

    Args:
        network: The network to watch.
        number: Singular values a weight.
        steps: Iterations a call.
    """

    def __init__(self, network: nn.Module, number: int = 3, steps: int = 4):
        self.layers = {name: m for name, m in network.named_modules() if isinstance(m, SpectralNorm)}
        self.number, self.steps = number, steps
        self.bases: dict[str, Tensor] = {}  # (columns, number) by the name of the layer, of the last call

    def restore(self, bases: Mapping[str, Tensor]) -> None:
        """Goes on from the vectors of a checkpoint; starts anew where it has none."""
        self.bases = {name: bases[name].to(m.weight.device) for name, m in self.layers.items() if name in bases}

    @torch.no_grad()
    def measure(self) -> dict[str, list[float]]:
        """
        Singular values in descending order, by the name of the layer; fewer for a small matrix, and not-a-number for
        a weight that has one.
        """
        values = {name: self._measure(name, layer.weight.flatten(1).float()) for name, layer in self.layers.items()}
        return {name: sigma.tolist() for name, sigma in values.items()}

    def _measure(self, name: str, matrix: Tensor) -> Tensor:
        if not torch.isfinite(matrix).all():
            return matrix.new_full((min(self.number, *matrix.shape),), math.nan)
        cold = name not in self.bases
        basis = start_basis(matrix, self.number) if cold else self.bases[name]
        sigma, self.bases[name] = top_singular_values(matrix, basis, 10 * self.steps if cold else self.steps)
        return sigma


class SigmaClamp:
    """
    Keeps the largest singular value of a network's weights down: W ← W - max(0, σ0 - limit) u0 v0ᵀ (paper, section
    4.1). It has no memory, so that a resumed run repeats the uninterrupted one.

    Args:
        network: Whose normalised weights are clamped.
        value: The limit, or `None`.
        ratio: The limit in units of σ1, if there is no value.
    """

    def __init__(self, network: nn.Module, value: float | None, ratio: float | None):
        self.weights = [m.weight for m in network.modules() if isinstance(m, SpectralNorm)]
        self.value, self.ratio = value, ratio

    @torch.no_grad()
    def apply(self) -> None:
        for weight in self.weights:
            matrix = weight.flatten(1)
            if min(matrix.shape) < 2:
                continue
            sigma, right = top_singular_values(matrix, start_basis(matrix, 2), 10)
            limit = self.value if self.value is not None else (self.ratio or 1.0) * sigma[1]
            excess = (sigma[0] - limit).clamp(min=0)
            left = matrix @ right[:, 0] / sigma[0]
            weight.sub_(torch.outer(excess * left, right[:, 0]).view_as(weight))


def start_basis(matrix: Tensor, number: int) -> Tensor:
    """Random vectors (columns, number), the same for every matrix of a shape."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(matrix.shape[1], min(number, *matrix.shape), generator=generator)
    return basis.to(matrix.device, matrix.dtype)


def top_singular_values(matrix: Tensor, basis: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """
    Block power iteration.

    Args:
        matrix: (rows, columns).
        basis: (columns, k), where to start.
        steps: Iterations.

    Returns:
        The k largest singular values, descending, and the (columns, k) right singular vectors to go on from.
    """
    right = torch.linalg.qr(basis).Q
    for _ in range(steps):
        left = torch.linalg.qr(matrix @ right).Q
        right = torch.linalg.qr(matrix.t() @ left).Q
    # Rotated within the block so that the columns are singular vectors.
    _, sigma, rotation = torch.linalg.svd(matrix @ right, full_matrices=False)
    return sigma, right @ rotation.t()


@dataclass(frozen=True)
class Watch:
    """
    What is measured every so often: the spectra of both networks, and the discriminator on real pictures, `held_out`
    from training and as many `training` ones: if it takes more of these for real, it remembers them (paper, section
    4.2).
    """

    generator: Spectra
    discriminator: Spectra
    pictures: Mapping[str, Batch]


@torch.no_grad()
def share_taken_for_real(discriminator: nn.Module, pictures: Batch) -> float:
    """Of the pictures, by the discriminator in evaluation mode, which is left as it was."""
    was_training = discriminator.training
    discriminator.eval()
    logits = discriminator(pictures.inputs, pictures.class_labels).logits
    discriminator.train(was_training)
    return float((logits > 0).double().mean())


@torch.no_grad()
def all_finite(networks: Iterable[nn.Module]) -> bool:
    """Whether every weight and statistic is a finite number; waits for the device."""
    largest = torch._foreach_norm([v for network in networks for v in network.state_dict().values()], math.inf)
    return bool(torch.stack(largest).isfinite().all())


def diagnose(log: Log, window: int, loss_floor: float, sigma_factor: float) -> str | None:
    """
    The rule. A run has gone wrong when

    1. a value of the last line is not a finite number, unless float16 overflowed in that step and at most
       `MAX_OVERFLOWS` in a row: its scaler leaves such an update out and tries a smaller scale;
    2. the discriminator's loss, averaged over the last `window` lines, is below `loss_floor`: it has won;
    3. the largest σ0 of the generator is above `sigma_factor` times its median over the last `window` earlier lines
       that have it, of which there must be at least half as many: it explodes, where slow growth is healthy.

    Args:
        log: Lines of log.jsonl, oldest first.
        window: Lines that 2 and 3 look back on.
        loss_floor: In units of the loss; hinge begins at 2.
        sigma_factor: A multiple of the median.

    Returns:
        A sentence that says what went wrong; `None` if nothing has.
    """
    last = log[-1]
    overflowed = 0 < last.get("overflows_in_a_row", 0) <= MAX_OVERFLOWS
    for name, value in {} if overflowed else last.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"step {last['step']}: {name} is {value}"
    losses = [line["discriminator_loss"] for line in log[-window:]]
    if len(losses) == window and sum(losses) / window < loss_floor:
        mean = f"{sum(losses) / window:.4f} over {window} lines of the log, below {loss_floor}"
        return f"step {last['step']}: the discriminator's loss averaged {mean}"
    sigma = last.get("generator_sigma0")
    earlier = [line["generator_sigma0"] for line in log[:-1] if "generator_sigma0" in line][-window:]
    if sigma is not None and 2 * len(earlier) >= window and sigma > sigma_factor * median(earlier):
        return f"step {last['step']}: the generator's largest σ0 is {sigma:.3g}, {median(earlier):.3g} before"
    return None
