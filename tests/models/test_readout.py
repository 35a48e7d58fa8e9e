"""Attention maps and intermediate tokens: exact under masks and biases, for all options, under jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models.attention import api
from vit_registers.models.edits import Edits, append_key
from vit_registers.models.masks import build_mask
from vit_registers.models.vit import ViT

TINY = Model(
    width=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    patch_size=4,
    image_size=(16, 16),
    num_classes=0,
    num_registers=2,
    summary_factor=2,
    layer_scale_init=0.1,
)


def _model(**settings):
    """A model with large random parameters, so that attention is far from uniform."""
    model = ViT(dataclasses.replace(TINY, **settings), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype("float32"), nnx.state(model))
    nnx.update(model, state)
    return model


def _images(height=16, width=16):
    return np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)


def _norm64(x, norm):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.epsilon)
    return x * np.asarray(norm.scale[...], np.float64) + np.asarray(norm.bias[...], np.float64)


def _slopes(num_heads):
    return 2.0 ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)  # of ALiBi, for a power of two


def _weights64(model, images, block):
    """The weights of a block in float64 from its input, restated with its parameters, mask and bias."""
    layout = model.layout_for(images.shape[1:3])
    mask, positions = model.model.mask, model.model.positions
    x = _norm64(np.asarray(model(images).taps["resid"][block], np.float64), model.blocks[block].norm1)
    qkv = model.blocks[block].attn.qkv
    q, k, _ = np.moveaxis(
        np.einsum("btd,dqnk->btqnk", x, np.asarray(qkv.kernel[...], np.float64)) + np.asarray(qkv.bias[...]),
        2,
        0,
    )
    logits = np.einsum("btnk,bsnk->bnts", q, k) / np.sqrt(q.shape[-1])
    if positions == "alibi2d":
        for grid, where in zip(layout.grids, layout.grid_slices, strict=True):
            y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
            distance = np.hypot(y[:, None] - y, x[:, None] - x)
            logits[:, :, where, where] -= _slopes(q.shape[2])[None, :, None, None] * distance
    if mask != "none":
        logits = np.where(build_mask(mask, layout), logits, -np.inf)
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


SETTINGS = {
    "fractal": {"mask": "fractal"},
    "alibi": {"positions": "alibi2d"},
    "both, of one loop": {"mask": "fractal", "positions": "alibi2d", "use_scan": True},
}


@parametrize_quick("settings", [*SETTINGS.values()], ids=[*SETTINGS])
def test_weights_equal_a_float64_restatement_with_mask_and_bias(settings):
    model, images = _model(**settings), _images(16, 24)
    layout = model.layout_for((16, 24))
    expected = _weights64(model, images, 1)
    for queries, where in layout.groups.items():
        found = model.attention(images, block=1, queries=queries, heads="all")
        np.testing.assert_allclose(found.weights, expected[:, :, where], atol=1e-5)
        assert found.maps.shape == (2, 4, where.stop - where.start, 4, 6)
    mean = model.attention(images, block=-2, queries="patches")
    np.testing.assert_allclose(mean.weights, expected[:, :, layout.patches].mean(1), atol=1e-5)
    maps = np.asarray(mean.weights)[..., layout.patches].reshape(mean.maps.shape)
    np.testing.assert_array_equal(mean.maps, maps)
    if model.model.mask == "fractal":  # what the taps alone give is far off
        taps = model(images).taps
        unmasked = np.asarray(api.attention_weights(taps["q"][1], taps["k"][1]))
        assert np.abs(unmasked - expected).max() > 0.1


def test_the_weights_give_the_output_of_attention():
    model, images = _model(mask="fractal", positions="alibi2d"), _images()
    taps, block = model(images).taps, model.blocks[2]
    groups = model.layout.groups
    rows = [model.attention(images, queries=name, heads="all").weights for name in groups]
    out = np.einsum("bnts,bsnk->btnk", np.concatenate(rows, axis=2), taps["v"][2])
    kernel, bias, gamma = map(
        np.asarray, (block.attn.out.kernel[...], block.attn.out.bias[...], block.ls1.gamma[...])
    )
    expected = np.asarray(taps["resid"][2]) + (np.einsum("btnk,nkd->btd", out, kernel) + bias) * gamma
    np.testing.assert_allclose(expected, taps["middle"][2], atol=1e-5)


def test_blocks_heads_and_jit():
    model, images = _model(mask="fractal"), _images()
    one = [model.attention(images, block=i, queries="registers", heads="all") for i in range(3)]
    several = model.attention(images, block=(0, -1), queries="registers", heads="all")
    assert several.weights.shape == (2, 2, 4, 2, model.layout.num_tokens)
    assert several.maps.shape == (2, 2, 4, 2, 4, 4)
    np.testing.assert_array_equal(several.weights, np.stack([one[0].weights, one[2].weights]))
    np.testing.assert_allclose(np.asarray(several.weights).sum(-1), 1.0, atol=1e-6)
    compiled = nnx.jit(lambda model, x: model.attention(x, block=(0, -1), queries="registers", heads="all"))
    # jax 0.12 rounds the compiled forward pass otherwise: 1.4e-6.
    np.testing.assert_allclose(compiled(model, images).weights, several.weights, atol=3e-6)
    graph, state = nnx.split(model)
    plain = jax.jit(lambda state, x: nnx.merge(graph, state).attention(x).maps)(state, images)
    np.testing.assert_allclose(plain, model.attention(images).maps, atol=1e-6)


@pytest.fixture
def even_tokens_by_xla(monkeypatch):
    """cudnn's padding of all blocks, with the attention of xla."""
    monkeypatch.setitem(api.BACKENDS, "cudnn", api.attend_xla)


def test_padded_tokens_are_not_in_the_weights(even_tokens_by_xla):
    assert _model().layout.num_tokens % 2 == 0
    plain, padded = _model(num_registers=3), _model(num_registers=3, attention="cudnn")
    images = _images()
    for queries in plain.layout.groups:
        expected = plain.attention(images, queries=queries)
        np.testing.assert_allclose(
            padded.attention(images, queries=queries).weights, expected.weights, atol=1e-5
        )


def test_an_edit_that_appends_a_key_adds_a_column():
    model, images = _model(mask="fractal"), _images()
    key = np.ones((4, 8), np.float32)
    edits = Edits(keys_values=lambda block, k, v: append_key(k, v, key, key))
    found = model.attention(images, edits=edits)
    assert found.weights.shape == (2, 1, model.layout.num_tokens + 1) and found.maps.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(np.asarray(found.weights).sum(-1), 1.0, atol=1e-6)
    assert (np.asarray(found.weights)[..., -1] > 0).all()


@pytest.mark.parametrize("norm", [True, False])
def test_intermediates_are_the_tokens_after_blocks(norm):
    model, images = _model(), _images(16, 24)
    out, layout = model(images), model.layout_for((16, 24))
    resid = [np.asarray(x) for x in out.taps["resid"]]
    found = model.intermediates(images, norm=norm)
    assert found.patches.shape == (3, 2, 4, 6, 32) and found.prefix.shape == (3, 2, layout.patches.start, 32)
    flat = model.intermediates(images, blocks=(-1,), norm=norm, reshape=False)
    np.testing.assert_array_equal(flat.patches, np.asarray(found.patches)[-1:].reshape(1, 2, 24, 32))
    if norm:
        np.testing.assert_array_equal(flat.patches[0], out.patches)
        np.testing.assert_array_equal(flat.prefix[0][:, 0], out.cls)
    else:
        both = np.concatenate([found.prefix[1], np.asarray(found.patches)[1].reshape(2, 24, 32)], axis=1)
        np.testing.assert_array_equal(both, resid[2])
    last = model.intermediates(images, blocks=2, norm=norm)
    np.testing.assert_array_equal(last.patches, np.asarray(found.patches)[1:])


def test_tokens_that_the_model_does_not_norm_stay_so():
    model = _model(use_norm_after_pool=True, pooling="gap")
    found = model.intermediates(_images(), blocks=1, reshape=False)
    np.testing.assert_array_equal(found.patches[0], model(_images()).patches)


WRONG = {
    "queries='registers': the model has none; it has cls, patches": {"queries": "registers"},
    "queries='summaries': the model has none": {"queries": "summaries"},
    "queries='register' is unknown": {"queries": "register"},
    "heads='max' is unknown": {"heads": "max"},
    "block=3: the model has 3 blocks: must be 0 to 2, or -3 to -1 from the end": {"block": 3},
    "block=1.0: the model has 3 blocks": {"block": (0, 1.0)},
    "block selects no block": {"block": ()},
    "block=None: the model has 3 blocks": {"block": None},
    "block='all': the model has 3 blocks": {"block": "all"},
    "block=1.5: the model has 3 blocks": {"block": 1.5},
    "block=True: the model has 3 blocks": {"block": True},
    "queries=['cls']: must be one of cls, patches": {"queries": ["cls"]},
    "heads=None: must be one of all, mean": {"heads": None},
}


def test_wrong_arguments_are_refused_in_one_line():
    model = _model(num_registers=0, summary_factor=None)
    for message, arguments in WRONG.items():
        with pytest.raises(ConfigError) as raised:
            model.attention(_images(), **arguments)
        assert message in str(raised.value)
    for blocks in (0, 4, (3,), 1.5, True, "1"):
        with pytest.raises(ConfigError, match=r"must be .* 3|must be 0 to 2"):
            model.intermediates(_images(), blocks=blocks)


def test_integer_images_are_refused_with_the_name_of_preprocess():
    model = _model()
    for call in (model, model.attention, model.intermediates):
        with pytest.raises(ConfigError, match="images are uint8: must be normalised floats; preprocess"):
            call(np.zeros((1, 16, 16, 3), np.uint8))


def test_what_is_no_array_is_refused_in_one_line():
    model, images = _model(), _images()
    for wrong in (images.tolist(), "photo.jpg", None):
        for call in (model, model.attention, model.intermediates):
            with pytest.raises(ConfigError, match=r"images are of type .*: must be an array"):
                call(wrong)


def test_block_numbers_may_be_integers_of_numpy_and_jax():
    model, images = _model(), _images()
    expected = model.attention(images, block=(0, 2)).weights
    for blocks in (np.array([0, 2]), jnp.array([0, 2]), range(0, 3, 2)):
        np.testing.assert_array_equal(model.attention(images, block=blocks).weights, expected)
    np.testing.assert_array_equal(model.attention(images, block=jnp.array(2)).weights, expected[1])
