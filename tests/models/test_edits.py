"""Edits against models whose parameters say the same, and registers of zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fixtures.patches import shuffle_pixels
from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import attention_weights, open_to_more
from vit_registers.models.edits import Edits, append_key
from vit_registers.models.vit import static_attention
from vit_registers.models.zero_registers import add_zero_registers


def _edited(model, x, **functions):
    return jax.jit(lambda model, x: model(x, edits=Edits(**functions)))(model, x)


@pytest.mark.parametrize("mlp", [{}, {"mlp": "swiglu"}])
def test_a_neuron_set_to_zero_is_a_row_of_weights_set_to_zero(build, images, forward, mlp):
    model, x = build(depth=2, **mlp), images(2)
    out = _edited(model, x, hidden=lambda i, hidden: hidden.at[..., 5].set(0.0) if i == 1 else hidden)
    assert np.abs(out.logits - forward(model, x).logits).max() > 1e-3
    kernel = (model.blocks[1].mlp.w3 if mlp else model.blocks[1].mlp.fc2).kernel
    kernel[...] = kernel[...].at[5].set(0.0)
    np.testing.assert_allclose(out.logits, forward(model, x).logits, atol=1e-5)
    np.testing.assert_array_equal(out.taps["hidden"][1][..., 5], 0.0)


def test_an_edit_before_a_block_is_seen_by_it_and_not_by_those_before(build, images, forward):
    model, x = build(depth=3), images(2)
    plain = forward(model, x)
    out = _edited(model, x, resid=lambda i, resid: resid.at[:, 4].set(0.0) if i == 2 else resid)
    for i in range(2):
        np.testing.assert_allclose(out.taps["resid"][i], plain.taps["resid"][i], atol=1e-6)
    np.testing.assert_array_equal(out.taps["resid"][2][:, 4], 0.0)
    again, _ = model.blocks[2](out.taps["resid"][2], None, None, None)
    np.testing.assert_allclose(out.taps["resid"][3], again, atol=1e-5)


def test_the_last_edit_is_what_the_final_norm_gets(build, images):
    model, x = build(depth=2), images(2)
    out = _edited(model, x, resid=lambda i, resid: resid * 0.0 if i == 2 else resid)
    np.testing.assert_allclose(out.cls, model.norm(jnp.zeros((2, 32))), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "learned", "num_registers": 2},
        {"positions": "rope2d"},
        {"positions": "alibi2d"},
        {"positions": "none", "summary_factor": 2, "mask": "fractal"},
    ],
    ids=lambda settings: settings["positions"],
)
def test_the_edit_is_a_model_on_images_whose_pixels_are_shuffled(build, images, forward, settings):
    model, x, rng = build(depth=2, **settings), images(3), np.random.default_rng(0)
    order_BxP = rng.permuted(np.tile(np.arange(model.layout.num_patches), (3, 1)), axis=1)
    moved = jnp.asarray(shuffle_pixels(np.asarray(x), order_BxP, model.model.patch_size))

    def patches(patches_BxPxD):
        return jnp.take_along_axis(patches_BxPxD, jnp.asarray(order_BxP)[..., None], axis=1)

    edited = _edited(model, x, patches=patches)
    expected = forward(model, moved)
    np.testing.assert_allclose(edited.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(edited.taps["embed"], expected.taps["embed"], atol=1e-5)
    assert np.abs(edited.logits - forward(model, x).logits).max() > 1e-4


@pytest.mark.parametrize("settings", [{}, {"summary_factor": 2, "mask": "fractal", "positions": "alibi2d"}])
def test_a_key_of_every_query_takes_its_share(build, images, settings):
    """A value of zero with a key that all queries meet at 0: weights are divided by exp(0) = 1 more."""
    model, x = build(**settings), images(2)
    zero_NxK = jnp.zeros((4, 8))
    out = _edited(model, x, keys_values=lambda i, k, v: append_key(k, v, zero_NxK, zero_NxK))
    plain = jax.jit(lambda model, x: model(x))(model, x)
    assert out.taps["k"][0].shape[1] == plain.taps["k"][0].shape[1] + 1
    assert np.abs(out.logits - plain.logits).max() > 1e-3

    mask, bias = static_attention(model.model, model.layout)
    q, k, v = (np.asarray(plain.taps[name][0], np.float64) for name in "qkv")
    logits = np.einsum("btnk,bsnk->bnts", q, k) / np.sqrt(8) + (0 if bias is None else bias[None])
    weights = np.exp(logits) * (1 if mask is None else mask)
    weights = weights / (weights.sum(-1, keepdims=True) + 1.0)
    wide = dict(zip(("mask_TxT", "bias_NxTxT"), open_to_more(mask, bias, k.shape[1] + 1), strict=True))
    ours = attention_weights(out.taps["q"][0], out.taps["k"][0], **wide)
    np.testing.assert_allclose(ours[..., :-1], weights, atol=1e-5)
    branch = model.blocks[0].attn.out(jnp.asarray(np.einsum("bnts,bsnk->btnk", weights, v), jnp.float32))
    np.testing.assert_allclose(out.taps["middle"][0], plain.taps["resid"][0] + branch, atol=1e-4)


@parametrize_quick(
    "settings",
    [
        {},
        {"num_registers": 3},
        {"num_registers": 2, "extra_positions": "learned", "summary_factor": 2, "mask": "fractal"},
        {"num_registers": 1, "registers": "zeros", "positions": "alibi2d"},
    ],
)
def test_zero_registers_are_zero_and_the_rest_is_as_it_was(build, images, forward, settings):
    model, x = build(depth=2, **settings), images(2)
    wider = add_zero_registers(model, 2)
    before, after = forward(model, x), forward(wider, x)
    old, new = model.layout, wider.layout
    assert new.num_registers == old.num_registers + 2
    first = after.taps["resid"][0]
    np.testing.assert_array_equal(first[:, new.registers][:, -2:], 0.0)
    kept = np.delete(first, np.arange(new.registers.stop - 2, new.registers.stop), axis=1)
    np.testing.assert_array_equal(kept, before.taps["resid"][0])
    assert np.abs(before.logits - after.logits).max() > 1e-5  # they are attended to
    np.testing.assert_array_equal(forward(model, x).logits, before.logits)


def test_a_zero_register_is_a_zero_token_at_the_end(build, images):
    """arXiv:2506.08010 appends it: the blocks on a sequence that ends in a zero say the same."""
    model, x = build(depth=2), images(2)
    resid = jnp.pad(model(x).taps["resid"][0], [(0, 0), (0, 1), (0, 0)])
    for block in model.blocks:
        resid, _ = block(resid, None, None, None)
    out = nnx.jit(lambda model, x: model(x))(add_zero_registers(model, 1), x)
    np.testing.assert_allclose(out.taps["resid"][-1][:, 1], resid[:, -1], atol=1e-5)
    np.testing.assert_allclose(out.taps["resid"][-1][:, 2:], resid[:, 1:-1], atol=1e-5)


def test_a_head_that_reads_registers_has_no_room_for_more(build):
    with pytest.raises(ConfigError, match="no inputs for more registers"):
        add_zero_registers(build(pooling="cls_registers", num_registers=2), 1)


def test_what_is_no_edits_is_one_line(build, images):
    model, x = build(depth=1), images(1)
    for call in (model, model.attention):
        with pytest.raises(
            ConfigError, match=r"edits=None: must be models.edits.Edits\(...\), or be left out"
        ):
            call(x, edits=None)
