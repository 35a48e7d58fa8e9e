"""Plain image folders: the list of files and labels. No TensorFlow.

data.name='folder' is root/<split>/<class>/*.jpg; 'images' is all images under a folder, at any depth.
"""

import os
from pathlib import Path

import numpy as np

from vit_registers.config import Config, nearest
from vit_registers.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png")  # in any case
ALL = "all"  # the one split of 'images'
_LAYOUT = "want root/<split>/<class>/*.jpg (or jpeg, png)"


class Folder:
    """The data set under `root`.

    A class has the same label in every split: its place among the class names of all splits, sorted.
    """

    def __init__(self, root: Path) -> None:
        """Lists splits and classes, not yet files. Raises DataError when there are none."""
        if not root.is_dir():
            raise DataError(f"data.data_dir={str(root)!r} is not a folder: {_LAYOUT}")
        self.root = root
        self.splits = _folders(root)
        names: set[str] = set()
        for split in self.splits:
            names.update(_folders(root / split))
        if not names:
            raise DataError(f"no classes under {root}: {_LAYOUT}")
        self.class_names = tuple(sorted(names))
        self._lists: dict[str, tuple[list[str], np.ndarray]] = {}

    def files(self, split: str) -> tuple[list[str], np.ndarray]:
        """(paths relative to the root, label_N int32), by class and then by file name.

        Raises DataError for a split that does not exist and for a class folder without images.
        """
        if split not in self._lists:
            self._lists[split] = self._list(split)
        return self._lists[split]

    def num_examples(self, split: str) -> int:
        """How many images the split has; errors as in `files`."""
        return len(self.files(split)[0])

    def describe(self, split: str, record: int) -> str:
        """How errors name an image: its path relative to the root."""
        return self.files(split)[0][record]

    def _list(self, split: str) -> tuple[list[str], np.ndarray]:
        if split not in self.splits:
            raise DataError(f"{self.root} has no split '{split}': {nearest(split, self.splits)}; {_LAYOUT}")
        paths: list[str] = []
        labels: list[int] = []
        for name in _folders(self.root / split):
            files = sorted(
                entry.name
                for entry in os.scandir(self.root / split / name)
                if entry.name.lower().endswith(SUFFIXES)
            )
            if not files:
                raise DataError(f"class folder {self.root / split / name} has no images: {_LAYOUT}")
            paths += [f"{split}/{name}/{file}" for file in files]
            labels += [self.class_names.index(name)] * len(files)
        if not paths:
            raise DataError(f"split folder {self.root / split} has no classes: {_LAYOUT}")
        return paths, np.asarray(labels, np.int32)


class ImageTree(Folder):
    """All images under `root`, at any depth, as the split 'all'; for looking at, not for training.

    Their class is the folder that they lie in, relative to the root.
    """

    def __init__(self, root: Path) -> None:
        """Lists the images. Raises DataError when there are none."""
        if not root.is_dir():
            raise DataError(f"{root} is not a folder of images")
        paths = sorted(
            str((Path(folder) / file).relative_to(root))
            for folder, _, files in os.walk(root)
            for file in files
            if file.lower().endswith(SUFFIXES)
        )
        if not paths:
            raise DataError(f"no images (jpg, jpeg, png) under {root}")
        self.root, self.splits = root, [ALL]
        self.class_names = tuple(sorted({str(Path(path).parent) for path in paths}))
        number = {name: i for i, name in enumerate(self.class_names)}
        label_N = np.array([number[str(Path(path).parent)] for path in paths], np.int32)
        self._lists = {ALL: (paths, label_N)}


FOLDERS: dict[str, type[Folder]] = {"folder": Folder, "images": ImageTree}


def open_folder(config: Config) -> Folder:
    """The folder that data.data_dir names. Raises ConfigError when it is unset, DataError as in Folder."""
    if config.data.data_dir is None:
        raise ConfigError(f"data.name={config.data.name!r} needs data.data_dir: {_LAYOUT}")
    return FOLDERS[config.data.name](Path(config.data.data_dir).expanduser())


def _folders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))
