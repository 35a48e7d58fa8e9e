"""Features of images that a frozen backbone computes, for k-NN and linear classifiers."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Data, Model
from vit_registers.data.batch import IMAGE, LABEL, Batch, normalize, relabel
from vit_registers.data.class_names import some
from vit_registers.data.loaders import EvalSplit
from vit_registers.errors import DataError
from vit_registers.evaluation.pace import Pace
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.params import abstract_model, build_model
from vit_registers.models.tokens import TokenLayout
from vit_registers.training.sharding import batch_sharding

# Features of a batch by name, each with the images first: (parameters of the backbone, batch) -> {name: x}
Features = Callable[[Any, Batch], Mapping[str, jax.Array]]
CLS, MEAN = "cls", "mean"
EditsOf = Callable[[TokenLayout], Edits]  # FrozenModel.edits


@functools.lru_cache(maxsize=8)
def block_features(model: Model, data: Data, num_blocks: int, edits: EditsOf | None) -> Features:
    """The features {CLS: BxLxD, MEAN: BxD}, float32, of the last L = `num_blocks` blocks, the oldest first.

    CLS are the cls tokens, and MEAN is the mean of the patches of the last block, without registers and
    summaries. Every block's output goes through the final norm, also for models that apply it after pooling,
    such as CLIP. Models without cls have the mean of the patches of each block instead of cls.
    """
    graphdef, _ = abstract_model(model)

    def features(backbone: Any, batch: Batch) -> dict[str, jax.Array]:
        image_BxHxWxC = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        vit = build_model(graphdef, backbone)
        layout = vit.layout_for((image_BxHxWxC.shape[1], image_BxHxWxC.shape[2]))
        groups, own_edits = layout.groups, NO_EDITS if edits is None else edits(layout)
        resid = vit(image_BxHxWxC, edits=own_edits).taps["resid"]
        tokens = [vit.norm(x_BxTxD).astype(jnp.float32) for x_BxTxD in resid[-num_blocks:]]
        means = [x_BxTxD[:, groups["patches"]].mean(axis=1) for x_BxTxD in tokens]
        cls = [x_BxTxD[:, groups["cls"]][:, 0] for x_BxTxD in tokens] if "cls" in groups else means
        return {CLS: jnp.stack(cls, axis=1), MEAN: means[-1]}

    return features


@functools.lru_cache(maxsize=8)
def compiled_features(features: Features, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """A function of the backbone and a batch: ({name: features}, label_BxK, mask of those with a label).

    Arrays stay on the devices, split over the images of the batch. The features have no gradient.
    """

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def compute(backbone: Any, batch: Batch) -> tuple[Mapping[str, jax.Array], jax.Array, jax.Array]:
        label_BxK = batch.targets[LABEL].reshape(len(batch.mask_B), -1)
        return features(backbone, batch), label_BxK, batch.mask_B & (label_BxK >= 0).any(axis=-1)

    return compute


class BatchFeatures(NamedTuple):
    """The features of a batch on the devices, split over its images."""

    features: Mapping[str, jax.Array]
    label_BxK: jax.Array  # padded with -1
    mask_B: jax.Array  # False: padding, or no label


def run_features(
    features: Features,
    backbone: Any,
    split: EvalSplit,
    mesh: jax.sharding.Mesh,
    *,
    say: Callable[[str], None],
) -> Iterator[BatchFeatures]:
    """The features of all images of a split, each once, in batches.

    While one batch is computed, the next one is decoded. At most two are under way, so that memory does not
    grow with the number of images.
    """
    compute = compiled_features(features, mesh)
    batches = relabel(split.loader.eval_batches(split.split, batch_sharding(mesh)), split.table)
    number = split.loader.num_examples(split.split)
    pace = Pace(f"features of {split.loader.name}:{split.split}", number, say, unit="images")
    before, done = None, 0
    for batch in batches:
        row = BatchFeatures(*compute(backbone, batch))
        if before is not None:
            done += len(jax.block_until_ready(before).mask_B)
            pace.done(done)
            yield before
        before = row
    if before is not None:
        yield before


def training_features(
    features: Features,
    backbone: Any,
    split: EvalSplit,
    mesh: jax.sharding.Mesh,
    *,
    say: Callable[[str], None],
) -> Iterator[BatchFeatures]:
    """The same of images to learn from. Raises DataError if they have several labels each."""
    for row in run_features(features, backbone, split, mesh, say=say):
        if row.label_BxK.shape[1] > 1:
            raise DataError(
                f"'{split.loader.name}' has several labels for an image, so it is for --data only: give "
                "other training images with --train_data=NAME:SPLIT"
            )
        yield row


def empty_classes(count_Y: np.ndarray, names: Sequence[str], *, what: str = "training image") -> list[str]:
    """A note that names the classes of which `count_Y` is 0; none if all have a training image, or `what`."""
    empty = [name for name, count in zip(names, count_Y, strict=True) if not count]
    if not empty:
        return []
    return [f"{len(empty)} of {len(names)} classes have no {what}, so they are not learned: {some(empty)}"]
