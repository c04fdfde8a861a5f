"""Standing statistics: the mean and variance that batch norm uses at one truncation, measured over many forwards.

Running statistics are wrong twice for sampling: they come from untruncated latents, and an averaged generator has
those of other weights. The paper instead runs the generator about 100 times on fresh latents and aggregates
the statistics of the batches; truncated samples need a set of statistics for each threshold.

Each forward normalises every layer by the current batch, as in training, so that deep layers get correctly normalised
inputs. Spectral norm works as in eval mode: it takes a step and does not store it.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .bars import open_bar
from .devices import exact_device, in_float64
from .eval_mode import eval_view
from .keywords import answers_keywords
from .latents import check_truncation, sample_latents
from .layers import BatchNorm2d, ConditionalBatchNorm2d
from .modeling_biggan import BigGANModel
from .processes import add_up, from_main, num_processes, process_rank


SUMMED_AT_A_TIME = 2**18  # on a CPU: 2 MiB of float64, which the cache holds

Layers = list[BatchNorm2d | ConditionalBatchNorm2d]


@answers_keywords("collect_standing_statistics")
@torch.no_grad()
def collect_standing_statistics(
    model: BigGANModel,
    truncations: float | Iterable[float] | None = None,
    *,
    num_batches: int = 100,
    batch_size: int = 64,
    average_batches: bool = False,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
) -> None:
    """
    Measures the generator's standing statistics and stores them in its buffers and its config, in place of those it
    has. `model(..., truncation=t)` and `model.sample(truncation=t)` then use them, and `save_pretrained` saves them.

    Nothing else changes. Only `truncations=None` changes running statistics. If the call fails, nothing changes.

    Where torch.distributed is initialised, as `accelerate.Accelerator()` does under `accelerate launch`, every process
    must call this with the same weights. Each takes a share of the batches, and all use the first one's generator.

    Args:
        model: The generator itself, not its wrapper for distributed training.
        truncations: One threshold or a table of them, each > 0, in the sense of `config.truncation_mode`. `None`:
            measures plain N(0, 1) and replaces the running statistics, which untruncated samples use.
        num_batches: Forward passes for each threshold; the paper takes about 100.
        batch_size: Samples per pass, at least 2. Larger batches come closer to the statistics of an endless batch.
        average_batches: `False`: the variance is that of all activations of all passes. `True`: the mean of the
            passes' variances, which leaves out how much the passes' means vary. The paper aggregates means and
            variances over the passes and does not say how. The latter is what DeepMind's TFHub modules hold (sums of
            batch means and of batch variances, with a counter), and what compare_gan and BigGAN-PyTorch compute. The
            means are the same.
        generator: Draws latents and labels; the same seed gives the same bits. All thresholds use the same draws, so
            that a row does not depend on the other rows.
        progress_bar: Shows the passes done, on the first process.

    Raises:
        TypeError: `model` is no `BigGANModel`.
        ValueError: A threshold that is not positive and finite, an empty table, fewer than 1 batch or 2 samples,
            activations that are not finite.
    """
    _check(model, num_batches, batch_size)
    table = _table(truncations)
    layers, view = _batch_norms(model), eval_view(model)
    seed = _draw_seed(generator)
    own_batches = range(process_rank(), num_batches, num_processes())

    rows = []
    total, silent = max(len(table), 1) * len(own_batches), not progress_bar or process_rank() > 0
    observed = _observe_batches(view)
    with view.folded_weights(), open_bar(total=total, disable=silent, unit="batch") as bar:
        for truncation in table or (None,):
            moments = _Moments(sum(layer.num_features for layer in layers), model.device)
            for batch in own_batches:
                _forward(view, truncation, batch_size, _seed_of_batch(seed, batch))
                moments.add(*(torch.cat(each) for each in zip(*observed, strict=True)))
                bar.update()
            mean, var = moments.pooled(average_batches)
            if not (mean.isfinite().all() and var.isfinite().all()):
                raise ValueError(f"the activations at truncation={truncation} are not finite: no statistics")
            rows.append((mean, var))
    _store(model, layers, table, *(torch.stack(each) for each in zip(*rows, strict=True)))


def _check(model: BigGANModel, num_batches: int, batch_size: int) -> None:
    if not isinstance(model, BigGANModel):
        raise TypeError(f"standing statistics are those of a BigGANModel, got {type(model).__name__}; unwrap it")
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, since a batch is normalised as one, got {batch_size}")


def _table(truncations: float | Iterable[float] | None) -> list[float]:
    """The thresholds, ascending; none for plain N(0, 1)."""
    if truncations is None:
        return []
    given = list(truncations) if isinstance(truncations, Iterable) else [truncations]
    if not given:
        raise ValueError("truncations is empty; None measures plain N(0, 1)")
    for truncation in given:
        if truncation is None:
            raise ValueError(
                "a table of truncations must hold numbers, got None; plain N(0, 1) needs a call of its own"
            )
        check_truncation(truncation)
    return sorted({float(truncation) for truncation in given})


def _batch_norms(model: BigGANModel) -> Layers:
    return [m for m in model.modules() if isinstance(m, BatchNorm2d | ConditionalBatchNorm2d)]


def _draw_seed(generator: torch.Generator | None) -> int:
    """The same seed for all processes."""
    drawn_on = "cpu" if generator is None else generator.device
    return from_main(int(torch.randint(2**63 - 1, (1,), generator=generator, device=drawn_on)))


def _seed_of_batch(seed: int, batch: int) -> int:
    """What a batch holds depends on its number, and not on the process that takes it."""
    return int(np.random.SeedSequence([seed, batch]).generate_state(1, np.uint64)[0])


def _forward(model: BigGANModel, truncation: float | None, batch_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = model._labels_to_sample(None, batch_size, generator)
    mode = model.config.truncation_mode
    model(sample_latents(batch_size, model.config.z_dim, truncation, mode, generator, model.device), labels)


def _observe_batches(view: BigGANModel) -> list[tuple[Tensor, Tensor]]:
    """Lets batch norms use the statistics of their batch. Returns where the last ones of each layer are put."""
    layers = _batch_norms(view)
    observed: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(layers)
    for index, layer in enumerate(layers):
        layer.observer = partial(_observe, observed, index)
    return observed


def _observe(observed: list[tuple[Tensor, Tensor]], index: int, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) over (N, H, W). Sums are float64, so that E[x²] - E[x]² keeps enough digits."""
    on_cpu = hidden_states.device.type == "cpu"
    samples = max(SUMMED_AT_A_TIME // hidden_states[0].numel(), 1) if on_cpu else len(hidden_states)
    device = exact_device(hidden_states.device)
    sums = torch.zeros(2, hidden_states.shape[1], dtype=torch.float64, device=device)
    for part in hidden_states.split(samples):
        values = in_float64(part)
        sums[0] += values.sum(dim=(0, 2, 3))
        sums[1] += values.square().sum(dim=(0, 2, 3))
    mean, mean_square = sums / (hidden_states.numel() // hidden_states.shape[1])
    var = (mean_square - mean.square()).clamp_min(0)
    observed[index] = mean, var
    if device == hidden_states.device:
        return mean, var
    return mean.float().to(hidden_states.device), var.float().to(hidden_states.device)


class _Moments:
    """
    Pools batches of one size. The variance of all values is the mean of the batches' variances plus the variance of
    their means (the law of total variance). Welford's update in float64; Chan, Golub & LeVeque's (1979) across
    processes.
    """

    def __init__(self, num_channels: int, device: torch.device):
        self.count = 0
        # The mean of the batches' means, the mean of their variances, the sum of squares of their means about `mean`.
        self.mean, self.within, self.between = torch.zeros(
            3, num_channels, dtype=torch.float64, device=exact_device(device)
        )

    def add(self, mean: Tensor, var: Tensor) -> None:
        self.count += 1
        difference = mean - self.mean
        self.mean += difference / self.count
        self.within += (var - self.within) / self.count
        self.between += difference * (mean - self.mean)

    def pooled(self, average_batches: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance over the batches of all processes."""
        mean, within, count = self.count * self.mean, self.count * self.within, self.mean.new_tensor(self.count)
        add_up([mean, within, count])
        mean, within = mean / count, within / count
        between = self.between + self.count * (self.mean - mean).square()
        add_up([between])
        return mean, within if average_batches else within + between / count


def _store(model: BigGANModel, layers: Layers, table: list[float], means: Tensor, variances: Tensor) -> None:
    """`means` and `variances`: (rows, channels of all layers)."""
    sizes = [layer.num_features for layer in layers]
    place, dtype = layers[0].running_mean.device, layers[0].running_mean.dtype
    means, variances = (x.to(dtype).to(place) for x in (means, variances))
    columns = zip(means.split(sizes, dim=1), variances.split(sizes, dim=1), strict=True)
    for layer, (mean, var) in zip(layers, columns, strict=True):
        if table:
            layer.register_buffer("standing_mean", mean.clone(memory_format=torch.contiguous_format))
            layer.register_buffer("standing_var", var.clone(memory_format=torch.contiguous_format))
        else:
            layer.running_mean.copy_(mean[0])
            layer.running_var.copy_(var[0])
    if table:
        config = model._own_config()
        config.standing_interpolation, config.standing_truncations = "linear", table
