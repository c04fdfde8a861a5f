"""Which classes of a model to fine-tune go on as which classes of the data, and what becomes of their weights."""

from dataclasses import dataclass

import torch

from ..class_names import has_no_names, match_classes
from ..initialization import init_weight
from ..modeling_biggan import BigGANDiscriminator, BigGANModel
from ..words import abbreviated, counted


Network = BigGANModel | BigGANDiscriminator


@dataclass(frozen=True)
class ClassMap:
    """For each class of the data the class of the model whose weights it takes; `None` where they are new."""

    rows: list[int | None]
    sentence: str  # what a person is told of it; empty where there are no classes


def map_classes(model: str, there: list[str], here: list[str]) -> ClassMap:
    """Maps the classes of the data (`here`) to those of the model (`there`), as `class_names.match_classes` does."""
    if not there or not here:
        return ClassMap([None] * len(here), "")
    rows, how = match_classes(there, here)
    new = [name for name, row in zip(here, rows, strict=True) if row is None]
    taken = len(here) - len(new)
    number = f"{taken:,} of {counted(len(here), 'class')}"
    if not new:
        number = "the one class" if taken == 1 else f"all {taken:,} classes"
    by = "name (a number)" if how == "number" else how
    sentence = f"{number} {_are(taken)} taken by {by} from {model}"
    if how == "position":
        whose = "the data" if has_no_names(here) else model
        sentence += f": {whose} has no names of classes"
        sentence += f", and {model} has {counted(len(there), 'class')}" if new else ""
    if new:
        sentence += f"; {len(new):,} {_are(len(new))} new: {abbreviated(new)}{_hint_of_case(there, new)}"
    return ClassMap(rows, sentence)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _hint_of_case(there: list[str], new: list[str]) -> str:
    lower = {name.casefold(): name for name in there}
    pairs = [(name, lower.get(name.casefold(), name)) for name in new]
    alike = [f"{name!r} is not {other!r}" for name, other in pairs if name != other]
    return f" (upper and lower case differ: {abbreviated(alike)})" if alike else ""


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
        init_weight(weight, network.config.initializer)
        if name in old and old[name].shape[1:] == weight.shape[1:]:
            weight[here] = old[name][there]
        new[name].copy_(weight)
        vector = f"{name.removesuffix('weight')}u0"  # the singular vector has an entry for each class
        if vector in new and vector in old:
            new[vector].normal_(std=len(rows) ** -0.5)
            new[vector][:, here] = old[vector][:, there]
