"""The layers that take another form from some size up on a CPU, in both forms, on both sides of each line.

    python benchmarks/rules.py --batch_sizes 1 8

The forms are products of matrices beside resampling, Winograd's tiles, and attention in parts; each rule is a few
constants of the package, which are moved here.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import torch
from measuring import Result, environment, run, set_up, tensor_float32, write
from resampling import forms_parser, measure_forms, table
from torch import Tensor, nn

from biggan_hf import layers, winograd
from biggan_hf.kernels import kept_kernels
from biggan_hf.layers import Conv2d, SelfAttention


class Rule(NamedTuple):
    """
    Where a layer takes its other form.

    Attributes:
        build: A layer of so many channels.
        module: Whose constants are the line.
        constants: Their names.
        uses: What the form serves.
        sizes: Channels and pixels of a side, below the line and above it.
    """

    build: Callable[[int], nn.Module]
    module: ModuleType
    constants: Sequence[str]
    uses: Sequence[str]
    sizes: Sequence[tuple[int, int]]


def attention(channels: int) -> nn.Module:
    layer = SelfAttention(channels, None)
    nn.init.ones_(layer.gamma)
    return layer


def convolution(channels: int, **options: str) -> nn.Module:
    return Conv2d(channels, channels, 3, **options)  # type: ignore[arg-type]


BOTH, SAMPLING = ("sampling", "training"), ("sampling",)
PRODUCTS = layers, ("PRODUCT_CHANNELS",), BOTH
RULES = {
    "product, up": Rule(partial(convolution, resample="up"), *PRODUCTS, [(768, 16), (1024, 8), (1536, 8), (1536, 4)]),
    "product, down": Rule(partial(convolution, resample="down"), *PRODUCTS, [(768, 16), (1024, 8), (1536, 8)]),
    "tiles": Rule(
        convolution,
        winograd,
        ("CHANNELS", "TILES", "MULTIPLICATIONS"),
        SAMPLING,
        [(192, 64), (512, 4), (512, 8), (384, 16), (384, 32), (768, 16), (1536, 8)],
    ),
    "attention in parts": Rule(
        attention,
        layers,
        ("PART_KEYS", "PART_CHANNELS"),
        SAMPLING,
        [(64, 16), (256, 16), (32, 32), (64, 32), (256, 32), (32, 64), (64, 64), (192, 64), (192, 128)],
    ),
}


class Form(nn.Module):
    """A layer whose rule has its line at 1, below every layer, or above all."""

    def __init__(self, layer: nn.Module, rule: Rule, line: int):
        super().__init__()
        self.layer, self.rule, self.line = layer, rule, line

    def forward(self, maps: Tensor) -> Tensor:
        with self.drawn_line():
            return cast(Tensor, self.layer(maps))

    def drawn_line(self) -> AbstractContextManager[Any]:
        lines: dict[str, Any] = dict.fromkeys(self.rule.constants, self.line)
        return patch.multiple(self.rule.module, **lines)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The kernel of the form is arranged where this is entered."""
        with ExitStack() as stack:
            with self.drawn_line():
                stack.enter_context(kept_kernels(self.layer))
            yield


def measure(name: str, what: str, size: tuple[int, int], batch_size: int, options: argparse.Namespace) -> Result:
    rule, (channels, pixels) = RULES[name], size
    layer = rule.build(channels)
    forms = nn.ModuleList([Form(layer, rule, 1), Form(copy.deepcopy(layer), rule, 2**30)]).train(what == "training")
    maps = torch.randn(batch_size, channels, pixels, pixels, device=options.device)
    title = f"{name}, {channels} channels at {pixels} pixels"
    place = {"rule": name, "what": what, "channels": channels, "size": pixels}
    return {**place, **measure_forms(forms, maps, f"{what}, {title}", options, Form.kept)}


def cells(row: Result) -> str:
    return f"{row['rule']} | {row['channels']:,} | {row['size']}"


def main(argv: list[str] | None = None) -> None:
    arguments = forms_parser(__doc__)
    arguments.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="what to measure")
    options = arguments.parse_args(argv)
    device = set_up(options)
    if (device.type, options.dtype) != ("cpu", "float32"):
        raise ValueError(f"the rules are of float32 on a CPU, got {options.dtype} on {options.device}")
    with tensor_float32(options.tf32):
        rows = [
            measure(name, what, size, batch_size, options)
            for name in options.rules
            for what in RULES[name].uses
            for size in RULES[name].sizes
            for batch_size in options.batch_sizes
        ]
    print(table(rows, "form | channels | px", cells))
    write("rules", rows, environment(device), options.json)


if __name__ == "__main__":
    run(main)
