"""What was found in a source of pictures, in words."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..cards import public_name
from ..words import abbreviated, counted
from .labelled_images import LabelledImages
from .opening import splits_in


COLUMNS = 100
DARK = 32  # of 255: an eighth of the range, as 12 of 16 bits have a sixteenth


class Row(NamedTuple):
    title: str
    text: str
    public: str | None = None  # what others read instead; empty: they do not read the row


def found_rows(images: LabelledImages, name: str, held_out: str | None = None) -> list[Row]:
    """
    Args:
        name: Of the data set.
        held_out: The split of the same data set on which the discriminator is watched.
    """
    contents = images.contents
    watched, unused = splits_beside(images, held_out)
    pictures = f"{images.num_readable:,} of split {contents.split!r} of"
    asked = held_out and (splits_in_words(watched) or f"split {held_out!r}")
    return [
        Row("pictures", f"{pictures} {name}", f"{pictures} {public_name(name)}"),
        Row("held out", f"{asked}, on which the discriminator is watched" if asked else ""),
        Row("not used", splits_in_words(unused)),
        *(
            Row("left out", f"{len(names):,} × {reason}: {abbreviated(names)}")
            for reason, names in images.left_out().items()
        ),
        Row("classes", _classes(images)),
        Row("stored", _stored(images)),
    ]


def found_unusual(images: LabelledImages) -> Iterator[str]:
    """What is unusual, a sentence each."""
    yield from images.contents.remarks
    deep = [picture for picture in images.probed if picture.is_deep]  # others beside them may be bright
    of_deep = " of more than 8 bits" if deep else ""
    brightest = max((picture.largest for picture in deep or images.probed), default=255)
    if brightest < DARK:
        yield (
            f"The probed pictures{of_deep} are nearly black: the brightest value is {brightest / 255:.0%} of white. "
            "If a camera of 12 bits wrote into 16, scale its values (docs/pictures.md)."
        )


def splits_beside(images: LabelledImages, held_out: str | None) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """The ignored splits with their numbers of pictures: those that are held out, and the others."""
    ignored = images.contents.ignored_splits
    held = splits_in(held_out, list(ignored)) if held_out else []
    watched = {name: number for name, number in ignored.items() if name in held}
    return watched, {name: number for name, number in ignored.items() if name not in held}


def splits_in_words(splits: dict[str, int | None]) -> str:
    words = [name if number is None else f"{name} ({counted(number, 'picture')})" for name, number in splits.items()]
    return f"split{'s' * (len(words) > 1)} {', '.join(words)}" if words else ""


def _classes(images: LabelledImages) -> str:
    names, counts, source = images.class_names, images.contents.class_counts, images.contents.label_source
    if not names:
        return "none: no labels are used"
    number = f"{counted(len(names), 'class')} by {source}"
    some = abbreviated(names, 2 * COLUMNS)
    least, most = min(counts), max(counts)
    if least == most:
        return f"{number}, {counted(least, 'picture')} each: {some}"
    pairs = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    if len(", ".join(pairs)) <= 2 * COLUMNS:
        return f"{number}: {', '.join(pairs)}"
    rarest = names[counts.index(least)]
    return (
        f"{number}, {least:,} to {counted(most, 'picture')} each, the least {rarest!r}: {abbreviated(names, COLUMNS)}"
    )


def _stored(images: LabelledImages) -> str:
    smallest, largest = (f"{width}×{height}" for height, width in images.stored_sizes())
    sizes = smallest if smallest == largest else f"{smallest} to {largest}"
    return f"{sizes}, {', '.join(images.stored_modes)} (the pictures that were probed)"


# Lines


def lines_of(rows: Sequence[Row], unusual: Sequence[str], most: int | None = None) -> list[str]:
    """Of at most so many lines a row, and a sentence."""
    lines = [line for row in rows for line in wrapped(row.title, row.text, most)]
    for index, sentence in enumerate(unusual):
        lines += wrapped("" if index else "unusual", sentence, most and max(most, 2))
    return lines


def wrapped(title: str, text: str, most: int | None = None) -> list[str]:
    """The row as lines of at most 100 columns."""
    indent = 12
    lines = _fold(text, COLUMNS - indent)
    if most is not None and len(lines) > most:
        last = _fold(lines[most - 1], COLUMNS - indent - 2)[0]
        lines = [*lines[: most - 1], f"{last} …"]
    return [f"{title if index == 0 else '':{indent}}{line}" for index, line in enumerate(lines)]


def _fold(text: str, columns: int) -> list[str]:
    """Breaks at spaces where it can. Wide characters, such as Chinese ones, take two columns."""
    wide = {index for index, character in enumerate(text) if unicodedata.east_asian_width(character) in "WF"}
    if not wide:
        return textwrap.wrap(text, columns, break_on_hyphens=False) or [""]
    padded = "".join(c + "\0" * (index in wide) for index, c in enumerate(text))
    return [line.replace("\0", "") for line in textwrap.wrap(padded, columns - 1, break_on_hyphens=False)]


def printable(text: str) -> str:
    """A file's name may hold what moves a terminal's cursor."""
    return "".join(character if character.isprintable() else "�" for character in text)
