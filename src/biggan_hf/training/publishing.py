"""The card of a finished run, here and on the Hub."""

import re

from ..cards import is_by_hand, is_path, is_text, settings_table, with_metadata, with_part
from ..files import read_text, write_text
from ..hub import CARD, SAMPLES, model_card, published_card, upload_folder, with_code
from .checkpoints import warn
from .run import Run
from .settings import public_settings


def write_card(run: Run) -> None:
    """
    Writes README.md. If somebody has written into the one that is there, only the part of the run changes, and
    metadata and a section on the code are added where they are missing.
    """
    path, repo_id, has_code = run.output_dir / CARD, run.args.hub_model_id, run.args.include_code
    card = read_text(path)
    if not is_text(card):
        warn(f"{str(path)!r} stays as it is: it is no text in UTF-8")
        return
    name = run.settings["dataset_name"]
    datasets = [name] if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_path(name) else None
    new = model_card(
        run.config,
        repo_id=repo_id,
        datasets=datasets,
        sample_image=SAMPLES,
        base_model=run.base_model,
        has_code=has_code,
    )
    card = with_metadata(card, new) if is_by_hand(card) else new
    write_text(path, with_part(with_code(card, repo_id) if has_code else card, part_of_run(run)))


def publish(run: Run) -> None:
    """Uploads the finished model. The folder gets the card of the Hub unless somebody has written into its own."""
    path = run.output_dir / CARD
    commit = upload_folder(run.output_dir, run.args.hub_model_id or "", include_code=run.args.include_code)
    card = published_card(commit.repo_url.repo_id)
    if is_text(card) and not is_by_hand(read_text(path)):
        write_text(path, card)


def part_of_run(run: Run) -> str:
    """The section of the card that tells of the training: what the run found, and its settings."""
    found: dict[str, str] = {}
    for title, text in [] if run.report is None else run.report.public_rows():
        found[title] = f"{found[title]}; {text}" if title in found else text
    settings = {"steps": run.global_step, **public_settings(run.settings)}
    sections = ["## Training", settings_table(found, "before the first step"), settings_table(settings)]
    return "\n\n".join(sections).replace("<!--", "&lt;!--")
