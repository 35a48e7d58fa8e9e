"""Prepared TFDS data sets: where they lie, their splits, files and records. Does not import TensorFlow."""

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from vit_registers.config import Config, nearest
from vit_registers.errors import DataError


class RecordFile(NamedTuple):
    """`take` records of a file after its first `skip`; `first` is the number in the split of the first."""

    path: str
    skip: int
    take: int
    first: int


SEVERAL = "real_label"  # the feature of data sets with any number of right labels for an image
MAX_LABELS = 32  # of one image; ImageNet-ReaL has fewer


class TfdsData:
    """One prepared data set with features 'image' and 'label'. Parts such as 'train[:99%]' are splits too.

    In the place of 'label' there may be 'real_label', a sequence of labels (imagenet2012_real,
    arXiv:2006.07159).
    """

    def __init__(self, builder: tfds.core.DatasetBuilder) -> None:
        """Raises DataError when the data set is not one of labelled images."""
        self._builder = builder
        self.name = builder.info.name
        features = {key: builder.info.features[key] for key in builder.info.features}
        several = features.get(SEVERAL)
        self.has_several_labels = isinstance(several, tfds.features.Sequence)
        label = several.feature if self.has_several_labels else features.get("label")
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and isinstance(label, tfds.features.ClassLabel)
        ):
            has = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
            raise DataError(f"data.name='{self.name}' has {has}: want image: Image and label: ClassLabel")
        self.class_names = tuple(label.names or map(str, range(label.num_classes)))
        self.is_random_access = builder.info.file_format.value == "array_record"

    def num_examples(self, split: str) -> int:
        """How many records the split has. Raises DataError for an unknown or empty split."""
        number = self._split(split).num_examples
        if number < 1:
            raise DataError(f"split '{split}' of {self.name} is empty")
        return number

    def files(self, split: str, *, start: int, stop: int) -> list[RecordFile]:
        """The files that hold the records [start, stop) of the split, in order."""
        files, first = [], 0
        for part in self._split(split).file_instructions:
            skip = max(start - first, 0)
            take = min(part.take, stop - first) - skip
            if take > 0:
                files.append(RecordFile(str(part.filename), part.skip + skip, take, first + skip))
            first += part.take
        return files

    def serialized(self, split: str) -> Sequence[bytes]:
        """Random access to the records as serialized tf.train.Examples."""
        assert self.is_random_access
        self._split(split)
        return self._builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Random access to the records as dicts with 'image', still encoded, and 'label'."""
        assert self.is_random_access
        self._split(split)
        return self._builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def describe(self, split: str, record: int) -> str:
        """How errors name an image. TFDS keeps no file names in general."""
        return f"record {record} of split '{split}' of {self.name}"

    def _split(self, split: str) -> Any:
        splits = self._builder.info.splits
        try:
            return splits[split]
        except (ValueError, KeyError, AssertionError):
            raise DataError(
                f"{self.name} has no split '{split}': {nearest(split, splits)}; "
                "parts are written as in 'train[:99%]'"
            ) from None


def open_tfds(config: Config) -> TfdsData:
    """The prepared data set data.name in data.data_dir. Only the embedded 'digits' is prepared if missing.

    Raises DataError when the data set is unknown, not prepared, or not of labelled images.
    """
    name = config.data.name
    data_dir = os.path.expanduser(config.data.data_dir or str(constants.DATA_DIR))
    builder = _find(name, data_dir)
    if builder is not None:
        return TfdsData(builder)
    if name == "digits":
        return TfdsData(_prepare_digits(data_dir))
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] not in known:
        raise DataError(
            f"data.name={name!r} is neither prepared in {data_dir} nor known to TFDS: "
            f"{_hint(name, [*known, 'digits', 'folder'])}"
        )
    raise DataError(
        f"data.name={name!r} is not prepared in {data_dir}: run "
        f"'python -m tools.prepare_data --name={name} --data_dir={data_dir}', or set data.data_dir"
    )


def _hint(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if len(hint) < 200 else "see the catalog of tensorflow.org/datasets"


def _find(name: str, data_dir: str) -> tfds.core.DatasetBuilder | None:
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None


def _prepare_digits(data_dir: str) -> tfds.core.DatasetBuilder:
    from vit_registers.data.digits.builder import Digits

    tfds.disable_progress_bar()
    try:
        if "://" not in data_dir:
            os.makedirs(data_dir, exist_ok=True)
        builder = Digits(data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it does
            builder.download_and_prepare()
    except OSError as error:
        builder = _find("digits", data_dir)  # another process may have been quicker
        if builder is None:
            raise DataError(f"cannot prepare digits in data.data_dir={data_dir!r}: {error}") from None
    return builder
