"""The losses of depth, against torch in float64 and the fact sheet's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.sines import sines
from vit_registers.evaluation.depth.losses import gradient_loss, sig_loss

SIG = {
    is_warm_up: jax.jit(functools.partial(sig_loss, is_warm_up=is_warm_up)) for is_warm_up in (False, True)
}
GRADIENT = jax.jit(gradient_loss)


def fact_sheet():
    """(predicted, depth), 1 x 6 x 8, of which three pixels have no depth."""
    predicted, depth = 3 + 2 * sines((1, 6, 8), 0.2, 0.9), 3 + 2.5 * sines((1, 6, 8), 0.5, 0.9)
    depth[0, 0, :3] = 0
    return jnp.asarray(predicted, jnp.float32), jnp.asarray(depth, jnp.float32)


def test_losses_of_the_fact_sheet():
    assert SIG[False](*fact_sheet()) == pytest.approx(0.321474, abs=1e-6)
    assert SIG[True](*fact_sheet()) == pytest.approx(0.0523468, abs=1e-7)
    assert GRADIENT(*fact_sheet()) == pytest.approx(0.921787, abs=1e-6)


def test_loss_and_gradient_are_those_of_float64():
    """Over a batch of two, whose square root is not the mean of theirs."""
    torch = pytest.importorskip("torch")
    predicted, depth = (jnp.concatenate([x, jnp.flip(x, 1) * 0.7 + 0.1 * (x > 0)]) for x in fact_sheet())
    leaf = torch.tensor(np.asarray(predicted, np.float64), requires_grad=True)
    other = torch.tensor(np.asarray(depth, np.float64))
    valid = other > 0
    g = torch.log(leaf[valid] + 0.001) - torch.log(other[valid] + 0.001)
    loss = torch.sqrt(torch.var(g) + 0.15 * torch.mean(g) ** 2)
    loss.backward()
    value, grad = jax.jit(jax.value_and_grad(SIG[False]))(predicted, depth)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=2e-4, atol=1e-6)
    each = [SIG[False](x[None], y[None]) for x, y in zip(predicted, depth, strict=True)]
    assert abs(float(value) - np.mean(each)) > 1e-4


def test_gradient_loss_is_that_of_loops():
    rng = np.random.default_rng(0)
    predicted, depth = rng.uniform(0.5, 9, (2, 2, 9, 14))
    depth[rng.random(depth.shape) < 0.2] = 0
    total = 0.0
    for stride in (1, 2, 4, 6):
        p, d = predicted[:, ::stride, ::stride], depth[:, ::stride, ::stride]
        g = np.log(p + 0.001) - np.log(d + 0.001)
        amount = 0.0
        for b, y, x in np.ndindex(d.shape):
            for other in ((b, y + 2, x), (b, y, x + 2)):
                if (
                    all(a < size for a, size in zip(other, d.shape, strict=True))
                    and d[b, y, x] > 0
                    and d[other] > 0
                ):
                    amount += abs(g[b, y, x] - g[other])
        total += amount / (d > 0).sum()
    found = GRADIENT(jnp.asarray(predicted, jnp.float32), jnp.asarray(depth, jnp.float32))
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("is_warm_up", [False, True])
def test_loss_without_a_valid_pixel_or_difference(is_warm_up):
    predicted, depth = fact_sheet()

    @jax.jit
    @jax.value_and_grad
    def loss(x, label):
        return sig_loss(x, label, is_warm_up=is_warm_up) + gradient_loss(x, label)

    for label in (jnp.zeros_like(depth), predicted):
        value, grad = loss(predicted, label)
        assert value == 0 and np.isfinite(grad).all()
    one = jnp.zeros_like(depth).at[0, 2, 3].set(1.0)  # a variance of one pixel
    assert np.isfinite(loss(predicted, one)[1]).all()
