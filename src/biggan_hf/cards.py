"""
A model's card, README.md: whether a person has written into it, which parts of it a program writes anew, and what it
may tell of the machine.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub.utils import yaml_dump


class Part(NamedTuple):
    """A part of a card that a program writes anew: the comments that begin and end it."""

    begin: str
    end: str

    @property
    def pattern(self) -> re.Pattern[str]:
        begin = self.begin.partition(";")[0]
        return re.compile(rf"{begin}[^>]*-->((?:(?!{begin}).)*?){self.end}", re.DOTALL)


RUN = Part(
    "<!-- biggan_hf: begin; a training run writes this part anew, and nothing else -->", "<!-- biggan_hf: end -->"
)
ENGINES = Part(
    "<!-- biggan_hf: engines; a push writes this part anew, and nothing else -->", "<!-- biggan_hf: end of engines -->"
)
_SIGNATURE = re.compile(r"<!-- biggan_hf: generated (\w+) -->")
_METADATA = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


# By a program or by hand


def signed(card: str) -> str:
    """A generated card with a digest of its text at its end."""
    return f"{card.rstrip()}\n\n<!-- biggan_hf: generated {_digest(card)} -->\n"


def is_by_hand(card: str) -> bool:
    """Whether a card has text that its digest does not know, or no digest. An empty one is nobody's."""
    signature = _SIGNATURE.search(card)
    return bool(card.strip()) and (signature is None or signature[1] != _digest(card))


def is_text(card: str) -> bool:
    """Whether all of a card was UTF-8 where `read_text` read it."""
    return re.search(r"[\ud800-\udfff]", card) is None


def _digest(card: str) -> str:
    return hashlib.sha256(without_part(card).encode("utf-8", "surrogateescape")).hexdigest()[:16]


# The parts that a program writes anew


def with_part(card: str, text: str, part: Part = RUN) -> str:
    """
    The card with a part's text where that was before, else in front of the limits, else at the end. Without a text the
    card loses the part.
    """
    marked, limits = f"{part.begin}\n{text.strip()}\n{part.end}" if text else "", "## Intended use and limits"
    if not text or part.pattern.search(card):
        return part.pattern.sub(lambda _: marked, card, count=1)
    before, found, after = card.partition(limits)
    return f"{before}{marked}\n\n{found}{after}" if found else f"{card.rstrip()}\n\n{marked}\n"


def part_of(card: str) -> str:
    """The part of a run; empty if the card has none."""
    part = RUN.pattern.search(card)
    return part[1] if part else ""


def without_part(card: str) -> str:
    """What others than the programs have in the card, for a comparison."""
    for pattern in (RUN.pattern, ENGINES.pattern, _SIGNATURE):
        card = pattern.sub("", card)
    return " ".join(card.split())


def settings_table(settings: Mapping[str, object], title: str = "setting") -> str:
    """A table in Markdown with a row for each setting."""

    def cell(value: object) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in settings.items()]
    return "\n".join([f"| {title} | value |", "|---|---|", *rows])


# Metadata


def metadata(card: str) -> dict[str, Any]:
    """The card's metadata; empty if it has none. Raises `ValueError` for what is no mapping in YAML."""
    block = _METADATA.match(card)
    return _mapping(block[1]) if block else {}


def _mapping(text: str) -> dict[str, Any]:
    try:
        data: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"no mapping: {data!r}")
    return data


def with_metadata(card: str, other: str) -> str:
    """
    The card with the keys of another card's metadata that it lacks. What it has stays as it is written, with its order
    and its comments. Metadata to which lines of YAML cannot be added stays alone.
    """
    block, other_block = _METADATA.match(card), _METADATA.match(other)
    if other_block is None or (block is None and card.lstrip("\ufeff \t\r\n").startswith("---")):
        return card
    if block is None:
        return f"{other_block[0].strip()}\n\n{card.lstrip()}"
    try:
        data = _mapping(block[1])
        missing = {key: value for key, value in metadata(other).items() if key not in data}
        text = block[1] + yaml_dump(missing, sort_keys=False)
        added = bool(missing) and _mapping(text) == {**data, **missing}
    except ValueError:
        return card
    return card[: block.start(1)] + text + card[block.end(1) :] if added else card


# What others may read

_PATH = re.compile(r"""(?:^|[\s'"`(\[{=,;|])(?:~[\w-]*/|/[\w.-]{2}|[A-Za-z]:[\\/]\w|\\\\\w)|file:/""")


def is_path(value: Any) -> bool:
    """Whether a setting names a file or a folder of this machine, and not, say, a repository on the Hub."""
    if not isinstance(value, str) or not value:
        return False
    try:
        return value.startswith(("/", "~", ".")) or "\\" in value or Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # it is too long for a path, or begins with a ~ of nobody
        return False


def names_path(text: str) -> bool:
    """Whether a text names, anywhere in it, an absolute path, or one of a home."""
    return _PATH.search(text) is not None


def public_name(value: str) -> str:
    """
    What others may read of a data set or a model: of a path its end, unless that tells who the user is; of an address
    neither a password nor what follows a question mark, which may be a key.
    """
    value = value.removeprefix("file://")
    if not is_path(value):
        return re.sub(r"(?<=://)[^/\s]*@", "", value).partition("?")[0] if "://" in value else value
    path = Path(value).expanduser().absolute()
    kind = "file" if path.is_file() else "folder"
    return f"a local {kind}" if Path.home().name in path.name else f"the local {kind} {path.name!r}"
