"""Writes a model folder: loads all tensors, compares with a reference, and writes the card, or writes nothing."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.bars import own_bars_alone
from biggan_hf.cards import (
    ENGINES,
    EVALUATION,
    INDEX,
    RUN,
    SOURCE,
    escaped,
    is_by_hand,
    metadata,
    with_metadata,
    with_numbers,
    with_part,
)
from biggan_hf.conversion.architecture import Findings
from biggan_hf.conversion.reading import State
from biggan_hf.conversion.rename import abbreviated
from biggan_hf.conversion.training_state import STATE_FILE
from biggan_hf.files import check_archive, read_text, replaced_folder, save_archive, sha256_of_file, staged_folder
from biggan_hf.hub import DIRECTIONS
from biggan_hf.model_card import CARD, SHEETS, model_card
from biggan_hf.options import EitherSpelling, underscored, unknown_option


# The largest difference from a reference answer that is accepted, relative to the largest entry of the answer.
TOLERANCE = 1e-4
# What lies beside the weights and is true of them alone: a push would publish it as the next model's.
OF_ONE_MODEL = ("discriminator", "generator", STATE_FILE, *SHEETS, DIRECTIONS, ".eval_results", "adapter")

Network = TypeVar("Network", BigGANModel, BigGANDiscriminator)


@dataclass
class Source:
    """Where weights come from: the program, its address, and what to know of licence and completeness."""

    program: str
    url: str
    note: str


@dataclass
class Conversion:
    """
    What a converter has read, under this project's names.

    Args:
        weights: "ema" or "live".
        live_generator: The generator as it trains, for a folder from which training goes on.
        training_state: Makes the state of training from the live generator and the discriminator.
    """

    source: Source
    findings: Findings
    generator: State
    discriminator: State | None
    files: list[Path]
    weights: str = "ema"
    live_generator: State | None = None
    training_state: Callable[[BigGANModel, BigGANDiscriminator], dict[str, Any]] | None = None


# The command line


class _Parser(EitherSpelling):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = underscored(sys.argv[1:] if args is None else args)
        wrong = unknown_option(args, self._option_string_actions)  # names no value, which may be a token
        if wrong is not None:
            self.error(wrong)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser(description: str | None, source: str, help: str, converts: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments that the scripts share; one that `converts` writes a card and has more."""
    result = _Parser(description=(description or "").splitlines()[0])
    result.add_argument("source", type=Path, metavar=source, help=help)
    result.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model folder to write")
    result.add_argument("--overwrite", action="store_true", help="write into a folder that already holds something")
    if converts:
        text = "its id on the Hub, for the card (default: told by its place in the Hub's cache)"
        result.add_argument("--base_model", metavar="ID", help=text)
        result.add_argument(
            "--reference",
            type=Path,
            metavar="FILE.npz",
            help="inputs and answers of the original program (latents, labels, images_g, images_ema, images_trunc_T, "
            "disc_inputs, disc_scores); nothing is written if the model's answers differ by more than "
            f"{TOLERANCE:g} of the largest entry",
        )
    return result


def run(main: Callable[[], None]) -> None:
    """Runs a script. An error that the user can put right ends it with one line on stderr and exit status 2."""
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def check_output(output: Path, overwrite: bool) -> None:
    """Raises `FileExistsError` if the output exists and would be changed. Call it before the work begins."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"the output {str(output)!r} is a file, expected a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"the output folder {str(output)!r} already holds something; --overwrite writes into it")


# Networks


def build(network: type[Network], config: BigGANConfig, state: State) -> Network:
    """
    The network with these tensors.

    Raises:
        ValueError: Tensors are missing, or left over, or have the wrong shape.
    """
    # Some programs write the γ of self-attention as a number, some as a vector.
    state = {name: t.reshape(1) if name.endswith(".gamma") and t.numel() == 1 else t for name, t in state.items()}
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in network(config).state_dict().items()}
    problems = [
        (sorted(expected.keys() - state.keys()), "missing"),
        (sorted(state.keys() - expected.keys()), "left over"),
        (
            [
                f"{name} {tuple(state[name].shape)} for {tuple(size)}"
                for name, size in expected.items()
                if name in state and state[name].shape != size
            ],
            "of the wrong shape",
        ),
    ]
    found = "; ".join(f"{len(names)} {what}: {abbreviated(names)}" for names, what in problems if names)
    if found:
        raise ValueError(f"the tensors fit no {config.architecture} of {config.image_size} pixels: {found}")
    # safetensors writes only contiguous tensors.
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    return network.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)


@torch.no_grad()
def compare(
    generator: BigGANModel, discriminator: BigGANDiscriminator | None, reference: Path, weights: str
) -> list[str]:
    """
    Compares the model's answers with those of the original program; returns a line for each, with the difference.

    Raises:
        ValueError: A difference is above the tolerance, or the file holds no answers of this model.
    """
    answers = _load_answers(reference)
    labels = answers.get("labels") if generator.config.num_labels else None
    images = "images_ema" if weights == "ema" else "images_g"
    lines = []
    for key, theirs in answers.items():
        of_generator = key == images or key.startswith("images_trunc_")
        if not of_generator and (key != "disc_scores" or discriminator is None):
            continue
        inputs = "latents" if of_generator else "disc_inputs"
        if inputs not in answers:
            raise ValueError(f"{str(reference)!r} holds {key}, expected its inputs {inputs} too")
        if of_generator:
            truncation = None if key == images else _truncation_of(key, reference)
            answer = partial(generator, answers[inputs], labels, truncation=truncation)
        else:
            assert discriminator is not None
            answer = partial(discriminator, answers[inputs], labels)
        try:
            lines.append(_comparison(key, answer()[0], theirs))
        except (RuntimeError, IndexError, TypeError) as error:  # of inputs that fit no network, or none
            shapes = f"{inputs} {tuple(answers[inputs].shape)}, {key} {tuple(theirs.shape)}"
            raise ValueError(f"{str(reference)!r} does not fit this model: {shapes}: {error}") from error
    if not lines:
        raise ValueError(f"{str(reference)!r} holds no answer of this model")
    return lines


def _truncation_of(key: str, reference: Path) -> float:
    try:
        return float(key.removeprefix("images_trunc_"))
    except ValueError as error:
        raise ValueError(f"{str(reference)!r} holds {key!r}, expected a name as 'images_trunc_0.5'") from error


def _load_answers(path: Path) -> dict[str, Tensor]:
    try:
        return {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    except FileNotFoundError:
        raise
    # A damaged file raises errors of several types.
    except Exception as error:
        raise ValueError(f"{str(path)!r} is no .npz file of arrays") from error


def _comparison(key: str, ours: Tensor, theirs: Tensor) -> str:
    if ours.numel() != theirs.numel():  # some programs keep an axis of 1
        shapes = f"is {tuple(theirs.shape)} in the reference and {tuple(ours.shape)} in the model's answer"
        raise ValueError(f"{key} {shapes} to the reference's inputs")
    difference, largest = (ours.reshape(theirs.shape) - theirs).abs().max().item(), theirs.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ValueError(f"{key} differs from the reference by {difference:.2g}, its largest entry is {largest:.2g}")
    return f"{key}: largest difference from the reference {difference:.1e}, of {largest:.2g}"


# The folder


def convert_and_write(convert: Callable[[argparse.Namespace], Conversion], args: argparse.Namespace) -> None:
    """Does all the work of a converter. If the source or the output is wrong, raises `ValueError` or `OSError`."""
    print("\n".join([*written(convert, args), str(args.output)]))


def written(
    convert: Callable[[argparse.Namespace], Conversion], args: argparse.Namespace, origin: str | None = None
) -> list[str]:
    """As `convert_and_write`, but returns what that prints. The card says the `origin` of the files if it is given."""
    check_output(args.output, args.overwrite)
    if args.base_model is not None:
        validate_repo_id(args.base_model)
    try:
        conversion = convert(args)
    # A tensor is missing or has the wrong shape where a layout is changed.
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"{str(args.source)!r} fits no BigGAN: {type(error).__name__}: {error}") from error
    if origin is not None:
        conversion.findings.remark(origin)
    return finish(conversion, args)


@own_bars_alone()
def finish(conversion: Conversion, args: argparse.Namespace) -> list[str]:
    """Builds both networks, compares them with the reference, writes the folder, and says what was done."""
    config = conversion.findings.config()
    generator = build(BigGANModel, config, conversion.generator)
    discriminator = None
    if conversion.discriminator is not None:
        discriminator = build(BigGANDiscriminator, config, conversion.discriminator)
    remarks = list(conversion.findings.remarks)
    for path in conversion.files:
        if path.suffix in (".pth", ".pt", ".bin") and not check_archive(path):
            remarks.append(f"{path.name} has a format without checksums: damage to its numbers can't be seen")
    if args.reference is not None:
        remarks += compare(generator, discriminator, args.reference, conversion.weights)
    with output_folder(args.output, owned=OF_ONE_MODEL) as staging:
        generator.save_pretrained(staging)
        if discriminator is not None:
            discriminator.save_pretrained(staging / "discriminator")
        if conversion.training_state is not None:
            write_training_state(conversion, generator.config, discriminator, staging)
        # "quantized" is the Hub's word for the same model in another format, of its four.
        base_model = args.base_model or _in_cache(args.source)
        card = model_card(config, base_model=base_model, base_model_relation="quantized")
        card = _card(read_text(args.output / CARD), card, _source_section(conversion, remarks))
        (staging / CARD).write_bytes(card.encode("utf-8", "surrogateescape"))
    lines = [
        f"{conversion.source.program}: {', '.join(path.name for path in conversion.files)}",
        conversion.findings.table(),
        *(f"  {remark}" for remark in remarks),
        f"  generator ({conversion.weights}): all {len(conversion.generator)} tensors in their places",
    ]
    if conversion.discriminator is not None:
        lines.append(f"  discriminator: all {len(conversion.discriminator)} tensors in their places")
    return lines


def write_training_state(
    conversion: Conversion, config: BigGANConfig, discriminator: BigGANDiscriminator | None, folder: Path
) -> None:
    """
    Writes the live generator and the state of training beside the model; raises `ValueError` for files that the
    program has not written.
    """
    assert conversion.training_state is not None and conversion.live_generator is not None
    assert discriminator is not None
    live = build(BigGANModel, config, conversion.live_generator)
    live.save_pretrained(folder / "generator")
    try:
        state = conversion.training_state(live, discriminator)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the files of the training are not as the program writes them: {type(error).__name__}: {error}"
        ) from error
    save_archive(state, folder / STATE_FILE)


def _in_cache(source: Path) -> str | None:
    """The id of a repository of whose place in the Hub's cache a path is; `None` for any other path."""
    found = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", source.absolute().as_posix())
    return f"{found[1]}/{found[2]}" if found else None


def _card(old: str, new: str, source: str) -> str:
    """
    The new card; if a person has written into the old one, that one, without what programs say of the earlier model.
    """
    if not is_by_hand(old):
        return with_part(new, source, SOURCE)
    for part in (RUN, ENGINES, EVALUATION):
        old = with_part(old, "", part)
    with suppress(ValueError):  # its metadata is no YAML
        old = with_numbers(old, []) if metadata(old).get(INDEX) else old
    return with_metadata(with_part(old, source, SOURCE), new)


def _source_section(conversion: Conversion, remarks: list[str]) -> str:
    source = conversion.source
    lines = [
        "## Source\n",
        f"Converted from [{source.program}]({source.url}), the generator's {conversion.weights} weights.",
        f"{source.note}\n",
        *(f"- `{escaped(path.name)}`: SHA-256 `{sha256_of_file(path)}`" for path in conversion.files),
        *(f"- {escaped(remark)}" for remark in remarks),
    ]
    return "\n".join(lines)


@contextmanager
def output_folder(output: Path, owned: tuple[str, ...]) -> Iterator[Path]:
    """
    Yields an empty folder. The caller writes into it, and when the block ends its files move to `output`.

    Args:
        output: Where the files go. A folder that is there stays the same folder, with its files of other names.
        owned: Files and folders of an earlier model, which are removed if they are not written anew.
    """
    if output.is_dir():
        with staged_folder(output) as staging:
            yield staging
            stale = [output / name for name in owned if not (staging / name).exists()]
        for path in stale:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return
    with replaced_folder(output) as staging:
        yield staging
