"""The source data.name='image_text': images with captions in folders, lists and tar files. No TensorFlow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_registers.config import Data, nearest
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources import caption_lists, remote, tar_shards
from vit_registers.data.sources.base import DataSource
from vit_registers.data.sources.caption_lists import ListSamples
from vit_registers.data.sources.captioned import Samples
from vit_registers.data.sources.captioned_folder import FolderSamples
from vit_registers.data.sources.tar_shards import TarSamples
from vit_registers.errors import ConfigError, DataError

_LAYOUT = (
    "the layout must be root/<split>.csv, .tsv or .jsonl of paths and captions, root/<split>/*.tar, or "
    "root/<split>/** with a .txt beside each image"
)


class ImageTextSource(DataSource):
    """Images with captions under a folder. A split is a list, a folder of tar files or a folder of images."""

    name = "image_text"
    class_names = ()
    lacks_labels = (
        "data.name='image_text' has captions and no classes: take data with classes, or use it for "
        "objective.name=image_text and --task=retrieval"
    )

    def __init__(self, root: Path, data: Data, broken: BrokenImages) -> None:
        """Looks for splits, and reads none. Raises DataError if there are none."""
        if not root.is_dir():
            raise DataError(f"data.data_dir={str(root)!r} is not a folder: {_LAYOUT}")
        self._root, self._data, self._broken = root, data, broken
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
        self._splits = {path.name: path for path in entries if path.is_dir()}
        lists = [path for path in entries if path.is_file() and path.suffix in caption_lists.SUFFIXES]
        for path in lists:
            other = self._splits.get(path.stem)
            if other is not None and other in lists:
                raise DataError(
                    f"split '{path.stem}' of {root} is both {other.name} and {path.name}: keep one"
                )
            self._splits[path.stem] = path  # beside a folder of that name, which has the images
        if not self._splits:
            raise DataError(f"{root} has no splits: {_LAYOUT}")
        self._opened: dict[str, Samples] = {}

    def samples(self, split: str) -> Samples:
        """The images of a split. Raises DataError if there is no such split, or no image in it has text."""
        if split not in self._splits:
            raise DataError(f"{self._root} has no split '{split}': {nearest(split, self._splits)}; {_LAYOUT}")
        if split not in self._opened:
            self._opened[split] = self._open(self._splits[split], split)
        return self._opened[split]

    def _open(self, path: Path, split: str) -> Samples:
        if path.is_file():
            return ListSamples(path, split, self._data, self._broken)
        if any(path.glob(f"*{tar_shards.SUFFIX}")):
            return TarSamples(path, split, self._data.captions.key, self._broken)
        return FolderSamples(self._root, split, self._broken)

    def num_examples(self, split: str) -> int:
        return len(self.samples(split))

    def describe(self, split: str, record: int) -> str:
        return self.samples(split).name(record)

    def labels(self, split: str) -> np.ndarray:
        return np.full(self.num_examples(split), -1, np.int32)

    def captions(self, split: str) -> Callable[[int], list[str]]:
        return self.samples(split).captions

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        return self.samples(split).image


def open_image_text_source(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    """The images with captions in data.data_dir.

    Raises ConfigError if it is not set, DataError as ImageTextSource does and for a folder in gs://.
    """
    if data.data_dir is None:
        raise ConfigError(f"data.name='image_text' requires data.data_dir: {_LAYOUT}")
    if data.label_key is not None:
        raise ConfigError(
            f"data.label_key={data.label_key!r}: data.name='image_text' has no classes: unset it"
        )
    remote.refuse_folder(data.data_dir, "data.data_dir")
    return ImageTextSource(Path(data.data_dir).expanduser(), data, broken)
