"""Interventions in a forward pass: patches are removed, neurons moved, keys added."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.digests import bytes_digest
from vit_registers.models.edits import Edits, append_key
from vit_registers.models.tokens import TokenLayout

Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """An edit of a model and its arguments. Interventions with the same `edits` are compiled once.

    `values` are for all images, `rows` have a row for each image. `num_registers` zero registers are added to
    the model first; `edits` gets the layout with them.
    """

    name: str
    edits: Callable[[Arrays, Arrays, TokenLayout], Edits]
    values: Mapping[str, np.ndarray | np.generic]
    rows: Mapping[str, np.ndarray]
    num_registers: int = 0

    def rows_of(self, batch: slice) -> dict[str, np.ndarray]:
        """The rows of a batch, padded with zeros after the last image."""
        parts = {name: array[batch] for name, array in self.rows.items()}
        size = batch.stop - batch.start
        return {
            name: np.pad(part, [(0, size - len(part)), *[(0, 0)] * (part.ndim - 1)])
            for name, part in parts.items()
        }

    def provenance(self) -> dict[str, Any]:
        """The name of its edits, the number of registers, and digests of its arrays."""
        digests = {name: _digest(array) for name, array in {**self.values, **self.rows}.items()}
        return {"edits": self.edits.__name__, "num_registers": self.num_registers, **digests}


def _digest(array: np.ndarray | np.generic) -> str:
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    return bytes_digest(head + array.tobytes())[:16]


def nothing(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """No edits: for features that require a row for each image."""
    return Edits()


NO_INTERVENTION = Intervention(name="nothing", edits=nothing, values={}, rows={})


def shuffle_patches(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """Moves patches to other places, before positions are added.

    rows: `order_BxP`, the patch that each place shows.
    """

    def edit(patches_BxPxD: jax.Array) -> jax.Array:
        return jnp.take_along_axis(patches_BxPxD, rows["order_BxP"][..., None], axis=1)

    return Edits(patches=edit)


def replace_tokens(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """Removes patches from the input of a block, or, with block = depth, of the final norm.

    values: `block`; `use_mean`, whether they become the mean of the image's other patches, else zero.
    rows: `is_chosen_BxP`.
    """

    def edit(block: int, resid_BxTxD: jax.Array) -> jax.Array:
        patches_BxPxD = resid_BxTxD[:, layout.patches].astype(jnp.float32)
        is_chosen_BxPx1 = rows["is_chosen_BxP"][..., None]
        others = jnp.maximum((~is_chosen_BxPx1).sum(1, keepdims=True), 1)
        mean_Bx1xD = jnp.where(is_chosen_BxPx1, 0.0, patches_BxPxD).sum(1, keepdims=True) / others
        instead_Bx1xD = jnp.where(values["use_mean"], mean_Bx1xD, 0.0)
        is_changed = is_chosen_BxPx1 & (values["block"] == block)
        changed_BxPxD = jnp.where(is_changed, instead_Bx1xD, patches_BxPxD)
        return resid_BxTxD.at[:, layout.patches].set(changed_BxPxD.astype(resid_BxTxD.dtype))

    return Edits(resid=edit)


def remove_above(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """Replaces patches with norms above a threshold by the mean of the image's other patches.

    values: `threshold`; `first`, the block before which they are replaced, as before all later ones and after
    the last. An image in which all patches are above it gets zeros.
    """

    def edit(block: int, resid_BxTxD: jax.Array) -> jax.Array:
        patches_BxPxD = resid_BxTxD[:, layout.patches].astype(jnp.float32)
        is_above_BxPx1 = jnp.linalg.norm(patches_BxPxD, axis=-1, keepdims=True) > values["threshold"]
        others = jnp.maximum((~is_above_BxPx1).sum(1, keepdims=True), 1)
        mean_Bx1xD = jnp.where(is_above_BxPx1, 0.0, patches_BxPxD).sum(1, keepdims=True) / others
        changed_BxPxD = jnp.where(is_above_BxPx1 & (values["first"] <= block), mean_Bx1xD, patches_BxPxD)
        return resid_BxTxD.at[:, layout.patches].set(changed_BxPxD.astype(resid_BxTxD.dtype))

    return Edits(resid=edit)


def move_neurons(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """Moves the activations of some neurons from all tokens to the targets (arXiv:2506.08010, algorithm 2).

    values: `is_neuron_LxF`; `use_layer_max`: if False, as in the paper, a target gets the largest activation
    of each neuron over the tokens, and all others get zero; if True, as in the released code, it gets the
    activation of largest size, with its sign, over the tokens and all chosen neurons of the block, and cls
    keeps its activations. `num_added` registers enter the first block as `start_D`, or as the mean patch of
    the image if `use_mean_start` is True.
    rows: `is_target_BxT`; without targets the neurons are silent.
    """

    def hidden(block: int, hidden_BxTxF: jax.Array) -> jax.Array:
        is_neuron_1x1xF = values["is_neuron_LxF"][block][None, None]
        is_target_BxTx1 = rows["is_target_BxT"][..., None]
        largest_Bx1xF = hidden_BxTxF.max(1, keepdims=True)
        chosen = jnp.where(is_neuron_1x1xF, hidden_BxTxF, 0.0)
        top, bottom = chosen.max((1, 2), keepdims=True), chosen.min((1, 2), keepdims=True)
        signed_Bx1x1 = jnp.where(top >= -bottom, top, bottom)
        given = jnp.where(values["use_layer_max"], signed_Bx1x1, largest_Bx1xF)
        is_cls_1xTx1 = (jnp.arange(hidden_BxTxF.shape[1]) < layout.cls.stop)[None, :, None]
        others = jnp.where(values["use_layer_max"] & is_cls_1xTx1, hidden_BxTxF, 0.0)
        moved = jnp.where(is_target_BxTx1, given, others)
        return jnp.where(is_neuron_1x1xF, moved, hidden_BxTxF).astype(hidden_BxTxF.dtype)

    return Edits(resid=_begin_registers(values, layout), hidden=hidden)


def _begin_registers(values: Arrays, layout: TokenLayout) -> Callable[[int, jax.Array], jax.Array]:
    """Sets the values with which the added registers, the last `num_added`, enter the first block."""

    def edit(block: int, resid_BxTxD: jax.Array) -> jax.Array:
        if block:
            return resid_BxTxD
        mean_Bx1xD = resid_BxTxD[:, layout.patches].astype(jnp.float32).mean(1, keepdims=True)
        start_Bx1xD = jnp.where(values["use_mean_start"], mean_Bx1xD, values["start_D"][None, None])
        token_1xTx1 = jnp.arange(layout.num_tokens)[None, :, None]
        first, stop = layout.registers.stop - values["num_added"], layout.registers.stop
        is_added = (token_1xTx1 >= first) & (token_1xTx1 < stop)
        return jnp.where(is_added, start_Bx1xD, resid_BxTxD).astype(resid_BxTxD.dtype)

    return edit


def add_key(values: Arrays, rows: Arrays, layout: TokenLayout) -> Edits:
    """Silences neurons, and adds one key and value for all queries (arXiv:2506.08010, section A.2).

    values: `is_neuron_LxF`; `key_LxNxK` and `value_LxNxK` of each block.
    """

    def hidden(block: int, hidden_BxTxF: jax.Array) -> jax.Array:
        return jnp.where(values["is_neuron_LxF"][block][None, None], 0.0, hidden_BxTxF)

    def keys_values(block: int, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return append_key(k, v, values["key_LxNxK"][block], values["value_LxNxK"][block])

    return Edits(hidden=hidden, keys_values=keys_values)
