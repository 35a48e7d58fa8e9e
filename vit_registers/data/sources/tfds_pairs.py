"""Prepared TFDS data sets with a label for each pixel. No TensorFlow."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vit_registers.data.pil_decoding import BrokenImageError, decode_image
from vit_registers.data.sources import tfds_location
from vit_registers.data.sources.base import not_empty
from vit_registers.data.sources.dense import CLASSES, DEPTH, DensePair, DenseSource
from vit_registers.data.sources.mask_folders import decode_mask
from vit_registers.data.sources.tfds_prepared import find_parts, open_records, reading
from vit_registers.errors import DataError


class TfdsPairs(DenseSource):
    """A prepared data set, in files of array_record, with an image and a feature with a value for each pixel.

    `convert(value, description)` makes the labels of the feature, encoded if it is an image.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        *,
        kind: str,
        protocol: str,
        keys: tuple[str, str],
        class_names: Sequence[str],
        first_label: int,
        convert: Callable[[Any, str], np.ndarray],
    ) -> None:
        """`keys` are those of the image and of the labels. Raises DataError if a feature is missing."""
        info: Any = builder.info  # whose types allow None everywhere
        self._builder, self.name, self.protocol = builder, info.name, protocol
        self.kind, self.class_names, self.first_label = kind, tuple(class_names), first_label
        self._keys, self._convert = keys, convert
        if missing := [key for key in keys if key not in info.features]:
            raise DataError(
                f"{builder.data_path} has no feature '{missing[0]}', so it has no {kind} of pixels"
            )
        if info.file_format.value != "array_record":
            raise DataError(
                f"{builder.data_path} has {info.file_format.value} files, without random access: delete "
                "the folder and prepare it as array_record with vit_registers.prepare"
            )
        stored = {key: info.features[key] for key in keys}
        self._features = tfds.features.FeaturesDict(stored)
        is_image = {key: isinstance(feature, tfds.features.Image) for key, feature in stored.items()}
        self._decoders = {key: tfds.decode.SkipDecoding() for key in keys if is_image[key]}
        self._records: dict[str, Sequence[bytes]] = {}

    def num_examples(self, split: str) -> int:
        return sum(part.stop - part.start for part in find_parts(self._builder, split))

    def read(self, split: str, i: int, channels: int) -> DensePair:
        if split not in self._records:
            self._records[split] = open_records(self._builder, find_parts(self._builder, split), raw=True)
        image_key, label_key = self._keys
        with reading(split, self.name):
            record = not_empty(self._records[split], i)
            found: Any = self._features.deserialize_example_np(record, decoders=self._decoders)
        where = self.describe(split, i)
        try:
            image_HxWxC = decode_image(found[image_key], channels=channels)
        except BrokenImageError as error:
            raise DataError(f"{where} has an image that cannot be decoded {error}".rstrip()) from None
        return DensePair(image_HxWxC, self._convert(found[label_key], where))


def open_pets(name_or_folder: str) -> DenseSource:
    """oxford_iiit_pet: 3 classes, in masks from 1 on. Raises DataError if it is not prepared."""

    def convert(encoded: bytes, where: str) -> np.ndarray:
        return decode_mask(io.BytesIO(encoded), f"the mask of {where}") - 1

    return TfdsPairs(
        _open(name_or_folder),
        kind=CLASSES,
        protocol="oxford_iiit_pet",
        keys=("image", "segmentation_mask"),
        class_names=("pet", "background", "border"),
        first_label=1,
        convert=convert,
    )


def open_nyu_of_tfds(name_or_folder: str) -> DenseSource:
    """nyu_depth_v2: float16 metres; those that are not finite are not known. Raises DataError."""

    def convert(depth_HxW: np.ndarray, where: str) -> np.ndarray:
        depth_HxW = np.asarray(depth_HxW, np.float32)
        return np.where(np.isfinite(depth_HxW), depth_HxW, np.float32(0))

    return TfdsPairs(
        _open(name_or_folder),
        kind=DEPTH,
        protocol="nyu",
        keys=("image", "depth"),
        class_names=(),
        first_label=0,
        convert=convert,
    )


def _open(name_or_folder: str) -> tfds.core.DatasetBuilder:
    builder = tfds_location.open_builder(name_or_folder, None, setting="--data")
    if builder is None:
        raise tfds_location.not_prepared(name_or_folder, None, setting="--data")
    return builder
