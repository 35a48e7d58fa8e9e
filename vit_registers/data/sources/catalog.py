"""The sources by data.name. To add one, write its file and add it here."""

import dataclasses
from collections.abc import Callable

from vit_registers.config import Data
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources.base import DataSource
from vit_registers.data.sources.digits import open_digits
from vit_registers.data.sources.folder import open_folder, open_image_tree
from vit_registers.data.sources.image_text import open_image_text_source
from vit_registers.data.sources.parts import Parts, whole
from vit_registers.data.sources.python_docs import open_python_docs
from vit_registers.errors import DataError, require_extra

# (data, channels of the model, where images that cannot be read are reported) -> source
TFDS = ("tensorflow_datasets", "tensorflow", "array_record")  # the packages that its data sets require
Opener = Callable[[Data, int, BrokenImages], DataSource]


def _open_tfds(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    require_extra("data", *TFDS, what=f"data.name={data.name!r}, a data set of TFDS,")
    # TFDS takes a second to import, and the other sources do not need it
    from vit_registers.data.sources.tfds_prepared import open_prepared

    return open_prepared(data, channels)


SOURCES: dict[str, Opener] = {
    "digits": open_digits,
    "folder": open_folder,
    "images": open_image_tree,
    "image_text": open_image_text_source,
    "python_docs": open_python_docs,
}


def open_data_source(
    data: Data, channels: int, broken: BrokenImages, *, needs_labels: bool = True
) -> DataSource:
    """The source data.name, by default one of TFDS.

    Where data.train_split or data.eval_split is a part of a split (parts.py), it has such parts. Raises
    ConfigError or DataError if it does not open, or lacks class labels and `needs_labels`.
    """
    splits = {"train_split": whole(data.train_split), "eval_split": whole(data.eval_split)}
    plain = dataclasses.replace(data, **splits)
    source = SOURCES.get(data.name, _open_tfds)(plain, channels, broken)
    if needs_labels and source.lacks_labels is not None:
        raise DataError(source.lacks_labels)
    return source if plain == data else Parts(source)
