"""The depth head, its loss and errors, against torch, closed forms and the fact sheet's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.evaluation.depth.errors import depth_errors, sig_loss
from vit_registers.evaluation.depth.head import (
    NUM_BINS,
    DepthHead,
    decode,
    depth_features,
    init_depth_head,
    predict_depth,
)

WHOLE = (slice(None), slice(None))


def sines(shape, phase, frequency):
    return np.sin(phase + frequency * np.arange(np.prod(shape)), dtype=np.float64).reshape(shape)


def _fact_sheet():
    predicted, depth = 3 + 2 * sines((1, 6, 8), 0.2, 0.9), 3 + 2.5 * sines((1, 6, 8), 0.5, 0.9)
    depth[0, 0, :3] = 0
    return jnp.asarray(predicted, jnp.float32), jnp.asarray(depth, jnp.float32)


def test_losses_of_the_fact_sheet():
    assert sig_loss(*_fact_sheet(), is_warm_up=False) == pytest.approx(0.321474, rel=1e-5)
    assert sig_loss(*_fact_sheet(), is_warm_up=True) == pytest.approx(0.0523468, rel=1e-5)


def test_loss_and_gradient_are_those_of_float64():
    torch = pytest.importorskip("torch")
    predicted, depth = _fact_sheet()
    leaf = torch.tensor(np.asarray(predicted, np.float64), requires_grad=True)
    other = torch.tensor(np.asarray(depth, np.float64))
    valid = other > 0
    g = torch.log(leaf[valid] + 0.001) - torch.log(other[valid] + 0.001)
    loss = torch.sqrt(torch.var(g) + 0.15 * torch.mean(g) ** 2)
    loss.backward()
    value, grad = jax.value_and_grad(lambda x: sig_loss(x, depth, is_warm_up=False))(predicted)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("is_warm_up", [False, True])
def test_loss_without_a_valid_pixel_or_difference(is_warm_up):
    predicted, depth = _fact_sheet()
    for label in (jnp.zeros_like(depth), predicted):
        value, grad = jax.value_and_grad(lambda x, y=label: sig_loss(x, y, is_warm_up=is_warm_up))(predicted)
        assert value == 0 and np.isfinite(grad).all()


def test_bins_of_the_fact_sheet():
    logits = jnp.asarray(sines((1, 1, 1, 5), 0.3, 2.1), jnp.float32)
    assert decode(logits, low=0.001, high=10.0)[0, 0, 0] == pytest.approx(5.379706, rel=1e-5)
    assert decode(jnp.zeros((1, 1, 1, 256)), low=0.001, high=10.0)[0, 0, 0] == pytest.approx(5.0005, rel=1e-5)


def test_the_convolution_may_come_first():
    """Against torch in the released order: enlarge the features four times, convolve, decode, enlarge."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    patch, cls = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 5))
    blocks = [(jnp.asarray(patch, jnp.float32), jnp.asarray(cls, jnp.float32))] * 2
    head = DepthHead(
        jnp.asarray(rng.standard_normal((20, NUM_BINS)), jnp.float32),
        jnp.asarray(rng.standard_normal(NUM_BINS), jnp.float32),
    )
    features = depth_features(blocks)
    want = np.concatenate([patch, np.broadcast_to(cls[:, None, None], patch.shape)] * 2, axis=-1)
    np.testing.assert_allclose(features, want, rtol=1e-6)
    x = torch.nn.functional.interpolate(
        torch.tensor(want.transpose(0, 3, 1, 2)), scale_factor=4, mode="bilinear", align_corners=False
    )
    kernel = torch.tensor(np.asarray(head.kernel_CxZ, np.float64).T)[:, :, None, None]
    logits = torch.nn.functional.conv2d(x, kernel, torch.tensor(np.asarray(head.bias_Z, np.float64)))
    weights = torch.relu(logits) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    depth = torch.einsum("bzhw,z->bhw", weights, torch.linspace(0.001, 10, NUM_BINS, dtype=torch.float64))
    depth = torch.nn.functional.interpolate(depth[:, None], size=(30, 50), mode="bilinear")[:, 0]
    found = predict_depth(head, features, (30, 50), low=0.001, high=10.0)
    np.testing.assert_allclose(found, depth.numpy(), rtol=1e-5)


def test_a_new_head():
    head = init_depth_head(jax.random.key(0), 100)
    assert float(jnp.abs(head.kernel_CxZ).max()) <= 0.1
    assert float(head.kernel_CxZ.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_errors():
    """By hand: half of the pixels 10 % too deep, half exact."""
    depth = np.full((2, 4), 2.0)
    predicted = depth.copy()
    predicted[0] *= 1.1
    found = depth_errors(predicted, depth, low=0.001, high=10.0, crop=WHOLE)
    assert found is not None
    log = np.log(1.1)
    assert found["rmse"] == pytest.approx((0.2**2 / 2) ** 0.5)
    assert found["abs_rel"] == pytest.approx(0.05) and found["log10"] == pytest.approx(np.log10(1.1) / 2)
    assert found["silog"] == pytest.approx(100 * log / 2)
    assert (found["a1"], found["a2"], found["a3"]) == (1, 1, 1)
    predicted[0] = 2.0 * 1.3
    far = depth_errors(predicted, depth, low=0.001, high=10.0, crop=WHOLE)
    assert far is not None and (far["a1"], far["a2"]) == (0.5, 1)


def test_errors_of_the_valid_part():
    depth = np.array([[0.0, 10.0, 3.0, 5.0]])
    found = depth_errors(np.array([[9.0, 9.0, 4.0, 50.0]]), depth, low=0.001, high=10.0, crop=WHOLE)
    assert found is not None
    assert found["rmse"] == pytest.approx(
        ((1 + 25) / 2) ** 0.5
    )  # 50 is limited to 10; 0 and 10 have no depth
    assert depth_errors(depth, depth * 0, low=0.001, high=10.0, crop=WHOLE) is None
    crop = (slice(None), slice(2, 3))
    only = depth_errors(np.array([[9.0, 9.0, 4.0, 50.0]]), depth, low=0.001, high=10.0, crop=crop)
    assert only is not None and only["rmse"] == pytest.approx(1)
