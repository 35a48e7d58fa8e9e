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

# Reasons for leaving something out: one, and several.
Reason = tuple[str, str]
_HIDDEN_FILE: Reason = "hidden file", "hidden files"
_HIDDEN_FOLDER: Reason = "hidden folder", "hidden folders"
_MACOSX: Reason = "__MACOSX folder", "__MACOSX folders"  # which macOS adds to zip files
_OTHER_TYPE: Reason = "file of another type", "files of another type"
_DANGLING: Reason = "link to nothing", "links to nothing"
_SPECIAL = {stat.S_IFIFO: ("named pipe", "named pipes"), stat.S_IFSOCK: ("socket", "sockets")}
_DEVICE: Reason = "device file", "device files"
REPEATED: Reason = (
    "link to a folder that holds it or is listed already",
    "links to folders that hold them or are listed already",
)
OUTSIDE: Reason = "image outside of the class folders", "images outside of the class folders"

FolderId = tuple[int, int]


class LeftOut:
    """Counts, by reason, of the contents of a folder that are not listed."""

    def __init__(self) -> None:
        self._counts: collections.Counter[Reason] = collections.Counter()
        self._suffixes: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, reason: Reason) -> None:
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

    def _text(self, reason: Reason, number: int) -> str:
        shown = sorted(map(printable, self._suffixes))
        suffixes = f" ({', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''})"
        return f"{number} {reason[number > 1]}{suffixes if reason == _OTHER_TYPE else ''}"


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
    found = Entries([], [], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, is_folder = entry.name, entry.is_dir(follow_symlinks=False)
                if name.startswith("."):
                    left_out.add(_HIDDEN_FOLDER if is_folder else _HIDDEN_FILE)
                elif name == "__MACOSX" and is_folder:
                    left_out.add(_MACOSX)
                elif is_folder:
                    found.folders.append(name)
                elif (kind := _kind(entry)) == stat.S_IFDIR:
                    found.linked_folders.append(name)
                elif kind == stat.S_IFREG and name.lower().endswith(suffixes):
                    found.images.append(name)
                elif kind == stat.S_IFREG:
                    left_out.add_other_type(name)
                elif kind is None:
                    left_out.add(_DANGLING)
                    if name.lower().endswith(suffixes):
                        found.dangling.append(name)
                else:
                    left_out.add(_SPECIAL.get(kind, _DEVICE))
    except OSError as error:
        raise DataError(f"{printable(str(folder))} cannot be listed: {error.strerror}") from None
    return Entries(*map(sorted, found))


def _kind(entry: os.DirEntry[str]) -> int | None:
    """The type of the entry or of its target; None for links to nothing or to themselves."""
    if entry.is_file(follow_symlinks=False):  # scandir has read this with the name: no system call
        return stat.S_IFREG
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
    seen, branch = set(above), Branch([], [])
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
        branch.images.extend(f"{path}/{name}" for name in entries.images)
        branch.dangling.extend(f"{path}/{name}" for name in entries.dangling)
        folders += [f"{path}/{name}" for name in entries.folders]
        for name in entries.linked_folders:
            heapq.heappush(links, f"{path}/{name}")
    return Branch(*map(sorted, branch))
