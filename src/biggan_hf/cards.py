"""
A model's card, README.md: whether a person has written into it, which parts of it a program writes anew, its numbers,
and what it may tell of the machine.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
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
SOURCE = Part(
    "<!-- biggan_hf: source; a conversion writes this part anew, and nothing else -->",
    "<!-- biggan_hf: end of source -->",
)
EVALUATION = Part(
    "<!-- evaluation: begin; an evaluation writes this part anew, and nothing else -->", "<!-- evaluation: end -->"
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
    return hashlib.sha256(without_part(_without_numbers(card)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


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


def part_of(card: str, part: Part = RUN) -> str:
    """The text of a part; empty if the card has none."""
    found = part.pattern.search(card)
    return found[1].strip() if found else ""


def without_part(card: str) -> str:
    """What others than the programs have in the card, for a comparison."""
    for pattern in (*(part.pattern for part in (RUN, ENGINES, SOURCE, EVALUATION)), _SIGNATURE):
        card = pattern.sub("", card)
    return " ".join(card.split())


# Names that people or files have given, in Markdown


def harmless(text: str) -> str:
    """A text in which no tag, no comment, no code and no link of Markdown begins."""
    return text.replace("<", "&lt;").replace("`", "&#96;").replace("](", "]&#40;")


def escaped(text: object) -> str:
    """A text as one line, or as one cell of a table."""
    return harmless(" ".join(str(text).split())).replace("|", "&#124;")


def settings_table(settings: Mapping[str, object], title: str = "setting") -> str:
    """A table in Markdown with a row for each setting."""
    rows = [f"| {escaped(name)} | {escaped(value)} |" for name, value in settings.items()]
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


# Numbers: the `model-index` of the metadata

INDEX = "model-index"
_INDEX_LINES = re.compile(rf"^{INDEX}:.*?(?=^[^\s-]|\Z)", re.DOTALL | re.MULTILINE)
# Two runs of one protocol may differ in these: the probe by the device's rounding, the source since models move, the
# step and the weights since models are trained further.
OF_THE_RUN = ("software.", "device", "processes", "date", "samples.source", "samples.global_step", "samples.checksum",
              "extractor.probe", "interval")  # fmt: skip
_REAL_IN_WORDS = re.compile(r", real against real| of the (real images|floor) \(")


def license_of(card: str) -> Any:
    """The licence that a card names; `None` if it names none, or can't be read."""
    with suppress(ValueError):
        return metadata(card).get("license")
    return None


def with_evaluation_of(card: str, other: str) -> str:
    """The card with what `evaluate` wrote into another one: its section, and its numbers beside those here."""
    section = part_of(other, EVALUATION) or part_of(card, EVALUATION)
    return with_part(with_numbers_of(card, other), section, EVALUATION)


def with_numbers_of(card: str, other: str) -> str:
    """The card with the numbers of another one beside its own; as it is if one of the two can't be read."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        index = own = metadata(card).get(INDEX) or []
        for entry in metadata(other).get(INDEX) or []:
            index = merged_numbers(index, entry)
        return card if index == own else with_numbers(card, index)
    return card


def with_numbers(card: str, index: Any) -> str:
    """The card with this `model-index`. All else stays as it is written, but where lines of YAML can't be replaced."""
    lines, block = yaml_dump({INDEX: index}, sort_keys=False), _METADATA.match(card)
    if block is None:
        return f"---\n{lines}---\n\n{card.lstrip()}"
    data, replaced = {**_mapping(block[1]), INDEX: index}, _INDEX_LINES.sub(lambda _: lines, block[1], count=1)
    text = replaced if INDEX in _mapping(block[1]) else block[1] + lines
    try:
        is_same = _mapping(text) == data
    except ValueError:
        is_same = False
    return card[: block.start(1)] + (text if is_same else yaml_dump(data, sort_keys=False)) + card[block.end(1) :]


def _without_numbers(card: str) -> str:
    block = _METADATA.match(card)
    if block is None:
        return card
    return card[: block.start(1)] + _INDEX_LINES.sub("", block[1], count=1) + card[block.end(1) :]


def merged_numbers(index: list[dict[str, Any]], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """
    A model-index with the results of an entry in the place of those that they repeat: of the same data set, measure
    and protocol. Results of real images, which an earlier version wrote there, go.
    """
    new = {_identity(result, metric) for result in ours["results"] for metric in result["metrics"]}
    entries = [{**entry, "results": _without(new, entry["results"])} for entry in index]
    if all(entry["name"] != ours["name"] for entry in entries):
        entries.append({**ours, "results": []})
    own = next(entry for entry in entries if entry["name"] == ours["name"])
    own["results"] += ours["results"]
    return [entry for entry in entries if entry["results"]]


def _without(identities: set[str], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for result in results:
        metrics = [
            metric
            for metric in result["metrics"]
            if _identity(result, metric) not in identities and not _REAL_IN_WORDS.search(str(metric.get("name")))
        ]
        kept += [{**result, "metrics": metrics}] if metrics else []
    return kept


def _identity(result: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """The data set, the measure and the protocol of a number, without what differs from run to run."""
    args = metric.get("args")
    args = of_protocol(args) if isinstance(args, Mapping) else args
    return json.dumps([result["dataset"], metric["type"], args], sort_keys=True, default=str)


def of_protocol(args: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of one protocol have in common, of all that a number depends on."""
    return {name: value for name, value in args.items() if not name.startswith(OF_THE_RUN)}


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


def hub_id(name: str) -> str | None:
    """The name of a data set or a model, if it is that of a repository on the Hub."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_path(name) else None


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
