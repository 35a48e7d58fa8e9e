"""Two parts of a training split: examples that are held out, and the rest. Any source with random access.

The held-out examples are drawn from the seed without regard to their classes. A split of either part has a
name that `held_out` and `kept` make of the name of the whole split.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vit_registers.data.sources.base import DataSource
from vit_registers.errors import ConfigError, DataError

if TYPE_CHECKING:
    import tensorflow as tf

    from vit_registers.data.sources.tf_readers import TfReader

_PART = re.compile(r"(?P<split>.+) \((?P<kind>held out|kept): (?P<share>[\d.e-]+), seed (?P<seed>\d+)\)")


def held_out(split: str, share: float, seed: int) -> str:
    """The name of the part that has `share` of the examples of a split."""
    return f"{split} (held out: {share:g}, seed {seed})"


def kept(split: str, share: float, seed: int) -> str:
    """The name of the part with the examples that `held_out` of the same arguments lacks."""
    return f"{split} (kept: {share:g}, seed {seed})"


def whole(split: str) -> str:
    """The split that `split` is a part of, or itself."""
    found = _PART.fullmatch(split)
    return split if found is None else found["split"]


def held_out_records(number: int, share: float, seed: int) -> np.ndarray:
    """The records of the held-out part of `number` examples, sorted, int64: at least one, and not all."""
    size = min(max(round(share * number), 1), number - 1)
    if size < 1:
        raise DataError(f"a training split of {number} images has none to hold out: choose on test images")
    return np.sort(np.random.default_rng([seed, 0x48]).permutation(number)[:size])


def kept_records(number: int, share: float, seed: int) -> np.ndarray:
    """The records of the other part, sorted, int64."""
    return np.setdiff1d(np.arange(number), held_out_records(number, share, seed))


class Parts(DataSource):
    """A source whose splits may also be parts of those of another source."""

    def __init__(self, source: DataSource) -> None:
        """Raises ConfigError for a source that is read in order."""
        if source.tfrecords is not None:
            raise ConfigError(
                f"'{source.name}' is prepared as TFRecord files, of which no part can be held out: prepare "
                "it again with vit_registers.prepare, or name parts as in data.train_split='train[1%:]' (for "
                "the task linear: set tasks.linear.chosen_on=test)"
            )
        self._source = source
        self.name, self.class_names = source.name, source.class_names
        self.lacks_labels = source.lacks_labels
        self.label_name, self.has_several_labels = source.label_name, source.has_several_labels
        self._known: dict[str, np.ndarray] = {}

    def num_examples(self, split: str) -> int:
        records = self._records(split)
        return self._source.num_examples(split) if records is None else len(records)

    def describe(self, split: str, record: int) -> str:
        records = self._records(split)
        own = record if records is None else int(records[record])
        return self._source.describe(whole(split), own)

    def labels(self, split: str) -> np.ndarray:
        records, label_N = self._records(split), self._source.labels(whole(split))
        return label_N if records is None else label_N[records]

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        records, read = self._records(split), self._source.captions(whole(split))
        return read if records is None or read is None else lambda record: read(int(records[record]))

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        records, read = self._records(split), self._source.image_reader(whole(split))
        return read if records is None else lambda record: read(int(records[record]))

    def tf_reader(self, split: str) -> "TfReader":
        records, read = self._records(split), self._source.tf_reader(whole(split))
        if records is None:
            return read
        import tensorflow as tf

        table = tf.constant(records, tf.int64)

        def apply(record_N: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
            return read(tf.gather(table, record_N))

        return apply

    def _records(self, split: str) -> np.ndarray | None:
        """The records of a part; None for a whole split."""
        found = _PART.fullmatch(split)
        if found is None:
            return None
        if split not in self._known:
            take = held_out_records if found["kind"] == "held out" else kept_records
            number = self._source.num_examples(found["split"])
            self._known[split] = take(number, float(found["share"]), int(found["seed"]))
        return self._known[split]
