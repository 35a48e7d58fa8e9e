"""The sources of image folders: files and labels. No TensorFlow until they stream.

data.name='folder' reads root/<split>/<class>/**; 'images' reads all images under a folder, at any depth.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_registers.config import Data, nearest
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources import listing, remote
from vit_registers.data.sources.base import DataSource, check_feature_keys
from vit_registers.data.sources.listing import LeftOut, printable, shortened
from vit_registers.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vit_registers.data.sources.tf_readers import TfReader

ALL = "all"  # the only split of 'images'
_LAYOUT = f"the layout must be root/<split>/<class>/* ({listing.SUFFIXES_TEXT})"
_logger = logging.getLogger(__name__)


class Folder(DataSource):
    """The data set under `root`, with the layout root/<split>/<class>/**: images at any depth of a class.

    The label of a class, in every split, is its index in the sorted names (in Unicode's NFC) of all classes.
    """

    name = "folder"

    def __init__(
        self, root: Path, splits: Sequence[str] | None = None, broken: BrokenImages | None = None
    ) -> None:
        """Lists the classes of `splits`, or of all splits, but no files.

        Links to nothing are reported to `broken`. Raises DataError if there are no classes or no such splits.
        """
        if not root.is_dir():
            raise DataError(f"data.data_dir={str(root)!r} is not a folder: {_LAYOUT}")
        self.root, self._broken = root, broken
        self._above = listing.ids_above(root)
        self._lists: dict[str, tuple[list[str], np.ndarray]] = {}
        top = listing.scan(root, LeftOut())
        self.splits = sorted([*top.folders, *top.linked_folders])
        given = self.splits if splits is None else [split for split in splits if split in self.splits]
        if splits and self.splits and not given:
            raise self._no_split(splits[0])
        self._classes = {split: self._list_classes(split, LeftOut()) for split in given}
        names = {name for classes in self._classes.values() for name in classes}
        if not names:
            raise DataError(f"no classes under {root}: {_LAYOUT}")
        self.class_names = tuple(sorted(names))
        unused = ", ".join(printable(name) for name in self.splits if name not in given)
        if unused:
            _logger.warning("%s: folders that no setting names as splits are not read: %s", root, unused)

    def files(self, split: str) -> tuple[list[str], np.ndarray]:
        """(paths relative to the root, label_N int32), sorted by class and then by path.

        Logs one line about what was left out. Raises DataError for a split that does not exist, for a class
        folder without images and for a class that the given splits do not have.
        """
        if split not in self._lists:
            self._lists[split] = self._list(split)
        return self._lists[split]

    def num_examples(self, split: str) -> int:
        return len(self.files(split)[0])

    def describe(self, split: str, record: int) -> str:
        return printable(self.files(split)[0][record])

    def labels(self, split: str) -> np.ndarray:
        return self.files(split)[1]

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        files, _ = self.files(split)
        return lambda record: Path(self.root, files[record]).read_bytes()

    def tf_reader(self, split: str) -> "TfReader":
        from vit_registers.data.sources import tf_readers

        return tf_readers.from_files(self.root, *self.files(split))

    def _no_split(self, split: str) -> DataError:
        what, names = f"{self.root} has no split '{printable(split)}'", [*map(printable, self.splits)]
        if any(listing.scan(self.root / name, LeftOut()).images for name in self.splits):
            return DataError(
                f"{what}, and its folders ({shortened(names)}) hold images themselves: {_LAYOUT}; move class "
                f"folders into {self.root / split}, or set data.data_dir to the parent folder"
            )
        return DataError(f"{what}: {nearest(printable(split), names)}; {_LAYOUT}")

    def _list_classes(self, split: str, left_out: LeftOut) -> dict[str, str]:
        found = listing.scan(self.root / split, left_out)
        for _ in found.images:
            left_out.add(listing.OUTSIDE)
        linked = [name for name in found.linked_folders if not self._is_loop(f"{split}/{name}", left_out)]
        folders, where = [*found.folders, *linked], self.root / split
        return _folder_by_name(folders, where, what=f"the class folder {where}/")

    def _is_loop(self, link: str, left_out: LeftOut) -> bool:
        target = listing.folder_id(self.root / link)
        is_loop = target in self._above or target == listing.folder_id((self.root / link).parent)
        if is_loop:
            left_out.add(listing.REPEATED)
        return is_loop

    def _list(self, split: str) -> tuple[list[str], np.ndarray]:
        if split not in self.splits:
            raise self._no_split(split)
        left_out = LeftOut()
        above = {*self._above, listing.folder_id(self.root / split)}
        paths: list[str] = []
        labels: list[int] = []
        dangling: list[str] = []
        number = {name: label for label, name in enumerate(self.class_names)}
        classes = self._list_classes(split, left_out)
        unknown = [name for name in classes if name not in number]
        if unknown:
            raise DataError(
                f"split '{split}' of {self.root} has the class '{unknown[0]}', which "
                f"{' and '.join(self._classes)} do not have: name the split in data.train_split, "
                "data.eval_split or data.also_eval"
            )
        for name in sorted(classes):
            own, folder = LeftOut(), f"{split}/{classes[name]}"
            branch = listing.list_branch(self.root, folder, above, own)
            if not branch.images:
                more = f" (left out: {own})" if own else ""
                raise DataError(f"class folder {self.root / folder} has no images{more}: {_LAYOUT}")
            left_out.update(own)
            paths += branch.images
            labels += [number[name]] * len(branch.images)
            dangling += branch.dangling
        if not paths:
            raise DataError(f"split folder {self.root / split} has no classes: {_LAYOUT}")
        _log_left_out(self.root / split, left_out)
        self._report_dangling(dangling, split)
        return paths, np.asarray(labels, np.int32)

    def _report_dangling(self, dangling: list[str], split: str) -> None:
        if self._broken is not None:
            for path in dangling:
                self._broken.report_unread(printable(path), "it is a link to nothing", split=split)


class ImageTree(Folder):
    """All images under `root`, at any depth, as the split 'all'. Classes are relative paths of folders."""

    def __init__(self, root: Path, broken: BrokenImages | None = None) -> None:
        """Lists the images. Raises DataError if there are none."""
        if not root.is_dir():
            raise DataError(f"{root} is not a folder of images")
        self.root, self.splits, self._broken = root, [ALL], broken
        left_out, above = LeftOut(), listing.ids_above(root)
        top = listing.scan(root, left_out)
        paths, dangling = list(top.images), list(top.dangling)
        for folder in (*top.folders, *top.linked_folders):
            branch = listing.list_branch(root, folder, above, left_out)
            paths += branch.images
            dangling += branch.dangling
        paths.sort()
        if not paths:
            more = f" (left out: {left_out})" if left_out else ""
            raise DataError(f"no images ({listing.SUFFIXES_TEXT}) under {root}{more}")
        folders = [os.path.dirname(path) or "." for path in paths]
        classes = _folder_by_name(set(folders), root, what=f"a folder under {root}:")
        self.class_names = tuple(sorted(classes))
        label = {classes[name]: label for label, name in enumerate(self.class_names)}
        label_N = np.array([label[folder] for folder in folders], np.int32)
        self._lists = {ALL: (paths, label_N)}
        _log_left_out(root, left_out)
        self._report_dangling(dangling, ALL)


def _folder_by_name(folders: Iterable[str], where: Path, *, what: str) -> dict[str, str]:
    """{name in NFC: folder} of the folders, which are in `where`. Raises DataError if two names are equal."""
    found: dict[str, str] = {}
    for folder in sorted(folders):
        name = listing.normalized(folder, what=what)
        if name in found:
            raise DataError(
                f"{where} has two folders named '{name}', which differ only in their Unicode form: "
                "move the images of one into the other"
            )
        found[name] = folder
    return found


def _log_left_out(folder: Path, left_out: LeftOut) -> None:
    if left_out:
        _logger.warning("%s: left out %s", printable(str(folder)), left_out)


def open_folder(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    """The folder data.data_dir, with the classes of the splits that the settings name.

    Raises ConfigError if data.data_dir is not set or keys of features are, DataError as Folder does, and for
    a folder in gs://.
    """
    root = _data_dir(data)
    others = (entry.strip().partition(" ") for entry in data.also_eval)
    splits = [data.train_split, data.eval_split, *(split for name, _, split in others if name == data.name)]
    return Folder(root, splits, broken)


def open_image_tree(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    """All images under data.data_dir. Raises errors as `open_folder` does."""
    return ImageTree(_data_dir(data), broken)


def _data_dir(data: Data) -> Path:
    check_feature_keys(data)
    if data.data_dir is None:
        raise ConfigError(f"data.name={data.name!r} requires data.data_dir: {_LAYOUT}")
    remote.refuse_folder(data.data_dir, "data.data_dir")
    return Path(data.data_dir).expanduser()
