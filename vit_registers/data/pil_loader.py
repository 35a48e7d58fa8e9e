"""The loader data.loader='pil': images for evaluation and analysis, decoded one batch at a time by PIL.

No TensorFlow. It does not augment, so it does not train.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from vit_registers.config import Data
from vit_registers.data import order
from vit_registers.data.batch import Batch, check_divides, labelled_batch, own_part, to_device
from vit_registers.data.broken import BrokenImages
from vit_registers.data.ops.pil_ops import compose_pil
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.base import usable_labels
from vit_registers.data.sources.catalog import open_data_source
from vit_registers.errors import ConfigError, DataError


class PilLoader:
    """The Loader (loaders.py) for data.loader='pil'."""

    def __init__(self, data: Data, target: Target, *, needs_labels: bool = True) -> None:
        """Opens the data set; reads no image. Raises DataError or ConfigError, one line each."""
        self._data, self._target, self._needs_labels = data, target, needs_labels
        self._process = compose_pil(data.eval_ops, target, where="data.eval_ops (data.loader='pil')")
        self._broken = BrokenImages(data)
        self._source = open_data_source(data, target.channels, self._broken, needs_labels=needs_labels)
        if self._source.tfrecords is not None or self._source.has_several_labels:
            raise DataError(f"data.name='{data.name}' is not for data.loader='pil': set data.loader='tfdata'")
        self.name = data.name
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)

    @property
    def broken_names(self) -> frozenset[str]:
        return self._broken.names

    def num_examples(self, split: str) -> int:
        return self._source.num_examples(split)

    @property
    def texts(self) -> None:
        return None

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        return self._source.captions(split)

    @property
    def has_random_access(self) -> bool:
        return True

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Raises ConfigError."""
        raise ConfigError("data.loader='pil' only evaluates: train with data.loader='tfdata' or 'memory'")

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches on the devices with each image of the split once, in order; the last is padded."""
        size, number = self._data.eval_batch_size, self.num_examples(split)
        check_divides(size, sharding, where="data.eval_batch_size")
        index, count = own_part(sharding)
        local = order.share(size, count, where="data.eval_batch_size")
        first = index * local
        return (
            to_device(self._batch(split, range(start + first, start + first + local)), sharding)
            for start in range(0, number, size)
        )

    def _batch(self, split: str, records: range) -> Batch:
        label_N, read = self._source.labels(split), self._source.image_reader(split)
        image_BxHxWxC = np.zeros((len(records), *self._target), np.uint8)
        label_B, mask_B = np.zeros(len(records), np.int32), np.zeros(len(records), bool)
        for i, record in enumerate(records):
            if record >= len(label_N):
                break
            image_HxWxC = self._broken.decode(
                self._source, split, record, read, channels=self._target.channels
            )
            label_B[i], mask_B[i] = label_N[record], image_HxWxC is not None
            if image_HxWxC is not None:
                image_BxHxWxC[i] = self._fitted(split, record, self._process(image_HxWxC))
        number = min(len(records), max(len(label_N) - records.start, 0))
        label_B[:number] = usable_labels(
            self._source, split, records[:number], label_B[:number], needs_labels=self._needs_labels
        )
        return labelled_batch(image_BxHxWxC, label_B, mask_B)

    def _fitted(self, split: str, record: int, image_HxWxC: np.ndarray) -> np.ndarray:
        (height, width), target = image_HxWxC.shape[:2], self._target
        if (height, width) != (target.height, target.width):
            raise DataError(
                f"{self._source.describe(split, record)} is {height} x {width} after data.eval_ops, instead "
                f"of the required {target.height} x {target.width}: resize it there"
            )
        return image_HxWxC
