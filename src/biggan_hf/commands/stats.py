"""`biggan-hf stats`: a copy of a generator with standing statistics."""

import argparse
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from . import common


if TYPE_CHECKING:
    from ..modeling_biggan import BigGANModel


EXAMPLES = """\
examples:
  biggan-hf stats user/biggan --truncations 0.04 0.2 0.4 0.6 0.8 1 1.5 2 --output biggan-with-statistics
  biggan-hf stats my-biggan --batch_size 256 --output my-biggan --overwrite
"""


def add_command(commands: common.Commands) -> None:
    parser = common.add_parser(
        commands,
        "stats",
        run,
        help="measure standing statistics for truncations",
        description="Measures batch norm's standing statistics, for each truncation or for plain N(0, 1), and saves "
        "the generator with them. Processes of `accelerate launch` or `torchrun` share the passes.",
        examples=EXAMPLES,
    )
    common.add_model_arguments(parser)
    parser.add_argument(
        "--truncations",
        nargs="+",
        type=float,
        metavar="T",
        help="in the model's own sense; those between two are interpolated (default: none, which replaces the "
        "running statistics by those of N(0, 1))",
    )
    parser.add_argument(
        "--num_batches",
        type=common.positive_int,
        default=100,
        metavar="N",
        help="forward passes for each (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=common.positive_int, default=64, metavar="N", help="samples a pass (default: %(default)s)"
    )
    parser.add_argument(
        "--average_batches",
        action="store_true",
        help="average the variances of the passes, as the original programs do, instead of pooling all activations",
    )
    parser.add_argument("--seed", type=common.seed, default=0, help="default: %(default)s")
    common.add_output_arguments(parser, "FOLDER", "where the generator goes; other files in it stay")


def run(args: argparse.Namespace) -> None:
    import torch

    from ..evaluation.statistics import process_rank
    from ..latents import check_truncation
    from ..standing_stats import collect_standing_statistics

    _check_folder(args.output, args.overwrite)
    for truncation in args.truncations or []:
        check_truncation(truncation)
    with common.processes(args.device):
        model = common.load_pipeline(args.model, args.device).model
        collect_standing_statistics(
            model,
            args.truncations,
            num_batches=args.num_batches,
            batch_size=args.batch_size,
            average_batches=args.average_batches,
            generator=torch.Generator().manual_seed(args.seed),
        )
        if process_rank() > 0:
            return
    _save(model, args.output)
    print(args.output)
    option = f" --truncation {args.truncations[0]}" if args.truncations else ""
    print(f"Use them: biggan-hf sample {shlex.quote(str(args.output))}{option} --output samples.png")


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the output {str(folder)!r} is a file, expected a folder")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {str(folder.parent)!r} does not exist")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{str(folder)!r} already holds something; --overwrite replaces the generator in it")


def _save(model: "BigGANModel", folder: Path) -> None:
    from safetensors import SafetensorError

    existed = folder.exists()
    try:
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk raises
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(f"cannot write {str(folder)!r}: {error}") from error
