"""Attention that leaves out most of what a mask with structure forbids. The structure is found in the mask.

Rows of the mask are cut into runs of rows that are alike. The keys that most of a run sees are one dense
product; what else a row sees is gathered for it, row by row. In a fractal mask, patches see each other, cls
and registers densely, and gather their summaries. The two are joined by the sums of their exponentials.

It saves FLOPs, not yet time: attention_auto.py says what was measured.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.models.attention.xla import attend_with_log_sum, attend_xla

_GATHERED_COST = 4  # of a pair whose key is gathered, in pairs of a dense product; a guess
_RUN_COST = 1 / 32  # of one more run of rows, as a part of all pairs; a guess
_MAX_CUTS = 15


@dataclasses.dataclass(frozen=True)
class Run:
    """Rows from `start` to `stop` of the mask and the keys that they are multiplied with."""

    start: int
    stop: int
    keys: np.ndarray  # ascending; of the dense product
    gathered_RxM: np.ndarray  # key of each row's further pairs; 0 where the row has fewer than M
    is_gathered_RxM: np.ndarray

    @property
    def num_pairs(self) -> int:
        """Pairs of query and key that are computed."""
        return (self.stop - self.start) * (len(self.keys) + self.gathered_RxM.shape[1])


def runs(mask_TxS: np.ndarray) -> tuple[Run, ...]:
    """The runs of rows that cover the mask at least cost: one, with all keys, where there is no structure."""
    return _runs(mask_TxS.tobytes(), mask_TxS.shape)


@functools.lru_cache(maxsize=32)
def _runs(mask: bytes, shape: tuple[int, int]) -> tuple[Run, ...]:
    mask_TxS = np.frombuffer(mask, bool).reshape(shape)
    num_rows, num_keys = shape
    changes = (mask_TxS[1:] != mask_TxS[:-1]).sum(axis=1)
    inner = np.sort(np.argsort(-changes, kind="stable")[:_MAX_CUTS]) + 1
    cuts = [0, *(int(cut) for cut in inner if changes[cut - 1]), num_rows]
    best: list[tuple[float, tuple[Run, ...]]] = [(0.0, ())]
    for j, stop in enumerate(cuts[1:], 1):
        options = []
        for start, (cost_before, before) in zip(cuts[:j], best, strict=True):
            cost, run = _run(mask_TxS, start, stop)
            options.append((cost_before + cost + _RUN_COST * num_rows * num_keys, (*before, run)))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def _run(mask_TxS: np.ndarray, start: int, stop: int) -> tuple[float, Run]:
    """(cost, run) with the split of keys into dense and gathered that costs least."""
    rows_RxS = mask_TxS[start:stop]
    num_rows, num_keys = rows_RxS.shape
    order = np.argsort(-rows_RxS.sum(axis=0), kind="stable")  # keys, those that most rows see first
    seen_RxS = np.cumsum(rows_RxS[:, order], axis=1)
    left = (seen_RxS[:, -1:] - seen_RxS).max(axis=0)  # to gather, with 1 .. S of them dense
    left = np.concatenate([rows_RxS.sum(axis=1).max(keepdims=True), left])
    cost = np.arange(num_keys + 1) + _GATHERED_COST * left
    num_dense = int(cost.argmin())
    keys = np.sort(order[:num_dense])
    rest_RxS = rows_RxS.copy()
    rest_RxS[:, keys] = False
    gathered_RxM = np.argsort(~rest_RxS, axis=1, kind="stable")[:, : left[num_dense]]
    is_gathered_RxM = np.take_along_axis(rest_RxS, gathered_RxM, axis=1)
    run = Run(start, stop, keys, np.where(is_gathered_RxM, gathered_RxM, 0), is_gathered_RxM)
    return float(num_rows * cost[num_dense]), run


def num_pairs(mask_TxS: np.ndarray) -> int:
    """Pairs of query and key that `attend_structured` computes, of T * S: 4 K FLOPs each, a head, forward."""
    return sum(run.num_pairs for run in runs(mask_TxS))


def attend_structured(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v, by runs of the mask's rows.

    Without a mask, or with one that has no structure, there is one run, and it is attention in plain XLA.
    """
    if mask_TxT is None:
        return attend_xla(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT=bias_NxTxT)
    outs = []
    for run in runs(mask_TxT):
        rows = slice(run.start, run.stop)
        bias_NxRxT = None if bias_NxTxT is None else bias_NxTxT[:, rows]
        outs.append(_attend_run(q_BxTxNxK[:, rows], k_BxTxNxK, v_BxTxNxK, run, mask_TxT[rows], bias_NxRxT))
    return jnp.concatenate(outs, axis=1)


def _attend_run(
    q_BxRxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    run: Run,
    mask_RxT: np.ndarray,
    bias_NxRxT: np.ndarray | None,
) -> jax.Array:
    parts = []
    if len(run.keys):
        mask_RxS = mask_RxT[:, run.keys]
        part = attend_with_log_sum(
            q_BxRxNxK,
            _take(k_BxTxNxK, run.keys),
            _take(v_BxTxNxK, run.keys),
            mask_TxS=None if mask_RxS.all() else mask_RxS,
            bias_NxTxS=None if bias_NxRxT is None else bias_NxRxT[:, :, run.keys],
        )
        parts.append(part)
    if run.gathered_RxM.shape[1]:
        bias_NxRxM = None
        if bias_NxRxT is not None:
            bias_NxRxM = np.take_along_axis(bias_NxRxT, run.gathered_RxM[None], axis=2)
        # The gathered keys and values are M times as large as the queries: gathered again, not kept.
        gathered = jax.checkpoint(functools.partial(_attend_gathered, run=run, bias_NxRxM=bias_NxRxM))
        parts.append(gathered(q_BxRxNxK, k_BxTxNxK, v_BxTxNxK))
    if len(parts) == 1:
        return parts[0][0].astype(v_BxTxNxK.dtype)
    (out1, log_sum1), (out2, log_sum2) = parts
    log_sum_BxNxR = jnp.logaddexp(log_sum1, log_sum2)
    shares = (jnp.exp(one - log_sum_BxNxR).swapaxes(1, 2)[..., None] for one in (log_sum1, log_sum2))
    return sum(out * share for out, share in zip((out1, out2), shares, strict=True)).astype(v_BxTxNxK.dtype)


def _take(x_BxTxNxK: jax.Array, keys: np.ndarray) -> jax.Array:
    """x at `keys`, as slices: XLA's gathers, and the scatters that are their gradients, are slow."""
    pieces = np.split(keys, np.flatnonzero(np.diff(keys) != 1) + 1)
    return jnp.concatenate([x_BxTxNxK[:, piece[0] : piece[-1] + 1] for piece in pieces], axis=1)


def _attend_gathered(
    q_BxRxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    run: Run,
    bias_NxRxM: np.ndarray | None,
) -> tuple[jax.Array, jax.Array]:
    """(out_BxRxNxK, log_sum_BxNxR), both float32, of each row with its own M keys.

    A row that has none gets the mean of some values, and a log sum so low that it counts for nothing.
    """
    products = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # In float32, as the gradient of a token that many rows gather is their sum. One gather for both.
    both_BxTxNx2K = jnp.concatenate([k_BxTxNxK, v_BxTxNxK], axis=-1).astype(jnp.float32)
    both_BxRxMxNx2K = both_BxTxNx2K[:, jnp.asarray(run.gathered_RxM)]
    k_BxRxMxNxK, v_BxRxMxNxK = jnp.split(both_BxRxMxNx2K, 2, axis=-1)
    logits_BxNxRxM = products("brnk,brmnk->bnrm", q_BxRxNxK, k_BxRxMxNxK)
    logits_BxNxRxM *= q_BxRxNxK.shape[-1] ** -0.5
    if bias_NxRxM is not None:
        logits_BxNxRxM += jnp.asarray(bias_NxRxM)[None]
    mask_1x1xRxM = jnp.asarray(run.is_gathered_RxM)[None, None]
    logits_BxNxRxM = jnp.where(mask_1x1xRxM, logits_BxNxRxM, jnp.finfo(jnp.float32).min)
    log_sum_BxNxR = jax.nn.logsumexp(logits_BxNxRxM, axis=-1)
    weights_BxNxRxM = jnp.exp(logits_BxNxRxM - log_sum_BxNxR[..., None])
    return products("bnrm,brmnk->brnk", weights_BxNxRxM, v_BxRxMxNxK), log_sum_BxNxR
