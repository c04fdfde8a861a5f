"""Which class of one source is which class of another: names decide, and numbers only where there are no names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple


NUMBER = re.compile(r"(LABEL_)?\d+")


class Match(NamedTuple):
    rows: list[int | None]  # for each class here, the class there; `None` where there is none
    how: Literal["name", "number", "position"]


def match_classes(there: Sequence[str], here: Sequence[str]) -> Match:
    """
    Names compare exactly, as a whole or else as synonyms, which commas separate: "tench" is ImageNet's "tench, Tinca
    tinca". A name that fits several classes fits none. Numbers compare by value where both sides have nothing else:
    "7", "07" and "LABEL_7" are one class. Where one side has names and the other only counts, the position decides,
    if there are as many on both sides.
    """
    if all(map(NUMBER.fullmatch, [*there, *here])):
        numbers = [[str(int(name.removeprefix("LABEL_"))) for name in names] for names in (there, here)]
        return Match(_rows(*numbers), "number")
    if has_no_names(there) or has_no_names(here):
        return Match([*range(len(here))] if len(there) == len(here) else [None] * len(here), "position")
    return Match(_rows(there, here), "name")


def has_no_names(names: Sequence[str]) -> bool:
    """Whether the classes are only counted, as those of a data set or a model that names none."""
    return any(list(names) == [f"{prefix}{label}" for label in range(len(names))] for prefix in ("", "LABEL_"))


def names_of(id2label: Mapping[Any, str] | None) -> list[str]:
    """The names of a model's classes, by label."""
    return [str(name) for _, name in sorted((id2label or {}).items(), key=lambda pair: int(pair[0]))]


def _rows(there: Sequence[str], here: Sequence[str]) -> list[int | None]:
    whole, synonyms = _index([name] for name in there), _index(map(_synonyms, there))
    rows: list[int | None] = []
    for label, name in enumerate(here):
        found = whole.get(name, [])
        if len(found) == here.count(name):  # ImageNet has two cranes and two maillots: in their order
            rows.append(found[here[:label].count(name)])
            continue
        found = found or sorted({row for synonym in _synonyms(name) for row in synonyms.get(synonym, [])})
        rows.append(found[0] if len(found) == 1 and here.count(name) == 1 else None)
    return rows


def _index(names: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    # The rows that have a name.
    index: dict[str, list[int]] = {}
    for row, words in enumerate(names):
        for word in dict.fromkeys(words):
            index.setdefault(word, []).append(row)
    return index


def _synonyms(name: str) -> list[str]:
    return [word for part in name.split(",") if (word := part.strip())]
