"""Segmentation by the texts of classes, without a head: `--task=zero_shot_segmentation`.

A pixel has the class whose vector is nearest to that of its patch. The vector of a patch is what the image
tower would pool if it had only that patch, projected: the same layers that make the vector of an image.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Tasks
from vit_registers.data.sources.dense import CLASSES, DenseSource
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import ConfigError
from vit_registers.evaluation.dense.features import block_tokens, network_input
from vit_registers.evaluation.dense.images import resized, size_of_short_side
from vit_registers.evaluation.dense.pictures import shown_examples
from vit_registers.evaluation.segmentation.head import enlarge
from vit_registers.evaluation.segmentation.inference import (
    Counted,
    add_counted,
    count_split,
    windows_at_once,
)
from vit_registers.evaluation.segmentation.protocol import Sizes, resolved
from vit_registers.evaluation.segmentation.result import picture
from vit_registers.evaluation.segmentation.scores import class_table, scores
from vit_registers.evaluation.segmentation.windows import Predict, sliding_logits
from vit_registers.evaluation.task import FrozenModel, Splits, TaskResult, require_texts
from vit_registers.evaluation.zero_shot.classify import class_vectors
from vit_registers.evaluation.zero_shot.prompts import class_prompts
from vit_registers.models.blocks import dims
from vit_registers.models.norm import unit
from vit_registers.models.params import abstract_model, build_model
from vit_registers.models.pooling import pooled_width
from vit_registers.objectives.base import BACKBONE
from vit_registers.objectives.image_text.towers import project_images
from vit_registers.runtime.exchange import gather, own_share
from vit_registers.runtime.mesh import own_mesh
from vit_registers.training.sharding import batch_sharding, on_own_devices, put_same, replicated

_TASK = "zero_shot_segmentation"


def segment_by_texts(
    frozen: FrozenModel,
    settings: Tasks,
    splits: Splits,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """Mean IoU and accuracies on the test split. No image is learned from; an interrupted call begins again.

    Images and windows have the sizes of tasks.segmentation.
    """
    del folder
    model, opened = frozen.model, _open(frozen, settings, splits)
    source, split, names = opened.source, splits.test[1], opened.source.class_names
    number = source.num_examples(split)
    shown = shown_examples(number)

    def count() -> Counted:
        return count_split(
            opened.predict,
            source,
            split,
            own_share(number, frozen.mesh),
            sizes=opened.sizes,
            channels=model.channels,
            batch=opened.batch,
            kept=shown,
            say=say,
            what=f"zero-shot segmentation by {frozen.name}",
        )

    with jax.set_mesh(own_mesh(frozen.mesh)):
        found = add_counted(gather(count, frozen.mesh))
    values: dict[str, float | int | str] = {
        **scores(found.count_YxY)._asdict(),
        "test_images": number,
        "non_finite": found.num_non_finite,
        "classes": len(names),
        "templates": opened.num_templates,
        **dataclasses.asdict(opened.sizes),
    }
    tables = {"classes": class_table(found.count_YxY, names)}
    shown_HxWx3 = picture((source, split), found.predictions, model.channels)
    return TaskResult(values, tables, {"predictions": shown_HxWx3})


class TextSegmented(NamedTuple):
    """An image with the cosines of its pixels to the texts of all classes, at the size of its labels."""

    image_HxWxC: np.ndarray
    label_HxW: np.ndarray
    cosine_HxWxY: np.ndarray


def text_similarities(
    frozen: FrozenModel, settings: Tasks, splits: Splits, number: int
) -> tuple[list[TextSegmented], tuple[str, ...]]:
    """The first images of the test split as segment_by_texts sees them, and the names of the classes.

    Raises as segment_by_texts.
    """
    opened, split = _open(frozen, settings, splits), splits.test[1]
    side = opened.sizes.short_side
    found = []
    for i in range(min(number, opened.source.num_examples(split))):
        image_HxWxC, label_HxW = opened.source.load(split, i, frozen.model.channels)
        height, width = label_HxW.shape
        image_HxWxC = resized(image_HxWxC, size_of_short_side((height, width), side))
        found.append((image_HxWxC, label_HxW))
    with jax.set_mesh(own_mesh(frozen.mesh)):
        cosines = sliding_logits(
            opened.predict,
            (image_HxWxC for image_HxWxC, _ in found),
            window=opened.sizes.crop,
            stride=opened.sizes.stride,
            batch=opened.batch,
        )
        made = [
            TextSegmented(image_HxWxC, label_HxW, cosine_HxWxY)
            for (image_HxWxC, label_HxW), cosine_HxWxY in zip(found, cosines, strict=True)
        ]
    return made, opened.source.class_names


class _Opened(NamedTuple):
    """The data, the sizes and the compiled program of a call."""

    source: DenseSource
    sizes: Sizes
    num_templates: int
    predict: Predict
    batch: int  # windows of a call of `predict`


def _open(frozen: FrozenModel, settings: Tasks, splits: Splits) -> _Opened:
    texts, model = require_texts(frozen, _TASK), frozen.model
    if pooled_width(model) != dims(model).width:
        raise ConfigError(
            f"{frozen.name}: model.pooling='{model.pooling}' joins tokens, so that a patch has no vector of "
            f"its own in the space of texts: --task={_TASK} requires another one"
        )
    source = open_dense(splits.test[0], CLASSES)
    sizes = resolved(settings.segmentation, source, model, frozen.data)[1]
    captions = dataclasses.replace(frozen.data.captions, class_texts=())  # which are of other data
    prompts = class_prompts(settings.zero_shot_segmentation, captions, source.class_names)
    with jax.set_mesh(frozen.mesh):
        class_YxE = class_vectors(texts.reader, texts.params, prompts, frozen.mesh, kept=texts.kept)
    device_mesh = own_mesh(frozen.mesh)
    arrays = on_own_devices(
        (texts.params, put_same(class_YxE, replicated(frozen.mesh))), frozen.mesh, device_mesh
    )
    logits, layout = _logits(frozen, sizes.crop), batch_sharding(device_mesh)
    return _Opened(
        source=source,
        sizes=sizes,
        num_templates=len(prompts.texts[0]),
        predict=lambda windows: logits(*arrays, jax.device_put(windows, layout)),
        batch=windows_at_once(len(source.class_names), sizes.crop, layout.num_devices),
    )


def _logits(frozen: FrozenModel, crop: int) -> Callable[[Any, Any, Any], jax.Array]:
    """The compiled function (params, class_YxE, window_BxHxWxC) -> cosines BxHxWxY, at the windows' size."""
    model, data, edits = frozen.model, frozen.data, frozen.edits
    graphdef = abstract_model(model)[0]

    @functools.partial(jax.jit, out_shardings=replicated(own_mesh(frozen.mesh)))
    def logits(params: Any, class_YxE: jax.Array, window_BxHxWxC: jax.Array) -> jax.Array:
        size_Bx2 = jnp.full((len(window_BxHxWxC), 2), crop, jnp.int32)
        image_BxHxWxC = network_input(window_BxHxWxC, size_Bx2, data, patch_size=model.patch_size)
        vit = build_model(graphdef, params[BACKBONE])
        (last,) = block_tokens(vit, image_BxHxWxC, blocks=(-1,), is_normed=True, edits=edits)
        x_BxHxWxD = last.patch_BxHxWxD
        if vit.map_pool is not None:
            x_BxHxWxD = vit.map_pool(x_BxHxWxD.reshape(-1, 1, x_BxHxWxD.shape[-1])).reshape(x_BxHxWxD.shape)
        x_BxHxWxE = unit(project_images(params, x_BxHxWxD))
        cosine_BxHxWxY = jnp.einsum(
            "bhwe,ye->bhwy", x_BxHxWxE, class_YxE, precision=jax.lax.Precision.HIGHEST
        )
        return enlarge(cosine_BxHxWxY, (crop, crop))

    return logits


ZERO_SHOT_SEGMENTATION = segment_by_texts
