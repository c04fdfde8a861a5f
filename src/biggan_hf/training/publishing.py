"""The card of a finished run, here and on the Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi

from ..cards import is_path, settings_table, with_metadata, with_part, without_part
from ..files import read_text, write_text
from ..hub import model_card, upload_folder
from .checkpoints import warn
from .run import Run
from .settings import public_settings


CARD = "README.md"


def write_card(run: Run) -> None:
    """
    Writes README.md. If somebody has written into the one that is there, only the part of the run changes, and
    metadata that is missing is added.
    """
    path = run.output_dir / CARD
    card = read_text(path)
    if card is None and path.exists():
        warn(f"{str(path)!r} stays as it is: it is no text in UTF-8")
        return
    write_text(path, renewed_card(run, card))


def publish(run: Run) -> None:
    """
    Uploads the finished model. A card that somebody has written into stays theirs, here and on the Hub: where only the
    Hub has one, the folder gets it too, and where both have one, each keeps its own text.
    """
    assert run.args.hub_model_id is not None
    path = run.output_dir / CARD
    here, there = read_text(path), published_card(run.args.hub_model_id)
    card = here
    if there is not None and is_by_hand(run, there):
        card = renewed_card(run, there)
        if here is None or not is_by_hand(run, here):
            write_text(path, card)
        elif without_part(here) != without_part(there):
            warn(f"{str(path)!r} differs from the card of {run.args.hub_model_id!r}: each keeps its own text")
    upload_folder(run.output_dir, run.args.hub_model_id, card=card, include_code=run.args.include_code)


# The card


def published_card(repo_id: str) -> str | None:
    """The `README.md` of a repo on the Hub; `None` if it has none, or one that is no text in UTF-8."""
    api = HfApi()
    if not api.file_exists(repo_id, CARD):
        return None
    return read_text(Path(api.hf_hub_download(repo_id, CARD)))


def renewed_card(run: Run, old: str | None) -> str:
    """The old card with the part of this run in it, or a new one where nobody has written into the old one."""
    new = new_cards(run)[-1]
    base = with_metadata(old, new) if old is not None and is_by_hand(run, old) else new
    return with_part(base, part_of_run(run), before="## Intended use and limits")


def is_by_hand(run: Run, card: str) -> bool:
    """Whether a card has something in it that no run has written."""
    names = re.findall(r"from_pretrained\('([^'\n]+)'\)", card)  # it may be of a push to another repository
    return without_part(card) not in map(without_part, new_cards(run, *names[:1]))


def new_cards(run: Run, *names: str) -> list[str]:
    """
    The cards of this model as programs write them, for repositories of these names too. They lack the part of the run.
    The last one is the run's own.
    """
    name = run.settings["dataset_name"]
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_path(name)
    datasets = [name] if is_hub_id else None
    return [
        model_card(run.config, repo_id=repo_id, datasets=of_data, sample_image="samples.png", has_code=has_code)
        for of_data in (None, datasets)
        for has_code in (not run.args.include_code, run.args.include_code)
        for repo_id in (*names, None, run.args.hub_model_id)
    ]


def part_of_run(run: Run) -> str:
    """The section of the card that tells of the training: what the run found, and its settings."""
    found: dict[str, str] = {}
    for title, text in [] if run.report is None else run.report.public_rows():
        found[title] = f"{found[title]}; {text}" if title in found else text
    settings = {"steps": run.global_step, **public_settings(run.settings)}
    sections = ["## Training", settings_table(found, "before the first step"), settings_table(settings)]
    return "\n\n".join(sections).replace("<!--", "&lt;!--")
