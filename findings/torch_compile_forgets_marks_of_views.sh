#!/usr/bin/env bash
# torch 2.11.0: a compiled network forgets `mark_non_differentiable` where the marked output is a view.
#
# The guess: torch.compile keeps what an autograd.Function says of its outputs, so a statistic that it marks as without a
# gradient may move a buffer. It does in eager mode, and compiled with torch 2.13.0.
# What happens: if the marked tensor is a view of another (a row of a stack), the compiled network gives it a gradient.
# So does the buffer that it moves: it holds on to the first step, and the second backward pass ends in "Trying to
# backward through the graph a second time", in a line that has to do with neither. A marked tensor that is no view is as
# it should be. `detach()` before the buffer moves mends it.
# Seen with: torch 2.11.0, backend aot_eager and inductor, CPU and CUDA, Python 3.11 and 3.12, 2026-11-28. Exits with 1
# if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# PyPI's wheel is the one for CUDA: some gigabytes with its libraries. The script needs no GPU.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, is_view):
        mean = torch.stack([x.mean(0), x.var(0)])[0] if is_view else x.mean(0)
        ctx.save_for_backward(x)
        ctx.mark_non_differentiable(mean)
        return x * weight, mean

    @staticmethod
    def backward(ctx, gradient, _):
        (x,) = ctx.saved_tensors
        return None, (gradient * x).sum(0), None


class Layer(nn.Module):
    def __init__(self, is_view):
        super().__init__()
        self.is_view = is_view
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running", torch.zeros(3))

    def forward(self, x):
        out, mean = Scale.apply(x, self.weight, self.is_view)
        self.running.lerp_(mean, 0.1)
        return out


def two_steps(compiled, is_view):
    layer = Layer(is_view)
    if compiled:
        layer.compile(backend="aot_eager")
    for step in (1, 2):
        try:
            layer(torch.randn(4, 3) * layer.weight).sum().backward()
        except RuntimeError as error:
            return f"step {step} fails: {str(error).partition('(')[0]}"
    return "both steps pass"


seen = {
    (compiled, is_view): two_steps(compiled, is_view) for compiled in (False, True) for is_view in (False, True)
}
print(torch.__version__)
for (compiled, is_view), what in seen.items():
    print(f"{'compiled' if compiled else 'eager'}, {'a view' if is_view else 'no view'}: {what}")
fails = [what.startswith("step 2") for what in seen.values()]
sys.exit(fails != [False, False, False, True])
PYTHON
