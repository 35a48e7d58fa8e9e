"""Parts of splits of any source with random access: every n-th example of a class; held-out ones, the rest.

'train[::5]' has every fifth example of each class, from the first on in their order, and every fifth of all
where the source has no labels. Held-out examples are drawn from the seed without regard to their classes; the
names of that part and of the rest are made by `held_out` and `kept`. A part may be that of a part.
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

_EVERY = re.compile(r"(?P<split>.+)\[::(?P<every>[^\]]*)\]")
_PART = re.compile(r"(?P<split>.+) \((?P<kind>held out|kept): (?P<share>[\d.e-]+), seed (?P<seed>\d+)\)")


def held_out(split: str, share: float, seed: int) -> str:
    """The name of the part that has `share` of the examples of a split."""
    return f"{split} (held out: {share:g}, seed {seed})"


def kept(split: str, share: float, seed: int) -> str:
    """The name of the part with the examples that `held_out` of the same arguments lacks."""
    return f"{split} (kept: {share:g}, seed {seed})"


def whole(split: str) -> str:
    """The split that `split` is a part of, or itself."""
    found = _outer(split)
    return split if found is None else whole(found["split"])


def _outer(split: str) -> re.Match[str] | None:
    return _PART.fullmatch(split) or _EVERY.fullmatch(split)


def held_out_records(number: int, share: float, seed: int) -> np.ndarray:
    """The records of the held-out part of `number` examples, sorted, int64: at least one, and not all."""
    size = min(max(round(share * number), 1), number - 1)
    if size < 1:
        raise DataError(f"a training split of {number} images has none to hold out: choose on test images")
    return np.sort(np.random.default_rng([seed, 0x48]).permutation(number)[:size])


def every_records(label_N: np.ndarray, every: int) -> np.ndarray:
    """The records of the examples 0, n, 2 n ... of each class in their order, sorted, int64."""
    order_N = np.argsort(label_N, kind="stable")
    first_N = np.searchsorted(label_N[order_N], label_N[order_N])  # of the class, in order_N
    return np.sort(order_N[(np.arange(len(label_N)) - first_N) % every == 0])


def kept_records(number: int, share: float, seed: int) -> np.ndarray:
    """The records of the other part, sorted, int64."""
    return np.setdiff1d(np.arange(number), held_out_records(number, share, seed))


class Parts(DataSource):
    """A source whose splits may also be parts of those of another source."""

    def __init__(self, source: DataSource) -> None:
        """Raises ConfigError for a source that is read in order."""
        if source.tfrecords is not None:
            raise ConfigError(
                f"'{source.name}' is prepared as TFRecord files, of which no part can be held out and no "
                "n-th example taken: prepare it again with vit_registers.prepare, or name parts as in "
                "data.train_split='train[1%:]' (for the task linear: set tasks.linear.chosen_on=test)"
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
        """The records of a part in the whole split, sorted; None for a whole split."""
        found = _outer(split)
        if found is None:
            return None
        if split not in self._known:
            outer_N, number = self._records(found["split"]), self.num_examples(found["split"])
            within_N = _records_within(found, number, lambda: self._class_labels(found["split"], number))
            self._known[split] = within_N if outer_N is None else outer_N[within_N]
        return self._known[split]

    def _class_labels(self, split: str, number: int) -> np.ndarray:
        """label_N; zeros for a source that has none, or several for an image."""
        if self.lacks_labels is not None or self.has_several_labels:
            return np.zeros(number, np.int32)
        return self.labels(split)


def _records_within(found: re.Match[str], number: int, read_labels: Callable[[], np.ndarray]) -> np.ndarray:
    """The records of a part within the `number` examples of the split that it is a part of."""
    if "every" not in found.groupdict():
        take = held_out_records if found["kind"] == "held out" else kept_records
        return take(number, float(found["share"]), int(found["seed"]))
    if not found["every"].isascii() or not found["every"].isdecimal() or int(found["every"]) < 1:
        raise DataError(
            f"split '{found.string}' cannot be read: every n-th example of each class is "
            f"'{found['split']}[::n]' with n from 1 on, such as 'train[::5]'"
        )
    return every_records(read_labels(), int(found["every"]))
