"""Which class of a data set is which class of a model."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class ClassMap(NamedTuple):
    labels: list[int]  # by class of the model, the label in the data set
    how: str  # in words, for the report


def match_classes(model: Sequence[str], data_set: Sequence[str], name: str) -> ClassMap:
    """
    Names decide. Names that are only numbers are none, unless both sides have the same ones: then numbers decide.

    Args:
        model, data_set: The names of the classes, in the order of the labels.
        name: Of the data set, for the message.

    Raises:
        ValueError: A class of the model is not among those of the data set, or there are no names and the numbers of
            classes differ.
    """
    if sorted(model) != sorted(data_set) and (_are_numbers(model) or _are_numbers(data_set)):
        if len(model) != len(data_set):
            raise ValueError(f"the model has {len(model)} classes, {name} has {len(data_set)}")
        nameless = "the model" if _are_numbers(model) else name
        return ClassMap(list(range(len(model))), f"classes matched by number: {nameless} has no names")
    labels = _by_name(model, data_set) or _by_name(_first_synonyms(model), _first_synonyms(data_set))
    if labels is None:
        missing = list((Counter(model) - Counter(data_set)).elements())
        raise ValueError(
            f"{name} has no class {missing[0]!r} and lacks {len(missing)} classes of the model in all: its classes "
            f"are {_some(data_set)}, the model's {_some(model)}"
        )
    return ClassMap(labels, "classes matched by name")


def _by_name(model: Sequence[str], data_set: Sequence[str]) -> list[int] | None:
    """`None` unless each has its own. Two classes of one name, as ImageNet has, keep their order."""
    if Counter(model) - Counter(data_set):
        return None
    places = defaultdict(list)
    for label, class_name in reversed(list(enumerate(data_set))):
        places[class_name].append(label)
    return [places[class_name].pop() for class_name in model]


def _first_synonyms(names: Sequence[str]) -> list[str]:
    """Of ImageNet's "tench, Tinca tinca" the first."""
    return [class_name.split(",")[0].strip() for class_name in names]


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether no class has a name: `LABEL_0` is what transformers calls the first."""
    return all(re.fullmatch(r"(LABEL_)?-?\d+(\.\d+)?", class_name) for class_name in names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
