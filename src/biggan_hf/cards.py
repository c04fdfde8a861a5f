"""
A model's card, README.md: which part of it a program writes anew, while all the rest stays a person's, and what it may
tell of the machine.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump


BEGIN = "<!-- biggan_hf: begin; a training run writes this part anew, and nothing else -->"
END = "<!-- biggan_hf: end -->"
_PART = re.compile(r"<!-- biggan_hf: begin(?:(?!<!-- biggan_hf: begin).)*?<!-- biggan_hf: end -->", re.DOTALL)
# What runs wrote before they marked their part: a section that holds a table of settings only.
_UNMARKED = re.compile(r"^## Training\n\n\| setting \| value \|\n\|---\|---\|(?:\n\|.*\|$)+", re.MULTILINE)


def with_part(card: str, part: str, before: str | None = None) -> str:
    """The card with the program's part where that was before, else in front of the first `before`, else at the end."""
    marked = f"{BEGIN}\n{part.strip()}\n{END}"
    for pattern in (_PART, _UNMARKED):
        if pattern.search(card):
            return pattern.sub(lambda _: marked, card, count=1)
    if before is not None and before in card:
        return card.replace(before, f"{marked}\n\n{before}", 1)
    return f"{card.rstrip()}\n\n{marked}\n"


def settings_table(settings: Mapping[str, object], title: str = "setting") -> str:
    """A table in Markdown with a row for each setting."""

    def cell(value: object) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in settings.items()]
    return "\n".join([f"| {title} | value |", "|---|---|", *rows])


def without_part(card: str) -> str:
    """What others than the program have in the card, for a comparison."""
    return "\n".join(_UNMARKED.sub("", _PART.sub("", card.replace("\r\n", "\n"))).split())


def with_metadata(card: str, other: str) -> str:
    """
    The card with the keys of another card's metadata that it lacks. What it has stays as it is written, with its order
    and its comments. Metadata that is no mapping in YAML stays alone.
    """
    block, other_block = (REGEX_YAML_BLOCK.search(text) for text in (card, other))
    if other_block is None:
        return card
    if block is None:
        return f"{other_block.group(0).strip()}\n\n{card.lstrip()}"
    try:
        data: Any = yaml.safe_load(block.group(2)) or {}
    except yaml.YAMLError:
        return card
    if not isinstance(data, dict):
        return card
    missing = {key: value for key, value in yaml.safe_load(other_block.group(2)).items() if key not in data}
    if not missing:
        return card
    end = block.end(2)
    return f"{card[:end]}\n{yaml_dump(missing, sort_keys=False).strip()}{card[end:]}"


# What others may read


def is_path(value: Any) -> bool:
    """Whether a setting names a file or a folder of this machine, and not, say, a repository on the Hub."""
    if not isinstance(value, str) or not value:
        return False
    try:
        return value.startswith(("/", "~", ".")) or "\\" in value or Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # it is too long for a path, or begins with a ~ of nobody
        return False


def public_name(value: str) -> str:
    """What others may read of a data set or a model: of a path its end, unless that tells who the user is."""
    if not is_path(value):
        return value
    path = Path(value).expanduser().absolute()
    kind = "file" if path.is_file() else "folder"
    return f"a local {kind}" if Path.home().name in path.name else f"the local {kind} {path.name!r}"
