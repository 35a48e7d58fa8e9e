"""Drop path: residual branches that are left out for some examples in training."""

import jax
import jax.numpy as jnp

from vit_registers.config import Model


def drop_rates(model: Model, depth: int) -> list[float]:
    """The drop path rate of each of `depth` blocks."""
    if model.drop_path_schedule == "constant":
        return [model.drop_path] * depth
    return [model.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def drop_path(x_BxTxD: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """x with each example set to 0 with probability `rate`, and divided by 1 - rate otherwise.

    Stochastic depth, arXiv:1603.09382. Without a key, and at rate 0, x exactly. The rate may be an array,
    whose value is not known during tracing.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x_BxTxD
    is_kept_Bx1x1 = jax.random.bernoulli(key, 1.0 - rate, (x_BxTxD.shape[0], 1, 1))
    share = jnp.asarray(1.0 - rate, x_BxTxD.dtype)
    return jnp.where(is_kept_Bx1x1, x_BxTxD / share, jnp.zeros((), x_BxTxD.dtype))
