"""The TFDS builder of an image folder, whose files are copied as they are. Preparing requires TensorFlow."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from vit_registers.data.sources import remote
from vit_registers.data.sources.folder import Folder
from vit_registers.data.sources.listing import printable
from vit_registers.errors import ConfigError, DataError

_NAME = re.compile(r"[a-z]\w*", re.ASCII)
_SPLIT = re.compile(r"\w+", re.ASCII)
_NUM_KEYS = 1 << 128


def make_builder(name: str, images: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of the data set `name`, in `data_dir`, of all files images/<split>/<class>/*.

    Record i of a split is image i of the folder, and classes have the labels that they have there if all
    splits are named, so a run on the prepared data set has the batches of a run on the folder. Raises
    ConfigError for a name that TFDS cannot have, DataError for a folder in gs:// or that Folder refuses, and
    for names of splits and classes that TFDS would change.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name={name}: must be lower-case letters, digits and _, such as my_photos")
    remote.refuse_folder(images, "--from_folder")
    root = Path(images).expanduser()
    if not root.is_dir():
        raise DataError(f"--from_folder={root} is not a folder")
    folder = Folder(root)
    for split in folder.splits:
        if not _SPLIT.fullmatch(split):
            raise DataError(f"{root / printable(split)}: the name of a split must be letters, digits and _")
    for label in folder.class_names:
        if label != label.strip() or not label.isprintable():
            raise DataError(
                f"the class '{printable(label)}' of {root} begins or ends with a space: rename it"
            )
    for split in folder.splits:
        folder.files(split)  # errors before anything is written
    return _of_folder(name, folder)(data_dir=data_dir, file_format="array_record")


def _of_folder(class_name: str, folder: Folder) -> type[tfds.core.GeneratorBasedBuilder]:
    class FolderBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images and labels of a folder."""

        name = class_name
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # as in digits_builder.py

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, None)),
                "label": tfds.features.ClassLabel(names=list(folder.class_names)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"The images of the folder {folder.root.name}, with its classes as labels.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,  # runs shuffle by record
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in folder.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            label_N, read = folder.labels(split), folder.image_reader(split)
            # TFDS sorts by key, after it has divided the range of the keys into 1,000 parts on disk. Keys
            # 0, 1, 2, ... would all fall into the first part, which must fit into memory.
            stride = _NUM_KEYS // len(label_N)
            for i, label in enumerate(label_N):
                yield i * stride, {"image": read(i), "label": int(label)}

    return FolderBuilder
