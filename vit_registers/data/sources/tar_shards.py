"""Images and captions in tar files, as WebDataset has them: root/<split>/*.tar. No TensorFlow.

The members of a sample are consecutive and have one name up to the first dot: 000.jpg, 000.txt, 000.json. The
files are read once, to find where the members are. After that any sample is read by its number, so the order
is that of every source with random access.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources import listing
from vit_registers.data.sources.captioned import Samples, captions_in, lines_of
from vit_registers.data.sources.listing import LeftOut, printable
from vit_registers.data.sources.tar_index import TarIndex, read_tar_index, write_index
from vit_registers.errors import DataError

SUFFIX = ".tar"
_TEXTS = (".txt", ".json")  # the first that a sample has is its caption


class _Place(NamedTuple):
    """Where a sample is: number of the file, and the first byte and size of image and text."""

    shard: int
    image_start: int
    image_size: int
    text_start: int
    text_size: int
    is_json: bool


class TarSamples(Samples):
    """The samples of all tar files of a folder, by name of the file, that have an image and a caption."""

    def __init__(self, folder: Path, split: str, caption_key: str | None, broken: BrokenImages) -> None:
        """Reads the headers of all members. Images without text and damaged files are reported to `broken`.

        Raises DataError if no sample is left.
        """
        self._key, self._folder = caption_key, folder
        self._shards = listing.scan(folder, LeftOut(), (SUFFIX,)).images
        index = read_tar_index(folder, self._shards)
        self._places = self._scan_all(split, broken) if index is None else index.place_Nx6
        for name in () if index is None else index.without_text:
            broken.report_without_text(name)
        if not len(self._places):
            raise DataError(
                f"the {len(self._shards)} tar files of {printable(str(folder))} have no sample with an image "
                f"({listing.SUFFIXES_TEXT}) and a caption (.txt, or .json with a caption)"
            )

    def _scan_all(self, split: str, broken: BrokenImages) -> np.ndarray:
        self._without_text: list[str] = []
        self._is_damaged = False
        places = [place for shard in range(len(self._shards)) for place in self._scan(shard, split, broken)]
        place_Nx6 = np.array(places, np.int64)
        if not self._is_damaged:
            write_index(self._folder, self._shards, TarIndex(place_Nx6, self._without_text))
        return place_Nx6

    def _scan(self, shard: int, split: str, broken: BrokenImages) -> Iterator[_Place]:
        name = printable(self._shards[shard])
        key, found = None, {}
        try:
            with tarfile.open(self._folder / self._shards[shard], "r:") as members:
                for member in members:
                    if not member.isfile():
                        continue
                    own, suffix = _split(member.name)
                    if own != key:
                        yield from self._sample(shard, f"{name}: {key}", found, broken)
                        key, found = own, {}
                    found.setdefault(suffix, (member.offset_data, member.size))
                    # tarfile would keep all
                    members.members = []  # pyright: ignore[reportAttributeAccessIssue]
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            self._is_damaged = True
            reason = getattr(error, "strerror", None) or str(error)
            broken.report_unread(name, f"it is not a whole tar file ({reason})", split=split)
        yield from self._sample(shard, f"{name}: {key}", found, broken)

    def _sample(
        self, shard: int, name: str, found: dict[str, tuple[int, int]], broken: BrokenImages
    ) -> Iterator[_Place]:
        image = next((suffix for suffix in found if suffix in listing.SUFFIXES), None)
        if image is None:
            return
        text = next((suffix for suffix in _TEXTS if suffix in found and found[suffix][1]), None)
        if text is None:
            self._without_text.append(printable(name))
            broken.report_without_text(printable(name))
            return
        yield _Place(shard, *found[image], *found[text], text == ".json")

    def __len__(self) -> int:
        return len(self._places)

    def name(self, i: int) -> str:
        """The tar file and the member, whose name is read from its header."""
        place = self._place(i)
        header = self._read(place.shard, place.image_start - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except tarfile.TarError:
            member = f"the image at byte {place.image_start}"
        return printable(f"{self._shards[place.shard]}: {member}")

    def image(self, i: int) -> bytes:
        place = self._place(i)
        return self._read(place.shard, place.image_start, place.image_size)

    def captions(self, i: int) -> list[str]:
        place = self._place(i)
        try:
            text = self._read(place.shard, place.text_start, place.text_size)
            if not place.is_json:
                return lines_of(text)
            value = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return []
        return captions_in(value, self._key) if isinstance(value, dict) else []

    def _place(self, i: int) -> _Place:
        shard, image_start, image_size, text_start, text_size, is_json = self._places[i].tolist()
        return _Place(shard, image_start, image_size, text_start, text_size, bool(is_json))

    def _read(self, shard: int, start: int, size: int) -> bytes:
        with open(self._folder / self._shards[shard], "rb") as file:
            file.seek(start)
            return file.read(size)


def _split(name: str) -> tuple[str, str]:
    """(key, suffix in lower case) of a member: what is before and from the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix}".lower()
