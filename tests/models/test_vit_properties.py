"""What must hold of any model: who depends on whom, and what registers may and may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import ConfigError
from vit_registers.models.pooling import pool
from vit_registers.models.vit import static_attention

MASKS = ["none", "fractal", "fractal_released", "fractal_local"]


@parametrize_quick(
    ("mask", "positions"), [*((mask, "none") for mask in MASKS), ("fractal", "alibi2d")], number=2
)
def test_a_masked_pair_has_exactly_zero_gradient_through_a_block(build, mask, positions):
    sizes = {"width": 8, "num_heads": 2, "mlp_dim": 8, "depth": 1}
    model = build(**sizes, num_registers=2, summary_factor=2, mask=mask, positions=positions)
    layout = model.layout
    mask_TxT, bias_NxTxT = static_attention(model.model, layout)
    resid_BxTxD = np.random.default_rng(0).normal(size=(1, layout.num_tokens, 8)).astype(np.float32)

    def outputs_T(resid_BxTxD):
        return model.blocks[0](resid_BxTxD, mask_TxT, bias_NxTxT, None)[0][0].sum(axis=-1)

    gradient_TxTxD = np.asarray(jax.jit(jax.jacrev(outputs_T))(resid_BxTxD))[:, 0]
    depends_TxT = (gradient_TxTxD != 0).any(axis=-1)
    expected = np.ones_like(depends_TxT) if mask_TxT is None else mask_TxT
    np.testing.assert_array_equal(depends_TxT, expected)


@pytest.mark.slow
def test_pixels_reach_just_the_patches_that_the_mask_lets_them_reach(build, images):
    """Through the whole model of one block, without the tokens that everybody sees."""
    model = build(depth=1, use_cls=False, pooling="gap", summary_factor=2, mask="fractal_local")
    direction_D = np.random.default_rng(1).normal(size=32).astype(np.float32)

    def patches_P(image_HxWxC):
        return model(image_HxWxC[None]).patches[0] @ direction_D

    gradient = np.asarray(jax.jit(jax.jacrev(patches_P))(images(1)[0]))  # PxHxWxC
    by_patch = gradient.reshape(16, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(16, 16, -1)
    mask_TxT, _ = static_attention(model.model, model.layout)
    where = model.layout.patches
    np.testing.assert_array_equal((by_patch != 0).any(axis=-1), mask_TxT[where, where])


@parametrize_quick(
    "settings", [{}, {"summary_factor": 2, "mask": "fractal"}, {"positions": "alibi2d"}], ids=str
)
def test_permuting_registers_permutes_their_outputs_and_nothing_else(build, images, forward, settings):
    model, x = build(depth=2, num_registers=4, **settings), images(2)
    before = forward(model, x)
    order = np.array([2, 0, 3, 1])
    model.registers[...] = model.registers[...][:, order]
    after = forward(model, x)
    np.testing.assert_allclose(after.registers, before.registers[:, order], atol=1e-5)
    np.testing.assert_allclose(after.cls, before.cls, atol=1e-5)
    np.testing.assert_allclose(after.patches, before.patches, atol=1e-5)
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-5)
    assert np.abs(after.registers - before.registers).max() > 0.01


def test_changing_registers_changes_patches(build, images, forward):
    model, x = build(num_registers=2), images(2)
    before = forward(model, x).patches
    model.registers[...] = -model.registers[...]
    assert np.abs(forward(model, x).patches - before).max() > 1e-3


def test_fixed_zero_registers_stay_the_same_token(build, images, forward):
    """Nothing tells them apart, which is why a single one is used in arXiv:2601.15506."""
    registers = forward(build(num_registers=3, registers="zeros"), images(2)).registers
    np.testing.assert_allclose(registers, jnp.broadcast_to(registers[:, :1], registers.shape), atol=1e-5)


def test_examples_of_a_batch_do_not_see_each_other(build, images, forward):
    model, x = build(num_registers=2), images(2)
    together = forward(model, x).logits
    apart = jnp.concatenate([forward(model, x[i : i + 1]).logits for i in range(2)])
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_gap_pools_patches_only(build, images, forward):
    model, x = build(pooling="gap", num_registers=2, summary_factor=2), images(2)
    outputs = forward(model, x)
    np.testing.assert_allclose(outputs.pooled, outputs.patches.mean(axis=1), atol=1e-6)
    tokens_BxTxD = np.random.default_rng(0).normal(size=(2, 24, 32)).astype(np.float32)
    pooled = pool("gap", tokens_BxTxD, model.layout, None)
    others = tokens_BxTxD.copy()
    others[:, :8] = 7.0  # cls, registers, summaries
    np.testing.assert_array_equal(pool("gap", others, model.layout, None), pooled)


def test_cls_pools_the_cls_token(build, images, forward):
    outputs = forward(build(num_registers=2), images(2))
    np.testing.assert_array_equal(outputs.pooled, outputs.cls)


@pytest.mark.slow
def test_map_pooling_does_not_mind_the_order_of_patches(build):
    model = build(pooling="map", use_cls=False, num_registers=2)
    tokens_BxTxD = np.random.default_rng(0).normal(size=(2, 18, 32)).astype(np.float32)
    pooled = pool("map", tokens_BxTxD, model.layout, model.map_pool)
    assert pooled.shape == (2, 32)
    shuffled = tokens_BxTxD.copy()
    shuffled[:, 2:] = tokens_BxTxD[:, 2:][:, np.random.default_rng(1).permutation(16)]
    np.testing.assert_allclose(pool("map", shuffled, model.layout, model.map_pool), pooled, atol=1e-5)
    shuffled[:, :2] = 7.0  # registers
    np.testing.assert_allclose(pool("map", shuffled, model.layout, model.map_pool), pooled, atol=1e-5)


@parametrize_quick("pooling", ["gap", "map"])
def test_without_positions_the_order_of_patches_does_not_matter(build, images, forward, pooling):
    model = build(pooling=pooling, positions="none", num_registers=1)
    x = images(2)
    mirrored = x.reshape(2, 4, 4, 16, 3)[:, ::-1].reshape(2, 16, 16, 3)  # rows of patches in reverse
    one, other = forward(model, x), forward(model, mirrored)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
    np.testing.assert_allclose(
        one.patches.reshape(2, 4, 4, 32)[:, ::-1].reshape(2, 16, 32), other.patches, atol=1e-5
    )


@pytest.mark.slow
def test_with_positions_the_order_of_patches_matters(build, images, forward):
    x = images(2)
    for positions in ("learned", "sincos2d", "alibi2d"):
        model = build(pooling="gap", positions=positions)
        turned = np.roll(x, 4, axis=1)
        assert np.abs(forward(model, x).logits - forward(model, turned).logits).max() > 1e-4, positions


def test_map_pooling_is_its_definition(build):
    """A probe attends to the patches; then x + mlp(norm(x))."""
    model = build(pooling="map", use_cls=False)
    map_pool, patches_BxPxD = (
        model.map_pool,
        np.random.default_rng(0).normal(size=(2, 16, 32)).astype(np.float32),
    )
    leaf = {name: np.asarray(getattr(map_pool, name).kernel[...]) for name in ("q", "kv", "out")}
    bias = {name: np.asarray(getattr(map_pool, name).bias[...]) for name in ("q", "kv", "out")}
    q_NxK = np.einsum("d,dnk->nk", np.asarray(map_pool.probe[...])[0, 0], leaf["q"]) + bias["q"]
    k, v = (np.einsum("bpd,dnk->bpnk", patches_BxPxD, leaf["kv"][:, i]) + bias["kv"][i] for i in range(2))
    weights = np.exp(np.einsum("nk,bpnk->bnp", q_NxK, k) / np.sqrt(8))
    weights /= weights.sum(axis=-1, keepdims=True)
    pooled = np.einsum("bnk,nkd->bd", np.einsum("bnp,bpnk->bnk", weights, v), leaf["out"]) + bias["out"]
    expected = pooled + map_pool.mlp(map_pool.norm(pooled))[0]
    np.testing.assert_allclose(map_pool(patches_BxPxD), expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "width"), [("cls_gap", 64), ("cls_registers", 96)])
def test_joined_pooling_is_its_tokens_one_after_the_other(build, images, forward, pooling, width):
    outputs = forward(build(pooling=pooling, num_registers=2), images(2))
    rest = outputs.patches.mean(axis=1) if pooling == "cls_gap" else outputs.registers.reshape(2, -1)
    assert outputs.pooled.shape == (2, width)
    np.testing.assert_allclose(outputs.pooled, np.concatenate([outputs.cls, rest], axis=1), atol=1e-6)


def test_norm_after_pooling_leaves_the_tokens_as_they_are(build, images, forward):
    for pooling in ("cls", "gap"):
        model = build(pooling=pooling, use_norm_after_pool=True)
        model.norm.scale[...] = np.random.default_rng(0).normal(size=32)
        outputs = forward(model, images(2))
        np.testing.assert_array_equal(outputs.cls, outputs.taps["resid"][-1][:, 0])
        one = outputs.cls if pooling == "cls" else outputs.patches.mean(axis=1)
        np.testing.assert_allclose(outputs.pooled, model.norm(one), atol=1e-5)


def test_norm_before_the_first_block_is_over_all_tokens(build, images, forward):
    model = build(use_norm_pre=True, num_registers=2)
    model.norm_pre.scale[...], model.norm_pre.bias[...] = jnp.ones(32), jnp.zeros(32)
    resid_BxTxD = forward(model, images(2)).taps["resid"][0]
    np.testing.assert_allclose(resid_BxTxD.mean(axis=-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(resid_BxTxD.std(axis=-1), 1.0, atol=1e-2)


def test_masked_patches_hold_the_mask_token_and_their_position(build, images):
    model = build(use_mask_token=True)
    model.mask_token[...] = np.random.default_rng(0).normal(size=(1, 1, 32))
    masked_BxP = np.random.default_rng(1).random((2, 16)) < 0.5
    _, plain = model.embed(images(2), model.layout)
    _, masked = model.embed(images(2), model.layout, masked_BxP)
    expected = (model.mask_token[...] + model.pos_embed[...])[0][np.nonzero(masked_BxP)[1]]
    np.testing.assert_allclose(masked[:, 1:][masked_BxP], expected, atol=1e-6)
    np.testing.assert_array_equal(masked[:, 1:][~masked_BxP], plain[:, 1:][~masked_BxP])
    with pytest.raises(ConfigError, match="use_mask_token"):
        build().embed(images(2), model.layout, masked_BxP)
