"""Activations: values and slopes against torch in float64, and that only their input is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.models.activations import ACTIVATIONS, silu_gated

torch = pytest.importorskip("torch")

X = np.concatenate([np.linspace(-12, 12, 2001), [-100.0, 100.0, 0.0, 1e-30]]).astype(np.float32)
THEIRS = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def _of_torch(function, *inputs):
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    out = function(*inputs)
    out.sum().backward()
    return out.detach().numpy(), *(x.grad.numpy() for x in inputs)


def test_all_are_compared():
    assert ACTIVATIONS.keys() == THEIRS.keys()


@pytest.mark.parametrize("name", THEIRS)
def test_value_and_slope(name):
    value, slope = _of_torch(THEIRS[name], X)
    np.testing.assert_allclose(ACTIVATIONS[name](X), value, atol=2e-6)
    np.testing.assert_allclose(jax.grad(lambda x: ACTIVATIONS[name](x).sum())(X), slope, atol=2e-6)


def test_value_and_slopes_of_the_gate():
    value = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    expected = _of_torch(lambda gate, value: torch.nn.functional.silu(gate) * value, X, value)
    found = silu_gated(X, value), *jax.grad(lambda *x: silu_gated(*x).sum(), argnums=(0, 1))(X, value)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("name", THEIRS)
def test_of_16_bits_the_slope_is_rounded_once(name):
    x = jnp.asarray(X[:2001], jnp.bfloat16)
    found = jax.grad(lambda x: ACTIVATIONS[name](x).astype(jnp.float32).sum())(x)
    _, slope = _of_torch(THEIRS[name], np.asarray(x, np.float64))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), slope, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", THEIRS)
def test_only_the_input_is_stored(name):
    _, backward = jax.vjp(ACTIVATIONS[name], jnp.asarray(X))
    stored = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "size", 0) == X.size]
    assert len(stored) == 1
    np.testing.assert_array_equal(stored[0], X)
