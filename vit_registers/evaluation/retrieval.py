"""Retrieval: how often a text of an image, or the image of a text, is among the k nearest of a split."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Captions, Data, Model, RetrievalSettings
from vit_registers.data.caption_tokens import class_captions
from vit_registers.data.loaders import EvalSplit, require_random_access
from vit_registers.errors import DataError
from vit_registers.evaluation.features import EditsOf
from vit_registers.evaluation.text_vectors import TextReader, image_vectors, text_vectors
from vit_registers.training.sharding import put_same, replicate, replicated

_ROWS = 256  # of similarities that are in memory


class TextPairs(NamedTuple):
    """The texts of a split, and to which images each belongs."""

    texts: list[str]
    own_M: np.ndarray  # int32: the number of the image, or the class, of each text
    is_of_classes: bool  # the latter: texts made of classes


def read_pairs(split: EvalSplit, captions: Captions, *, num_images: int | None = None) -> TextPairs:
    """All texts of a split; for data with classes instead of captions, those that training makes of classes.

    With `num_images`, the captions are those of the first images.

    Raises DataError if there are neither, or if images cannot be read by number; ConfigError as
    class_captions.
    """
    loader = split.loader
    read = loader.captions(split.split)
    if read is None and not loader.class_names:
        raise DataError(f"'{loader.name}' has neither captions nor classes: give images with captions")
    if read is None:
        own = class_captions(captions, loader.class_names)
        texts = [text for texts in own for text in texts]
        return TextPairs(texts, np.repeat(np.arange(len(own), dtype=np.int32), len(own[0])), True)
    require_random_access([split])
    texts, image = [], []
    total = split.loader.num_examples(split.split)
    for i in range(total if num_images is None else min(num_images, total)):
        own = [text for text in read(i) if text.strip()]
        texts += own
        image += [i] * len(own)
    if not texts:
        raise DataError(f"the images of '{split.split}' of '{split.loader.name}' have no captions")
    return TextPairs(texts, np.array(image, np.int32), False)


def ranks(
    row_NxE: np.ndarray, column_MxE: np.ndarray, own_N: np.ndarray, own_M: np.ndarray, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """rank_N: the number of columns that are nearer to a row than its nearest own one, from 0.

    Column j is row i's own if own_M[j] == own_N[i]. Of equally near columns, earlier ones are nearer. A row
    without a column of its own has the rank M, and so has one with a similarity that is not finite.
    """
    compute, layout = _compiled_ranks(mesh), replicated(mesh)
    columns = put_same((column_MxE, own_M), layout)
    found = []
    for start in range(0, len(row_NxE), _ROWS):
        part = row_NxE[start : start + _ROWS], own_N[start : start + _ROWS]
        missing = _ROWS - len(part[0])
        part = np.pad(part[0], ((0, missing), (0, 0))), np.pad(part[1], (0, missing))
        found.append(np.asarray(compute(*put_same(part, layout), *columns)))
    return np.concatenate(found)[: len(row_NxE)]


@functools.lru_cache(maxsize=8)
def _compiled_ranks(mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def compute(row_RxE: jax.Array, own_R: jax.Array, column_MxE: jax.Array, own_M: jax.Array) -> jax.Array:
        near_RxM = jnp.einsum("re,me->rm", row_RxE, column_MxE, precision=jax.lax.Precision.HIGHEST)
        is_own_RxM = own_R[:, None] == own_M[None]
        best_R = jnp.where(is_own_RxM, near_RxM, -jnp.inf).argmax(axis=1)
        best_Rx1 = jnp.take_along_axis(near_RxM, best_R[:, None], axis=1)
        is_before_RxM = jnp.arange(len(own_M))[None] < best_R[:, None]
        is_ahead_RxM = (near_RxM > best_Rx1) | ((near_RxM == best_Rx1) & is_before_RxM)
        is_ranked_R = is_own_RxM.any(axis=1) & jnp.isfinite(near_RxM).all(axis=1)
        return jnp.where(is_ranked_R, is_ahead_RxM.sum(axis=1), len(own_M))

    return compute


def _recalls(name: str, rank_N: np.ndarray, tops: tuple[int, ...]) -> dict[str, float]:
    """{NAME_r1, ...}: the shares of ranks below 1, ..."""
    return {f"{name}_r{top}": float((rank_N < top).mean()) if len(rank_N) else 0.0 for top in tops}


def measure_retrieval(
    settings: RetrievalSettings,
    reader: TextReader,
    params: Any,
    model: Model,
    data: Data,
    split: EvalSplit,
    pairs: TextPairs,
    mesh: jax.sharding.Mesh,
    edits: EditsOf | None = None,
) -> dict[str, float]:
    """{"image_to_text_r1", ..., "text_to_image_r10", "mean_recall", "images", "texts", "non_finite"}.

    Images that cannot be decoded are left out, and so are images and texts that no other belongs to.
    """
    whole = replicate(mesh)
    parts = [
        [np.asarray(x) for x in whole((one.image_BxE, one.label_BxK[:, 0], one.mask_B))]
        for one in image_vectors(model, data, params, split, mesh, edits)
    ]
    image_NxE, label_N, mask_N = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    text_MxE = text_vectors(reader, params, pairs.texts, mesh)
    own_N = label_N if pairs.is_of_classes else np.arange(len(label_N), dtype=np.int32)
    return retrieval_metrics(settings, image_NxE[mask_N], own_N[mask_N], text_MxE, pairs.own_M, mesh)


def retrieval_metrics(
    settings: RetrievalSettings,
    image_NxE: np.ndarray,
    own_N: np.ndarray,
    text_MxE: np.ndarray,
    own_M: np.ndarray,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """The numbers of measure_retrieval from unit vectors; image i and text j fit if own_N[i] == own_M[j].

    Images and texts that no other belongs to are left out.
    """
    is_kept_N = np.isin(own_N, own_M)
    image_NxE, own_N = image_NxE[is_kept_N], own_N[is_kept_N]
    is_kept_M = np.isin(own_M, own_N)
    text_MxE, own_M = text_MxE[is_kept_M], own_M[is_kept_M]
    recalls = {
        **_recalls("image_to_text", ranks(image_NxE, text_MxE, own_N, own_M, mesh), settings.tops),
        **_recalls("text_to_image", ranks(text_MxE, image_NxE, own_M, own_N, mesh), settings.tops),
    }
    return {
        **recalls,
        "mean_recall": sum(recalls.values()) / max(len(recalls), 1),
        "images": len(own_N),
        "texts": len(own_M),
        "non_finite": sum(int((~np.isfinite(x)).any(axis=1).sum()) for x in (image_NxE, text_MxE)),
    }


class RetrievalEvaluator:
    """The Evaluator of retrieval on a split whose images have captions."""

    def __init__(
        self,
        settings: RetrievalSettings,
        reader: TextReader,
        model: Model,
        data: Data,
        split: EvalSplit,
        mesh: jax.sharding.Mesh,
    ) -> None:
        """Reads the texts. Raises DataError as read_pairs."""
        self._settings, self._pairs = settings, read_pairs(split, data.captions)
        self._reader, self._model, self._data = reader, model, data
        self._split, self._mesh = split, mesh

    def __call__(self, params: Any) -> dict[str, float]:
        """The numbers of measure_retrieval."""
        return measure_retrieval(
            self._settings,
            self._reader,
            params,
            self._model,
            self._data,
            self._split,
            self._pairs,
            self._mesh,
        )


def make_retrieval(
    settings: RetrievalSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
    reader: TextReader,
) -> dict[str, RetrievalEvaluator]:
    """{"retrieval": evaluator} on the first of `splits` if its images have captions, else {}."""
    split = next(iter(splits.values()))
    if split.loader.captions(split.split) is None:
        return {}
    return {"retrieval": RetrievalEvaluator(settings, reader, model, data, split, mesh)}
