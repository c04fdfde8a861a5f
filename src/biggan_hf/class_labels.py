"""Class labels as callers give them, numbers or names, and what a network accepts."""

import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


_OTHER_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64)
FEW_CLASSES = 20  # a message can name them all


# Names


def label_of(name: str, id2label: Mapping[Any, str] | None) -> int:
    """
    The label of a class.

    Args:
        name: A comma-separated part of its name or the whole of it, in any case.
        id2label: The names of all classes, as a configuration has them.

    Raises:
        ValueError: A name that no class has, with the classes or the closest ones, or that several classes have, with
            their labels.
        TypeError: A name that is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"a class name must be a string, and a class id an integer, got {name!r}")
    names = id2label or {}
    if not names:
        raise ValueError(f"this model is unconditional and has no classes, got {name!r}")
    index = labels_by_name(tuple(names.items()))
    found = index.get(normalized(name), [])
    if len(found) == 1:
        return found[0]
    if found:
        classes = " and ".join(f"{label} ({names[label]!r})" for label in found)
        raise ValueError(f"class name {name!r} is shared by the classes {classes}; give an id")
    close = difflib.get_close_matches(normalized(name), index, n=3)
    hint = f"; the closest are {', '.join(map(repr, close))}" if close else ""
    if not close or len(names) <= FEW_CLASSES:
        hint += f"; the ids are {_ids_of(names)}"
    raise ValueError(f"unknown class name {name!r}{hint}")


def _ids_of(id2label: Mapping[Any, str]) -> str:
    """All ids; with the names, where they are few."""
    few = f", of {', '.join(map(repr, id2label.values()))}" if len(id2label) <= FEW_CLASSES else ""
    return f"0 to {len(id2label) - 1}{few}"


@functools.lru_cache(maxsize=8)
def labels_by_name(id2label: tuple[tuple[int, str], ...]) -> Mapping[str, list[int]]:
    """The labels of the classes that bear a name, for every synonym and every whole name."""
    index: dict[str, list[int]] = {}
    for label, text in id2label:
        for name in {normalized(name) for name in [text, *text.split(",")]} - {""}:
            index.setdefault(name, []).append(label)
    return index


def normalized(name: str) -> str:
    return " ".join(name.split()).casefold()


# Labels


def as_labels(labels: Any, id2label: Mapping[Any, str] | None) -> Tensor:
    """The labels, numbers or names of classes, one or several, as a tensor on the CPU."""
    if getattr(getattr(labels, "dtype", None), "kind", None) in ("U", "O"):  # numpy's texts and objects
        labels = labels.tolist()
    ids = labels
    if isinstance(labels, str):
        ids = label_of(labels, id2label)
    elif isinstance(labels, Sequence):
        ids = [label_of(label, id2label) if isinstance(label, str) else label for label in labels]
    try:
        return widened(torch.as_tensor(ids, device="cpu"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"class_labels must be integers or names, got {labels!r}") from error


def widened(labels: Tensor) -> Tensor:
    """The labels as int64, if they are integers of a type that embeddings do not take."""
    return labels.long() if labels.dtype in _OTHER_INTEGERS else labels


def check_label_range(labels: Sequence[int], id2label: Mapping[Any, str]) -> None:
    """Raises `ValueError` for the first label that no class has."""
    for label in labels:
        if not 0 <= label < len(id2label):
            raise ValueError(f"class label {label} is outside {_ids_of(id2label)}")


def check_class_labels(class_labels: Tensor | None, num_samples: int, id2label: Mapping[Any, str] | None) -> None:
    """
    Raises `ValueError` unless there is one integer label of a class per sample, or no labels for a network without
    classes. The range of labels is not checked on a GPU, for which it would wait, and under vmap.
    """
    if not id2label:
        if class_labels is not None:
            raise ValueError("this model is unconditional (num_labels=0): class_labels must be None")
        return
    if class_labels is None:
        raise ValueError(f"this model has {len(id2label)} classes: class_labels must be given")
    shape, dtype = tuple(class_labels.shape), class_labels.dtype
    if shape != (num_samples,) or dtype not in (torch.int64, torch.int32):
        hint = "; one-hot vectors are given as labels, class_labels.argmax(1), and mixtures as class_embeddings="
        raise ValueError(
            f"class_labels must be {num_samples} integers (int64), one a sample, got {shape} of {dtype}"
            f"{hint if dtype.is_floating_point or shape == (num_samples, len(id2label)) else ''}"
        )
    if class_labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    try:
        values = class_labels.tolist()
    except RuntimeError:  # under `torch.vmap`, which shows no values
        return
    check_label_range(values, id2label)


# Embeddings in place of labels


def check_class_embeddings(embeddings: Tensor, class_labels: Tensor | None, num_samples: int, width: int) -> None:
    """
    Raises `ValueError` unless there is one embedding a sample, (num_samples, width), and no label. The width is 0 for
    a network without classes.
    """
    if not width:
        raise ValueError("this model is unconditional (num_labels=0): class_embeddings must be None")
    if class_labels is not None:
        raise ValueError("class_labels and class_embeddings exclude each other; give one of them")
    if embeddings.shape != (num_samples, width):
        raise ValueError(f"class_embeddings must be ({num_samples}, {width}), got {tuple(embeddings.shape)}")
