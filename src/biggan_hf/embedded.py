"""The models that come with the package: "biggan_hf:fashion" is the one in the folder `models/fashion`."""

from pathlib import Path

from .keywords import did_you_mean


PREFIX = "biggan_hf:"  # no repository on the Hub has a colon in its name
_FOLDER = Path(__file__).parent / "models"


def located(source: str) -> str:
    """
    The folder of a model that comes with the package; any other folder or repository as it is named.

    Raises:
        FileNotFoundError: No model of this name comes with the package. The message lists those that do.
    """
    if not source.startswith(PREFIX):
        return source
    names = sorted(PREFIX + config.parent.name for config in _FOLDER.glob("*/config.json"))
    if source not in names:
        hint = did_you_mean(source, names)
        raise FileNotFoundError(f"no model {source!r} comes with the package: it has {', '.join(names)}{hint}")
    return str(_FOLDER / source.removeprefix(PREFIX))


def name_of(source: str) -> str:
    """What people call a model: a folder by its own name, without its place; any other as it is named."""
    place = Path(source)
    return place.resolve().name if place.is_dir() else source
