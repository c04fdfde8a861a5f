"""Options of a command line: what to say of one that there is not."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def unknown_option(words: Iterable[str], known: Collection[str]) -> str | None:
    """
    What is wrong with the first word of a command line that looks like an option and is none of the known ones, with
    those that are like it; `None` if there is no such word.
    """
    for word in words:
        name = word.partition("=")[0]
        if word == "--":  # what follows is no option
            break
        if name.startswith("--") and name not in known:
            # The one that is nearly the same, else those that contain the word, else up to three that are like it.
            similar = get_close_matches(name, known, 1, cutoff=0.85)
            similar = similar or [
                option for option in known if len(_letters(name)) > 3 and _letters(name) in _letters(option)
            ]
            similar = similar[:3] or get_close_matches(name, known, 3, cutoff=0.6)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            return f"unrecognized arguments: {name}{hint}"
    return None


def _letters(option: str) -> str:
    return option.replace("-", "").replace("_", "")
