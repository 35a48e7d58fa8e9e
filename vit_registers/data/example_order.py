"""The order of the training examples of a source: order.py, or class_unique.py for captions of classes."""

from vit_registers.config import Data
from vit_registers.data import order
from vit_registers.data.batch import Texts
from vit_registers.data.class_unique import ClassUnique
from vit_registers.data.sources.base import DataSource
from vit_registers.errors import ConfigError, DataError


def example_order(
    data: Data, source: DataSource, texts: Texts | None, *, seed: int, groups: int
) -> order.Order:
    """The order of the training split; with `texts`, no batch has an image twice.

    Where captions are made of classes, no group of texts.group images has a class twice. Raises ConfigError
    or DataError.
    """
    number = source.num_examples(data.train_split)
    if texts is None:
        return order.training_order(data, number, seed=seed, groups=groups)
    if source.tfrecords is not None:
        raise DataError(
            f"data.name='{data.name}' is prepared as TFRecord files, and captions require random access: "
            "prepare it again with vit_registers.prepare"
        )
    if data.repeats > 1:
        raise ConfigError(f"data.repeats={data.repeats}: a batch has no image twice with captions: set 1")
    if source.captions(data.train_split) is None and texts.group is not None:
        label_N = source.labels(data.train_split)
        return ClassUnique(
            seed=seed,
            num_examples=number,
            batch_size=data.batch_size,
            label_N=label_N,
            group=texts.group,
        )
    if not data.drop_last and number % data.batch_size:
        raise ConfigError(
            "data.drop_last=False: a batch at the end of an epoch would continue with the next one and could "
            "have an image twice, with captions that count as wrong for each other: set data.drop_last=True"
        )
    return order.training_order(data, number, seed=seed, groups=groups)
