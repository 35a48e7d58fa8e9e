"""The projection to q, k and v: as one product or, on a GPU, as three, it is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.models.attention import api


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-6)])
def test_three_products_are_the_one(use_bias, dtype, tolerance, monkeypatch):
    qkv = nnx.LinearGeneral(16, (3, 2, 8), use_bias=use_bias, dtype=dtype, rngs=nnx.Rngs(0))
    if use_bias:
        qkv.bias.set_value(jax.random.normal(jax.random.key(2), (3, 2, 8)))
    x_BxTxD = jax.random.normal(jax.random.key(1), (2, 5, 16))
    graphdef, params = nnx.split(qkv)

    def loss(params, x_BxTxD):
        parts = api.project(nnx.merge(graphdef, params), x_BxTxD, "xla")
        assert [part.shape for part in parts] == [(2, 5, 2, 8)] * 3
        return sum((i + 1) * jnp.sin(part.astype(jnp.float32)).sum() for i, part in enumerate(parts)), parts

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    one = step(params, x_BxTxD)
    monkeypatch.setattr(api, "platform", lambda: "gpu")
    three = step(params, x_BxTxD)
    pairs = [*zip(one[0][1], three[0][1], strict=True)]
    assert all(a.dtype == b.dtype == dtype for a, b in pairs)
    pairs += zip(jax.tree.leaves(one[1]), jax.tree.leaves(three[1]), strict=True)
    for a, b in pairs:
        a, b = np.float64(a), np.float64(b)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
