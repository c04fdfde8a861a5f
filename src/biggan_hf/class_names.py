"""Which class of one source is which class of another: names decide, and numbers only where there are no names."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Match(NamedTuple):
    rows: list[int | None]  # for each class here, the class there; `None` where there is none
    by_number: bool  # because one side has no names


def match_classes(there: Sequence[str], here: Sequence[str]) -> Match:
    """
    Names compare exactly, as a whole or else as synonyms, which commas separate: "tench" is ImageNet's "tench, Tinca
    tinca". A name that fits several classes fits none. Classes that are only numbered, on either side, are matched by
    their number, if there are as many on both sides.
    """
    are_numbers = all(name.isdecimal() for name in [*there, *here])
    nameless = has_no_names(there), has_no_names(here)
    if all(nameless) or (any(nameless) and not are_numbers):
        return Match([*range(len(here))] if len(there) == len(here) else [None] * len(here), True)
    whole, synonyms = _index([name] for name in there), _index(map(_synonyms, there))
    rows: list[int | None] = []
    for label, name in enumerate(here):
        found = whole.get(name, [])
        if len(found) == here.count(name):  # ImageNet has two cranes and two maillots: in their order
            rows.append(found[here[:label].count(name)])
            continue
        found = found or sorted({row for synonym in _synonyms(name) for row in synonyms.get(synonym, [])})
        rows.append(found[0] if len(found) == 1 and here.count(name) == 1 else None)
    return Match(rows, False)


def has_no_names(names: Sequence[str]) -> bool:
    """Whether the classes are only numbered, as those of a data set or a model that names none."""
    return any(list(names) == [f"{prefix}{label}" for label in range(len(names))] for prefix in ("", "LABEL_"))


def abbreviated(names: Sequence[str], length: int = 60) -> str:
    """The first names, with a comma between them, and how many more there are."""
    shown = [name for index, name in enumerate(names) if len(", ".join(names[: index + 1])) <= length] or names[:1]
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else "")


def _index(names: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    # The rows that have a name.
    index: dict[str, list[int]] = {}
    for row, words in enumerate(names):
        for word in dict.fromkeys(words):
            index.setdefault(word, []).append(row)
    return index


def _synonyms(name: str) -> list[str]:
    return [word for part in name.split(",") if (word := part.strip())]
