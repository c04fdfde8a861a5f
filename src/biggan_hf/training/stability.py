"""
The stability watch: what the paper measures to see a collapse coming (section 4), and the rule that calls one.

The paper looks at the three largest singular values σ0, σ1, σ2 of every weight. At a collapse some σ0 of the generator
explode, those of the discriminator jump, and the discriminator's loss falls to nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..eval_mode import in_eval_mode
from ..spectral_norm import SpectralNorm
from .steps import Pictures


Log = Sequence[Mapping[str, Any]]

# The rule for collapses looks back on this many lines of the log, so that a single bad line is no collapse. With the
# default `logging_steps` they are 1,000 steps.
WINDOW = 20
# The mean loss of the discriminator below which it has won. The hinge loss begins at 2, and is 0 when D always wins.
LOSS_FLOOR = 0.01
# σ0 of the generator may be this many times its median in the window. A doubling every 20,000 steps, which is healthy,
# is never called. Growth by ten every 3,000 steps is called as soon as there are ten measurements.
SIGMA_FACTOR = 4.0
# The scaler of float16 begins at 2^16. After 20 halvings it is below one, and no smaller scale would help.
MAX_OVERFLOWS = 20

# A run that has collapsed four times will collapse again.
MAX_ROLLBACKS = 3
# After a rollback the same steps would lead to the same collapse: smaller ones are tried.
ROLLBACK_LEARNING_RATE_FACTOR = 0.5


class Spectra:
    """
    The top singular values of every spectrally normalised weight of a network, by block power iteration. It starts
    from the vectors of the last call: training moves a weight only a little in between, so a few steps are enough.
    """

    def __init__(self, network: nn.Module, number: int = 3, steps: int = 4):
        self.layers = {name: m for name, m in network.named_modules() if isinstance(m, SpectralNorm)}
        self.number, self.steps = number, steps
        self.bases: dict[str, Tensor] = {}  # vectors (columns, number) of the last call, by layer

    def restore(self, bases: Mapping[str, Tensor]) -> None:
        """Goes on from the vectors of a checkpoint. A layer without vectors starts anew."""
        self.bases = {name: bases[name].to(m.weight.device) for name, m in self.layers.items() if name in bases}

    @torch.no_grad()
    def measure(self) -> dict[str, list[float]]:
        """By the name of the layer, largest first: fewer of a small matrix, NaN of one that is not finite."""
        return {name: self._measure(name, m.weight.flatten(1).float()).tolist() for name, m in self.layers.items()}

    def _measure(self, name: str, matrix: Tensor) -> Tensor:
        if not torch.isfinite(matrix).all():
            return matrix.new_full((min(self.number, *matrix.shape),), math.nan)
        cold = name not in self.bases
        basis = start_basis(matrix, self.number) if cold else self.bases[name]
        sigma, self.bases[name] = top_singular_values(matrix, basis, 10 * self.steps if cold else self.steps)
        return sigma


class SigmaClamp:
    """
    Keeps the largest singular value of every normalised weight below a limit: W ← W - max(0, σ0 - limit) u0 v0ᵀ
    (paper, section 4.1). The limit is a value, or else so many times σ1. The clamp remembers nothing, so a resumed run
    repeats the uninterrupted one.
    """

    def __init__(self, network: nn.Module, value: float | None, ratio: float | None):
        self.weights = [m.weight for m in network.modules() if isinstance(m, SpectralNorm) and m.weight.requires_grad]
        if not self.weights:
            raise ValueError(
                "sigma_clamp and sigma_clamp_ratio need weights that learn and have spectral norm: none has"
            )
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
    """Random vectors (columns, number). Matrices of one shape get the same."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(matrix.shape[1], min(number, *matrix.shape), generator=generator)
    return basis.to(matrix.device, matrix.dtype)


def top_singular_values(matrix: Tensor, basis: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """
    The largest singular values, largest first, and their right singular vectors (columns, k), by block power iteration
    from a basis (columns, k).
    """
    right = torch.linalg.qr(basis).Q
    for _ in range(steps):
        left = torch.linalg.qr(matrix @ right).Q
        right = torch.linalg.qr(matrix.t() @ left).Q
    # Rotate within the block, so that its columns are singular vectors.
    _, sigma, rotation = torch.linalg.svd(matrix @ right, full_matrices=False)
    return sigma, right @ rotation.t()


@torch.no_grad()
def share_taken_for_real(discriminator: nn.Module, pictures: Pictures) -> float:
    """
    The share of pictures that the discriminator, in eval mode, takes for real. If it is larger of training pictures
    than of held-out ones, the discriminator remembers pictures (paper, section 4.2).
    """
    logits = in_eval_mode(discriminator)(pictures.pixel_values, pictures.class_labels).logits
    return int((logits > 0).sum()) / len(logits)


@torch.no_grad()
def all_finite(networks: Iterable[nn.Module]) -> bool:
    """Whether every weight and statistic is a finite number. It waits for the device."""
    largest = torch._foreach_norm([v for network in networks for v in network.state_dict().values()], math.inf)
    return bool(torch.stack(largest).isfinite().all())


def diagnose(log: Log) -> str | None:
    """
    The rule for collapses. A run has collapsed when

    1. a value of the last line is not finite. An overflow of float16 is forgiven, up to `MAX_OVERFLOWS` in a row: the
       scaler leaves such an update out and tries a smaller scale;
    2. the discriminator's loss, averaged over the last `WINDOW` lines, is below `LOSS_FLOOR`: it has won;
    3. the generator's largest σ0 is above `SIGMA_FACTOR` times its median over the last `WINDOW` earlier lines that
       have it, and there are at least half as many: it explodes.

    Takes the lines of log.jsonl, oldest first. Returns a sentence that says what went wrong, or `None`.
    """
    last = log[-1]
    overflowed = 0 < last.get("overflows_in_a_row", 0) <= MAX_OVERFLOWS
    for name, value in {} if overflowed else last.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"step {last['step']}: {name} is {value}"
    losses = [line["discriminator_loss"] for line in log[-WINDOW:]]
    if len(losses) == WINDOW and sum(losses) / WINDOW < LOSS_FLOOR:
        mean = f"{sum(losses) / WINDOW:.4f} over {WINDOW} lines of the log, below {LOSS_FLOOR}"
        return f"step {last['step']}: the discriminator's loss averaged {mean}"
    sigma = last.get("generator_sigma0")
    earlier = [line["generator_sigma0"] for line in log[:-1] if "generator_sigma0" in line][-WINDOW:]
    if sigma is not None and 2 * len(earlier) >= WINDOW and sigma > SIGMA_FACTOR * median(earlier):
        return f"step {last['step']}: the generator's largest σ0 is {sigma:.3g}, {median(earlier):.3g} before"
    return None
