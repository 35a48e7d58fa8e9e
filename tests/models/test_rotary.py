"""Rotary positions: scores of relative positions, learned angles, coordinates drawn in training only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import attention_weights
from vit_registers.models.blocks import rotary, rotation_at
from vit_registers.models.edits import Edits, append_key
from vit_registers.models.masks import resolve
from vit_registers.models.positions import positions_in_evaluation
from vit_registers.models.rotary import rope2d
from vit_registers.models.tokens import TokenLayout

GRIDS = [(4, 4), (3, 5), (7, 2)]
LEARNED = "rope2d(base=10, coordinates='index', order='xy', pairs='interleaved', learned=True)"
EVA = "learned + rope2d(base=10000, coordinates='index', reference=16, pairs='interleaved')"


def _layout(grid, **changes):
    settings = {"has_cls": False, "num_registers": 0, "summary_grids": (), "patch_grid": grid} | changes
    return TokenLayout(**settings)


def _rotate(arguments, x_TxK, layout, frequency=None):
    rotation = rope2d(x_TxK.shape[-1], **arguments).at(layout)
    return np.asarray(rotation.rotate(jnp.asarray(x_TxK)[None, :, None], frequency))[0, :, 0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"coordinates": "centres_max"}, {"coordinates": "index", "pairs": "interleaved", "base": 10_000.0}],
    ids=str,
)
def test_scores_of_equal_vectors_depend_on_the_difference_of_cells_only(grid, arguments):
    rng, layout = np.random.default_rng(0), _layout(grid)
    one_K, other_K = rng.normal(size=(2, 16)).astype(np.float32)
    q, k = (_rotate(arguments, np.tile(x, (layout.num_tokens, 1)), layout) for x in (one_K, other_K))
    by_difference = {}
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            by_difference.setdefault((a[0] - b[0], a[1] - b[1]), []).append(q[i] @ k[j])
    assert max(np.ptp(scores) for scores in by_difference.values()) < 1e-4
    means = np.array([np.mean(scores) for scores in by_difference.values()])
    assert np.unique(means.round(3)).size > 0.8 * means.size  # which tells differences apart
    np.testing.assert_allclose(by_difference[0, 0], one_K @ other_K, atol=1e-5)


def test_a_summary_is_at_the_mean_of_the_cells_that_it_covers():
    layout = _layout((4, 6), has_cls=True, num_registers=1, summary_grids=((1, 1), (2, 3)))
    for arguments in ({}, {"coordinates": "index", "order": "xy", "reference": 3, "offset": 1.0}):
        coords_Tx2 = rope2d(8, **arguments).coords_Tx2(layout)
        patches = coords_Tx2[layout.patches].reshape(2, 2, 3, 2, 2)
        fine = coords_Tx2[layout.grid_slices[1]].reshape(2, 3, 2)
        np.testing.assert_allclose(fine, patches.mean(axis=(1, 3)), atol=1e-12)
        np.testing.assert_allclose(coords_Tx2[2], patches.mean(axis=(0, 1, 2, 3)), atol=1e-12)
        np.testing.assert_array_equal(coords_Tx2[:2], 0.0)
        without = rope2d(8, summaries=False, **arguments).coords_Tx2(layout)
        np.testing.assert_array_equal(without[layout.summaries], 0.0)
        np.testing.assert_array_equal(without[layout.patches], coords_Tx2[layout.patches])


def test_periods_rounded_to_bfloat16_are_those_of_a_file_in_bfloat16():
    exact, rounded = (rope2d(64, periods=kind).frequency_2xA[0, :16] for kind in ("float32", "bfloat16"))
    expected = 2 * np.pi / np.asarray(jnp.asarray(100.0 ** (np.arange(16) / 16), jnp.bfloat16), np.float64)
    np.testing.assert_array_equal(rounded, expected)
    assert 0 < np.abs(rounded / exact - 1).max() < 2**-8


def test_one_patch_is_as_no_rotation(build, images, forward):
    """The centre of the only patch is 0 on both axes."""
    x, sizes = images(2, (4, 4)), {"image_size": (4, 4), "num_registers": 2}
    plain, rotated = (forward(build(positions=p, **sizes), x) for p in ("none", "rope2d"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), rotated, plain)
    x, sizes = images(2), {"num_registers": 2}
    plain, rotated = (forward(build(positions=p, **sizes), x).logits for p in ("none", "rope2d"))
    assert np.abs(plain - rotated).max() > 1e-4


@pytest.mark.parametrize("positions", ["rope2d", EVA, LEARNED])
def test_taps_are_what_attention_reads_and_prefix_tokens_are_not_rotated(build, images, forward, positions):
    model = build(positions=positions, num_registers=2)
    taps = forward(model, images(2)).taps
    block, q, k, v = model.blocks[0], taps["q"][0], taps["k"][0], taps["v"][0]
    plain = block.attn.qkv(block.norm1(taps["resid"][0]))
    np.testing.assert_allclose(q[:, :3], plain[:, :3, 0], atol=1e-6)
    np.testing.assert_allclose(k[:, :3], plain[:, :3, 1], atol=1e-6)
    for found, before in ((q, plain[:, :, 0]), (k, plain[:, :, 1])):
        assert np.abs(found - before)[:, 4:].max() > 1e-2
        np.testing.assert_allclose(jnp.square(found).sum(-1), jnp.square(before).sum(-1), rtol=1e-4)
    out = jnp.einsum("bnts,bsnk->btnk", attention_weights(q, k), v)
    np.testing.assert_allclose(taps["resid"][0] + block.attn.out(out), taps["middle"][0], atol=1e-5)


def test_another_image_size_has_the_rotation_of_its_own_grid(build, images, forward):
    x = images(2, (8, 24))
    large, small = (build(positions="rope2d", image_size=size) for size in ((16, 16), (8, 24)))
    np.testing.assert_array_equal(forward(large, x).logits, forward(small, x).logits)


@parametrize_quick(
    "positions", ["rope2d(rescale=2)", LEARNED, EVA], number=1, ids=["drawn", "learned", "fixed"]
)
def test_a_loop_over_blocks_has_the_values_and_gradients_of_blocks_one_by_one(build, images, positions):
    x, key = images(4), jax.random.key(3)
    settings = {"depth": 3, "positions": positions, "drop_path": 0.5, "num_registers": 1, "remat": "block"}

    def results(use_scan):
        graph, params = nnx.split(build(use_scan=use_scan, **settings), nnx.Param)
        loss = lambda p: jnp.square(nnx.merge(graph, p)(x, drop_key=key).patches).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    loop, scan = results(False), results(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), scan, loop)
    if positions == LEARNED:
        assert all(
            np.abs(block["attn"]["frequencies"][...]).min() > 0 for block in loop[1]["blocks"].values()
        )


def test_gradients_of_learned_frequencies_are_finite_differences(build, images):
    graph, params = nnx.split(build(positions=LEARNED), nnx.Param)
    x = images(2)
    loss = jax.jit(lambda p: jnp.square(nnx.merge(graph, p)(x).logits).sum())
    gradient = jax.grad(loss)(params)["blocks"][0]["attn"]["frequencies"][...]
    direction = jnp.asarray(np.random.default_rng(0).normal(size=gradient.shape), jnp.float32)

    def moved(step):
        frequencies = params["blocks"][0]["attn"]["frequencies"]
        before = frequencies[...]
        frequencies[...] = before + step * direction
        value = loss(params)
        frequencies[...] = before
        return value

    numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2
    np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=0.02)


def test_coordinates_are_drawn_in_training_only(build, images, forward):
    model, fixed = (build(positions=p, num_registers=1) for p in ("rope2d(rescale=2)", "rope2d"))
    x = images(2)
    plain = forward(model, x).logits
    np.testing.assert_array_equal(plain, forward(fixed, x).logits)
    drawn = [forward(model, x, jax.random.key(i)).logits for i in range(2)]
    assert np.abs(drawn[0] - plain).max() > 1e-4 and np.abs(drawn[0] - drawn[1]).max() > 1e-4
    np.testing.assert_array_equal(drawn[0], forward(model, x, jax.random.key(0)).logits)
    np.testing.assert_array_equal(forward(fixed, x, jax.random.key(0)).logits, plain)


@pytest.mark.parametrize("name", ["shift", "jitter", "rescale"])
def test_drawn_coordinates_are_in_their_range_and_cls_has_none(name):
    value, layout = {"shift": 0.3, "jitter": 1.5, "rescale": 2.0}[name], _layout((4, 4), has_cls=True)
    rule = rope2d(8, learned=True, **{name: value})
    coords_Tx2 = rule.coords_Tx2(layout)
    found = np.array([rule.at(layout, jax.random.key(i)).coords_Tx2 for i in range(200)])
    np.testing.assert_array_equal(found[:, 0], 0.0)
    if name == "shift":
        change, low, high = found[:, 1:] - coords_Tx2[1:], -value, value
    else:
        change, low, high = np.log(found[:, 1:] / coords_Tx2[1:]), -np.log(value), np.log(value)
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1], change.shape), atol=1e-5)
    change = change[:, 0]
    assert low <= change.min() < 0.9 * low and 0.9 * high < change.max() <= high + 1e-6
    assert abs(change.mean()) < 0.15 * high
    assert (np.ptp(change, axis=1).max() < 1e-5) == (name == "rescale")  # one factor for both axes


def test_bfloat16_is_rotated_in_float32():
    layout = _layout((4, 4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 2, 8)), jnp.bfloat16)
    rotation = rope2d(8).at(layout)
    found = rotation.rotate(x, None)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, rotation.rotate(x.astype(jnp.float32), None).astype(jnp.bfloat16))


def test_a_key_that_an_edit_appends_is_not_rotated(build, images):
    model, x = build(positions="rope2d"), images(2)
    key_NxK = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    edits = Edits(keys_values=lambda i, k, v: append_key(k, v, key_NxK, key_NxK))
    plain, out = (jax.jit(lambda m, x, e=e: m(x, edits=e))(model, x) for e in (Edits(), edits))
    np.testing.assert_array_equal(out.taps["k"][0][:, -1], np.broadcast_to(key_NxK, (2, 4, 8)))
    np.testing.assert_array_equal(out.taps["k"][0][:, :-1], plain.taps["k"][0])
    assert np.abs(out.logits - plain.logits).max() > 1e-4


def test_the_text_is_made_canonical(tiny):
    assert resolve(tiny(positions="rope2d(50) + learned")).positions == "learned + rope2d(base=50.0)"
    assert resolve(tiny(positions="rope2d(100)")).positions == "rope2d"
    assert resolve(tiny(positions="none+rope2d")).positions == "rope2d"
    assert positions_in_evaluation("rope2d(base=50, shift=1, rescale=2)") == "rope2d(base=50.0)"
    assert rotary(tiny(positions="learned")) is None and rotation_at(tiny(), _layout((4, 4))) is None


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("rope", r"model.positions='rope' is unknown: did you mean 'rope2d'"),
        ("learned + sincos2d", "give one of sincos2d"),
        ("rope2d + rope2d", "give one of sincos2d"),
        ("learned(2)", "learned takes 0 arguments"),
        ("rope2d(bas=3)", "no argument 'bas'.*base"),
        ("rope2d(base=0)", "base=0.0: must be > 0"),
        ("rope2d(min_period=2)", "must both be > 0"),
        (
            "rope2d(base=50, min_period=1, max_period=2)",
            "base=50.0, min_period=1.0: must have one of the two",
        ),
        ("rope2d(pairs='x')", "must be one of half, interleaved"),
        ("rope2d(reference=16)", "coordinates be 'index'"),
        ("rope2d(jitter=0.5)", "jitter=0.5: must be >= 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny, positions, message):
    with pytest.raises(ConfigError, match=message):
        rotary(tiny(positions=positions))


def test_a_head_that_two_axes_do_not_divide_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"6 channels of a head: must be a multiple of 4"):
        rotary(tiny(positions="rope2d", width=24))
