"""Train a generator further with a distance as its loss.

The generator of MODEL learns, without a discriminator, to lower the Fréchet distance of its images to those of a data
set. An encoder on which it does not learn judges: the best average by its verdicts is written. A call that was stopped
goes on.

examples:
  biggan-hf polish my-biggan --dataset_name pictures --output my-biggan-polished
  biggan-hf polish biggan_hf:fashion --dataset_name fashion --num_rounds 4 --output polished
"""

import argparse
import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.constants import HF_HOME

from ..cards import hub_id, is_by_hand, license_of, with_evaluation_of
from ..class_names import names_of
from ..configuration_biggan import BigGANConfig
from ..devices import check_device, device_or_best
from ..files import LOCK, locked_folder, read_text, write_file, write_text
from ..processes import is_main_process, joined
from . import common


if TYPE_CHECKING:
    from ..data import LabelledImages

CACHE = Path(HF_HOME) / "biggan_hf" / "evaluation"
SHEET = "before-and-after.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    group = parser.add_argument_group("the real pictures")
    common.add_dataset_arguments(group, required=True)
    group.add_argument("--label_column", metavar="NAME", help="default: found by its type")
    text = "pictures on each side whose moments are compared; a round learns from each sample once"
    common.add_number(group, "--population", 4_096, text)
    _add_learning(parser.add_argument_group("the learning"))
    group = common.add_output_arguments(parser, "FOLDER", "where the polished generator goes")
    group.add_argument("--force_unlock", action="store_true", help="take the folder over from a process that is dead")


def _add_learning(group: common.Group) -> None:
    text = "encoders that are learnt from, as for evaluate (default: lite0)"
    group.add_argument("--extractors", nargs="+", default=["lite0"], metavar="NAME", help=text)
    text = "the encoder that judges, and is not learnt from (default: %(default)s)"
    group.add_argument("--judge", default="lite2", metavar="NAME", help=text)
    common.add_number(group, "--num_rounds", 12, "at most")
    common.add_number(group, "--batch_size", 32, "images a step, of all processes together")
    text = "of Adam (default: %(default)s)"
    group.add_argument("--learning_rate", type=float, default=3e-6, metavar="R", help=text)
    text = "share of the way back to the weights of MODEL that each step goes (default: %(default)s)"
    group.add_argument("--anchor", type=float, default=0.0, metavar="A", help=text)
    common.add_number(group, "--evaluation_images", 2_000, "samples that are judged after each round", least=2)
    common.add_number(group, "--patience", 3, "rounds in a row without a better verdict that end the work")
    common.add_seed_argument(group)


def run(args: argparse.Namespace) -> None:
    from ..evaluation import load_extractor  # here: --help does without
    from ..polishing import LOG, STATE, Polishing, PolishSettings, before_and_after, polish

    settings = PolishSettings(**{field.name: getattr(args, field.name) for field in fields(PolishSettings)})
    if args.judge in args.extractors:
        raise ValueError(f"the judge {args.judge!r} is learnt from, too: name an encoder that is not")
    common.check_folder(args.output)
    check_device(args.device)
    device = device_or_best(args.device)
    with joined(device.startswith("cuda")), ExitStack() as held:
        if is_main_process():
            held.enter_context(locked_folder(args.output, args.force_unlock))
            _check_room(args.output, args.overwrite)
        model = common.load_pipeline(args).model.float()  # stored in bfloat16, it would learn almost nothing
        start, size = copy.deepcopy(model), model.config.image_size
        encoders = [load_extractor(name, device, image_size=size) for name in (*args.extractors, args.judge)]
        pictures = _pictures(args, model.config)
        polishing = Polishing(model, pictures, encoders[:-1], encoders[-1], settings, CACHE)
        if args.overwrite and is_main_process():  # not before: a mistake above costs nothing that was there
            for name in (STATE, LOG, SHEET):
                (args.output / name).unlink(missing_ok=True)
        best = polish(polishing, args.output)
        if is_main_process():
            with write_file(args.output / SHEET) as unfinished:
                before_and_after(start, start.from_pretrained(args.output).to(device), args.seed).save(unfinished)
            _write_card(args, model.config)
            print(_verdict(polishing.verdicts, best), args.output, sep="\n")


def _check_room(folder: Path, overwrite: bool) -> None:
    """Raises unless the folder is empty, holds a polishing that goes on, or may be overwritten."""
    from ..polishing import STATE

    if not overwrite and not (folder / STATE).exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} already holds something; --overwrite replaces the generator in it")


def _pictures(args: argparse.Namespace, config: BigGANConfig) -> "LabelledImages":
    images = common.load_pictures(args, config, args.label_column)
    has_classes = config.num_labels and images.labels is not None
    return images.with_classes(names_of(config.id2label)) if has_classes else images


def _write_card(args: argparse.Namespace, config: BigGANConfig) -> None:
    from ..model_card import CARD, model_card

    path = args.output / CARD
    if is_by_hand(old := read_text(path)):
        return
    old = "" if args.overwrite else old  # that of another generator
    data, model = hub_id(args.dataset_name), hub_id(args.model)
    new = model_card(config, license=license_of(old), datasets=[data] if data else None, base_model=model)
    write_text(path, with_evaluation_of(new, old))


def _verdict(verdicts: Sequence[float], best: int) -> str:
    """What the judge found, in words."""
    if best == 0:
        return "The judge found nothing better than the model as it was, which is in the folder."
    return f"Round {best} is the best: the judge's distance is {verdicts[best] / verdicts[0]:.2f} of that before."
