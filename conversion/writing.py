"""Writing a model folder: strict loading, the comparison with a reference, the card, and all of it or nothing."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from architecture import Findings
from reading import State, sha256
from rename import abbreviated
from torch import Tensor
from training_state import STATE_FILE
from transformers.utils import logging

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.files import staged_folder
from biggan_hf.hub import model_card


# Largest accepted difference from a reference answer, relative to the reference's largest entry.
TOLERANCE = 1e-4

Network = TypeVar("Network", BigGANModel, BigGANDiscriminator)


@dataclass
class Source:
    """Where weights come from: the program, its address, and a sentence on licence and completeness."""

    program: str
    url: str
    note: str


@dataclass
class Conversion:
    """
    What a converter has read, under this project's names; `weights` is "ema" or "live". With a `live_generator` and a
    `training_state`, which is made of both networks as they train, the folder is a checkpoint to train on from.
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser(description: str | None, source: str, help: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all converters share."""
    result = _Parser(description=(description or "").splitlines()[0])
    result.add_argument("source", type=Path, metavar=source, help=help)
    result.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model folder to write")
    result.add_argument("--overwrite", action="store_true", help="write into a folder that already holds something")
    return result


def add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.npz",
        help="the original program's answers (latents, labels, images_g, images_ema, images_trunc_T, disc_inputs, "
        f"disc_scores); nothing is written unless ours agree to {TOLERANCE:g} of the largest",
    )


def run(main: Callable[[], None]) -> None:
    """Runs a script; what the user can put right ends in one line on stderr and exit status 2."""
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def check_output(output: Path, overwrite: bool) -> None:
    """Raises `FileExistsError` where the output would be mixed with something; to be called before the work."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"the output {str(output)!r} is a file, expected a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"the output folder {str(output)!r} already holds something; --overwrite writes into it")


# Networks


def build(network: type[Network], config: BigGANConfig, state: State) -> Network:
    """
    The network with these tensors: all of them, and no others.

    Raises:
        ValueError: Missing, unexpected or misshapen tensors.
    """
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
    # Tensors are contiguous and own their memory, as safetensors wants them.
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    return network.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)


@torch.no_grad()
def compare(
    generator: BigGANModel, discriminator: BigGANDiscriminator | None, reference: Path, weights: str
) -> list[str]:
    """
    A line for each answer in the reference, with the largest difference.

    Raises:
        ValueError: A difference above the tolerance, or a file without answers of this model.
    """
    answers = _load_answers(reference)
    ours: dict[str, Callable[[], Tensor | None]] = {}
    if "latents" in answers:
        latents, labels = answers["latents"], answers.get("labels")
        labels = labels if generator.config.num_labels else None
        ours["images_ema" if weights == "ema" else "images_g"] = lambda: generator(latents, labels).images
        for key in answers:
            if key.startswith("images_trunc_"):
                truncation = float(key.removeprefix("images_trunc_"))
                ours[key] = lambda t=truncation: generator(latents, labels, truncation=t).images  # type: ignore[misc]
    if discriminator is not None and "disc_inputs" in answers:
        ours["disc_scores"] = lambda: discriminator(answers["disc_inputs"], labels).logits
    lines = [_comparison(key, answer(), answers[key]) for key, answer in ours.items() if key in answers]
    if not lines:
        raise ValueError(f"{str(reference)!r} holds no answer of this model")
    return lines


def _load_answers(path: Path) -> dict[str, Tensor]:
    try:
        return {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    except FileNotFoundError:
        raise
    # A damaged file raises one of several types.
    except Exception as error:
        raise ValueError(f"{str(path)!r} is no .npz file of arrays") from error


def _comparison(key: str, ours: Tensor | None, theirs: Tensor) -> str:
    assert ours is not None
    difference, largest = (ours.reshape(theirs.shape) - theirs).abs().max().item(), theirs.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ValueError(f"{key} differs from the reference by {difference:.2g}, its largest entry is {largest:.2g}")
    return f"{key}: largest difference from the reference {difference:.1e}, of {largest:.2g}"


# The folder


def convert_and_write(convert: Callable[[argparse.Namespace], Conversion], args: argparse.Namespace) -> None:
    """All of a converter's work; what is wrong with the source or the output is a `ValueError` or an `OSError`."""
    check_output(args.output, args.overwrite)
    try:
        conversion = convert(args)
    # Tensors that are missing or misshapen where a layout is changed.
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"{str(args.source)!r} fits no BigGAN: {type(error).__name__}: {error}") from error
    finish(conversion, args)


def finish(conversion: Conversion, args: argparse.Namespace) -> None:
    """Builds both networks, compares them with the reference, writes the folder, and says what was done."""
    logging.disable_progress_bar()
    config = conversion.findings.config()
    generator = build(BigGANModel, config, conversion.generator)
    discriminator = None
    if conversion.discriminator is not None:
        discriminator = build(BigGANDiscriminator, config, conversion.discriminator)
    remarks = list(conversion.findings.remarks)
    if args.reference is not None:
        remarks += compare(generator, discriminator, args.reference, conversion.weights)
    with replaced_folder(args.output, owned="discriminator") as staging:
        generator.save_pretrained(staging)
        if discriminator is not None:
            discriminator.save_pretrained(staging / "discriminator")
        if conversion.training_state is not None:
            write_training_state(conversion, generator.config, discriminator, staging)
        card = model_card(config) + _source_section(conversion, remarks)
        (staging / "README.md").write_text(card, encoding="utf-8")
    print(f"{conversion.source.program}: {', '.join(path.name for path in conversion.files)}")
    print(conversion.findings.table())
    for remark in remarks:
        print(f"  {remark}")
    print(f"  generator ({conversion.weights}): all {len(conversion.generator)} tensors in their places")
    if conversion.discriminator is not None:
        print(f"  discriminator: all {len(conversion.discriminator)} tensors in their places")
    print(args.output)


def write_training_state(
    conversion: Conversion, config: BigGANConfig, discriminator: BigGANDiscriminator | None, folder: Path
) -> None:
    assert conversion.training_state is not None and conversion.live_generator is not None
    assert discriminator is not None
    live = build(BigGANModel, config, conversion.live_generator)
    live.save_pretrained(folder / "generator")
    try:
        state = conversion.training_state(live, discriminator)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the training's files are not as the program writes them: {type(error).__name__}: {error}"
        ) from error
    torch.save(state, folder / STATE_FILE)


def _source_section(conversion: Conversion, remarks: list[str]) -> str:
    source = conversion.source
    lines = [
        "\n## Source\n",
        f"Converted from [{source.program}]({source.url}), the generator's {conversion.weights} weights.",
        f"{source.note}\n",
        *(f"- `{path.name}`: SHA-256 `{sha256(path)}`" for path in conversion.files),
        *(f"- {remark}" for remark in remarks),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def replaced_folder(output: Path, owned: str) -> Iterator[Path]:
    """
    A folder to write into, which takes the output's place once all is written.

    Args:
        output: Where the files go. Where it already holds some, those of other names stay.
        owned: A file or folder that is removed unless it is written anew, since it would belong to another model.
    """
    if output.is_dir() and any(output.iterdir()):
        with staged_folder(output) as staging:
            yield staging
            is_new = (staging / owned).exists()
        stale = output / owned
        if stale.exists() and not is_new:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}-{os.getpid()}")
    staging.mkdir()
    try:
        yield staging
        os.replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
