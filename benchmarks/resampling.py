"""The convolutions with upsampling before them or pooling after them, beside the plain form of the same function.

    python benchmarks/resampling.py --presets biggan-128 cifar10 --batch_sizes 1 8

The plain form is the project's own convolution, in the best form that it has, and torch's resampling at the full size.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from measuring import (
    DTYPES,
    Result,
    alternate,
    environment,
    parser,
    positive,
    ratio,
    require_same,
    run,
    set_up,
    tensor_float32,
    timed,
    write,
)
from torch import Tensor, nn
from torch.nn import functional as F

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.configuration_biggan import PRESETS
from biggan_hf.kernels import kept_kernels
from biggan_hf.layers import Conv2d, Resample


Keep = Callable[[Any], AbstractContextManager[None]]  # of a form
WHAT = ("sampling", "training")
SECONDS = 1.0  # a quick layer runs for so long at the least
MOST_REPEATS = 200
COMPARED = 2  # maps: the gradient of a weight is a sum over all, whose rounding grows with them


class Place(NamedTuple):
    """A layer of a network: its channels, and the size of the map that it is given."""

    resample: Resample
    in_channels: int
    out_channels: int
    size: int


def places(preset: str) -> list[Place]:
    """Those of both networks, from a forward without values."""
    found: list[Place] = []

    def note(layer: Conv2d, inputs: tuple[Tensor]) -> None:
        if layer.resample is not None:
            found.append(Place(layer.resample, layer.in_channels, layer.out_channels, inputs[0].shape[-1]))

    config = BigGANConfig.preset(preset, generator_spectral_norm=False, discriminator_spectral_norm=False)
    with torch.device("meta"), torch.no_grad():
        for network in (BigGANModel(config), BigGANDiscriminator(config)):
            for layer in network.modules():
                if isinstance(layer, Conv2d):
                    layer.register_forward_pre_hook(note)
            network(**network.dummy_inputs)
    return found


class Plain(nn.Module):
    """A 3x3 convolution at the full size."""

    def __init__(self, layer: Conv2d):
        super().__init__()
        self.resample = layer.resample
        self.conv = Conv2d(layer.in_channels, layer.out_channels, 3)
        self.conv.load_state_dict(layer.state_dict())

    def forward(self, maps: Tensor) -> Tensor:
        if self.resample == "up":
            return self.conv(F.interpolate(maps, scale_factor=2, mode="nearest"))
        return F.avg_pool2d(self.conv(maps), 2)


def compute(form: nn.Module, maps: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """The output and, in training, the gradients of the map, the weight and the bias."""
    out = form(maps)
    return (out, *torch.autograd.grad(out, [maps, *form.parameters()], upstream)) if form.training else (out,)


@contextmanager
def kept(forms: nn.ModuleList, keep: Keep) -> Iterator[None]:
    """In eval mode both forms keep their kernels, whose freshness is not looked at while they are timed."""
    with ExitStack() as stack, torch.set_grad_enabled(forms.training):
        for form in forms:
            stack.enter_context(keep(form))
        yield


def largest_difference(forms: nn.ModuleList, maps: Tensor, title: str, keep: Keep) -> float:
    """The largest difference of the forms in float32, in units of the largest value: gradients grow with the map."""
    with kept(forms, keep), tensor_float32(False):
        upstream = torch.randn_like(forms[1](maps))
        ours, theirs = (compute(form, maps, upstream) for form in forms)
        pairs = [(a / b.abs().max(), b / b.abs().max()) for a, b in zip(ours, theirs, strict=True)]
        return max(require_same(a, b, f"the forms of {title}") for a, b in pairs)


def measure_forms(
    forms: nn.ModuleList, maps: Tensor, title: str, options: argparse.Namespace, keep: Keep = kept_kernels
) -> Result:
    """Seconds of a form and of the plain one, by turns: in eval mode of a forward, in training of a backward, too."""
    training, order = forms.training, torch.channels_last if options.channels_last else torch.contiguous_format
    forms.to(maps.device, memory_format=order)  # type: ignore[call-overload]  # torch declares them apart
    maps = maps.to(memory_format=order)
    difference = largest_difference(forms, maps[:COMPARED].requires_grad_(training), title, keep)
    dtype = DTYPES[options.dtype]
    maps = maps.to(dtype).requires_grad_(training)
    with kept(forms.to(dtype), keep):
        upstream = torch.randn_like(forms[1](maps))
        runs = [timed(partial(compute, form, maps, upstream), maps.device) for form in forms]
        repeats = max(options.repeats, min(int(SECONDS / sum(run() for run in runs)), MOST_REPEATS))
        seconds, plain_seconds = alternate(runs, repeats, title)
    middle, least, greatest = ratio(seconds, plain_seconds)
    return {
        "batch_size": len(maps),
        "channels_last": options.channels_last,
        "largest_difference": difference,
        "seconds": statistics.median(seconds),
        "plain_seconds": statistics.median(plain_seconds),
        "repeats": repeats,
        "ratio": middle,
        "ratio_range": [least, greatest],
    }


def measure(place: Place, what: str, batch_size: int, options: argparse.Namespace) -> Result:
    layer = Conv2d(place.in_channels, place.out_channels, 3, resample=place.resample)
    forms = nn.ModuleList([layer, Plain(layer)]).train(what == "training")
    maps = torch.randn(batch_size, place.in_channels, place.size, place.size, device=options.device)
    return {"what": what, **place._asdict(), **measure_forms(forms, maps, f"{what}, {place}", options)}


def table(rows: Sequence[Result], headings: str, cells: Callable[[Result], str]) -> str:
    """Markdown: a line a layer, of which some cells tell, its ratios in a column a use and batch."""
    uses = list(dict.fromkeys((row["what"], row["batch_size"]) for row in rows))
    ratios = {(cells(row), row["what"], row["batch_size"]): row["ratio"] for row in rows}
    lines = [f"| {headings} | " + " | ".join(f"{what}, {number}" for what, number in uses) + " |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for layer in dict.fromkeys(map(cells, rows)):
        found = [ratios.get((layer, *use)) for use in uses]
        lines.append(f"| {layer} | " + " | ".join("–" if x is None else f"{x:.2f}" for x in found) + " |")
    return "\n".join(lines)


def cells(row: Result) -> str:
    return f"{row['resample']} | {row['in_channels']:,} → {row['out_channels']:,} | {row['size']}"


def forms_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of measuring forms of a layer."""
    result = parser(description)
    result.add_argument("--batch_sizes", type=positive, nargs="+", default=[1, 8], help="images")
    result.add_argument("--dtype", choices=DTYPES, default="float32", help="of maps and weights")
    result.add_argument("--channels_last", action="store_true", help="maps and weights in this order")
    return result


def main(argv: list[str] | None = None) -> None:
    arguments = forms_parser(__doc__)
    arguments.add_argument("--presets", nargs="+", choices=PRESETS, default=["biggan-128", "cifar10"], help="networks")
    arguments.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="what to measure")
    options = arguments.parse_args(argv)
    device = set_up(options)
    found = dict.fromkeys(sorted(place for preset in options.presets for place in places(preset)))
    with tensor_float32(options.tf32):
        rows = [
            measure(place, what, batch_size, options)
            for place in found
            for what in options.what
            for batch_size in options.batch_sizes
        ]
    print(table(rows, "| channels | px", cells))
    write("resampling", rows, environment(device), options.json)


if __name__ == "__main__":
    run(main)
