"""Converts a file of ivclab's port, such as `biggan256-release.pt`: a plain model of DeepMind with all statistics."""

import argparse

from biggan_hf.conversion.architecture import Findings, find_class_names, find_generator, no_discriminator
from biggan_hf.conversion.reading import load_state
from biggan_hf.conversion.rename import (
    add_running_statistics,
    deepmind_blocks,
    deepmind_layouts,
    fold_spectral_norm,
    rename,
)
from biggan_hf.conversion.writing import Conversion, Source, convert_and_write, parser, run


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
    r".*\.running_(mean|var)": "statistics that this port uses only in training",
    r".*\.num_batches_tracked": "a count of batches, no part of the function",
}
EPS = 1e-4


def convert(args: argparse.Namespace) -> Conversion:
    """What the script reads, under this project's names; raises `ValueError` or `OSError` for a wrong source."""
    findings = Findings()
    state = fold_spectral_norm(load_state(args.source, "a generator ported by ivclab"), channels_last=True)
    blocks = deepmind_blocks(state, "gblock", BLOCK_MODULES, "conv1.bias", "attention.theta.weight", depth=1)
    state = rename(state, MODULES | blocks, NAMES, DROPPED, findings)
    deepmind_layouts(state, deep=False)
    add_running_statistics(state)
    find_generator(state, findings)
    number = len(state["output_bn.standing_mean"])
    findings.add(
        "fixed in the program",
        batch_norm_eps=EPS,
        spectral_norm_eps=EPS,
        truncation_mode="scale",
        standing_truncations=[(row + 1) / number for row in range(number)],
    )
    find_class_names("ImageNet", findings)
    no_discriminator(findings)
    findings.remark("spectral norm is folded into the weights")
    findings.remark("between two rows of statistics this model interpolates; the port weighs the rows wrongly there")
    return Conversion(SOURCE, findings, state, None, [args.source])


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    arguments = parser(__doc__, "FILE", "biggan128-release.pt, biggan256-release.pt or biggan512-release.pt")
    convert_and_write(convert, arguments.parse_args(argv))


if __name__ == "__main__":
    run(main)
