"""Converts a file of ivclab's port, such as `biggan256-release.pt`: DeepMind's plain models with all statistics."""

import argparse
import re

from biggan_hf.conversion.architecture import (
    Findings,
    attention_stage,
    find_generator,
    imagenet_classes,
    no_discriminator,
)
from biggan_hf.conversion.reading import State, load_state
from biggan_hf.conversion.rename import (
    class_first,
    fold_spectral_norm,
    output_gain,
    rename,
    run_on_standing_row,
    scalar_gamma,
    stem_from_hwc,
)
from biggan_hf.conversion.writing import Conversion, Source, add_reference, convert_and_write, parser, run


SOURCE = Source(
    "BigGAN-Generator-Pretrained-Pytorch",
    "https://github.com/ivclab/BigGAN-Generator-Pretrained-Pytorch",
    "A port of DeepMind's TFHub modules, without a licence of its own. DeepMind released no discriminator.",
)

MODULES = {
    "linear": "class_embedding",
    "g_z.g_linear": "linear",
    "scaledcrossreplicabn": "output_bn",
    "conv_2d": "output_conv",
}
BLOCK_MODULES = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv_sc": "conv_sc",
    "hyperbn": "bn1",
    "hyperbn.gamma": "bn1.gain",
    "hyperbn.beta": "bn1.bias",
    "hyperbn_1": "bn2",
    "hyperbn_1.gamma": "bn2.gain",
    "hyperbn_1.beta": "bn2.bias",
}
NAMES = [
    (r"(?:crossreplicabn\.)?standing_(mean|var)s", r"standing_\1"),
    (r"(theta|phi|g)\.(weight)", r"\1.\2"),
    (r"o_conv\.(weight)", r"o.\1"),
    (r"(weight|bias|gamma)", r"\1"),
]
DROPPED = {
    r".*\.running_(mean|var)": "statistics that this port uses in training only",
    r".*\.num_batches_tracked": "a count of batches, no part of the function",
}
EPS = 1e-4


def modules(state: State) -> dict[str, str]:
    """The port's blocks are `gblock`, `gblock_1` …; where self-attention stands only its width tells."""
    result = dict(MODULES)
    numbers = sorted({int(match[1] or 0) for key in state if (match := re.match(r"gblock(?:_(\d+))?\.", key))})
    blocks = ["gblock" if number == 0 else f"gblock_{number}" for number in numbers]
    for stage, block in enumerate(blocks):
        for module, ours in BLOCK_MODULES.items():
            result[f"{block}.{module}"] = f"stages.{stage}.blocks.0.{ours}"
    theta = state.get("attention.theta.weight")
    if theta is not None:
        outputs = [len(state[f"{block}.conv1.bias"]) for block in blocks]
        result["attention"] = f"stages.{attention_stage(outputs, theta.shape[1])}.attention"
    return result


def convert(args: argparse.Namespace) -> Conversion:
    findings = Findings()
    state = fold_spectral_norm(load_state(args.source, "a generator ported by ivclab"), channels_last=True)
    state = rename(state, modules(state), NAMES, DROPPED, findings)
    output_gain(state)
    scalar_gamma(state)
    stem_from_hwc(state)
    class_first(state, state["class_embedding.weight"].shape[1], deep=False)
    run_on_standing_row(state, -1)
    find_generator(state, findings)
    number = len(state["output_bn.standing_mean"])
    findings.add(
        "fixed in the program",
        batch_norm_eps=EPS,
        spectral_norm_eps=EPS,
        truncation_mode="scale",
        standing_truncations=[(row + 1) / number for row in range(number)],
    )
    if findings.fields["num_labels"] == 1000:
        findings.add("ImageNet", id2label=imagenet_classes())
    no_discriminator(findings)
    findings.remark("spectral norm is folded into the weights")
    findings.remark("between two rows of statistics this model interpolates; the port has their weights wrong there")
    return Conversion(SOURCE, findings, state, None, [args.source])


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__, "FILE", "biggan128-release.pt, biggan256-release.pt or biggan512-release.pt")
    add_reference(arguments)
    convert_and_write(convert, arguments.parse_args(argv))


if __name__ == "__main__":
    run(main)
