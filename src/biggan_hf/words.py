"""Lists and numbers in the sentences that a person reads."""

from collections.abc import Sequence


def abbreviated(names: Sequence[str], length: int = 60) -> str:
    """The first names, with a comma between them, and how many more there are."""
    shown = [name for index, name in enumerate(names) if len(", ".join(names[: index + 1])) <= length] or names[:1]
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else "")


def counted(number: int, noun: str) -> str:
    """ "1 class" or "2 classes"."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"
