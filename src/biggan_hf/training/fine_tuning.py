"""Which classes of a model to fine-tune go on as which classes of the data, and what becomes of their weights."""

from dataclasses import dataclass

import torch

from ..class_names import abbreviated, has_no_names, match_classes
from ..configuration_biggan import BigGANConfig
from ..initialization import init_weight
from ..modeling_biggan import BigGANDiscriminator, BigGANModel


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
    rows, by_number = match_classes(there, here)
    new = [name for name, row in zip(here, rows, strict=True) if row is None]
    if by_number:
        whose = "the data" if has_no_names(here) else model
        said = f"are taken by number from {model}: {whose} has no names of classes"
        if new:
            said = f"are new: {model} has {len(there)}, and {whose} no names of classes"
        return ClassMap(rows, f"all {len(here)} classes {said}")
    taken = f"{'all' if not new else len(here) - len(new)} {'' if not new else 'of '}{len(here)}"
    sentence = f"{taken} classes are taken by name from {model}"
    sentence += f"; {len(new)} {'is' if len(new) == 1 else 'are'} new: {abbreviated(new)}" if new else ""
    return ClassMap(rows, sentence)


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


def names_of(config: BigGANConfig) -> list[str]:
    """The names of the classes, by label."""
    return list((config.id2label or {}).values())
