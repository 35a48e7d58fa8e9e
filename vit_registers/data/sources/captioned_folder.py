"""Images with a .txt file of the same stem, whose lines are captions: root/<split>/**. No TensorFlow."""

from pathlib import Path

from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources import listing
from vit_registers.data.sources.captioned import Samples, lines_of
from vit_registers.data.sources.listing import LeftOut, printable
from vit_registers.errors import DataError


class FolderSamples(Samples):
    """The images under root/split, at any depth, that have a .txt file which is not empty."""

    def __init__(self, root: Path, split: str, broken: BrokenImages) -> None:
        """Lists the files and reads no text. Images without a .txt are reported to `broken`.

        Raises DataError if no image is left.
        """
        self._root = root
        branch = listing.list_branch(root, split, listing.ids_above(root), LeftOut())
        for path in branch.dangling:
            broken.report_unread(printable(path), "it is a link to nothing", split=split)
        self._paths = []
        for path in branch.images:
            if (root / path).with_suffix(".txt").is_file():
                self._paths.append(path)
            else:
                broken.report_without_text(printable(path))
        if not self._paths:
            raise DataError(
                f"{printable(str(root / split))} has no images ({listing.SUFFIXES_TEXT}) with a .txt of the "
                "same name beside them"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        return printable(self._paths[i])

    def image(self, i: int) -> bytes:
        return (self._root / self._paths[i]).read_bytes()

    def captions(self, i: int) -> list[str]:
        try:
            return lines_of((self._root / self._paths[i]).with_suffix(".txt").read_bytes())
        except OSError:
            return []
