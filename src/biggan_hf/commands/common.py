"""What sub-commands share: their arguments, the model, the classes, and where the output may go."""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..pipeline_biggan import BigGANPipeline

Commands = Any  # what argparse's add_subparsers returns, a private type
Class = int | str | dict[int | str, float]

TRUNCATION_MODES = ["resample", "scale", "clamp", "normal"]


def add_parser(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=help, description=description, epilog=examples, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


# Arguments


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder or a repository on the Hub")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncation", type=float, metavar="T", help="below 1 more typical and less varied (default: none)"
    )
    add_truncation_mode_argument(parser)
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    add_batch_size_argument(parser)


def add_truncation_mode_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncation_mode",
        choices=TRUNCATION_MODES,
        help="draw entries beyond T again, scale by T a normal cut at 2, clamp to T, or take T as the standard "
        "deviation (default: the model's own)",
    )


def add_batch_size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch_size", type=positive_int, metavar="N", help="most images at a time (default: by their size)"
    )


def add_classes_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help=f'names, ids, or mixtures such as \'{{"goldfish": 0.7, "tiger": 0.3}}\' (default: {default})',
    )


def add_output_arguments(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar=metavar, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def positive_int(text: str) -> int:
    return _integer(text, 1, 31)


def count(text: str) -> int:
    return _integer(text, 0, 31)


def seed(text: str) -> int:
    return _integer(text, 0, 63)


def _integer(text: str, least: int, bits: int) -> int:
    if not text.isdecimal() or not least <= int(text) < 2**bits:
        raise argparse.ArgumentTypeError(f"must be an integer from {least} to 2**{bits} - 1, got {text!r}")
    return int(text)


# The model and its classes


def device_or_best(device: str | None) -> str:
    """`None` is "cuda" where there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def processes(device: str | None) -> Iterator[None]:
    """Joins the processes that `accelerate launch` or `torchrun` started, if this is one of them."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpu = device_or_best(device) == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def load_pipeline(model: str, device: str | None) -> "BigGANPipeline":
    """
    Args:
        model: A folder or a repository on the Hub.
        device: "cpu", "cuda" or `None`, which is "cuda" where there is one.

    Raises:
        ValueError: There is no such device, or no model that can be loaded.
    """
    import torch
    from transformers.utils import logging

    from ..pipeline_biggan import BigGANPipeline

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use")
    logging.disable_progress_bar()
    try:
        pipe = BigGANPipeline.from_pretrained(model)
    # A missing repository, a strange config.json and a damaged file raise half a dozen types, some private.
    except Exception as error:
        source = "" if Path(model).is_dir() else ", which is no folder here, from the Hub"
        raise ValueError(f"cannot load {model!r}{source}: {error}") from error
    return pipe.to(device_or_best(device))


def classes_to_sample(pipe: "BigGANPipeline", given: list[str] | None, default: int = 10) -> list[Class] | None:
    """
    Ids, names and mixtures; the first classes by default, `None` without classes.

    A class may be named by a number, as digits are: digits are an id only where they are no name.
    """
    if given is None:
        return list[Class](pipe.id2label)[:default] or None

    def named(name: str) -> int | str:
        return int(name) if name.isdecimal() and name not in pipe.labels else name

    return [
        {named(k): w for k, w in _mixture(text).items()} if text.startswith("{") else named(text) for text in given
    ]


def _mixture(text: str) -> dict[str, float]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'a mixture is written as {{"goldfish": 0.7, "tiger": 0.3}}, got {text!r}') from error


def class_ids(pipe: "BigGANPipeline", given: list[str]) -> list[int]:
    """An id for each name or id."""
    ids = []
    for one in classes_to_sample(pipe, given) or []:
        if isinstance(one, dict):
            raise ValueError(f"--classes takes names and ids here and no mixture, got {one}")
        ids.append(pipe._to_id(one))
    return ids


def class_names(pipe: "BigGANPipeline", classes: Sequence[Class] | None) -> list[str]:
    """A short name of each class or mixture."""

    def short(label: int | str) -> str:
        return pipe.id2label[label if isinstance(label, int) else pipe.get_label_ids(label)[0]].split(",")[0]

    def name(one: Class) -> str:
        return " + ".join(f"{w:g} {short(k)}" for k, w in one.items()) if isinstance(one, dict) else short(one)

    return [name(one) for one in classes or []]


# Where the output may go


def check_output(path: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raises unless `path` is a file of such a kind that may be written; to be called before the work."""
    if path.suffix.lower() not in suffixes:
        kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
        raise ValueError(f"the output must be a {kinds} file, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"the output {str(path)!r} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
