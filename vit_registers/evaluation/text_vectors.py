"""Unit vectors of texts and of images in their common space, for zero-shot classification and retrieval."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_registers.config import Data, Model, Text
from vit_registers.data.batch import IMAGE, LABEL, Batch, normalize, relabel
from vit_registers.data.loaders import EvalSplit
from vit_registers.data.prefetch import in_turn
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.evaluation.features import EditsOf
from vit_registers.models.norm import unit
from vit_registers.objectives.image_text.towers import (
    IMAGE_PROJ,
    embed_images,
    embed_texts,
    project_images,
)
from vit_registers.training.sharding import batch_sharding, put_same, replicated

_MOST_TEXTS = 1024  # in one program


class TextReader(NamedTuple):
    """What makes vectors of texts, beside the parameters."""

    text: Text  # the settings of the tower
    tokenizer: Tokenizer


class ImageVectors(NamedTuple):
    """Vectors of a batch of images, on the devices."""

    image_BxE: jax.Array
    label_BxK: jax.Array  # padded with -1
    mask_B: jax.Array  # False: padding, or an image that was left out


def text_vectors(
    reader: TextReader, params: Any, texts: Sequence[str], mesh: jax.sharding.Mesh
) -> np.ndarray:
    """text_NxE of all texts, float32, on the host of every process."""
    tokens_NxL = reader.tokenizer.encode(texts, reader.text.context)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = math.ceil(min(_MOST_TEXTS, len(texts)) / shards) * shards
    embed, layout = _compiled_texts(reader.text, mesh), batch_sharding(mesh)

    def parts() -> Iterator[jax.Array]:
        for start in range(0, len(texts), size):
            part_BxL = tokens_NxL[start : start + size]
            missing = size - len(part_BxL)
            yield embed(params, put_same(np.pad(part_BxL, ((0, missing), (0, 0)), mode="edge"), layout))

    return np.concatenate([np.asarray(part) for part in in_turn(parts())])[: len(texts)]


@functools.lru_cache(maxsize=8)
def _compiled_texts(text: Text, mesh: jax.sharding.Mesh) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(functools.partial(embed_texts, text), out_shardings=replicated(mesh))


def projected_vectors(params: Any, pooled_BxD: Any, mesh: jax.sharding.Mesh) -> jax.Array:
    """image_BxE: the unit vectors of images, float32, from what the image tower pooled."""
    own = {IMAGE_PROJ: params[IMAGE_PROJ]} if IMAGE_PROJ in params else {}
    return _compiled_projection(mesh)(own, pooled_BxD)


@functools.lru_cache(maxsize=8)
def _compiled_projection(mesh: jax.sharding.Mesh) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(lambda own, x_BxD: unit(project_images(own, x_BxD)), out_shardings=batch_sharding(mesh))


def image_vectors(
    model: Model,
    data: Data,
    params: Any,
    split: EvalSplit,
    mesh: jax.sharding.Mesh,
    edits: EditsOf | None = None,
) -> Iterator[ImageVectors]:
    """The vectors of all images of a split, each once, in batches."""
    compute = compiled_images(model, data, mesh, edits)
    batches = split.loader.eval_batches(split.split, batch_sharding(mesh))
    return in_turn(compute(params, batch) for batch in relabel(batches, split.table))


@functools.lru_cache(maxsize=8)
def compiled_images(
    model: Model, data: Data, mesh: jax.sharding.Mesh, edits: EditsOf | None
) -> Callable[[Any, Batch], ImageVectors]:
    """The compiled function of parameters and a batch that returns its ImageVectors."""

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def compute(params: Any, batch: Batch) -> ImageVectors:
        image_BxHxWxC = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        image_BxE = embed_images(model, params, image_BxHxWxC, edits_of=edits)
        label_BxK = batch.targets[LABEL].reshape(len(batch.mask_B), -1)
        return ImageVectors(image_BxE, label_BxK, batch.mask_B)

    return compute
