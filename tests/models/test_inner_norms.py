"""Norms inside the branches of a block, models without a final norm, and the sizes of attention pooling."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import attention_weights

NORMS = {"use_attention_norm": True, "use_mlp_norm": True}


def normed(x, norm, eps=1e-6):
    """The LayerNorm of x by its definition, in float64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scale, bias = (np.asarray(part[...], np.float64) for part in (norm.scale, norm.bias))
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def dense(x, layer):
    kernel, bias = np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)
    return x @ kernel.reshape(-1, kernel.shape[-1]) + bias


@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_the_norms_precede_the_last_layer_of_their_branch(build, images, forward, mlp):
    model = build(mlp=mlp, **NORMS)
    block, taps = model.blocks[0], forward(model, images()).taps
    q, k, v, hidden, middle = (taps[name][0] for name in ("q", "k", "v", "hidden", "middle"))
    heads = np.einsum("bnts,bsnk->btnk", attention_weights(q, k), v).reshape(*middle.shape)
    attended = dense(normed(heads, block.attn.norm), block.attn.out)
    np.testing.assert_allclose(middle - taps["resid"][0], attended, atol=1e-5)
    last = block.mlp.w3 if mlp == "swiglu" else block.mlp.fc2
    out = dense(normed(hidden, block.mlp.norm), last)
    np.testing.assert_allclose(taps["resid"][1] - middle, out, atol=1e-5)


def test_blocks_as_one_loop_have_the_norms_too(build, images, forward):
    x = images()
    one_by_one, loop = (build(depth=3, use_scan=use, **NORMS) for use in (False, True))
    np.testing.assert_allclose(forward(loop, x).logits, forward(one_by_one, x).logits, atol=1e-5)


def test_the_parts_of_a_norm_add_up_to_it(build):
    norm = build(**NORMS).blocks[0].attn.norm
    parts = np.random.default_rng(0).normal(size=(3, 2, 32)).astype(np.float32)
    total = np.sum(norm.parts(list(parts)), axis=0) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(total, norm(parts.sum(0)), atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_without_a_final_norm_tokens_are_those_of_the_last_block(build, images, forward, pooling):
    model = build(use_final_norm=False, pooling=pooling)
    assert not jax.tree.leaves(nnx.state(model.norm))
    out = forward(model, images())
    np.testing.assert_array_equal(out.patches, out.taps["resid"][-1][:, 1:])


def test_attention_pooling_has_heads_and_an_mlp_of_its_own(build, images, forward):
    model = build(pooling="map", pool_num_heads=8, pool_mlp_dim=48, use_mlp_norm=True)
    assert model.map_pool.q.kernel.shape == (32, 8, 4) and model.map_pool.mlp.fc1.kernel.shape == (32, 48)
    assert model.map_pool.mlp.norm is None and model.blocks[0].mlp.fc1.kernel.shape == (32, 64)
    assert forward(model, images()).logits.shape == (2, 5)


def test_the_probe_attends_to_all_tokens_or_to_the_patches(build, images, forward):
    patches, whole = (build(pooling="map", num_registers=2, pool_tokens=t) for t in ("patches", "all"))
    out = forward(whole, images())
    tokens = np.concatenate([out.cls[:, None], out.registers, out.patches], axis=1)
    np.testing.assert_allclose(out.pooled, whole.map_pool(tokens), atol=1e-5)
    only = forward(patches, images())
    np.testing.assert_allclose(only.pooled, patches.map_pool(only.patches), atol=1e-5)
    assert np.abs(out.pooled - only.pooled).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pool_tokens": "all"}, "pool_tokens='all' has no effect with model.pooling='cls'"),
        ({"pool_num_heads": 4}, "pool_num_heads=4 has no effect"),
        ({"pooling": "map", "pool_num_heads": 5}, "pool_num_heads=5 does not divide the width of 32"),
        ({"pooling": "map", "pool_tokens": "cls"}, "model.pool_tokens='cls' is unknown"),
        ({"use_final_norm": False, "use_norm_after_pool": True}, "requires the final norm"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(tiny, build, settings, match):
    with pytest.raises(ConfigError, match=match):
        build(**settings)


def test_by_default_nothing_is_added(build):
    """Earlier checkpoints have no such parameters."""
    model = build(pooling="map", mlp="swiglu")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(model))]
    assert not [path for path in paths if re.search(r"(attn|mlp)'\]\['norm", path)]
