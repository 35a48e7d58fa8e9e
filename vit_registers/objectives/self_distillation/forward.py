"""The losses of self-distillation for given crops, masks, student and teacher. Axis letters: heads.py.

Axis letters beside those: G groups of images, I images of a group, V global crops (2), S crops of the
student, M masked patches of a group.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.config import SelfDistillationSettings
from vit_registers.models.blocks import DTYPES
from vit_registers.models.params import build_model
from vit_registers.objectives.base import BACKBONE
from vit_registers.objectives.self_distillation import chunks, heads, losses
from vit_registers.objectives.self_distillation.chunks import HeadRows
from vit_registers.objectives.self_distillation.targets import update_centre

DINO_HEAD, IBOT_HEAD = "dino_head", "ibot_head"
NUM_GLOBALS = 2


class Crops(NamedTuple):
    """Normalised crops of a batch, with masks for the global ones.

    global_BxVxHxWxC and local_BxLxHxWxC: floats; L may be 0. is_masked_BxVxP: bool. mask_B: False for images
    that are left out.
    """

    global_BxVxHxWxC: jax.Array
    local_BxLxHxWxC: jax.Array
    is_masked_BxVxP: jax.Array
    mask_B: jax.Array


def ibot_head(params: Mapping[str, Any]) -> Any:
    """The head for masked patches: its own, or that of the cls tokens."""
    return params.get(IBOT_HEAD, params[DINO_HEAD])


def distillation(
    graphdef: nnx.GraphDef,
    student: Any,
    teacher: Any,
    centres: Mapping[str, jax.Array],
    crops: Crops,
    *,
    settings: SelfDistillationSettings,
    num_masked: int,
    temperature: jax.typing.ArrayLike,
    key: jax.Array | None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(losses, new centres) of a batch: the objective of DINOv2's code, with its logged values beside it.

    `student` and `teacher` are parameters {"vit", "dino_head"} and, with settings.has_ibot_head,
    "ibot_head"; `centres` are {"dino": Z, "ibot": Z} before this batch. `num_masked` is the largest number of
    masked patches of a group of settings.mask_group images. `key` enables drop path for the student. The
    products of the heads are computed in model.dtype, as under torch's autocast; norms, softmax and losses in
    float32.

    Losses, all scalars: "loss" = dino_local + dino_global + ibot + koleo, each with its weight, which alone
    has the gradient of all of them; "ibot_logged" and "koleo_logged", which DINOv2's code logs in their place
    and which are half as large; monitors of collapse: "teacher_entropy", of the targets of cls tokens in
    nats, "prototypes_used", the exponential of the entropy of their mean, and "feature_std", the mean over
    dimensions of the standard deviation of the teacher's unit cls vectors.
    """
    group, dtype = settings.mask_group, DTYPES[build_model(graphdef, student[BACKBONE]).model.dtype]
    out = _outputs(graphdef, student, crops, is_student=True, key=key)
    taught = jax.lax.stop_gradient(_outputs(graphdef, teacher, crops, is_student=False, key=None))
    num_images = jnp.maximum(crops.mask_B.sum(), 1)
    offset = chunks.sinkhorn(temperature) if settings.targets == "sinkhorn" else None  # None: centring

    def sums(name: str, rows: HeadRows, head: str) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        own, other = (
            heads.prototypes(ibot_head(params) if head == IBOT_HEAD else params[DINO_HEAD])
            for params in (student, teacher)
        )
        return chunks.weighted_cross_entropy(
            rows,
            own,
            other,
            offset_of=offset or chunks.centring(centres[name], temperature),
            temperature=temperature,
            chunk_rows=settings.chunk_rows,
            dtype=dtype,
        )

    dino_rows = _dino_rows(student, teacher, out, taught, crops, group, dtype)
    dino, dino_SxV, dino_stats = sums("dino", dino_rows, DINO_HEAD)
    stats, ibot, koleo = {"dino": dino_stats}, jnp.zeros(()), jnp.zeros(())
    if num_masked and settings.ibot_weight:
        ibot_rows = _ibot_rows(student, teacher, out, taught, crops, group, num_masked, dtype)
        ibot, _, stats["ibot"] = sums("ibot", ibot_rows, IBOT_HEAD)
    if settings.koleo_weight:
        koleo = _koleo(out["cls_BxVxD"], crops.mask_B, settings.koleo_group)
    dino_share = settings.dino_weight / (num_images * _num_terms(crops))
    ibot *= settings.ibot_weight / (NUM_GLOBALS * num_images)
    koleo *= settings.koleo_weight
    found = {
        "loss": dino_share * dino + ibot + koleo,
        "dino_local": dino_share * dino_SxV[NUM_GLOBALS:].sum(),
        "dino_global": dino_share * dino_SxV[:NUM_GLOBALS].sum(),
        "ibot": ibot,
        "koleo": koleo,
        "ibot_logged": ibot / 2,
        "koleo_logged": koleo / 2,
    }
    return found | _monitors(dino_stats, taught["cls_BxVxD"], crops.mask_B), _new_centres(centres, stats)


def _num_terms(crops: Crops) -> int:
    """The number of pairs of crops that are compared, by which the released code divides."""
    return NUM_GLOBALS * (NUM_GLOBALS - 1) + max(crops.local_BxLxHxWxC.shape[1] * NUM_GLOBALS, 1)


def _new_centres(centres: Mapping[str, jax.Array], stats: Mapping[str, Any]) -> dict[str, jax.Array]:
    new = {name: update_centre(centres[name], one["total_Z"], one["count"]) for name, one in stats.items()}
    return {**centres, **new}


def _outputs(
    graphdef: nnx.GraphDef, params: Any, crops: Crops, *, is_student: bool, key: jax.Array | None
) -> dict[str, jax.Array]:
    """cls_BxVxD and patches_BxVxPxD of the global crops; for the student, local_BxLxD of the others.

    Crops of an image are neighbours along the batch, so that they stay on its device.
    """
    model = build_model(graphdef, params[BACKBONE])
    batch, views = crops.global_BxVxHxWxC.shape[:2]
    global_key, local_key = (None, None) if key is None else jax.random.split(key)
    masked = crops.is_masked_BxVxP.reshape(batch * views, -1) if is_student else None
    images = crops.global_BxVxHxWxC.reshape(batch * views, *crops.global_BxVxHxWxC.shape[2:])
    out = model(images, drop_key=global_key, crops_per_image=views, masked_BxP=masked)
    assert out.cls is not None  # the objective requires cls
    found = {
        "cls_BxVxD": out.cls.reshape(batch, views, -1),
        "patches_BxVxPxD": out.patches.reshape(batch, views, *out.patches.shape[1:]),
    }
    number = crops.local_BxLxHxWxC.shape[1]
    if is_student and number:
        images = crops.local_BxLxHxWxC.reshape(batch * number, *crops.local_BxLxHxWxC.shape[2:])
        cls = model(images, drop_key=local_key, crops_per_image=number).cls
        assert cls is not None
        found["local_BxLxD"] = cls.reshape(batch, number, -1)
    return found


def _dino_rows(
    student: Any, teacher: Any, out: Mapping, taught: Mapping, crops: Crops, group: int, dtype: Any
) -> HeadRows:
    """Rows of images: global and local crops of the student against both global crops of the teacher.

    A global crop is compared with the other one only.
    """
    x_BxSxD = jnp.concatenate([out["cls_BxVxD"], *([out["local_BxLxD"]] if "local_BxLxD" in out else [])], 1)
    num_crops = x_BxSxD.shape[1]
    pairs_SxV = jnp.ones((num_crops, NUM_GLOBALS)).at[:NUM_GLOBALS].set(1 - jnp.eye(NUM_GLOBALS))
    weight_BxSxV = jnp.where(crops.mask_B[:, None, None], pairs_SxV[None], 0.0)
    rows = HeadRows(
        student=heads.bottleneck(student[DINO_HEAD], x_BxSxD, dtype),
        teacher=heads.bottleneck(teacher[DINO_HEAD], taught["cls_BxVxD"], dtype),
        weight=weight_BxSxV,
        is_row=crops.mask_B,
    )
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // group, group, *x.shape[1:]), rows)


def _ibot_rows(
    student: Any,
    teacher: Any,
    out: Mapping,
    taught: Mapping,
    crops: Crops,
    group: int,
    num_masked: int,
    dtype: Any,
) -> HeadRows:
    """Rows of masked patches, each weighted by 1 / (masked patches of its crop)."""
    is_masked_BxVxP = crops.is_masked_BxVxP & crops.mask_B[:, None, None]
    weight_BxVxP = is_masked_BxVxP / jnp.maximum(is_masked_BxVxP.sum(axis=-1, keepdims=True), 1)

    def grouped(x_BxVxPx: jax.Array) -> jax.Array:
        return x_BxVxPx.reshape(x_BxVxPx.shape[0] // group, -1, *x_BxVxPx.shape[3:])

    index_GxM, is_row_GxM = _places(grouped(is_masked_BxVxP), num_masked)

    def take(x_BxVxPx: jax.Array) -> jax.Array:
        x = grouped(x_BxVxPx)
        index = index_GxM.reshape(*index_GxM.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    def vectors(params: Any, found: Mapping) -> jax.Array:
        return heads.bottleneck(ibot_head(params), take(found["patches_BxVxPxD"]), dtype)[:, :, None]

    return HeadRows(
        student=vectors(student, out),
        teacher=vectors(teacher, taught),
        weight=jnp.where(is_row_GxM, take(weight_BxVxP), 0.0)[..., None, None],
        is_row=is_row_GxM,
    )


def _places(is_masked_GxN: jax.Array, num_masked: int) -> tuple[jax.Array, jax.Array]:
    """(index_GxM of the masked patches of each group in order, padded with 0, is_row_GxM: False for padding).

    Counted, not sorted: a TPU's compiler takes half a minute for a sort of this length.
    """
    groups, length = is_masked_GxN.shape
    target_GxN = jnp.where(is_masked_GxN, jnp.cumsum(is_masked_GxN, axis=1) - 1, num_masked)
    zeros_GxM = jnp.zeros((groups, num_masked), jnp.int32)
    index_GxM = zeros_GxM.at[jnp.arange(groups)[:, None], target_GxN].set(
        jnp.arange(length, dtype=jnp.int32), mode="drop"
    )
    return index_GxM, jnp.arange(num_masked)[None] < is_masked_GxN.sum(axis=1, keepdims=True)


def _koleo(cls_BxVxD: jax.Array, mask_B: jax.Array, group: int) -> jax.Array:
    """The sum over views of the mean over images of KoLeo, within groups of images of one view."""
    x_BxVxD = heads.unit(cls_BxVxD.astype(jnp.float32), losses.KOLEO_EPS)
    batch, views, width = x_BxVxD.shape
    x_GxVxIxD = x_BxVxD.reshape(batch // group, group, views, width).swapaxes(1, 2)
    is_row_GxVxI = jnp.broadcast_to(mask_B.reshape(-1, 1, group), x_GxVxIxD.shape[:3])
    flat = losses.koleo(x_GxVxIxD.reshape(-1, group, width), is_row_GxVxI.reshape(-1, group))
    return flat.sum() / jnp.maximum(mask_B.sum(), 1)


def _monitors(stats: Mapping[str, jax.Array], cls_BxVxD: jax.Array, mask_B: jax.Array) -> dict[str, Any]:
    count = jnp.maximum(stats["count"], 1)
    use_Z = stats["use_Z"] / count
    used = jnp.exp(-jnp.where(use_Z > 0, use_Z * jnp.log(jnp.where(use_Z > 0, use_Z, 1.0)), 0.0).sum())
    x_BxVxD = heads.unit(cls_BxVxD.astype(jnp.float32))
    weight_Bx1x1 = mask_B[:, None, None] / (jnp.maximum(mask_B.sum(), 1) * NUM_GLOBALS)
    mean_D = (weight_Bx1x1 * x_BxVxD).sum(axis=(0, 1))
    variance_D = (weight_Bx1x1 * jnp.square(x_BxVxD - mean_D[None, None])).sum(axis=(0, 1))
    return {
        "teacher_entropy": stats["entropy"] / count,
        "prototypes_used": used,
        "feature_std": jnp.sqrt(variance_D).mean(),
    }
