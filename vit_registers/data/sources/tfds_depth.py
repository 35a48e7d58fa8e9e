"""NYU Depth v2 as TFDS prepares it (nyu_depth_v2): float16 metres. No TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vit_registers.data import pil_decoding
from vit_registers.data.sources import tfds_location, tfds_prepared
from vit_registers.data.sources.base import not_empty
from vit_registers.data.sources.dense import DEPTH, DensePair, DenseSource
from vit_registers.errors import DataError

NAME = "nyu_depth_v2"
_IMAGE, _DEPTH = "image", "depth"


class TfdsDepth(DenseSource):
    """A prepared data set of TFDS with the features `image` and `depth`, in metres.

    Depths that are not finite count as not known. Parts such as 'train[:10%]' are splits too.
    """

    kind, class_names, protocol = DEPTH, (), "nyu"

    def __init__(self, builder: tfds.core.DatasetBuilder) -> None:
        """Raises DataError for a data set without these features, or not in array_record files."""
        info: Any = builder.info  # whose types allow None everywhere
        self.name, self._builder, self._features = info.name, builder, info.features
        if missing := [key for key in (_IMAGE, _DEPTH) if key not in self._features]:
            raise DataError(
                f"{self.name} of TFDS has no feature '{missing[0]}', so it has no depth of images"
            )
        if info.file_format.value != "array_record":
            raise DataError(
                f"{builder.data_path} has {info.file_format.value} files: delete it and prepare it as "
                "array_record with vit_registers.prepare"
            )
        self._records: dict[str, Sequence[bytes]] = {}

    def num_examples(self, split: str) -> int:
        return sum(part.stop - part.start for part in tfds_prepared.find_parts(self._builder, split))

    def read(self, split: str, i: int, channels: int) -> DensePair:
        if split not in self._records:
            parts = tfds_prepared.find_parts(self._builder, split)
            self._records[split] = tfds_prepared.open_records(self._builder, parts, raw=True)
        with tfds_prepared.reading(split, self.name):
            data = not_empty(self._records[split], i)
            found = self._features.deserialize_example_np(data, decoders={_IMAGE: tfds.decode.SkipDecoding()})
            image_HxWxC = pil_decoding.decode_image(found[_IMAGE], channels=channels)
        depth_HxW = np.asarray(found[_DEPTH], np.float32)
        return DensePair(image_HxWxC, np.where(np.isfinite(depth_HxW), depth_HxW, np.float32(0)))


def open_tfds_depth(name_or_folder: str) -> TfdsDepth:
    """The data set in a folder, or of a name in TFDS's folder of data sets.

    Raises DataError if it is not prepared, damaged, or without depth.
    """
    builder = tfds_location.open_builder(name_or_folder, None, setting="--data")
    if builder is None:
        raise tfds_location.not_prepared(name_or_folder, None, setting="--data")
    return TfdsDepth(builder)
