"""Which classes of a model to fine-tune go on as which classes of the data, and what becomes of their weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..configuration_biggan import BigGANConfig
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


Network = BigGANModel | BigGANDiscriminator


@dataclass(frozen=True)
class ClassMap:
    """For each class of the data the class of the model whose weights it takes; `None` where they are new."""

    rows: list[int | None]
    sentence: str  # what a person is told of it; empty where there are no classes


def map_classes(model: str, there: list[str], here: list[str]) -> ClassMap:
    """
    Maps the classes of the data (`here`) to those of the model (`there`) by their names. Names compare exactly, as a
    whole or else as synonyms, which commas separate: "tench" is ImageNet's "tench, Tinca tinca". A name that fits
    several classes fits none. Classes that are only numbered, on either side, are mapped by their number, if there are
    as many on both sides.
    """
    if not there or not here:
        return ClassMap([None] * len(here), "")
    are_numbers = all(name.isdecimal() for name in [*there, *here])
    if has_no_names(here) and has_no_names(there) or (not are_numbers and (has_no_names(here) or has_no_names(there))):
        whose = "the data" if has_no_names(here) else model
        if len(there) == len(here):
            sentence = f"all {len(here)} classes are taken by number from {model}: {whose} has no names of classes"
            return ClassMap(list(range(len(here))), sentence)
        why = f"{model} has {len(there)}, and {whose} no names of classes"
        return ClassMap([None] * len(here), f"all {len(here)} classes are new: {why}")
    rows = _rows_by_name(there, here)
    new = [name for name, row in zip(here, rows, strict=True) if row is None]
    taken = f"{'all' if not new else len(here) - len(new)} {'' if not new else 'of '}{len(here)}"
    sentence = f"{taken} classes are taken by name from {model}"
    sentence += f"; {len(new)} {'is' if len(new) == 1 else 'are'} new: {abbreviated(new)}" if new else ""
    return ClassMap(rows, sentence)


def _rows_by_name(there: list[str], here: list[str]) -> list[int | None]:
    whole, synonyms = _index([name] for name in there), _index(_synonyms(name) for name in there)
    rows: list[int | None] = []
    for label, name in enumerate(here):
        found = whole.get(name, [])
        if len(found) == here.count(name):  # ImageNet has two cranes and two maillots: in their order
            rows.append(found[here[:label].count(name)])
            continue
        found = found or sorted({row for synonym in _synonyms(name) for row in synonyms.get(synonym, [])})
        rows.append(found[0] if len(found) == 1 and here.count(name) == 1 else None)
    return rows


def _index(names: Iterable[list[str]]) -> dict[str, list[int]]:
    """The rows that have a name."""
    index: dict[str, list[int]] = {}
    for row, words in enumerate(names):
        for word in dict.fromkeys(words):
            index.setdefault(word, []).append(row)
    return index


def _synonyms(name: str) -> list[str]:
    return [word for part in name.split(",") if (word := part.strip())]


def has_no_names(names: list[str]) -> bool:
    """Whether the classes are only numbered, as those of a data set or a model that names none."""
    return any(names == [f"{prefix}{label}" for label in range(len(names))] for prefix in ("", "LABEL_"))


def abbreviated(names: list[str], length: int = 60) -> str:
    """The first names, with a comma between them, and how many more there are."""
    shown = [name for index, name in enumerate(names) if len(", ".join(names[: index + 1])) <= length] or names[:1]
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else "")


# The weights


def is_of_classes(network: Network, name: str) -> bool:
    """Whether a weight has a row for each class: an embedding, or a gain or bias where none is shared."""
    per_layer = isinstance(network, BigGANModel) and not network.config.shared_class_embedding
    return name == "class_embedding.weight" or (per_layer and name.endswith((".gain.weight", ".bias.weight")))


@torch.no_grad()
def take_classes(network: Network, saved: Network, rows: list[int | None]) -> None:
    """Fills the rows of the classes: from the saved network where it has the class, else with new values."""
    old, new = saved.state_dict(), network.state_dict()
    here = [label for label, row in enumerate(rows) if row is not None]
    there = [row for row in rows if row is not None]
    for name in [name for name in new if is_of_classes(network, name)]:
        weight = torch.empty_like(new[name])
        network._init_weight(weight)
        if name in old and old[name].shape[1:] == weight.shape[1:]:
            weight[here] = old[name][there]
        new[name].copy_(weight)
        vector = f"{name.removesuffix('weight')}u0"  # the singular vector has an entry for each class
        if vector in new and vector in old:
            new[vector].normal_(std=len(rows) ** -0.5)
            new[vector][:, here] = old[vector][:, there]


def names_of(config: BigGANConfig) -> list[str]:
    """The names of the classes, by label."""
    return list((config.id2label or {}).values())
