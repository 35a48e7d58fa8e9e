"""Every attention back end against a float64 reference, forward and gradient, and what masks and biases do.

Back ends for GPUs and TPUs run here by what surrounds the kernel (cudnn, over JAX's own attention in XLA),
and by the interpreter (splash).
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.models.attention import xla
from vit_registers.models.attention.api import BACKENDS, attention_weights, open_to_more, rematerialized
from vit_registers.models.attention.cudnn import attend_even
from vit_registers.models.attention.splash import attend_blocks
from vit_registers.models.masks import build_mask
from vit_registers.models.positions import alibi2d
from vit_registers.models.tokens import TokenLayout, summary_grids


def padded(q, k, v, *, mask_TxT=None, bias_NxTxT=None):
    """What `cudnn` does, with XLA instead of cuDNN."""
    return attend_even(q, k, v, bias_NxTxT, mask_TxT=mask_TxT, implementation="xla")


def interpreted(q, k, v, *, mask_TxT=None, bias_NxTxT=None):
    """What `splash` does, with the kernel interpreted."""
    return attend_blocks(q, k, v, bias_NxTxT, mask_TxT=mask_TxT, is_interpreted=True)


def two_products(q, k, v, *, mask_TxT=None, bias_NxTxT=None):
    """What `xla` does on a TPU, but for the layout of its arrays."""
    with mock.patch.multiple(xla, platform=lambda: "tpu", _keys_last=lambda x: x):
        return BACKENDS["xla"](q, k, v, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)


def twice(q, k, v, *, mask_TxT=None, bias_NxTxT=None):
    """What `xla` does with model.remat=attention."""
    return rematerialized(functools.partial(BACKENDS["xla"], mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT))(
        q, k, v
    )


RUNNABLE = {
    "xla": BACKENDS["xla"],
    "auto": BACKENDS["auto"],
    "padded": padded,
    "interpreted": interpreted,
    "two_products": two_products,
    "twice": twice,
}
B, N = 2, 2

# Of a grid of 14 x 14: tokens, mask, bias, head size, keys beyond the tokens, dtype, back ends.
PLAIN = {"has_cls": True}
REGISTERS = {"has_cls": True, "num_registers": 4}
CASES = {
    "197": (PLAIN, "none", False, 64, 0, "float32", ("xla", "padded", "interpreted")),
    "201 more keys": (REGISTERS, "none", False, 80, 1, "bfloat16", ("xla", "two_products", "interpreted")),
    "197 bias": (PLAIN, "none", True, 80, 0, "float32", ("xla", "auto", "padded", "twice")),
    "255 fractal": ({"k": 2}, "fractal", False, 64, 1, "float32", ("xla", "interpreted")),
    "255 released": ({"k": 2}, "fractal_released", True, 80, 0, "float32", ("xla", "padded")),
    "255 local": (
        {"k": 2},
        "fractal_local",
        False,
        80,
        0,
        "bfloat16",
        ("xla", "padded", "interpreted", "twice"),
    ),
    "k=3 bias": (
        {"k": 3, **REGISTERS},
        "fractal",
        True,
        64,
        1,
        "bfloat16",
        ("xla", "padded", "two_products"),
    ),
}


def layout_of(*, k=None, side=14, has_cls=False, num_registers=0):
    grid = (side, side)
    return TokenLayout(
        has_cls=has_cls,
        num_registers=num_registers,
        summary_grids=summary_grids(grid, k),
        patch_grid=grid,
    )


def reference(q, k, v, gradient, mask_TxS=None, bias_NxTxS=None):
    """[out, dq, dk, dv] by the definition, in float64."""
    q, k, v, gradient = (np.asarray(x, np.float64) for x in (q, k, v, gradient))
    logits = np.einsum("btnk,bsnk->bnts", q, k) / np.sqrt(q.shape[-1])
    if bias_NxTxS is not None:
        logits += bias_NxTxS
    if mask_TxS is not None:
        logits[:, :, ~mask_TxS] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = np.einsum("btnk,bsnk->bnts", gradient, v)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    d_logits /= np.sqrt(q.shape[-1])
    return [
        np.einsum("bnts,bsnk->btnk", weights, v),
        np.einsum("bnts,bsnk->btnk", d_logits, k),
        np.einsum("bnts,btnk->bsnk", d_logits, q),
        np.einsum("bnts,btnk->bsnk", weights, gradient),
    ]


def forward_and_backward(attend):
    """(q, k, v, gradient of out) -> (out, dq, dk, dv), compiled."""

    @jax.jit
    def both(q, k, v, gradient):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(gradient)

    return both


@functools.lru_cache
def inputs(case):
    """(q, k, v, gradient of out), the mask and the bias of a case, and what the definition makes of them."""
    tokens, mask, has_bias, size, more_keys, dtype, _ = CASES[case]
    layout = layout_of(**tokens)
    num_keys = layout.num_tokens + more_keys
    bias = alibi2d(layout, N) if has_bias else None
    mask, bias = open_to_more(build_mask(mask, layout), bias, num_keys)
    rng = np.random.default_rng(0)
    lengths = (layout.num_tokens, num_keys, num_keys, layout.num_tokens)
    arrays = [jnp.asarray(rng.normal(size=(B, length, N, size)), dtype) for length in lengths]
    return arrays, mask, bias, reference(*arrays, mask, bias)


@pytest.mark.parametrize(
    ("case", "backend"), [(case, backend) for case, spec in CASES.items() for backend in spec[-1]]
)
def test_back_ends_equal_the_float64_reference_forward_and_backward(case, backend):
    arrays, mask, bias, expected = inputs(case)
    found = forward_and_backward(functools.partial(RUNNABLE[backend], mask_TxT=mask, bias_NxTxT=bias))(
        *arrays
    )
    # bfloat16 has 8 bits: a rounding is 0.004 of a number, and dk of a token that many see adds up many.
    tolerance = {"rtol": 0, "atol": 1e-5} if arrays[0].dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.02}
    for one, other, name in zip(found, expected, ("out", "dq", "dk", "dv"), strict=True):
        assert one.dtype == arrays[0].dtype
        np.testing.assert_allclose(np.asarray(one, np.float64), other, err_msg=name, **tolerance)


@pytest.mark.parametrize("backend", sorted(RUNNABLE))
@pytest.mark.parametrize("mask", ["fractal", "random"])
def test_a_masked_pair_has_exactly_zero_gradient_and_an_allowed_one_does_not(backend, mask):
    layout = layout_of(k=2, side=6, has_cls=True)
    rng = np.random.default_rng(0)
    length = layout.num_tokens
    mask_TxT = build_mask("fractal", layout) if mask == "fractal" else rng.random((length, length)) < 0.3
    np.fill_diagonal(mask_TxT, True)
    # Example b of a batch of T asks for the gradient of the output of token b alone.
    q, k, v = (jnp.asarray(np.tile(rng.normal(size=(1, length, 1, 8)), (length, 1, 1, 1))) for _ in range(3))
    gradient = jnp.broadcast_to(jnp.eye(length)[..., None, None], q.shape)
    attend = functools.partial(RUNNABLE[backend], mask_TxT=mask_TxT)
    gradients = jax.jit(lambda q, k, v: jax.vjp(attend, q, k, v)[1](gradient)[1:])(q, k, v)
    for gradient_TxSx1xK in gradients:
        np.testing.assert_array_equal((np.asarray(gradient_TxSx1xK) != 0).any(axis=(2, 3)), mask_TxT)


def small(scale=1.0):
    rng = np.random.default_rng(0)
    q, k, v = (scale * rng.normal(size=(B, 9, N, 8)).astype(np.float32) for _ in range(3))
    mask_TxT = rng.random((9, 9)) < 0.5
    np.fill_diagonal(mask_TxT, True)
    return q, k, v, mask_TxT, rng.normal(size=(N, 9, 9)).astype(np.float32)


def test_weights_are_float32_rows_that_sum_to_1_and_are_0_exactly_where_masked():
    q, k, _, mask_TxT, bias_NxTxT = small(scale=20.0)
    halves = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)
    weights = np.asarray(attention_weights(*halves, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT))
    assert weights.shape == (B, N, 9, 9)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
    assert not weights[:, :, ~mask_TxT].any()


def test_the_maximum_may_be_that_of_rounded_logits():
    """Logits of up to 400, whose rounding to bfloat16 would be e**0.8 of a weight."""
    q, k, v, mask_TxT, bias_NxTxT = (jnp.asarray(x) for x in small(scale=12.0))
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    mask_TxT, bias_NxTxT = np.asarray(mask_TxT), 100 * np.asarray(bias_NxTxT)
    found = two_products(q, k, v, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    expected = reference(q, k, v, q, mask_TxT, bias_NxTxT)[0]
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0.01, atol=0.05)


def test_logits_of_hundreds_give_neither_nan_nor_wrong_sums():
    q, k, v, mask_TxT, bias_NxTxT = small(scale=30.0)
    attend = functools.partial(BACKENDS["xla"], mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    found = forward_and_backward(attend)(q, k, v, np.ones_like(q))
    expected = reference(q, k, v, np.ones_like(q), mask_TxT, bias_NxTxT)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=0.02)


def test_xla_equals_the_attention_of_jax():
    q, k, v, mask_TxT, bias_NxTxT = small()
    ours = BACKENDS["xla"](q, k, v, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    theirs = jax.nn.dot_product_attention(
        *map(jnp.asarray, (q, k, v)),
        mask=jnp.asarray(mask_TxT)[None, None],
        bias=jnp.asarray(bias_NxTxT)[None],
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_queries_may_be_fewer_than_keys():
    attend = BACKENDS["xla"]
    q, k, v, *_ = small()
    np.testing.assert_allclose(attend(q[:, :1], k, v), attend(q, k, v)[:, :1], atol=1e-6)


def test_masks_and_biases_are_one_constant_of_the_program_however_often_they_are_used():
    q, k, v, mask_TxT, bias_NxTxT = small()

    def num_literals(num_uses):
        def repeat(q, k, v):
            for _ in range(num_uses):
                q = BACKENDS["xla"](q, k, v, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
            return q.sum()

        return jax.jit(jax.grad(repeat)).lower(q, k, v).as_text().count('dense<"0x')

    assert num_literals(1) == num_literals(4) > 0


@pytest.mark.parametrize(("backend", "kept"), [("xla", [jnp.bfloat16]), ("twice", [])])
def test_the_backward_pass_keeps_the_weights_once_in_16_bits_or_not_at_all(backend, kept):
    length = 32
    q = jnp.zeros((B, length, N, 8), jnp.bfloat16)
    attend = functools.partial(RUNNABLE[backend], mask_TxT=np.tri(length, dtype=bool))
    pull = jax.eval_shape(lambda q: jax.vjp(attend, q, q, q)[1], q)
    square = [x for x in jax.tree.leaves(pull) if x.shape == (B, N, length, length)]
    assert [x.dtype for x in square] == kept
