"""Rotary positions against the rotations of timm and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.models.positions import position_rule
from vit_registers.models.rotary import rope2d
from vit_registers.models.tokens import TokenLayout

torch = pytest.importorskip("torch")

GRIDS = [(4, 4), (3, 5), (7, 2)]
LEARNED = "rope2d(base=10, coordinates='index', order='xy', pairs='interleaved', learned=True)"


def _layout(grid, **changes):
    settings = {"has_cls": False, "num_registers": 0, "summary_grids": (), "patch_grid": grid} | changes
    return TokenLayout(**settings)


def _rotate(arguments, x_TxK, layout, frequency=None):
    rotation = rope2d(x_TxK.shape[-1], **arguments).at(layout)
    return np.asarray(rotation.rotate(jnp.asarray(x_TxK)[None, :, None], frequency))[0, :, 0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"base": 50.0, "coordinates": "centres_max"}, {"temperature": 50.0, "normalize_coords": "max"}),
        ({"coordinates": "centres_min", "order": "xy"}, {"normalize_coords": "min", "grid_indexing": "xy"}),
        (
            {"min_period": 0.5, "max_period": 90.0, "pairs": "interleaved", "offset": 0.25},
            {"min_period": 0.5, "max_period": 90.0, "rotate_half": False, "grid_offset": 0.25},
        ),
    ],
    ids=str,
)
def test_rotations_of_centres_are_those_of_timm(timm, grid, ours, theirs):
    sincos = timm.layers.pos_embed_sincos
    x_TxK = np.random.default_rng(1).normal(size=(grid[0] * grid[1], 16)).astype(np.float32)
    embed = sincos.RotaryEmbeddingDinoV3(16, **theirs).get_embed(list(grid))
    is_half = theirs.get("rotate_half", True)
    expected = sincos.apply_rot_embed_cat(torch.tensor(x_TxK), embed, half=is_half).numpy()
    assert np.abs(expected - x_TxK).max() > 0.1
    np.testing.assert_allclose(_rotate(ours, x_TxK, _layout(grid)), expected, atol=3e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"base": 10_000.0}, {}),
        ({"base": 100.0, "order": "xy"}, {"temperature": 100.0, "grid_indexing": "xy"}),
        ({"base": 10_000.0, "reference": 16}, {"ref_feat_shape": [16, 16]}),
        (
            {"base": 10_000.0, "reference": 24, "offset": 1.0, "order": "xy"},
            {"ref_feat_shape": [24, 24], "grid_offset": 1.0, "grid_indexing": "xy"},
        ),
    ],
    ids=str,
)
def test_rotations_of_indices_are_those_of_timm(timm, grid, ours, theirs):
    sincos = timm.layers.pos_embed_sincos
    x_TxK = np.random.default_rng(1).normal(size=(grid[0] * grid[1], 16)).astype(np.float32)
    embed = sincos.RotaryEmbeddingCat(16, in_pixels=False, **theirs).get_embed(list(grid))
    expected = sincos.apply_rot_embed_cat(torch.tensor(x_TxK), embed).numpy()
    ours = {"coordinates": "index", "pairs": "interleaved"} | ours
    np.testing.assert_allclose(_rotate(ours, x_TxK, _layout(grid)), expected, atol=1e-5)


def test_learned_rotations_are_those_of_timm(timm):
    sincos = timm.layers.pos_embed_sincos
    module = sincos.RotaryEmbeddingMixed(dim=32, depth=2, num_heads=2)
    x_NxTxK = np.random.default_rng(1).normal(size=(2, 15, 16)).astype(np.float32)
    rule = position_rule(LEARNED).rotation(16)
    for block in range(2):
        embed = module.get_embed([3, 5])[block].detach()
        expected = sincos.apply_rot_embed_cat(torch.tensor(x_NxTxK), embed).numpy()
        frequency_2xNxA = jnp.asarray(module.freqs[:, block].detach().numpy())
        x = jnp.asarray(x_NxTxK).swapaxes(0, 1)[None]
        found = rule.at(_layout((3, 5))).rotate(x, frequency_2xNxA)[0].swapaxes(0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        # Initial values: theirs are ours for some turn of each head.
        for head in range(2):
            along, across = np.split(np.asarray(frequency_2xNxA[:, head]), 2, axis=1)
            magnitude = 10.0 ** -(np.arange(4) / 4)
            np.testing.assert_allclose(np.hypot(*along), magnitude, rtol=1e-5)
            np.testing.assert_allclose([-along[1], along[0]], across, atol=1e-6)
    own_2xNxA = np.asarray(rule.init(jax.random.key(0), 2))
    along, across = np.split(own_2xNxA, 2, axis=2)
    np.testing.assert_allclose(np.hypot(*along), [magnitude] * 2, rtol=1e-5)
    np.testing.assert_allclose(np.stack([-along[1], along[0]]), across, atol=1e-6)
    assert abs(np.subtract(*own_2xNxA[0, :, 0])) > 1e-3  # heads differ


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_defaults_are_those_of_dinov3_in_transformers(grid):
    there = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    config = there.DINOv3ViTConfig(hidden_size=32, num_attention_heads=2, patch_size=4)
    cos, sin = there.DINOv3ViTRopePositionEmbedding(config).eval()(
        torch.zeros(1, 3, 4 * grid[0], 4 * grid[1])
    )
    x_TxK = np.random.default_rng(1).normal(size=(3 + grid[0] * grid[1], 16)).astype(np.float32)
    x = torch.tensor(x_TxK)[None, None]
    expected = there.apply_rotary_pos_emb(x, x, cos, sin)[0][0, 0].numpy()
    found = _rotate({}, x_TxK, _layout(grid, has_cls=True, num_registers=2))
    np.testing.assert_allclose(found, expected, atol=3e-6)
    np.testing.assert_array_equal(found[:3], x_TxK[:3])
