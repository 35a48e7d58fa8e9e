"""The source of prepared TFDS data sets: features, splits, files, records. No TensorFlow until it streams."""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vit_registers.config import Data, nearest
from vit_registers.data.sources import tfds_location, tfds_splits
from vit_registers.data.sources.base import RecordFile, TFRecordSource, not_empty
from vit_registers.data.sources.tfds_splits import Part
from vit_registers.errors import DataError
from vit_registers.storage import paths

if TYPE_CHECKING:
    import tensorflow as tf

    from vit_registers.data.sources.tf_readers import TfReader

_logger = logging.getLogger(__name__)

_IMAGE = "image"  # the default of data.image_key
# The default of data.label_key is the first of these that the data set has. real_label is that of data sets
# with any number of right labels for an image, such as imagenet2012_real (arXiv:2006.07159).
_LABELS = ("real_label", "label")
# The default of data.captions.key, likewise: of coco_captions, of laion400m, and of others.
_CAPTIONS = ("captions/text", "caption", "captions")
_DTYPES = (np.uint8, np.uint16)  # TFDS stores float32 images as the bytes of their numbers
_CHANNELS = {1: "grey", 2: "grey and alpha", 3: "color", 4: "color and alpha"}


class TfdsData(TFRecordSource):
    """A prepared data set with an image, and in most a label, in each record.

    Parts such as 'train[:99%]' are splits too (tfds_splits.py). The label is a ClassLabel, or a sequence of
    ClassLabels for any number of right labels. `image_key` and `label_key` are the keys of the two features,
    'a/b' for b in the dict a; None is the default. A data set without the default label has no classes, and
    `lacks_labels` says so. `caption_key` is the key of a text, or of a sequence of texts. Files are
    array_record, with random access, or TFRecord. Raises DataError if a feature is missing or does not fit.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        *,
        image_key: str | None,
        label_key: str | None,
        caption_key: str | None = None,
    ) -> None:
        info: Any = builder.info  # whose types allow None everywhere
        self._builder, self.name = builder, info.name
        features = dict(sorted(_flatten(info.features).items()))
        self.image_key = _IMAGE if image_key is None else image_key
        default = next((key for key in _LABELS if key in features), _LABELS[-1])
        self.label_name = default if label_key is None else label_key
        self._label: Any = None  # of a data set without class labels
        images = {key: feature for key, feature in features.items() if _is_image(feature)}
        labels = {key: feature for key, feature in features.items() if _class_label(feature)}
        image = _find(images, self.image_key, "image_key", "an image of uint8 or uint16", self.name, features)
        self.num_channels: int | None = image.shape[-1]
        self._image = tfds.features.FeaturesDict({self.image_key: image})
        self.class_names = ()
        try:
            found = _find(labels, self.label_name, "label_key", "a ClassLabel", self.name, features)
        except DataError as error:
            if label_key is not None:
                raise
            self.lacks_labels = str(error)
        else:
            self.has_several_labels = found is not _class_label(found)
            label: Any = _class_label(found)
            self.class_names = tuple(label.names or map(str, range(label.num_classes)))
            self._label = tfds.features.FeaturesDict({self.label_name: label})
        self._caption_key = _caption_key(features, caption_key, self.name)
        self._caption: Any = None if self._caption_key is None else features[self._caption_key]
        self._format = info.file_format.value
        if self._format not in ("array_record", "tfrecord"):
            raise DataError(
                f"{builder.data_path} has {self._format} files: delete the folder and prepare it as "
                "array_record with vit_registers.prepare"
            )

    @property
    def tfrecords(self) -> TFRecordSource | None:
        return self if self._format == "tfrecord" else None

    def num_examples(self, split: str) -> int:
        return sum(part.stop - part.start for part in self._parts(split))

    def record_files(self, split: str, *, start: int, stop: int) -> list[RecordFile]:
        files, first = [], 0
        for part in self._builder.info.splits[_instruction(self._parts(split))].file_instructions:
            skip = max(start - first, 0)
            take = min(part.take, stop - first) - skip
            if take > 0:
                files.append(RecordFile(str(part.filename), part.skip + skip, take, first + skip))
            first += part.take
        return files

    def labels(self, split: str) -> np.ndarray:
        """label_N, int32, which may be no class. Reads all records; raises DataError for damaged files."""
        if self._label is None:
            return np.full(self.num_examples(split), -1, np.int32)
        read = self._reader(split, self._label)
        return np.array([read(i)[self.label_name] for i in range(self.num_examples(split))], np.int32)

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        if self._caption_key is None:
            return None
        key = self._caption_key
        read = self._reader(split, tfds.features.FeaturesDict({key: self._caption}))
        return lambda record: _texts(read(record)[key])

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        read = self._reader(split, self._image, {self.image_key: tfds.decode.SkipDecoding()})
        return lambda record: read(record)[self.image_key]

    def tf_reader(self, split: str) -> "TfReader":
        from vit_registers.data.sources import tf_readers

        is_remote = paths.is_remote(self._builder.data_path)
        return tf_readers.from_serialized(self._records(split), self.parse, is_remote=is_remote)

    def parse(self, serialized_N: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        from vit_registers.data.sources import tf_readers

        return tf_readers.parse_examples(
            serialized_N,
            image_key=self.image_key,
            label_key=None if self._label is None else self.label_name,
            has_several_labels=self.has_several_labels,
            name=self.name,
        )

    def _reader(self, split: str, features: Any, decoders: Any = None) -> Callable[[int], Mapping[str, Any]]:
        """Random access to some of the features of each record. It raises DataError for damaged files."""
        records = self._records(split)

        def read(record: int) -> Mapping[str, Any]:
            with reading(split, self.name):
                return features.deserialize_example_np(not_empty(records, record), decoders=decoders)

        return read

    def _records(self, split: str) -> Sequence[bytes]:
        return open_records(self._builder, self._parts(split), raw=True)

    def _parts(self, split: str) -> list[Part]:
        return find_parts(self._builder, split)


def find_parts(builder: tfds.core.DatasetBuilder, split: str) -> list[Part]:
    """The parts of the split. Raises DataError for a split that is unknown, empty or lacks files."""
    name, splits = builder.info.name, builder.info.splits
    parts = tfds_splits.parse_split(
        split, {key: info.shard_lengths for key, info in splits.items()}, data=name
    )
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
    """A context that turns exceptions into DataError."""
    try:
        yield
    except Exception as error:  # array_record and the parser raise many types for damaged files
        raise DataError(
            f"reading split '{split}' of {name} failed: {tfds_location.one_line(error)}; see that all files "
            "of data.data_dir are there and whole, or prepare the data set again"
        ) from None


def open_records(builder: Any, parts: Sequence[Part], *, raw: bool, decoders: Any = None) -> Sequence[Any]:
    """Random access to the records of array_record files: serialized if `raw`, else as dicts of features."""
    method = tfds.decode.DeserializeMethod
    return builder.as_data_source(
        _instruction(parts),
        decoders=decoders,
        deserialize_method=method.RAW_BYTES if raw else method.DESERIALIZE_AND_DECODE,
    )


def _instruction(parts: Sequence[Part]) -> Any:
    first, *others = (
        tfds.core.ReadInstruction(part.name, from_=part.start, to=part.stop, unit="abs") for part in parts
    )
    return sum(others, first)


def _flatten(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features by the keys that they are stored under. A sequence of dicts becomes sequences."""
    flat: dict[str, Any] = {}
    for key, feature in features.items():
        inside = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        if not isinstance(inside, tfds.features.FeaturesDict):
            flat[prefix + key] = feature
            continue
        for name, one in _flatten(inside, f"{prefix}{key}/").items():
            flat[name] = one if inside is feature else tfds.features.Sequence(one)
    return flat


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image) and feature.np_dtype in _DTYPES


def _class_label(feature: Any) -> tfds.features.ClassLabel | None:
    """The feature if it is a ClassLabel, or the ClassLabel that it is a sequence of; else None."""
    one = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return one if isinstance(one, tfds.features.ClassLabel) and one.num_classes else None


def _is_text(feature: Any) -> bool:
    one = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return isinstance(one, tfds.features.Tensor) and one.shape == () and one.np_dtype == np.object_


def _caption_key(features: Mapping[str, Any], key: str | None, name: str) -> str | None:
    """The feature with captions: `key`, or the default, if there is any. Raises DataError for a wrong key."""
    texts = {name: feature for name, feature in features.items() if _is_text(feature)}
    if key is None:
        return next((one for one in _CAPTIONS if one in texts), None)
    _find(texts, key, "captions.key", "text", name, features)
    return key


def _texts(found: Any) -> list[str]:
    """The texts of a feature, one or several."""
    return [one.decode("utf-8", "replace") for one in np.atleast_1d(np.asarray(found, object)).tolist()]


def _find(
    fit: Mapping[str, Any], key: str, setting: str, kind: str, name: str, features: Mapping[str, Any]
) -> Any:
    """fit[key]. Raises DataError, with the keys that fit, if it is missing."""
    if key in fit:
        return fit[key]
    said = f"of {name} is {features[key]}, not {kind}" if key in features else f": {name} has no such feature"
    if fit:
        known = nearest(key, fit) if len(fit) > 10 else f"set data.{setting} to {' or '.join(fit)}"
    else:
        has = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        known = f"none is {kind}; there are {has}"
    raise DataError(f"data.{setting}='{key}' {said}: {known}".replace("' :", "':"))


def open_prepared(data: Data, channels: int) -> TfdsData:
    """The prepared data set data.name in data.data_dir. 'digits', which is embedded, is prepared if missing.

    Logs a warning if its images do not have the `channels` of the model. Raises DataError if the data set is
    unknown, not prepared or damaged, or has no images.
    """
    builder = tfds_location.open_builder(data.name, data.data_dir)
    if builder is None and data.name == "digits":
        builder = _prepare_digits(str(tfds_location.full_data_dir(data.data_dir)))
    if builder is None:
        raise tfds_location.not_prepared(data.name, data.data_dir)
    opened = TfdsData(
        builder, image_key=data.image_key, label_key=data.label_key, caption_key=data.captions.key
    )
    own = opened.num_channels
    if own not in (None, channels):
        given, made = _CHANNELS.get(own, "?"), _CHANNELS[channels]
        text = "%s: its images have %d channels (%s) and become %s, as model.channels=%d"
        _logger.warning(text, data.name, own, given, made, channels)
    return opened


def _prepare_digits(data_dir: str) -> tfds.core.DatasetBuilder:
    from vit_registers.data.sources.digits_builder import Digits

    tfds.disable_progress_bar()
    try:
        if "://" not in data_dir:
            os.makedirs(data_dir, exist_ok=True)
        builder = Digits(data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
            builder.download_and_prepare()
    except OSError as error:
        builder = tfds_location.open_builder("digits", data_dir)  # another process may have prepared it first
        if builder is None:
            raise DataError(f"cannot prepare digits in data.data_dir={data_dir!r}: {error}") from None
    return builder
