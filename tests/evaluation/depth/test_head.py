"""The depth head and its decoding, against torch, closed forms and the fact sheet's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.sines import sines
from vit_registers.errors import ConfigError
from vit_registers.evaluation.dense.features import BlockTokens
from vit_registers.evaluation.depth.head import (
    DepthHead,
    decode_depth,
    depth_features,
    init_depth_head,
    predict_depth,
    spread_blocks,
)

BINS = 256


def test_bins_of_the_fact_sheet():
    logits = jnp.asarray(sines((1, 1, 1, 5), 0.3, 2.1), jnp.float32)
    decoded = jax.jit(lambda x: decode_depth(x, low=0.001, high=10.0))
    assert decoded(logits)[0, 0, 0] == pytest.approx(5.379706, rel=1e-6)
    assert decoded(jnp.zeros((1, 1, 1, 256)))[0, 0, 0] == pytest.approx(5.0005, rel=1e-5)


def test_the_convolution_may_come_first():
    """Against torch in the released order: enlarge the features four times, convolve, decode, enlarge."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    patch, cls = rng.standard_normal((2, 2, 3, 4, 5)), rng.standard_normal((2, 2, 5))
    head = DepthHead(
        jnp.asarray(rng.standard_normal((20, BINS)), jnp.float32),
        jnp.asarray(rng.standard_normal(BINS), jnp.float32),
    )
    blocks = [
        BlockTokens(*(jnp.asarray(x, jnp.float32) for x in pair)) for pair in zip(patch, cls, strict=True)
    ]
    features = jax.jit(depth_features)(blocks)
    beside = [
        np.concatenate([p, np.broadcast_to(c[:, None, None], p.shape)], -1)
        for p, c in zip(patch, cls, strict=True)
    ]
    want = np.concatenate(beside, axis=-1)
    np.testing.assert_allclose(features, want, rtol=1e-6)
    x = torch.nn.functional.interpolate(
        torch.tensor(want.transpose(0, 3, 1, 2)), scale_factor=4, mode="bilinear", align_corners=False
    )
    kernel = torch.tensor(np.asarray(head.kernel_CxZ, np.float64).T)[:, :, None, None]
    logits = torch.nn.functional.conv2d(x, kernel, torch.tensor(np.asarray(head.bias_Z, np.float64)))
    weights = torch.relu(logits) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    depth = torch.einsum("bzhw,z->bhw", weights, torch.linspace(0.001, 10, BINS, dtype=torch.float64))
    depth = torch.nn.functional.interpolate(depth[:, None], size=(30, 50), mode="bilinear")[:, 0]
    found = jax.jit(lambda h, f: predict_depth(h, f, (30, 50), low=0.001, high=10.0))(head, features)
    np.testing.assert_allclose(found, depth.numpy(), rtol=1e-5)


def test_a_new_head():
    head = init_depth_head(jax.random.key(0), 100, BINS)
    assert head.kernel_CxZ.shape == (100, BINS) and head.bias_Z.shape == (BINS,)
    assert float(jnp.abs(head.kernel_CxZ).max()) <= 0.1
    assert float(head.kernel_CxZ.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_blocks():
    assert spread_blocks(12, 4) == (2, 5, 8, 11)  # S, B
    assert spread_blocks(24, 4) == (4, 11, 17, 23)  # L, as released
    assert spread_blocks(40, 4) == (9, 19, 29, 39)  # g
    assert spread_blocks(8, 4) == (1, 3, 5, 7) and spread_blocks(4, 4) == (0, 1, 2, 3)
    assert all(spread_blocks(depth, 1) == (depth - 1,) for depth in (1, 3, 12, 24, 40))
    for depth in range(4, 60):
        blocks = spread_blocks(depth, 4)
        assert len(set(blocks)) == 4 and blocks[0] >= 0 and blocks[-1] == depth - 1
    with pytest.raises(ConfigError, match=r"num_blocks=4: the model has 3 blocks"):
        spread_blocks(3, 4)
