"""Taps are what they say, and cost nothing unless they are read."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.models.attention.api import attention_weights
from vit_registers.models.pooling import pool
from vit_registers.models.vit import static_attention

SHAPE = {"width": 64, "depth": 2, "num_heads": 4, "mlp_dim": 256, "image_size": (32, 32), "num_registers": 3}


def compiled(model, function, images):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: function(nnx.merge(graph, state), x)).lower(state, images).compile()


def flops(program):
    return program.cost_analysis()["flops"]


def temporary_bytes(program):
    return program.memory_analysis().temp_size_in_bytes


def logits_only(model, x):
    return model(x).logits


def everything(model, x):
    return model(x)


def without_taps(model, x):
    """The forward pass written out, in which no tap is ever collected."""
    layout = model.layout_for(x.shape[1:3])
    mask_TxT, bias_NxTxT = static_attention(model.model, layout)
    _, resid_BxTxD = model.embed(x, layout)
    for block in model.blocks:
        resid_BxTxD, _ = block(resid_BxTxD, mask_TxT, bias_NxTxT, None)
    return model.classify(pool("cls", model.norm(resid_BxTxD), layout, None))


def last_attention_map(model, x):
    taps = model(x).taps
    return attention_weights(taps["q"][-1], taps["k"][-1])


def matmul_flops(model, batch):
    """2 FLOPs per multiply-add of every matrix product, by hand."""
    width, mlp_dim, patches, tokens = 64, 256, 64, 64 + 1 + 3
    per_token = 2 * (4 * width * width + 2 * width * mlp_dim)
    per_block = tokens * per_token + 2 * 2 * tokens * tokens * width
    stem, head = 2 * patches * (4 * 4 * 3) * width, 2 * width * 5
    return batch * (stem + len(model.blocks) * per_block + head)


def test_unread_taps_cost_no_flops_and_no_memory(build, images):
    model, x = build(**SHAPE), images(2, (32, 32))
    ours, bare = compiled(model, logits_only, x), compiled(model, without_taps, x)
    assert flops(ours) == flops(bare)
    assert temporary_bytes(ours) <= temporary_bytes(bare)


def test_flops_of_the_logits_are_the_matrix_products_and_little_more(build, images):
    model = build(**SHAPE)
    by_hand = matmul_flops(model, 2)
    assert by_hand < flops(compiled(model, logits_only, images(2, (32, 32)))) < 1.3 * by_hand


@pytest.mark.slow
def test_memory_of_the_logits_does_not_grow_with_depth_but_that_of_all_taps_does(build, images):
    x = images(2, (32, 32))
    shallow, deep = build(**SHAPE), build(**SHAPE | {"depth": 6})
    assert temporary_bytes(compiled(deep, logits_only, x)) <= 1.1 * temporary_bytes(
        compiled(shallow, logits_only, x)
    )
    outputs = [
        compiled(model, everything, x).memory_analysis().output_size_in_bytes for model in (shallow, deep)
    ]
    per_block = 4 * 4 * 2 * 68 * 64  # resid, q, k, v in float32
    assert outputs[1] - outputs[0] >= 4 * per_block


def test_a_tap_of_early_blocks_prunes_the_later_ones(build, images):
    x = images(2, (32, 32))
    shallow, deep = build(**SHAPE), build(**SHAPE | {"depth": 4})
    first = [
        flops(compiled(model, lambda model, x: model(x).taps["resid"][1], x)) for model in (shallow, deep)
    ]
    assert first[0] == first[1]


def test_attention_maps_from_taps_cost_only_where_they_are_read(build, images):
    """The control: this measure of cost does see work that is added."""
    model, x = build(**SHAPE), images(2, (32, 32))

    def both(model, x):
        return logits_only(model, x), last_attention_map(model, x).sum(axis=1)

    assert flops(compiled(model, both, x)) > flops(compiled(model, logits_only, x))


def test_reading_all_taps_leaves_the_logits_as_they_were(build, images):
    model, x = build(**SHAPE, summary_factor=2, mask="fractal"), images(2, (32, 32))
    alone = jax.jit(logits_only)(model, x)
    np.testing.assert_allclose(jax.jit(everything)(model, x).logits, alone, atol=1e-5)
    np.testing.assert_allclose(jax.jit(without_taps)(model, x), alone, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_taps_have_one_entry_per_block_and_one_more_for_the_residual_stream(build, images, depth):
    model = build(depth=depth, num_registers=2, summary_factor=2)
    taps = jax.eval_shape(model, images(2)).taps
    num_tokens = 1 + 2 + 5 + 16
    assert set(taps) == {"embed", "resid", "q", "k", "v", "middle", "hidden"}
    assert taps["embed"].shape == (2, 16, 32)
    assert [tap.shape for tap in taps["resid"]] == [(2, num_tokens, 32)] * (depth + 1)
    for name in "qkv":
        assert [tap.shape for tap in taps[name]] == [(2, num_tokens, 4, 8)] * depth
    assert [tap.shape for tap in taps["middle"]] == [(2, num_tokens, 32)] * depth
    assert [tap.shape for tap in taps["hidden"]] == [(2, num_tokens, 64)] * depth


def test_taps_are_what_their_names_say(build, images, forward):
    model, x = build(depth=2, num_registers=2), images(2)
    outputs = forward(model, x)
    taps = outputs.taps
    kernel_4x4xCxD, bias_D = (np.asarray(v[...]) for v in (model.patch_embed.kernel, model.patch_embed.bias))
    patch = x[0, 4:8, 8:12]  # row 1, column 2
    np.testing.assert_allclose(
        taps["embed"][0, 1 * 4 + 2], np.einsum("hwc,hwcd->d", patch, kernel_4x4xCxD) + bias_D, atol=1e-5
    )
    block = model.blocks[1]
    qkv_BxTxQxNxK = block.attn.qkv(block.norm1(taps["resid"][1]))
    for i, name in enumerate("qkv"):
        np.testing.assert_allclose(taps[name][1], qkv_BxTxQxNxK[:, :, i], atol=1e-5)
    before, after = (np.asarray(taps[name][-1]) for name in ("middle", "resid"))
    np.testing.assert_allclose(block.mlp.fc2(taps["hidden"][1]), after - before, atol=1e-5)
    np.testing.assert_allclose(taps["hidden"][1], block.mlp(block.norm2(before))[1], atol=1e-5)
    tokens_BxTxD = model.norm(taps["resid"][-1])
    np.testing.assert_allclose(outputs.cls, tokens_BxTxD[:, 0], atol=1e-5)
    np.testing.assert_allclose(outputs.registers, tokens_BxTxD[:, 1:3], atol=1e-5)
    np.testing.assert_allclose(outputs.patches, tokens_BxTxD[:, 3:], atol=1e-5)


def test_attention_maps_from_q_and_k_rebuild_the_block(build, images, forward):
    """Attention is recomputed from taps in the analyses: weights @ v, projected, is what the block added."""
    model = build(depth=1, num_registers=2, summary_factor=2, mask="fractal", positions="alibi2d")
    taps = forward(model, images(2)).taps
    mask_TxT, bias_NxTxT = static_attention(model.model, model.layout)
    weights = attention_weights(taps["q"][0], taps["k"][0], mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    out_BxTxNxK = np.einsum("bnts,bsnk->btnk", weights, taps["v"][0])
    block = model.blocks[0]
    middle_BxTxD = taps["resid"][0] + block.attn.out(out_BxTxNxK)
    expected = middle_BxTxD + block.mlp(block.norm2(middle_BxTxD))[0]
    np.testing.assert_allclose(taps["resid"][1], expected, atol=1e-5)
    assert math.isclose(float(weights[0, 0, 5].sum()), 1.0, rel_tol=1e-5)
