"""The image files under a folder, and what is left out of it. No TensorFlow."""

import collections
import heapq
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_registers.errors import DataError

# What torchvision's ImageFolder takes, and GIF; in any case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES_TEXT = "jpg, png, webp, bmp, gif, tif, ppm"

# Reasons to leave something out, with their plurals.
_HIDDEN_FILE, _HIDDEN_FOLDER = "hidden file", "hidden folder"
_MACOSX = "__MACOSX folder"
_MACOSX_NAME = "__MACOSX"  # what macOS adds to zip files
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
    """Counts, by reason, of what lies in a folder and is not listed."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._suffixes: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, reason: str) -> None:
        """Counts one thing that is left out for the reason."""
        self._counts[reason] += 1

    def add_other_type(self, name: str) -> None:
        """Counts a file that is not named like an image."""
        self.add(_OTHER_TYPE)
        self._suffixes.add(os.path.splitext(name)[1] or "no suffix")

    def update(self, other: "LeftOut") -> None:
        """Adds what `other` has counted."""
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
    """What a folder holds, by name, sorted. Images are regular files and links to them."""

    images: list[str]
    folders: list[str]
    linked_folders: list[str]  # symbolic links to folders
    dangling: list[str]  # links to nothing that are named like images


def printable(name: str) -> str:
    """The name in characters that can be printed in one line; bytes that are not UTF-8 as \\xff."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(names: Sequence[str]) -> str:
    """The names in one line; the first ones and the last if there are many."""
    shown = [*names[:8], "...", names[-1]] if len(names) > 10 else names
    return ", ".join(map(printable, shown))


def normalized(name: str, *, what: str) -> str:
    """The name in Unicode's form NFC, in which equal names are equal strings; macOS writes others.

    Raises DataError for names that are not UTF-8, `what` being what has the name.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {what} {printable(name)} is not UTF-8: rename it") from None
    return unicodedata.normalize("NFC", name)


def scan(folder: str | Path, left_out: LeftOut, suffixes: tuple[str, ...] = SUFFIXES) -> Entries:
    """What lies directly in the folder, without hidden things. Raises DataError if it cannot be listed."""
    images: list[str] = []
    folders: list[str] = []
    linked_folders: list[str] = []
    dangling: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                # these ask the type that scandir read with the name, and cost no system call
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
    """The type of what the entry is or links to; None for links to nothing, or to themselves."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return None


def folder_id(path: str | Path) -> FolderId | None:
    """What two paths of the same folder have in common; None where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def ids_above(folder: Path) -> set[FolderId]:
    """The ids of the folder and of all folders that contain it: a link to one of them is a loop."""
    real = Path(os.path.realpath(folder))
    return {found for path in (real, *real.parents) if (found := folder_id(path))}


class Branch(NamedTuple):
    """The images under a folder at any depth, as paths relative to the root, sorted."""

    images: list[str]
    dangling: list[str]


def list_branch(root: Path, start: str, above: Iterable[FolderId], left_out: LeftOut) -> Branch:
    """The images in root/start and in the folders below.

    Links to folders are followed, but each real folder is listed once, under its own path where it lies in
    the branch, and those in `above` are not. Raises DataError for folders that cannot be listed.
    """
    seen = set(above)
    images: list[str] = []
    dangling: list[str] = []
    folders: list[str] = [start]
    links: list[str] = []
    while folders or links:
        # links come last, so that a folder that can be reached both ways keeps its own path
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
