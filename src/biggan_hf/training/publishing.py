"""The card of a run, and what of the run goes to the Hub: the finished model, and models on the way."""

from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ..cards import (
    escaped,
    hub_id,
    is_by_hand,
    is_text,
    public_name,
    settings_table,
    with_evaluation_of,
    with_metadata,
    with_part,
)
from ..files import read_text, write_text
from ..hub import published_card, upload_folder
from ..model_card import CARD, SAMPLES, SHEETS, model_card, with_code
from ..sheets import save_small
from ..words import counted
from .adapters import merged
from .checkpoints import warn
from .report import device_in_words, in_units, seconds_trained
from .run import Run
from .settings import public_settings


# The card


def write_card(run: Run) -> None:
    """
    Writes README.md. If somebody has written into the one that is there, only the part of the run changes, and
    metadata and a section on the code are added where they are missing.
    """
    path = run.output_dir / CARD
    if not is_text(read_text(path)):
        warn(f"{str(path)!r} stays as it is: it is no text in UTF-8")
        return
    write_text(path, card_of(run))


def card_of(run: Run) -> str:
    repo_id, has_code, card = run.args.hub_model_id, run.args.include_code, read_text(run.output_dir / CARD)
    name = run.settings["dataset_name"]
    new = model_card(
        run.config,
        repo_id=repo_id,
        license=run.args.license,
        datasets=[name] if hub_id(name) else None,
        sheets=[*SHEETS],
        base_model=run.base_model,
        has_code=has_code,
    )
    card = with_metadata(card, new) if is_by_hand(card) else with_evaluation_of(new, card)
    return with_part(with_code(card, repo_id) if has_code else card, part_of_run(run))


def part_of_run(run: Run) -> str:
    """The section of the card that tells of the training: in words, what the run found, and its settings."""
    found: dict[str, str] = {}
    for title, text in [] if run.report is None else run.report.public_rows():
        found[title] = f"{found[title]}; {text}" if title in found else text
    settings = {"steps": run.global_step, **public_settings(run.settings)}
    tables = settings_table(found, "before the first step"), settings_table(settings)
    return "\n\n".join(["## Training", in_words(run), *tables])


def in_words(run: Run) -> str:
    """On what, from where, how long and on which device a run has trained."""
    images, settings, seconds = run.batches.images, run.settings, seconds_trained(run.output_dir)
    classes = f" of {counted(len(images.class_names), 'class')}" if images.class_names else " without classes"
    pictures = f"{counted(images.num_readable, 'picture')}{classes} ({public_name(settings['dataset_name'])})"
    origin = f", from {public_name(settings['init_from'])}" if settings["init_from"] else ""
    time = f", in {in_units(seconds)}" if seconds else ""
    shown = f"{run.batches.samples_seen:,} pictures shown to the discriminator"
    device = device_in_words(run.accelerator.device, run.accelerator.num_processes)
    return escaped(
        f"Trained on {pictures}{origin}: {counted(run.global_step, 'step')}, {shown}{time}, on {device}. A step is "
        f"one update of the generator."
    )


# The Hub


def publish(run: Run) -> None:
    """Uploads the finished model. The folder gets the card of the Hub unless somebody has written into its own."""
    path, args = run.output_dir / CARD, run.args
    options: Any = {"include_code": args.include_code, "license": args.license}
    commit = upload_folder(run.output_dir, args.hub_model_id or "", **options)
    card = published_card(commit.repo_url.repo_id)
    if is_text(card) and not is_by_hand(read_text(path)):
        write_text(path, card)
    tqdm.write(f"on the Hub: {commit.commit_url}")


def publish_step(run: Run, sheet: Path) -> None:
    """Uploads the networks as they are now, with the sheet of this step if there is one, while the run goes on."""

    def save(folder: Path) -> None:
        discriminator = run.players.bare_discriminator
        merged(run.ema).save_pretrained(folder, global_step=run.global_step)
        merged(discriminator).save_pretrained(folder / "discriminator", global_step=run.global_step)
        if sheet.exists():
            save_small(Image.open(sheet), folder / SAMPLES)
        if is_text(card := card_of(run)):
            write_text(folder / CARD, card)

    options: Any = {"include_code": run.args.include_code, "license": run.args.license}
    run.uploads.start(save, run.output_dir, run.global_step, run.args.hub_model_id or "", **options)
