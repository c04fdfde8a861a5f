"""Export a generator for another engine.

Writes the generator as a graph for ONNX Runtime or OpenVINO, which generate faster than torch on a CPU, to the folder
onnx/ or openvino/ of the output. A graph whose images differ from the model's is not written.

examples:
  biggan-hf export my-biggan --engine openvino --precision bf16
  biggan-hf export user/biggan --engine onnx --output biggan-onnx
"""

import argparse
import shlex
from pathlib import Path
from typing import Any, get_args

from ..directions import carry_directions
from ..engines import PACKAGES, Precision, check_engine, check_installed
from ..files import checksum_of_weights
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=common.MODEL)
    group = parser.add_argument_group("the model")
    common.add_revision_argument(group)
    group = parser.add_argument_group("the graph")
    group.add_argument("--engine", choices=list(PACKAGES), required=True, help="what will compute the images")
    text = "of the computation; bf16 is for openvino alone (default: %(default)s)"
    group.add_argument("--precision", choices=get_args(Precision), default="fp32", help=text)
    text = "where the graph goes (default: the folder of the model)"
    group = common.add_output_arguments(parser, "FOLDER", text, required=False)


def run(args: argparse.Namespace) -> None:
    check_engine(args.engine, args.precision)
    check_installed(args.engine)
    source = Path(args.model)
    if args.output is None and not source.is_dir():
        raise ValueError(f"--output is needed: {args.model!r} is no folder here")
    output = args.output or source
    from ..exporting import export_model  # here: it brings the networks

    of_torch = argparse.Namespace(model=args.model, revision=args.revision, device="cpu")
    pipe = common.load_pipeline(of_torch)
    directions = pipe.directions  # before anything is written: a file that holds something else is refused
    weights = checksum_of_weights(source) if source.is_dir() else None
    options: dict[str, Any] = {"overwrite": args.overwrite, "weights": weights}
    exported = export_model(pipe.model, output, args.engine, args.precision, **options)
    carry_directions(directions, output)
    print(output / args.engine / exported.entry["file"])
    print(f"{exported.entry['bytes'] / 1e6:.2f} MB; {_check_in_words(exported.entry)}")
    command = [str(output), "--engine", args.engine, "--precision", args.precision, "--output", "samples.png"]
    print(f"Use it: biggan-hf sample {shlex.join(command)}")


def _check_in_words(entry: dict[str, Any]) -> str:
    if "largest_difference" in entry:
        return f"its images, in [-1, 1], differ from those of torch by at most {entry['largest_difference']:.1e}"
    measures = {"FD": entry["frechet_distance"], "KD": entry["kernel_distance"]}
    found = ", ".join(f"{name} {of['int8']:g} (torch: {of['float']:g})" for name, of in measures.items())
    return f"its images, beside others of the model: {found}; {entry['images']} images, {entry['extractor']}"
