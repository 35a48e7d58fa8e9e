"""The blocks of a model in sequence: unrolled or as one loop, with or without rematerialisation."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers.config import Model, lookup
from vit_registers.models.blocks import BLOCK_TAPS, DTYPES, REMAT, Block
from vit_registers.models.cls_role import num_held_blocks
from vit_registers.models.drop_path import drop_rates
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.partition import gathered, in_compute_dtype, shard_batch, stacked
from vit_registers.models.rotary import Rotation

Taps = dict[str, tuple[jax.Array, ...]]

# Back ends that pad an odd number of tokens in every block. One more token in all of the blocks costs less.
_EVEN = ("cudnn",)


def ready(module: nnx.Module, name: str, dtype: jnp.dtype) -> nnx.Module:
    """The module at path `name` of a model, with its weights gathered over fsdp, kernels in `dtype`."""
    graphdef, params = _split(module)
    return nnx.merge(graphdef, gathered(params, dtype, prefix=f"{name}/"))


def run_blocks(
    model: Model,
    blocks: Sequence[Block],
    resid_BxTxD: jax.Array,
    *,
    mask_TxT: np.ndarray | None,
    bias_NxTxT: np.ndarray | None,
    drop_key: jax.Array | None,
    drop_group: int | None,
    edits: Edits,
    rotation: Rotation | None = None,
    is_cls_1xTx1: np.ndarray | None = None,
) -> Taps:
    """The taps "resid" (depth + 1) and BLOCK_TAPS (depth each) of a model's blocks; see vit.Outputs.

    Weights that are split over fsdp are gathered block by block, inside the part that model.remat computes
    again. With model.use_scan the blocks are one loop of the compiled program, except with edits: these
    depend on the index of a block during tracing, and require unrolled blocks. `is_cls_1xTx1` is that
    of cls_role.cls_rows.
    """
    num_tokens = resid_BxTxD.shape[1]
    is_padded = model.attention in _EVEN and num_tokens % 2 == 1 and edits == NO_EDITS
    if is_padded:
        resid_BxTxD = jnp.pad(resid_BxTxD, [(0, 0), (0, 1), (0, 0)])
        mask_TxT, bias_NxTxT = _with_unseen(mask_TxT, bias_NxTxT, num_tokens)
        rotation = None if rotation is None else rotation.with_unseen()
        if is_cls_1xTx1 is not None:
            is_cls_1xTx1 = np.pad(is_cls_1xTx1, [(0, 0), (0, 1), (0, 0)])
    constants = {
        "mask_TxT": mask_TxT,
        "bias_NxTxT": bias_NxTxT,
        "drop_group": drop_group,
        "rotation": rotation,
    }
    if not model.has_cls_skip:
        constants["no_skip_1xTx1"] = is_cls_1xTx1
    held = [] if is_cls_1xTx1 is None else [is_cls_1xTx1] * num_held_blocks(model, len(blocks))
    if model.use_scan and len(blocks) > 1 and edits == NO_EDITS:
        taps = _scan(model, blocks, resid_BxTxD, constants, drop_key, held)
    else:
        taps = _unrolled(model, blocks, resid_BxTxD, constants, drop_key, edits, held)
    if is_padded:
        taps = {name: tuple(value[:, :num_tokens] for value in values) for name, values in taps.items()}
    return taps


def _with_unseen(
    mask_TxT: np.ndarray | None, bias_NxTxT: np.ndarray | None, num_tokens: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask and bias for one more token, which no token sees, and which sees all others."""
    if mask_TxT is None:
        mask_TxT = np.ones((num_tokens, num_tokens), bool)
    mask_TxT = np.pad(np.pad(mask_TxT, [(0, 1), (0, 0)], constant_values=True), [(0, 0), (0, 1)])
    if bias_NxTxT is not None:
        bias_NxTxT = np.pad(bias_NxTxT, [(0, 0), (0, 1), (0, 1)])
    return mask_TxT, bias_NxTxT


def _unrolled(
    model: Model,
    blocks: Sequence[Block],
    resid_BxTxD: jax.Array,
    constants: dict[str, Any],
    drop_key: jax.Array | None,
    edits: Edits,
    held: Sequence[np.ndarray],
) -> Taps:
    policy = lookup(REMAT, model.remat, "model.remat")
    taps: dict[str, list[jax.Array]] = {name: [] for name in ("resid", *BLOCK_TAPS)}
    taps["resid"].append(shard_batch(edits.resid(0, resid_BxTxD)))
    for i, (block, rate) in enumerate(zip(blocks, drop_rates(model, len(blocks)), strict=True)):
        graphdef, params = _split(block)
        apply = functools.partial(
            _apply, graphdef, DTYPES[model.dtype], **constants, drop_rate=rate, index=i, edits=edits
        )
        if i < len(held):
            apply = functools.partial(apply, held_1xTx1=held[i])
        if policy is not None:
            apply = jax.checkpoint(apply, policy=policy)
        key = None if drop_key is None else jax.random.fold_in(drop_key, i)
        resid_BxTxD, inner = apply(params, taps["resid"][-1], drop_key=key)
        taps["resid"].append(shard_batch(edits.resid(i + 1, resid_BxTxD)))
        for name, value in inner.items():
            taps[name].append(value)
    return {name: tuple(values) for name, values in taps.items()}


def _scan(
    model: Model,
    blocks: Sequence[Block],
    resid_BxTxD: jax.Array,
    constants: dict[str, Any],
    drop_key: jax.Array | None,
    held: Sequence[np.ndarray],
) -> Taps:
    """The same values as run_blocks, from a loop over the blocks' parameters, which each call stacks."""
    depth, dtype, rates = len(blocks), DTYPES[model.dtype], drop_rates(model, len(blocks))
    apply = functools.partial(_apply, _split(blocks[0])[0], dtype, **constants)
    if constants["drop_group"] is not None:  # the number of kept examples is known during tracing
        apply = functools.partial(apply, drop_rate=rates[0])
    policy = lookup(REMAT, model.remat, "model.remat")
    if policy is not None:
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=False)  # in a loop there is nothing to merge
    # Stacked in the compute dtype: with bfloat16, the copy of the weights takes half the memory.
    params = stacked([in_compute_dtype(_split(block)[1], dtype) for block in blocks])
    each: dict[str, Any] = {"drop_key": None, "drop_rate": jnp.zeros(depth, jnp.float32)}
    if drop_key is not None and any(rates):
        each["drop_key"] = jax.vmap(functools.partial(jax.random.fold_in, drop_key))(jnp.arange(depth))
        each["drop_rate"] = jnp.asarray(rates, jnp.float32)
    if constants["drop_group"] is not None:
        del each["drop_rate"]
    if held:
        free = [np.zeros_like(held[0])] * (depth - len(held))
        each["held_1xTx1"] = jnp.asarray(np.stack([*held, *free]))

    def body(resid_BxTxD: jax.Array, inputs: tuple[Any, dict[str, Any]]) -> tuple[jax.Array, dict[str, Any]]:
        params, each = inputs
        resid_BxTxD, inner = apply(params, resid_BxTxD, **each)
        resid_BxTxD = shard_batch(resid_BxTxD)
        return resid_BxTxD, {"resid": resid_BxTxD} | inner

    first_BxTxD = shard_batch(resid_BxTxD)
    last_BxTxD, left = jax.lax.scan(body, first_BxTxD, (params, each))
    taps = {name: tuple(values[i] for i in range(depth)) for name, values in left.items()}
    return taps | {"resid": (first_BxTxD, *taps["resid"][:-1], last_BxTxD)}


def _apply(
    graphdef: nnx.GraphDef,
    dtype: jnp.dtype,
    params: Any,
    resid_BxTxD: jax.Array,
    *,
    mask_TxT: np.ndarray | None,
    bias_NxTxT: np.ndarray | None,
    drop_key: jax.Array | None,
    drop_rate: float | jax.Array,
    drop_group: int | None,
    rotation: Rotation | None,
    index: int = 0,
    edits: Edits = NO_EDITS,
    no_skip_1xTx1: np.ndarray | None = None,
    held_1xTx1: np.ndarray | jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(output, taps) of the block with those parameters, which are gathered only inside this function.

    Tokens in `held_1xTx1` leave the block as they enter it, in the output and in the tap "middle".
    """
    block = nnx.merge(graphdef, gathered(params, dtype))
    out_BxTxD, inner = block(
        resid_BxTxD,
        mask_TxT,
        bias_NxTxT,
        drop_key,
        drop_rate=drop_rate,
        drop_group=drop_group,
        index=index,
        edits=edits,
        rotation=rotation,
        no_skip_1xTx1=no_skip_1xTx1,
    )
    if held_1xTx1 is None:
        return out_BxTxD, inner
    middle_BxTxD = jnp.where(held_1xTx1, resid_BxTxD, inner["middle"])
    return jnp.where(held_1xTx1, resid_BxTxD, out_BxTxD), inner | {"middle": middle_BxTxD}


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    graphdef, params = nnx.split(module, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)
