"""Every attention back end against a float64 reference, and what masks and biases must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.models.attention import BACKENDS, attend_xla, attention_weights

B, T, N, K = 2, 9, 3, 8


def inputs(dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(0)
    q, k, v = (scale * rng.normal(size=(B, T, N, K)).astype(dtype) for _ in range(3))
    mask_TxT = rng.random((T, T)) < 0.5
    np.fill_diagonal(mask_TxT, True)
    bias_NxTxT = rng.normal(size=(N, T, T)).astype(dtype)
    return q, k, v, mask_TxT, bias_NxTxT


def reference(q, k, v, mask_TxT=None, bias_NxTxT=None):
    """The definition in float64, example by example, head by head, query by query."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(len(q), q.shape[1], q.shape[2]):
        logits = k[b, :, n].astype(np.float64) @ q[b, t, n].astype(np.float64) / np.sqrt(q.shape[-1])
        if bias_NxTxT is not None:
            logits += bias_NxTxT[n, t]
        weights = np.exp(logits - logits.max())
        if mask_TxT is not None:
            weights *= mask_TxT[t]
        out[b, t, n] = weights / weights.sum() @ v[b, :, n].astype(np.float64)
    return out


@pytest.fixture(params=["plain", "mask", "bias", "mask and bias"])
def case(request):
    q, k, v, mask_TxT, bias_NxTxT = inputs()
    return (q, k, v), {
        "mask_TxT": mask_TxT if "mask" in request.param else None,
        "bias_NxTxT": bias_NxTxT if "bias" in request.param else None,
    }


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_back_ends_equal_the_float64_reference(backend, case):
    qkv, extra = case
    out = jax.jit(lambda q, k, v: BACKENDS[backend](q, k, v, **extra))(*qkv)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(*qkv, **extra), atol=2e-6)


def test_xla_equals_the_attention_of_jax(case):
    qkv, extra = case
    mask_TxT, bias_NxTxT = extra["mask_TxT"], extra["bias_NxTxT"]
    theirs = jax.nn.dot_product_attention(
        *map(jnp.asarray, qkv),
        mask=None if mask_TxT is None else jnp.asarray(mask_TxT)[None, None],
        bias=None if bias_NxTxT is None else jnp.asarray(bias_NxTxT)[None],
    )
    np.testing.assert_allclose(attend_xla(*qkv, **extra), theirs, atol=2e-6)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_stays_bfloat16_and_close(backend, case):
    qkv, extra = case
    halves = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    out = BACKENDS[backend](*halves, **extra)
    assert out.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float32) for x in halves), **extra)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.03)


def test_weights_are_float32_rows_that_sum_to_1_and_are_0_exactly_where_masked():
    q, k, _, mask_TxT, bias_NxTxT = inputs(scale=20.0)
    halves = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)
    weights = np.asarray(attention_weights(*halves, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT))
    assert weights.shape == (B, N, T, T)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
    assert not weights[:, :, ~mask_TxT].any()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_masked_pair_has_exactly_zero_gradient_and_an_allowed_one_does_not(backend):
    q, k, v, mask_TxT, bias_NxTxT = inputs()

    def outputs_T(k_T, v_T):  # of head 0 of example 0, summed over K
        keys, values = k.at[0, :, 0].set(k_T), v.at[0, :, 0].set(v_T)
        out = BACKENDS[backend](q, keys, values, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
        return out[0, :, 0].sum(axis=-1)

    q, k, v = map(jnp.asarray, (q, k, v))
    for gradient_TxTxK in jax.jacrev(outputs_T, argnums=(0, 1))(k[0, :, 0], v[0, :, 0]):
        is_seen_TxT = (np.asarray(gradient_TxTxK) != 0).any(axis=-1)
        # A token that sees only one key has weight 1 whatever that key is, hence the mask of several.
        several = mask_TxT.sum(axis=1) > 1
        np.testing.assert_array_equal(is_seen_TxT[several], mask_TxT[several])
        assert not is_seen_TxT[~mask_TxT].any()


def test_queries_may_be_fewer_than_keys():
    q, k, v, *_ = inputs()
    np.testing.assert_allclose(attend_xla(q[:, :1], k, v), attend_xla(q, k, v)[:, :1], atol=1e-6)


def test_masks_and_biases_are_one_constant_of_the_program_however_often_they_are_used():
    q, k, v, mask_TxT, bias_NxTxT = inputs()

    def num_literals(num_uses):
        def repeat(q, k, v):
            for _ in range(num_uses):
                q = attend_xla(q, k, v, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
            return q

        return jax.jit(repeat).lower(q, k, v).as_text().count('dense<"0x')

    assert num_literals(1) == num_literals(4) > 0
