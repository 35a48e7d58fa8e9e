"""Vectors of classes, and how many images are nearest to that of their class."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.evaluation.classification import classification_sums
from vit_registers.evaluation.text_vectors import ImageVectors, TextReader, text_vectors
from vit_registers.evaluation.zero_shot.kept import KeptVectors, read_kept, vectors_key
from vit_registers.evaluation.zero_shot.prompts import Prompts
from vit_registers.objectives.base import Sums, add_sums
from vit_registers.training.sharding import put_same, replicated


def class_vectors(
    reader: TextReader,
    params: Any,
    prompts: Prompts,
    mesh: jax.sharding.Mesh,
    *,
    kept: KeptVectors | None = None,
) -> np.ndarray:
    """class_YxE, float32: the mean of the unit vectors of a class's prompts, made a unit vector again.

    With `kept`, they are read from there if they were computed before, and written there otherwise.
    """
    if kept is None:
        return _computed(reader, params, prompts, mesh)
    key, shape = vectors_key(reader, params, prompts, mesh), (len(prompts.texts), reader.text.embed_dim)
    found = read_kept(kept, key, shape, mesh)
    if found is None:
        found = _computed(reader, params, prompts, mesh)
        if jax.process_index() == 0:
            kept.write(key, found)
    return found


def _computed(reader: TextReader, params: Any, prompts: Prompts, mesh: jax.sharding.Mesh) -> np.ndarray:
    texts = [text for own in prompts.texts for text in own]
    x_NxE = text_vectors(reader, params, texts, mesh)
    mean_YxE = x_NxE.reshape(len(prompts.texts), -1, x_NxE.shape[1]).mean(axis=1)
    norm_Yx1 = np.linalg.norm(mean_YxE, axis=1, keepdims=True)
    return mean_YxE / np.maximum(norm_Yx1, np.float32(1e-12))


def zero_shot_metrics(
    class_YxE: np.ndarray, vectors: Iterable[ImageVectors], mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """{"top1", "top5" (with more than five classes), "images", "non_finite"} of images with a label.

    The logits are cosines. An image or class whose vector is not finite makes the image wrong.
    """
    count = _counter(mesh)
    placed = put_same(class_YxE, replicated(mesh))
    found = functools.reduce(add_sums, (jax.device_get(count(placed, one)) for one in vectors))
    number = int(found["top1"][1])
    shares = {name: int(found[name][0]) / max(number, 1) for name in ("top1", "top5") if name in found}
    return {**shares, "images": number, "non_finite": int(found["non_finite"][0])}


def nearest_classes(
    class_YxE: np.ndarray, vectors: Iterable[ImageVectors], mesh: jax.sharding.Mesh
) -> np.ndarray:
    """class_N, int32: the class of the largest cosine of each image of mask_B, in order, the first of equals.

    -1 for an image with a cosine that is not finite.
    """
    nearest, placed = _nearest(mesh), put_same(class_YxE, replicated(mesh))
    found = (jax.device_get(nearest(placed, one)) for one in vectors)
    return np.concatenate([class_B[mask_B] for class_B, mask_B in found])


@functools.lru_cache(maxsize=8)
def _nearest(mesh: jax.sharding.Mesh) -> Callable[[Any, ImageVectors], tuple[jax.Array, jax.Array]]:
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def nearest(class_YxE: jax.Array, images: ImageVectors) -> tuple[jax.Array, jax.Array]:
        cosine_BxY = _cosines(class_YxE, images)
        is_finite_B = jnp.isfinite(cosine_BxY).all(axis=-1)
        return jnp.where(is_finite_B, cosine_BxY.argmax(axis=-1).astype(jnp.int32), -1), images.mask_B

    return nearest


def _cosines(class_YxE: jax.Array, images: ImageVectors) -> jax.Array:
    return jnp.einsum("be,ye->by", images.image_BxE, class_YxE, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=8)
def _counter(mesh: jax.sharding.Mesh) -> Callable[[Any, ImageVectors], Sums]:
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def count(class_YxE: jax.Array, images: ImageVectors) -> Sums:
        logits_BxY = _cosines(class_YxE, images)
        no_loss_B = jnp.zeros(len(images.mask_B))
        sums = classification_sums(logits_BxY, images.label_BxK, images.mask_B, no_loss_B)
        return {name: value for name, value in sums.items() if name != "loss"}

    return count
