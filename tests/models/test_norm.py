"""LayerNorm: values and gradients against torch in float64, with outliers and far from zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.models.norm import LayerNorm

torch = pytest.importorskip("torch")


def _norm(width, epsilon=1e-6):
    norm = LayerNorm(width, epsilon=epsilon, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    norm.scale.set_value(jnp.asarray(rng.normal(1, 0.3, width), jnp.float32))
    norm.bias.set_value(jnp.asarray(rng.normal(0, 0.3, width), jnp.float32))
    return norm


def _gradients(norm, x, d_out):
    graphdef, params = nnx.split(norm)
    loss = lambda params, x: (nnx.merge(graphdef, params)(x) * d_out).sum()  # noqa: E731
    return jax.grad(loss, argnums=(0, 1))(params, x)


def _by_torch(norm, x, d_out):
    """(out, gradient of x, of scale, of bias) in float64."""
    values = [np.asarray(v, np.float64) for v in (x, norm.scale[...], norm.bias[...])]
    x, scale, bias = (torch.tensor(v, requires_grad=True) for v in values)
    out = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, norm.epsilon)
    (out * torch.tensor(np.asarray(d_out, np.float64))).sum().backward()
    return out.detach().numpy(), x.grad.numpy(), scale.grad.numpy(), bias.grad.numpy()


CASES = {
    "plain": (1.0, 0.0, 0.0),
    "outliers of norm 300": (1.0, 0.0, 300.0),
    "far from zero": (1.0, 50.0, 0.0),
    "small": (1e-4, 0.0, 0.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(2, 5, 32), (3, 8), (2, 3, 4, 16)], ids=str)
def test_values_and_gradients_are_those_of_torch_in_float64(case, shape):
    deviation, offset, outlier = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(offset, deviation, shape).astype(np.float32)
    x[..., 0, 3] += outlier
    d_out = rng.normal(size=shape).astype(np.float32)
    norm = _norm(shape[-1])
    out, d_x, d_scale, d_bias = _by_torch(norm, x, d_out)
    params, found = _gradients(norm, jnp.asarray(x), d_out)
    # The mean of float32 numbers near 50 is known to 4e-6 of a deviation of 1.
    tolerance = 2e-5 if offset else 3e-6
    pairs = ((norm(x), out), (found, d_x), (params.scale[...], d_scale), (params.bias[...], d_bias))
    for ours, theirs in pairs:
        assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-6)


def test_the_gradient_of_x_has_its_dtype_and_the_output_is_float32():
    x = jnp.ones((2, 3, 8), jnp.bfloat16)
    norm = _norm(8)
    assert norm(x).dtype == jnp.float32
    params, d_x = _gradients(norm, x, np.ones(x.shape, np.float32))
    assert (d_x.dtype, params.scale[...].dtype) == (jnp.bfloat16, jnp.float32)


def test_it_has_the_parameters_of_flax_and_draws_the_same_random_numbers():
    """Else a model of the same seed would start from other weights."""
    ours, theirs = nnx.Rngs(0), nnx.Rngs(0)
    a, b = LayerNorm(8, epsilon=1e-6, rngs=ours), nnx.LayerNorm(8, epsilon=1e-6, rngs=theirs)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(a)), nnx.to_pure_dict(nnx.state(b))
    )
    assert (jax.random.key_data(ours.params()) == jax.random.key_data(theirs.params())).all()
