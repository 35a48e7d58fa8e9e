"""Prepared TFDS data sets: their features, splits, files and records. Does not import TensorFlow."""

import contextlib
import functools
import io
import logging
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vit_registers.config import Config, nearest
from vit_registers.data.sources import tfds_location, tfds_splits
from vit_registers.data.sources.tfds_splits import Part
from vit_registers.errors import DataError

_logger = logging.getLogger(__name__)


class RecordFile(NamedTuple):
    """`take` records of a file after its first `skip`; `first` is the number in the split of the first."""

    path: str
    skip: int
    take: int
    first: int


_IMAGE = "image"  # where data.image_key is not set
# Where data.label_key is not set: the first of these that there is. The former is in data sets with any
# number of right labels for an image, such as imagenet2012_real (arXiv:2006.07159).
_LABELS = ("real_label", "label")
_DTYPES = (np.uint8, np.uint16)  # TFDS stores float32 images as the bytes of their numbers
_CHANNELS = {1: "grey", 2: "grey and alpha", 3: "color", 4: "color and alpha"}
MAX_LABELS = 32  # of one image; ImageNet-ReaL has fewer


class TfdsData:
    """One prepared data set with an image and a label in each record.

    Parts such as 'train[:99%]' are splits too (tfds_splits.py). The label is a ClassLabel, or a sequence of
    ClassLabels: any number of right labels. `image_key` and `label_key` are the keys of both, 'a/b' for b in
    the dict a.
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, *, image_key: str | None, label_key: str | None
    ) -> None:
        """The keys may be None for the usual ones. Raises DataError where a feature is missing or unfit."""
        self._builder = builder
        self.name = builder.info.name
        features = dict(sorted(_flatten(builder.info.features).items()))
        self.image_key = _IMAGE if image_key is None else image_key
        usual = next((key for key in _LABELS if key in features), _LABELS[-1])
        self.label_key = usual if label_key is None else label_key
        images = {key: feature for key, feature in features.items() if _is_image(feature)}
        labels = {key: feature for key, feature in features.items() if _class_label(feature)}
        image = _find(images, self.image_key, "image_key", "an image of uint8 or uint16", self.name, features)
        label = _find(labels, self.label_key, "label_key", "a ClassLabel", self.name, features)
        self.num_channels: int | None = image.shape[-1]
        self.has_several_labels = label is not _class_label(label)
        label = _class_label(label)
        self.class_names = tuple(label.names or map(str, range(label.num_classes)))
        self._pair = tfds.features.FeaturesDict({self.image_key: image, self.label_key: label})
        self.is_random_access = builder.info.file_format.value == "array_record"
        if not self.is_random_access and builder.info.file_format.value != "tfrecord":
            raise DataError(
                f"{builder.data_path} is of {builder.info.file_format.value} files: delete the folder and "
                "prepare it as array_record with vit_registers.prepare"
            )

    def num_examples(self, split: str) -> int:
        """How many records the split has.

        Raises DataError for a split that is unknown or empty, or lacks files.
        """
        return sum(part.stop - part.start for part in self._parts(split))

    def files(self, split: str, *, start: int, stop: int) -> list[RecordFile]:
        """The files that hold the records [start, stop) of the split, in order."""
        files, first = [], 0
        for part in self._builder.info.splits[_instruction(self._parts(split))].file_instructions:
            skip = max(start - first, 0)
            take = min(part.take, stop - first) - skip
            if take > 0:
                files.append(RecordFile(str(part.filename), part.skip + skip, take, first + skip))
            first += part.take
        return files

    def serialized(self, split: str) -> Sequence[bytes]:
        """Random access to the records as serialized tf.train.Examples."""
        return open_records(self._builder, self._parts(split), raw=True)

    def reader(self, split: str) -> Callable[[int], tuple[bytes, int]]:
        """Random access to the records as (encoded image, label). It raises DataError for damaged files."""
        records = self.serialized(split)
        decoders = {self.image_key: tfds.decode.SkipDecoding()}

        def read(i: int) -> tuple[bytes, int]:
            with reading(split, self.name):
                record = records[i]
                if not record:  # as array_record gives it where a part of a file is damaged
                    raise ValueError(f"record {i} is empty")
                example = self._pair.deserialize_example_np(record, decoders=decoders)
                image, label = example[self.image_key], int(example[self.label_key])
            self.check_label(label, split, i)
            return image, label

        return read

    def describe(self, split: str, record: int) -> str:
        """How errors name an image. TFDS keeps no file names in general."""
        return f"record {record} of split '{split}' of {self.name}"

    def check_label(self, label: int, split: str, record: int) -> None:
        """Raises DataError for a label that is no class, such as the -1 of test sets without labels."""
        if not 0 <= label < len(self.class_names):
            raise DataError(
                f"{self.describe(split, record)} has the {self.label_key} {label}, which is none of the "
                f"{len(self.class_names)} classes: take a split that has labels"
            )

    def _parts(self, split: str) -> list[Part]:
        return find_parts(self._builder, split)


def find_parts(builder: tfds.core.DatasetBuilder, split: str) -> list[Part]:
    """The parts of the split. Raises DataError for a split that is unknown or empty, or lacks files."""
    name, splits = builder.info.name, builder.info.splits
    parts = tfds_splits.parse(split, {key: info.shard_lengths for key, info in splits.items()}, data=name)
    there = {path.name for path in epath.Path(builder.data_path).iterdir()}
    for file in splits[_instruction(parts)].filepaths:
        if file.name not in there:
            raise DataError(
                f"split '{split}' of {name} lacks the file {file}: copy it there, or delete the folder and "
                "run vit_registers.prepare again"
            )
    return parts


@contextlib.contextmanager
def reading(split: str, name: str) -> Iterator[None]:
    """Turns what fails inside into a DataError."""
    try:
        yield
    except Exception as error:  # array_record and the parser raise anything for damaged files
        raise DataError(
            f"reading split '{split}' of {name} failed: {tfds_location.one_line(error)}; see that all files "
            "of data.data_dir are there and whole, or prepare the data set again"
        ) from None


def open_records(
    builder: tfds.core.DatasetBuilder, parts: Sequence[Part], *, raw: bool, decoders: Any = None
) -> Sequence[Any]:
    """Random access to the records of array_record files, as serialized or as dicts of features."""
    method = tfds.decode.DeserializeMethod
    return builder.as_data_source(
        _instruction(parts),
        decoders=decoders,
        deserialize_method=method.RAW_BYTES if raw else method.DESERIALIZE_AND_DECODE,
    )


def _instruction(parts: Sequence[Part]) -> Any:
    return functools.reduce(
        operator.add,
        [tfds.core.ReadInstruction(part.name, from_=part.start, to=part.stop, unit="abs") for part in parts],
    )


def _flatten(features: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Features by the keys that they are stored under; in a sequence of dicts, sequences."""
    flat: dict[str, Any] = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            flat.update(_flatten(feature, f"{prefix}{key}/"))
        elif isinstance(feature, tfds.features.Sequence) and isinstance(
            feature.feature, tfds.features.FeaturesDict
        ):
            inside = _flatten(feature.feature, f"{prefix}{key}/")
            flat.update({name: tfds.features.Sequence(one) for name, one in inside.items()})
        else:
            flat[prefix + key] = feature
    return flat


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image) and feature.np_dtype in _DTYPES


def _class_label(feature: Any) -> tfds.features.ClassLabel | None:
    """The ClassLabel that a feature is, or is a sequence of."""
    one = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return one if isinstance(one, tfds.features.ClassLabel) and one.num_classes else None


def _find(
    fit: Mapping[str, Any], key: str, setting: str, kind: str, name: str, features: Mapping[str, Any]
) -> Any:
    """fit[key]. Raises DataError with the keys that fit."""
    if key in fit:
        return fit[key]
    said = f"of {name} is {features[key]}, not {kind}" if key in features else f": {name} has no such feature"
    if fit:
        known = nearest(key, fit) if len(fit) > 10 else f"set data.{setting} to {' or '.join(fit)}"
    else:
        has = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        known = f"none is {kind}; there are {has}"
    raise DataError(f"data.{setting}='{key}' {said}: {known}".replace("' :", "':"))


def open_tfds(config: Config) -> TfdsData:
    """The prepared data set data.name in data.data_dir. Only the embedded 'digits' is prepared if missing.

    Raises DataError when the data set is unknown, not prepared, damaged, or not of labelled images.
    """
    data = config.data
    builder = tfds_location.open_builder(data.name, data.data_dir)
    if builder is None and data.name == "digits":
        builder = _prepare_digits(str(tfds_location.full_data_dir(data.data_dir)))
    if builder is None:
        raise tfds_location.not_prepared(data.name, data.data_dir)
    opened = TfdsData(builder, image_key=data.image_key, label_key=data.label_key)
    if opened.num_channels not in (None, config.model.channels):
        _logger.warning(
            "%s: its images have %d channels (%s) and are made %s, as model.channels=%d",
            data.name,
            opened.num_channels,
            _CHANNELS.get(opened.num_channels, "?"),
            _CHANNELS[config.model.channels],
            config.model.channels,
        )
    return opened


def _prepare_digits(data_dir: str) -> tfds.core.DatasetBuilder:
    from vit_registers.data.sources.digits_builder import Digits

    tfds.disable_progress_bar()
    try:
        if "://" not in data_dir:
            os.makedirs(data_dir, exist_ok=True)
        builder = Digits(data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it does
            builder.download_and_prepare()
    except OSError as error:
        builder = tfds_location.open_builder("digits", data_dir)  # another process may have been quicker
        if builder is None:
            raise DataError(f"cannot prepare digits in data.data_dir={data_dir!r}: {error}") from None
    return builder
