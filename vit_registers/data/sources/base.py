"""The contract of a data source, which data.name selects (catalog.py). Imports neither JAX nor TensorFlow."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from vit_registers.config import Data
from vit_registers.errors import ConfigError, DataError

if TYPE_CHECKING:
    import tensorflow as tf

    from vit_registers.data.sources.tf_readers import TfReader

MAX_LABELS = 32  # K: of one image; ImageNet-ReaL has fewer


class DataSource(Protocol):
    """A data set: splits of encoded images with labels, which both loaders read.

    A new source subclasses this protocol and implements the methods that have no default. A record is the
    index of an example in its split. Methods raise DataError for a split that does not exist.
    """

    name: str  # as errors name it
    class_names: tuple[str, ...]
    label_name: str = "label"  # as errors name it
    has_several_labels: bool = False  # an image may have any number of right labels; for evaluation only
    lacks_labels: str | None = None  # why images have no class labels, and the remedy; None: they have

    @property
    def tfrecords(self) -> "TFRecordSource | None":
        """The source itself if it is read from TFRecord files in order; None for random access."""
        return None

    def num_examples(self, split: str) -> int:
        """The number of examples in the split."""
        ...

    def describe(self, split: str, record: int) -> str:
        """The example as errors name it, such as the path of its file."""
        return f"record {record} of split '{split}' of {self.name}"

    def labels(self, split: str) -> np.ndarray:
        """label_N, int32, of a source with one label for each image."""
        ...

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        """A function record -> the texts that describe the image; None if the source has no texts."""
        return None

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        """A function record -> encoded image, in a format of pil_decoding.py. It may raise OSError."""
        ...

    def tf_reader(self, split: str) -> "TfReader":
        """The reader of the tf.data loader; `image_reader` unless the source has a faster one."""
        from vit_registers.data.sources import tf_readers

        return tf_readers.by_record(self.image_reader(split), self.labels(split))


class RecordFile(NamedTuple):
    """`take` records of a file, after its first `skip`; `first` is the record of the first in the split."""

    path: str
    skip: int
    take: int
    first: int


class TFRecordSource(DataSource, Protocol):
    """A source in TFRecord files, which are read in order."""

    def record_files(self, split: str, *, start: int, stop: int) -> list[RecordFile]:
        """The files that hold the records [start, stop) of the split, in order."""
        ...

    def parse(self, serialized_N: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        """(encoded_N, label_N or label_NxK) of serialized examples."""
        ...


def not_empty(records: Sequence[bytes] | Mapping[int, bytes], record: int) -> bytes:
    """records[record]. Raises ValueError for empty bytes, which array_record returns for damaged parts."""
    found = records[record]
    if not found:
        raise ValueError(f"record {record} is empty")
    return found


def check_labels(source: DataSource, split: str, record_N: Iterable[int], label_N: Iterable[int]) -> None:
    """Raises DataError for a label that is not a class, such as the -1 of test sets without labels."""
    for record, label in zip(record_N, label_N, strict=True):
        if not 0 <= label < len(source.class_names):
            number = len(source.class_names)
            cure = "take a split that has labels" if label < 0 else "the data set must list all its classes"
            raise DataError(
                f"{source.describe(split, int(record))} has the {source.label_name} {label}, which is none "
                f"of the {number} classes (0 to {number - 1}): {cure}"
            )


def usable_labels(
    source: DataSource, split: str, record_N: Iterable[int], label_N: np.ndarray, *, needs_labels: bool
) -> np.ndarray:
    """label_N, int32, with -1 for what is no class; raises DataError for it where `needs_labels`."""
    if needs_labels:
        check_labels(source, split, record_N, label_N)
        return label_N
    return np.where((label_N >= 0) & (label_N < len(source.class_names)), label_N, np.int32(-1))


def check_feature_keys(data: Data, *, image_key: str | None = None, label_key: str | None = None) -> None:
    """Raises ConfigError if data.image_key or data.label_key differ from the keys of the source, if any."""
    for name, key in {"image_key": image_key, "label_key": label_key}.items():
        given = getattr(data, name)
        if given not in (None, key):
            what = "has no such feature" if key else "is not a data set of TFDS, which keys are for"
            raise ConfigError(f"data.{name}={given!r}: '{data.name}' {what}: set data.{name} to {key}")
