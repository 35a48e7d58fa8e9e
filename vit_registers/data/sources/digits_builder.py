"""The TFDS builder of the digits. Preparing requires TensorFlow; reading the prepared data set does not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vit_registers.data.sources import digits


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8 x 8 x 1, 1438 for train and 359 for test; see digits.py."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the form that TFDS requires)
    # Nothing is downloaded, so there are no checksums to find; TFDS needs another package to search for them.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8 x 8 pixels from scikit-learn's load_digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(digits.CLASS_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of digits.py, so that both loaders read the same data set
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in digits.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (image_HxWxC, label) in enumerate(zip(*digits.load_split(split), strict=True)):
            yield key, {"image": image_HxWxC, "label": int(label)}
