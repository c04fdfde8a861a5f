"""What lies in a folder of pictures: its splits, its classes, and what is left out. No file but a zip is opened."""

import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import filterfalse
from pathlib import Path
from typing import Any

from PIL import Image

from ..pictures import first_line


# The names of split folders, in any case
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
NUMBERED_SPLIT = re.compile(rf"({'|'.join(SPLIT_OF)})([a-z]|[-_]?[0-9]+)", re.IGNORECASE)  # train2017, testA, val_1
# Folders that are called by what their files are, rather than by what the pictures show
KINDS_OF_FILES = {"images", "imgs", "masks", "labels", "annotations", "unlabeled", "unlabelled", "thumbnails"}

# Formats that Pillow names and cannot decode without another program, or that are no pictures
NO_PICTURE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Archives that are not read as folders: `datasets` takes pictures out of some of them, and no classes.
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".rar", ".7z")
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}  # by which zips pack
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}

# Why something is left out
HIDDEN = "hidden, or of the operating system"
NO_PICTURE = "no picture by its ending"

SUB_FOLDERS = "sub-folders"


@dataclass(eq=False)
class Folder:
    """A folder, or one inside a zip. Names are sorted."""

    path: str  # relative to the folder that was listed, which is ""
    above: "Folder | None" = None
    pictures: list[str] = field(default_factory=list)  # their names
    others: list[str] = field(default_factory=list)  # the names of all other files
    folders: dict[str, "Folder"] = field(default_factory=dict)
    left_out: dict[str, set[str]] = field(default_factory=dict)  # reason → relative paths, but for `others`
    identity: tuple[int, int] | None = None  # the device and the number there, the same through a link

    @cached_property
    def number(self) -> int:
        """Of pictures, deeper ones too; asked for once all are listed."""
        return len(self.pictures) + sum(folder.number for folder in self.folders.values())

    @property
    def filled(self) -> dict[str, "Folder"]:
        """The sub-folders that hold pictures, or whose sub-folders do."""
        return {name: folder for name, folder in self.folders.items() if folder.number}

    def inside(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, set()).add(self.inside(name))

    def walk(self) -> Iterator["Folder"]:
        """This folder and all deeper ones."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def paths(self) -> list[str]:
        """The relative paths of all pictures, deeper ones too, sorted."""
        return sorted(folder.inside(name) for folder in self.walk() for name in folder.pictures)

    def other_paths(self) -> list[str]:
        """Those of all other files."""
        return [folder.inside(name) for folder in self.walk() for name in folder.others]

    def add(self, path: str) -> None:
        """Adds a file of a zip, with the folders that its path names."""
        *parents, name = path.split("/")
        folder = self
        for parent in parents:
            if _is_hidden(parent):
                return folder.leave_out(HIDDEN, parent)
            folder = folder.folders.setdefault(parent, Folder(folder.inside(parent), folder))
        if name:  # the path of a folder ends with a slash
            folder.add_file(name)

    def add_file(self, name: str) -> None:
        if _is_hidden(name):
            self.leave_out(HIDDEN, name)
        elif is_picture(name):
            self.pictures.append(name)
        else:
            self.others.append(name)


class DamagedError(ValueError):
    """A file in a zip has other bytes than were packed."""


def unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if getattr(error, "errno", None):  # of the disk; that of bzip2 has no number
            raise
        raise DamagedError(f"it is damaged in {archive.filename!r} ({first_line(error)})") from error


@dataclass(frozen=True, eq=False)
class Listing:
    """The top folder, and where its files are."""

    place: Path  # the folder that was listed
    top: Folder
    # Relative path → a zip, the name inside it, and the checksum there. Empty for plain files.
    zipped: dict[str, tuple[str, str, int]]

    def read(self, path: str) -> bytes:
        """Raises `ValueError` if the file cannot be read."""
        try:
            if path not in self.zipped:
                return (self.place / path).read_bytes()
            archive, name, _ = self.zipped[path]
            with zipfile.ZipFile(archive) as file:
                return unpacked(file, name)
        except (OSError, zipfile.BadZipFile, DamagedError) as error:
            raise ValueError(f"{path} cannot be read: {first_line(error)}") from error


@dataclass(eq=False)
class Rows:
    """The pictures of one split, and what says their labels."""

    paths: list[str]  # relative, sorted
    labels: list[Any]  # of each picture, as the source has them; empty without labels
    source: str = SUB_FOLDERS  # in words
    left_out: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@cache
def picture_endings() -> frozenset[str]:
    Image.init()
    endings = Image.registered_extensions().items()
    return frozenset(end for end, name in endings if name in Image.OPEN and name not in NO_PICTURE_FORMATS)


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in picture_endings()


def is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", ".tar", *PACKED))


def natural_order(text: str) -> tuple[Any, str]:
    """A key that sorts numbers inside of texts by their value: "2" before "10"."""
    parts = re.split(r"([0-9]+)", text)  # words and numbers in turn: so the same places of two texts compare
    numbers = [part.lstrip("0") for part in parts]
    return [(len(numbers[i]), numbers[i]) if i % 2 else part for i, part in enumerate(parts)], text


def split_called(name: str) -> str | None:
    """The split that a folder of this name may be."""
    return SPLIT_OF.get(name.strip().casefold())


def split_in(name: str) -> str | None:
    """The split that a word of a name says: "train" of "train2017" and "my_train-0"."""
    return next((split for word in re.split(r"[^a-zA-Z]+", name) if (split := split_called(word))), None)


# Listing


def list_folder(place: str | Path) -> Listing:
    """Lists a folder with its sub-folders. Links are followed, but not back to a folder that holds them."""
    top = Folder("")
    try:
        _list(os.path.abspath(place), top, frozenset())
    except OSError as error:
        raise ValueError(f"{str(place)!r} cannot be opened: {error.strerror}") from error
    return Listing(Path(os.path.abspath(place)), top, {})


def _list(place: str, folder: Folder, above: frozenset[tuple[int, int]]) -> None:
    status = os.stat(place)
    folder.identity = status.st_dev, status.st_ino
    above |= {folder.identity}
    with os.scandir(place) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            _add_entry(entry, folder, above)


def _add_entry(entry: "os.DirEntry[str]", folder: Folder, above: frozenset[tuple[int, int]]) -> None:
    name, is_link = entry.name, entry.is_symlink()
    if re.search("[\ud800-\udfff]", name):
        folder.leave_out(
            "a name that is no UTF-8", name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        )
    elif _is_hidden(name):
        folder.leave_out(HIDDEN, name)
    elif os.path.isdir(entry.path) if is_link else entry.is_dir():
        status = entry.stat()
        if (status.st_dev, status.st_ino) in above:
            folder.leave_out("a link back to a folder that holds it", name)
            return
        inner = Folder(folder.inside(name), folder)
        try:
            _list(entry.path, inner, above)
        except OSError:
            folder.leave_out("a folder that cannot be opened", name)
        else:
            folder.folders[name] = inner
    elif not os.path.isfile(entry.path) if is_link else not entry.is_file():
        folder.leave_out("a link that leads nowhere" if is_link else "neither a file nor a folder", name)
    else:
        folder.add_file(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def list_zip(archive: Path) -> Listing:
    """Lists a zip as if it was a folder."""
    return _list_zips(archive.parent.absolute(), [("", archive.name)])


def list_zips(place: Path, archives: list[str]) -> Listing:
    """
    Lists zips, whose paths are relative to a folder, as if each was a folder called as it is: as a split, if their
    names have words of splits. Zips that hold folders of the same names are parts of one folder.
    """
    folders = [os.path.splitext(archive)[0] for archive in archives]
    splits = [split for folder in folders if (split := split_in(os.path.basename(folder)))]
    if len(splits) == len(archives):
        folders = splits
    elif len(archives) == 1 or _are_parts(archives, [_seen_in(place / archive) for archive in archives]):
        folders = [""] * len(archives)
    return _list_zips(place, [*zip(folders, archives, strict=True)])


def _are_parts(archives: list[str], names: list[list[str]]) -> bool:
    """
    Whether zips are parts of one folder: those that hold folders of the same names. A single folder that is the same
    in all of them does not count, but in zips that differ in a number only, as images_1.zip and images_2.zip.
    """
    inside = [{name.partition("/")[0] for name in paths if "/" in name} for paths in names]
    words = {re.sub(r"[0-9]+", "", os.path.splitext(archive)[0]) for archive in archives}
    are_numbered = len(words) == 1 and words != {""}
    if len(set().union(*inside)) == sum(map(len, inside)):
        return False
    if len(set().union(*inside)) > 1 or are_numbered:
        return True
    return _are_parts(archives, [[rest for name in paths if (rest := name.partition("/")[2])] for paths in names])


def _list_zips(place: Path, archives: list[tuple[str, str]]) -> Listing:
    """Lists zips, each in a folder of this name."""
    top, zipped = Folder(""), {}
    for folder, archive in archives:
        for path, item in _items_in(place / archive).items():
            path = f"{folder}/{path}" if folder else path
            if path in zipped and not path.endswith("/"):
                said = f"{item.filename!r} is in several zips, as {archive!r}"
                raise ValueError(f"{said}: unpack each into a folder of its own")
            zipped[path] = str(place / archive), item.filename, item.CRC
    for path in sorted(zipped, key=lambda path: path.split("/")):
        top.add(path)
    return Listing(place, top, zipped)


def _items_in(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """By their paths."""
    try:
        with zipfile.ZipFile(archive) as file:
            if any(item.flag_bits & 1 for item in file.infolist()):
                raise ValueError(f"{str(archive)!r} is encrypted: unpack it, and give the folder")
            if strange := [item for item in file.infolist() if item.compress_type not in METHODS]:
                said = f"holds {strange[0].filename!r}, packed by method {strange[0].compress_type}, which is not read"
                raise ValueError(f"{str(archive)!r} {said}: unpack it, and give the folder")
            return {_plain(item.filename): item for item in file.infolist()}
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{str(archive)!r} is no zip that can be read: {error}") from error


def _seen_in(archive: Path) -> list[str]:
    return [path for path in _items_in(archive) if not any(map(_is_hidden, path.split("/")))]


def _plain(name: str) -> str:
    """The path of a name in a zip; some programs write back slashes, or ./ or / in front."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts) + "/" * name.endswith(("/", "\\"))


# Splits and classes


def unwrapped(folder: Folder, through_splits: bool = False) -> Folder:
    """The folder itself, or the one in which all pictures lie, if they lie in one that is no split."""
    while not folder.pictures and len(folder.filled) == 1:
        ((name, inner),) = folder.filled.items()
        if split_called(name) and not through_splits:
            break
        folder = inner
    return folder


def find_splits(top: Folder) -> dict[str, Folder]:
    """
    The folder of each split; "train" is the whole folder where there are none.

    Sub-folders called train, validation or test are splits if nothing else with pictures lies beside them. If there
    is something, they are classes if there is one of them and it holds pictures and no class folders. They are splits
    if there are several, and one holds class folders.

    Raises:
        ValueError: They may be splits as well as classes, or two folders are the same split.
    """
    folder = unwrapped(top)
    called = {name: split_called(name) for name in folder.filled}
    named = {name: split for name, split in called.items() if split}
    others = [name for name, split in called.items() if not split]
    have_classes = [name for name in named if folder.filled[name].filled]
    numbered = [name for name in called if NUMBERED_SPLIT.fullmatch(name)]
    have_words = all(split_in(name) or name in numbered for name in called)
    if others and len(called) > 1 and (named or numbered) and have_words:
        raise ValueError(
            f"{_quoted(called)} look like splits: to read splits, rename the folders to train, validation and test, "
            f"move others away, or give one of them; to read classes, rename them so that they do not"
        )
    if not named or (others and len(named) == 1 and not have_classes):
        return {"train": top}
    if others and (len(set(named.values())) == 1 or not have_classes):
        raise ValueError(
            f"{_quoted(named)} may be splits, or classes as {_quoted(others)} beside them: to read splits, move "
            f"{_quoted(others)} away; to read classes, rename {_quoted(named)}"
        )
    if len(set(named.values())) < len(named):
        raise ValueError(f"{_quoted(named)} name the same split: leave one folder for each split")
    return {split: folder.filled[name] for split in SPLITS for name in named if named[name] == split}


def empty_splits(top: Folder) -> list[str]:
    """The splits whose folders are there and hold no pictures."""
    called = {split_called(name): folder for name, folder in unwrapped(top).folders.items()}
    return [split for split, folder in called.items() if split and not folder.number]


def find_classes(split: Folder) -> Rows:
    """
    The pictures of a split, by class: sub-folders with pictures are classes, and deeper pictures are of the class
    above.

    Raises:
        ValueError: It cannot be told which folders are the classes.
    """
    folder = unwrapped(split, through_splits=True)
    found = Rows([], [])
    if not folder.filled:
        found.paths = folder.paths()
        found.labels = [folder.path.rpartition("/")[2]] * len(found.paths) if folder is not split else []
        return found
    if folder is not split:
        found.remarks.append(f"The class folders lie in {folder.path!r}.")
    classes = _without_repeats(folder, found)
    _refuse_unclear(folder, classes)
    rows = sorted((path, name) for name, inner in classes.items() for path in inner.paths())
    found.paths, found.labels = [path for path, _ in rows], [name for _, name in rows]
    if folder.pictures:
        found.left_out["a picture beside the class folders"] = [folder.inside(name) for name in folder.pictures]
    if deeper := [inner.path for outer in classes.values() for inner in outer.filled.values()]:
        found.remarks.append(
            f"Pictures of deeper folders ({len(deeper)}, as {deeper[0]!r}) belong to the class folder above them."
        )
    found.remarks += _doubts(classes)
    return found


def _doubts(classes: dict[str, Folder]) -> list[str]:
    """What may be meant otherwise, where several folders are read as classes."""
    if len(classes) < 2:
        return []
    doubts = []
    splits = [name for name in classes if split_called(name) or NUMBERED_SPLIT.fullmatch(name)]
    if splits := splits or [name for name in classes if all(map(split_in, classes))]:
        doubts.append(
            f"Read as classes: {_quoted(splits)}. If they are splits, leave only train, validation and test."
        )
    if kinds := [name for name in classes if name.casefold() in KINDS_OF_FILES]:
        doubts.append(f"Read as classes: {_quoted(kinds)}. If they are none, move them away, or give one folder.")
    places: dict[Any, list[str]] = {}
    for folder in (inner for outer in classes.values() for inner in outer.walk()):
        if folder.identity and folder.pictures:
            places.setdefault(folder.identity, []).append(folder.path)
    if linked := [paths for paths in places.values() if len(paths) > 1]:
        more = f" So are {len(linked) - 1} more." if len(linked) > 1 else ""
        doubts.append(f"{_quoted(linked[0])} are one folder, by links: its pictures count in each place.{more}")
    return doubts


def _without_repeats(folder: Folder, found: Rows) -> dict[str, Folder]:
    """The class folders, without those that repeat the others, as `masks/cat` beside `cat`."""
    filled = folder.filled
    repeats = {
        name: inner
        for name, inner in filled.items()
        if not inner.pictures and inner.filled and inner.filled.keys() <= filled.keys() - {name}
    }
    classes = {name: inner for name, inner in filled.items() if name not in repeats}
    if not classes:
        return filled
    if repeats:
        found.left_out["a folder whose sub-folders are called like the class folders beside it"] = [
            inner.path for inner in repeats.values()
        ]
    return classes


def _refuse_unclear(folder: Folder, classes: dict[str, Folder]) -> None:
    where = repr(folder.path) if folder.path else "the folder"
    if len(classes) == 1 and folder.pictures:
        ((name, inner),) = classes.items()
        raise ValueError(
            f"{where} holds {len(folder.pictures)} pictures and beside them {name!r} with {inner.number}: leave "
            f"those that are to be read, or give the folder {inner.path!r}"
        )
    inside = sum(inner.number for inner in classes.values())
    if len(folder.pictures) > inside:
        raise ValueError(
            f"{where} holds {len(folder.pictures)} pictures beside its sub-folders {_quoted(classes)}, which hold "
            f"only {inside}: leave those that are to be read, or move pictures into class folders"
        )
    if all(map(split_called, classes)) and len(classes) > 1:
        raise ValueError(f"{where} is a split and holds splits again ({_quoted(classes)}): give this folder itself")
    for outer in classes.values():
        splits = [inner for name, inner in outer.filled.items() if split_called(name)]
        if splits and len(splits) == len(outer.filled):
            raise ValueError(
                f"{splits[0].path!r} is a split inside of what would be a class: give the folder {outer.path!r}, or "
                f"put the class folders into folders of splits"
            )
        repeated = [inner for name, inner in outer.filled.items() if name in classes]
        if repeated:
            raise ValueError(
                f"{repeated[0].path!r} lies in one class folder and is called like another one: its class is unclear; "
                f"rename it or move it away"
            )
    if any(outer.pictures for outer in classes.values()) or all(len(outer.filled) == 1 for outer in classes.values()):
        return
    names = Counter(name for outer in classes.values() for name in outer.filled)
    if twice := [name for name, number in names.items() if number > 1]:
        raise ValueError(
            f"{_quoted(classes)} hold no pictures but folders of the same names ({_quoted(twice)}): it is unclear "
            f"which are the classes. If {_quoted(twice)} are, give one of the folders above them. If "
            f"{_quoted(classes)} are, put their pictures right into them, or name each picture's class in a "
            f"metadata.csv, and its column in label_column"
        )


def above_and_inside(split: Folder) -> list[Folder]:
    """The folders above a split's, from the top, the folder itself and all deeper ones: not those of other splits."""
    folders = list(split.walk())
    while (above := folders[0].above) is not None:
        folders.insert(0, above)
    return folders


def left_out_of(split: Folder, used: Iterable[str] = ()) -> dict[str, list[str]]:
    """What is left out of a split's folder and of those above it, by reason, but for files that are `used`."""
    used = set(used)
    left_out: dict[str, list[str]] = {}
    for folder in above_and_inside(split):
        empty = [inner.path for inner in folder.folders.values() if not inner.number]
        others = [folder.inside(name) for name in folder.others]
        kinds = [
            ("an archive, which is not read beside pictures: unpack it", [*filter(is_archive, others)]),
            (NO_PICTURE, [*filterfalse(is_archive, others)]),
        ]
        for reason, paths in [*folder.left_out.items(), *kinds, ("a folder without pictures", empty)]:
            left_out.setdefault(reason, []).extend(path for path in paths if path not in used)
    above = split.above
    if above is not None and split_called(split.path.rpartition("/")[2]):
        beside = [inner.path for name, inner in above.filled.items() if not split_called(name)]
        left_out["beside the splits"] = beside + [above.inside(name) for name in above.pictures]
    return {reason: sorted(paths, key=natural_order) for reason, paths in left_out.items() if paths}


def _quoted(names: Iterable[str]) -> str:
    names = sorted(names, key=natural_order)
    shown = [repr(name) for name in names[:4]] + [f"{len(names) - 4} more"] * (len(names) > 4)
    return ", ".join(shown)
