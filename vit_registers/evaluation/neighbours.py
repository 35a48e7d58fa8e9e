"""Weighted k-nearest-neighbour classification of frozen features, as in the code of DINO and DINOv2.

The bank, which holds the features of the training images, stays on the devices, split over all of them.
Axis letters beside those of models/tokens.py: Q queries, S shards of the bank, M rows of a shard,
J neighbours.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vit_registers.data.prefetch import in_turn

TEMPERATURE = 0.07
MOST_NEIGHBOURS = 200  # the softmax is over as many, whatever the number that votes


class Bank(NamedTuple):
    """Unit features SxMxD with their labels; label -1 for padding, which is no neighbour."""

    x_SxMxD: jax.Array
    label_SxM: jax.Array


def unit_features(x_BxD: jax.Array) -> jax.Array:
    """x / |x|, float32; zero where |x| is 0."""
    x_BxD = x_BxD.astype(jnp.float32)
    norm_Bx1 = jnp.linalg.norm(x_BxD, axis=-1, keepdims=True)
    is_zero_Bx1 = norm_Bx1 == 0  # NaN stays
    return jnp.where(is_zero_Bx1, 0.0, x_BxD / jnp.where(is_zero_Bx1, 1.0, norm_Bx1))


def make_bank(
    batches: Iterable[tuple[jax.Array, jax.Array, jax.Array]], mesh: jax.sharding.Mesh
) -> tuple[Bank, int]:
    """(bank, the number of rows left out) of batches (x_BxD, label_B, mask_B), on the devices of `mesh`.

    Batches are split over the axes data and fsdp, and no row moves between devices. Rows that are not finite
    are left out and counted.
    """
    axes = ("data", "fsdp")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    layout = NamedSharding(mesh, PartitionSpec(axes))

    @functools.partial(jax.jit, out_shardings=(layout, layout, NamedSharding(mesh, PartitionSpec())))
    def add(x_BxD: jax.Array, label_B: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, ...]:
        x_BxD = unit_features(x_BxD)
        is_finite_B = jnp.isfinite(x_BxD).all(axis=-1)
        label_B = jnp.where(mask_B & is_finite_B, label_B, -1)
        x_BxD = jnp.where(is_finite_B[:, None], x_BxD, 0.0)
        left_out = (mask_B & ~is_finite_B).sum()
        return x_BxD.reshape(shards, -1, x_BxD.shape[-1]), label_B.reshape(shards, -1), left_out

    parts = [*in_turn(add(*batch) for batch in batches)]
    join = jax.jit(lambda arrays: jnp.concatenate(arrays, axis=1), out_shardings=layout)
    x, label, left_out = zip(*parts, strict=True)
    return Bank(join(list(x)), join(list(label))), int(sum(map(int, jax.device_get(list(left_out)))))


def nearest_rows(bank: Bank, query_QxD: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """(similarities, labels), both QxJ, of the `number` nearest rows of the bank, the nearest first.

    `query_QxD` are unit vectors. Each shard selects its own nearest rows, and only these are compared over
    devices. Where the bank has fewer rows, the rest has label -1 and similarity -inf.
    """
    similarity_QxSxM = jnp.einsum("qd,smd->qsm", query_QxD, bank.x_SxMxD, precision=jax.lax.Precision.HIGHEST)
    similarity_QxSxM = jnp.where((bank.label_SxM >= 0)[None], similarity_QxSxM, -jnp.inf)
    best_QxSxJ, row_QxSxJ = jax.lax.top_k(similarity_QxSxM, min(number, bank.x_SxMxD.shape[1]))
    label_QxSxJ = jnp.take_along_axis(bank.label_SxM[None], row_QxSxJ, axis=2)
    best_QxN = best_QxSxJ.reshape(len(query_QxD), -1)
    best_QxJ, place_QxJ = jax.lax.top_k(best_QxN, min(number, best_QxN.shape[1]))
    label_QxJ = jnp.take_along_axis(label_QxSxJ.reshape(best_QxN.shape), place_QxJ, axis=1)
    return best_QxJ, label_QxJ


def votes(
    similarity_QxJ: jax.Array,
    label_QxJ: jax.Array,
    *,
    num_classes: int,
    numbers: Sequence[int],
    temperature: float = TEMPERATURE,
) -> list[jax.Array]:
    """The votes QxY of the first k neighbours, for each k of `numbers`.

    A neighbour votes with softmax(similarity / T) over all J neighbours that are given, so the votes of the
    first k do not sum to 1.
    """
    weight_QxJ = jax.nn.softmax(similarity_QxJ / temperature, axis=-1)
    label_QxJxY = jax.nn.one_hot(label_QxJ, num_classes)  # zero for label -1
    # One class per neighbour: sums over neighbours, up to each k.
    return [jnp.einsum("qj,qjy->qy", weight_QxJ[:, :k], label_QxJxY[:, :k]) for k in numbers]
