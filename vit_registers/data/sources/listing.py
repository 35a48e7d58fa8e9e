"""The list of image files under a folder, and of what is left out. No TensorFlow."""

import collections
import heapq
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_registers.errors import DataError

# Those of torchvision's ImageFolder, and GIF; upper and lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES_TEXT = "jpg, png, webp, bmp, gif, tif, ppm"

# Reasons for leaving something out, with their plurals.
_HIDDEN_FILE, _HIDDEN_FOLDER = "hidden file", "hidden folder"
_MACOSX = "__MACOSX folder"
_MACOSX_NAME = "__MACOSX"  # a folder that macOS adds to zip files
_OTHER_TYPE = "file of another type"
_DANGLING = "link to nothing"
REPEATED = "link to a folder that holds it or is listed already"
_SPECIAL = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
_DEVICE = "device file"
OUTSIDE = "image outside of the class folders"
_PLURALS = {
    _HIDDEN_FILE: "hidden files",
    _HIDDEN_FOLDER: "hidden folders",
    _MACOSX: "__MACOSX folders",
    _OTHER_TYPE: "files of another type",
    _DANGLING: "links to nothing",
    REPEATED: "links to folders that hold them or are listed already",
    **{kind: f"{kind}s" for kind in (*_SPECIAL.values(), _DEVICE)},
    OUTSIDE: "images outside of the class folders",
}

FolderId = tuple[int, int]


class LeftOut:
    """Counts, by reason, of the contents of a folder that are not listed."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._suffixes: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, reason: str) -> None:
        """Counts one entry that is left out for the reason."""
        self._counts[reason] += 1

    def add_other_type(self, name: str) -> None:
        """Counts a file whose suffix is not that of an image."""
        self.add(_OTHER_TYPE)
        self._suffixes.add(os.path.splitext(name)[1] or "no suffix")

    def update(self, other: "LeftOut") -> None:
        """Adds the counts of `other`."""
        self._counts.update(other._counts)
        self._suffixes.update(other._suffixes)

    def __str__(self) -> str:
        """All reasons in one line, such as '2 hidden files, 1 file of another type (.txt)'."""
        return ", ".join(self._text(reason, number) for reason, number in sorted(self._counts.items()))

    def _text(self, reason: str, number: int) -> str:
        text = f"{number} {reason if number == 1 else _PLURALS[reason]}"
        if reason != _OTHER_TYPE:
            return text
        shown = sorted(map(printable, self._suffixes))
        return f"{text} ({', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''})"


class Entries(NamedTuple):
    """The sorted names in a folder. Images are regular files and links to them."""

    images: list[str]
    folders: list[str]
    linked_folders: list[str]  # symbolic links to folders
    dangling: list[str]  # links to nothing that have the suffix of an image


def printable(name: str) -> str:
    """The name in printable characters of one line; bytes that are not UTF-8 become \\xff."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(names: Sequence[str]) -> str:
    """The names in one line; the first ones and the last if there are many."""
    shown = [*names[:8], "...", names[-1]] if len(names) > 10 else names
    return ", ".join(map(printable, shown))


def normalized(name: str, *, what: str) -> str:
    """The name in Unicode's form NFC, so that equal names are equal strings; macOS writes other forms.

    Raises DataError for a name that is not UTF-8; `what` is the object with that name, as errors say.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {what} {printable(name)} is not UTF-8: rename it") from None
    return unicodedata.normalize("NFC", name)


def scan(folder: str | Path, left_out: LeftOut, suffixes: tuple[str, ...] = SUFFIXES) -> Entries:
    """The entries of the folder that are not hidden. Raises DataError if it cannot be listed."""
    images: list[str] = []
    folders: list[str] = []
    linked_folders: list[str] = []
    dangling: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                # scandir has read these types with the names, so they need no system call
                is_link, is_folder = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
                if name.startswith("."):
                    left_out.add(_HIDDEN_FOLDER if is_folder else _HIDDEN_FILE)
                elif name == _MACOSX_NAME and is_folder:
                    left_out.add(_MACOSX)
                elif is_folder:
                    folders.append(name)
                elif not is_link and entry.is_file(follow_symlinks=False):
                    _add_file(name, images, left_out, suffixes)
                else:
                    kind = _kind(entry)
                    if kind == stat.S_IFDIR:
                        linked_folders.append(name)
                    elif kind == stat.S_IFREG:
                        _add_file(name, images, left_out, suffixes)
                    elif kind is None:
                        left_out.add(_DANGLING)
                        if name.lower().endswith(suffixes):
                            dangling.append(name)
                    else:
                        left_out.add(_SPECIAL.get(kind, _DEVICE))
    except OSError as error:
        raise DataError(f"{printable(str(folder))} cannot be listed: {error.strerror}") from None
    return Entries(sorted(images), sorted(folders), sorted(linked_folders), sorted(dangling))


def _add_file(name: str, images: list[str], left_out: LeftOut, suffixes: tuple[str, ...]) -> None:
    if name.lower().endswith(suffixes):
        images.append(name)
    else:
        left_out.add_other_type(name)


def _kind(entry: os.DirEntry[str]) -> int | None:
    """The type of the entry or of its target; None for links to nothing or to themselves."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return None


def folder_id(path: str | Path) -> FolderId | None:
    """The identity of the folder, equal for all of its paths; None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def ids_above(folder: Path) -> set[FolderId]:
    """The ids of the folder and of all its parents: a link to one of them is a loop."""
    real = Path(os.path.realpath(folder))
    return {found for path in (real, *real.parents) if (found := folder_id(path))}


class Branch(NamedTuple):
    """The images under a folder at any depth, as paths relative to the root, sorted."""

    images: list[str]
    dangling: list[str]


def list_branch(root: Path, start: str, above: Iterable[FolderId], left_out: LeftOut) -> Branch:
    """The images in root/start and in its subfolders.

    Links to folders are followed, except to those in `above`. Each real folder is listed once: under its real
    path if that is in the branch. Raises DataError for a folder that cannot be listed.
    """
    seen = set(above)
    images: list[str] = []
    dangling: list[str] = []
    folders: list[str] = [start]
    links: list[str] = []
    while folders or links:
        # links come last, so that a folder that is also reached without links keeps its real path
        path = folders.pop() if folders else heapq.heappop(links)
        found = folder_id(root / path)
        if found is None or found in seen:
            left_out.add(REPEATED)
            continue
        seen.add(found)
        entries = scan(root / path, left_out)
        images += [f"{path}/{name}" for name in entries.images]
        dangling += [f"{path}/{name}" for name in entries.dangling]
        folders += [f"{path}/{name}" for name in entries.folders]
        for name in entries.linked_folders:
            heapq.heappush(links, f"{path}/{name}")
    return Branch(sorted(images), sorted(dangling))
