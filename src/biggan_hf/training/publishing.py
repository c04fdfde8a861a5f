"""The card of a finished run, here and on the Hub."""

import re

from ..cards import is_by_hand, is_path, is_text, settings_table, with_metadata, with_part
from ..files import read_text, write_text
from ..hub import CARD, model_card, published_card, upload_folder, with_code
from .checkpoints import warn
from .run import Run
from .settings import public_settings


def write_card(run: Run) -> None:
    """
    Writes README.md. If somebody has written into the one that is there, only the part of the run changes, and
    metadata that is missing is added.
    """
    path = run.output_dir / CARD
    old, new = read_text(path), new_card(run)
    if not is_text(old):
        warn(f"{str(path)!r} stays as it is: it is no text in UTF-8")
        return
    card = with_metadata(old, new) if is_by_hand(old) else new
    card = with_code(card, run.args.hub_model_id) if run.args.include_code else card
    write_text(path, with_part(card, part_of_run(run)))


def publish(run: Run) -> None:
    """Uploads the finished model. The folder gets the card of the Hub unless somebody has written into its own."""
    path = run.output_dir / CARD
    commit = upload_folder(run.output_dir, run.args.hub_model_id or "", include_code=run.args.include_code)
    card = published_card(commit.repo_url.repo_id)
    if is_text(card) and not is_by_hand(read_text(path)):
        write_text(path, card)


# The card


def new_card(run: Run) -> str:
    """The card that nobody has written into. It lacks the part of the run."""
    name = run.settings["dataset_name"]
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_path(name)
    return model_card(
        run.config,
        repo_id=run.args.hub_model_id,
        datasets=[name] if is_hub_id else None,
        sample_image="samples.png",
        has_code=run.args.include_code,
    )


def part_of_run(run: Run) -> str:
    """The section of the card that tells of the training: what the run found, and its settings."""
    found: dict[str, str] = {}
    for title, text in [] if run.report is None else run.report.public_rows():
        found[title] = f"{found[title]}; {text}" if title in found else text
    settings = {"steps": run.global_step, **public_settings(run.settings)}
    sections = ["## Training", settings_table(found, "before the first step"), settings_table(settings)]
    return "\n\n".join(sections).replace("<!--", "&lt;!--")
