"""Loss, top-1 and top-5 over a split, each image once; several right labels for an image too."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.config import Config
from vit_registers.data.batch import Batch, normalize
from vit_registers.models.params import build_model
from vit_registers.training.losses import make_loss_per_example
from vit_registers.training.metrics import Sums, classification_sums
from vit_registers.training.sharding import replicated

Evaluate = Callable[[Any, Iterable[Batch]], dict[str, float]]


def make_evaluate(config: Config, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> Evaluate:
    """evaluate(params, batches) -> {"loss", "top1", "top5", "images", "non_finite"}: means over the images
    that count, their number, and how many of them have a logit that is not finite, which are wrong.

    top5 is the share of images whose label is among the five highest logits; it is left out where there are
    five classes or fewer. Of several right labels any one will do; an image without one does not
    count; the loss is that against the uniform distribution over them.
    """
    loss_per_example = make_loss_per_example(config)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Any, batch: Batch) -> Sums:
        image = normalize(batch.image_BxHxWxC, mean=config.data.mean, std=config.data.std)
        logits_BxY = build_model(graphdef, params)(image).logits
        label_BxK = batch.label_B.reshape(len(batch.label_B), -1)
        label_BxY = jax.nn.one_hot(label_BxK, config.model.num_classes).sum(axis=1)
        label_BxY /= jnp.maximum(label_BxY.sum(axis=-1, keepdims=True), 1.0)
        loss_B = loss_per_example(logits_BxY, label_BxY)
        return classification_sums(logits_BxY, label_BxK, batch.mask_B, loss_B)

    def evaluate(params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        parts = jax.device_get([sums(params, batch) for batch in batches])
        return functools.reduce(lambda a, b: a + b, parts).means()

    return evaluate
