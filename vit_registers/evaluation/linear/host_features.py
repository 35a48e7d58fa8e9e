"""Features of a split on the host, computed once."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_registers.data.order import Order
from vit_registers.evaluation.features import CLS, MEAN, BatchFeatures
from vit_registers.training.sharding import batch_sharding, put_same, replicate


class FeatureBatch(NamedTuple):
    """Features of images: on the devices, split over the images, or on the host."""

    cls_BxLxD: Any  # of the last L blocks, the oldest first
    mean_BxD: Any  # of the patches of the last block
    label_BxK: Any  # classes of training, padded with -1
    mask_B: Any  # False: padding, or no label

    def rows(self, index: Any) -> "FeatureBatch":
        """These images of arrays on the host."""
        return FeatureBatch(*(x[index] for x in self))


def feature_batches(rows: Iterator[BatchFeatures]) -> Iterator[FeatureBatch]:
    """The features of `block_features`, of run_features or training_features, on the devices."""
    for found, label_BxK, mask_B in rows:
        yield FeatureBatch(found[CLS], found[MEAN], label_BxK, mask_B)


def host_features(batches: Iterator[FeatureBatch], mesh: jax.sharding.Mesh) -> FeatureBatch:
    """All rows of `batches` on the host, on every process, padding included; float32."""
    whole = replicate(mesh)
    found = [FeatureBatch(*map(np.asarray, whole(batch))) for batch in batches]
    width = max(part.label_BxK.shape[1] for part in found)
    found = [
        part._replace(
            label_BxK=np.pad(
                part.label_BxK, ((0, 0), (0, width - part.label_BxK.shape[1])), constant_values=-1
            )
        )
        for part in found
    ]
    return FeatureBatch(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def evaluation_batches(rows: FeatureBatch, size: int, mesh: jax.sharding.Mesh) -> Iterator[FeatureBatch]:
    """The rows on the host in batches of `size` on the devices; the last one is padded."""
    number, layout = len(rows.mask_B), batch_sharding(mesh)
    for start in range(0, number, size):
        part = rows.rows(slice(start, start + size))
        missing = size - len(part.mask_B)
        padded = FeatureBatch(*(np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in part))
        yield put_same(padded, layout)


def training_batches(
    rows: FeatureBatch, order: Order, start_step: int, mesh: jax.sharding.Mesh
) -> Iterator[FeatureBatch]:
    """Endless batches of rows on the host in the order of training, from a step on, on the devices."""
    layout, step = batch_sharding(mesh), start_step
    while True:
        records = order.records(step * order.batch_size + np.arange(order.batch_size))
        yield put_same(rows.rows(records), layout)
        step += 1
