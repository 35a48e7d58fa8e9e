"""Layouts of one row, for text: summaries, the fractal mask, positions, and bytes as pixels."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.models.test_masks import brute_force, layout_of
from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models.causal_masks import is_causal
from vit_registers.models.masks import build_mask
from vit_registers.models.pixels import NUM_BYTES
from vit_registers.models.positions import sincos1d
from vit_registers.models.tokens import summary_grids
from vit_registers.models.vit import ViT

TEXT = Model(
    width=16,
    depth=1,
    num_heads=2,
    patch_size=1,
    image_size=(1, 8),
    channels=1,
    pixels="byte",
    num_classes=0,
    use_cls=False,
    pooling="gap",
    positions="none",
)


@pytest.mark.parametrize(
    ("length", "factor", "columns"),
    [
        (256, 4, [1, 4, 16, 64]),
        (256, 16, [1, 16]),
        (128, 2, [1, 2, 4, 8, 16, 32, 64]),
        (10, 3, [1, 3]),
        (5, 5, [1]),
    ],
)
def test_only_the_row_of_a_sequence_is_divided(length, factor, columns):
    assert summary_grids((1, length), factor) == tuple((1, one) for one in columns)


@pytest.mark.parametrize("factor", [-1, 0, 1, 9])
def test_a_factor_that_does_not_fit_a_sequence_is_refused(factor):
    with pytest.raises(
        ConfigError, match=f"summary_factor={factor} does not fit .* 1 x 8: it must be 2 to 8"
    ):
        summary_grids((1, 8), factor)


def test_the_fractal_mask_of_five_bytes_by_hand():
    # Tokens: s (all), u and v of the level of two, and the bytes a b c | d e: u has the first three.
    rows = [
        # s u v a b c d e
        "11111111",  # s
        "11111100",  # u
        "11100011",  # v
        "11011111",  # a: sees s, u, and all bytes, but not v
        "11011111",  # b
        "11011111",  # c
        "10111111",  # d
        "10111111",  # e
    ]
    want = np.array([[mark == "1" for mark in row] for row in rows])
    np.testing.assert_array_equal(build_mask("fractal", layout_of((1, 5), 2)), want)


@pytest.mark.parametrize(("length", "factor"), [(16, 2), (17, 2), (64, 4), (50, 3), (7, 7)])
def test_every_byte_is_linked_to_one_ancestor_of_each_level(length, factor):
    layout = layout_of((1, length), factor)
    mask_TxT = build_mask("fractal", layout)
    np.testing.assert_array_equal(mask_TxT, brute_force(layout))
    np.testing.assert_array_equal(mask_TxT, mask_TxT.T)
    assert mask_TxT[layout.patches, layout.patches].all()
    for (_, columns), level in zip(layout.summary_grids, layout.grid_slices[:-1], strict=True):
        to_level = mask_TxT[layout.patches, level]
        np.testing.assert_array_equal(to_level.sum(axis=1), 1)
        owner = to_level.argmax(axis=1)
        assert set(owner) == set(range(columns))
        assert (np.diff(owner) >= 0).all()  # spans, in the order of the text


def test_the_causal_fractal_mask_of_five_bytes_by_hand():
    # Spans: s has a b c d e, u has a b c, v has d e. No span but that of u ends before the last byte.
    rows = [
        # s u v a b c d e
        "11111111",  # s: reads all, and is read by no byte
        "01011100",  # u
        "01100011",  # v: its level, and nothing of s, whose span has not ended
        "00010000",  # a
        "00011000",  # b
        "00011100",  # c
        "01011110",  # d: u has ended
        "01011111",  # e
    ]
    want = np.array([[mark == "1" for mark in row] for row in rows])
    np.testing.assert_array_equal(build_mask("fractal_causal", layout_of((1, 5), 2)), want)


@pytest.mark.parametrize(("length", "factor"), [(16, 2), (17, 2), (64, 4), (50, 3), (7, 7)])
@pytest.mark.parametrize("extra", [0, 3])
def test_the_causal_fractal_mask_is_its_rule_pair_by_pair(length, factor, extra):
    layout = layout_of((1, length), factor, num_registers=extra)
    mask_TxT = build_mask("fractal_causal", layout)
    owner = [np.arange(length) * columns // length for _, columns in layout.grids]
    spans = [
        (level, np.flatnonzero(cells == cell))
        for level, cells in enumerate(owner)
        for cell in sorted(set(cells))
    ]

    def rule(one, other):
        (level, span), (other_level, other_span) = one, other
        if other_level > level:
            return set(other_span) <= set(span)
        if other_level == level:
            return other_span[0] <= span[0]
        ended = [end for lvl, end in spans if lvl == other_level and end[-1] < span[0]]
        return bool(ended) and other_span[0] == ended[-1][0]

    want = [[rule(one, other) for other in spans] for one in spans]
    np.testing.assert_array_equal(mask_TxT[extra:, extra:], want)
    assert mask_TxT[:, :extra].all()
    assert not mask_TxT[:extra, extra:].any()
    assert is_causal(mask_TxT, layout)


def test_which_masks_are_causal():
    layout = layout_of((1, 16), 2, num_registers=1)
    found = {name: is_causal(build_mask(name, layout), layout) for name in ("causal", "fractal_causal")}
    assert found == {"causal": True, "fractal_causal": True}
    for name in ("none", "fractal", "one_way", "window(radius=1)"):
        assert not is_causal(build_mask(name, layout), layout)
    # A leak through another token: the summary of a span reads its end, and its first byte reads the summary.
    leaky = build_mask("fractal_causal", layout)
    leaky[layout.patches.start, layout.summaries.stop - 8] = True
    assert not is_causal(leaky, layout)
    through_register = build_mask("causal", layout)
    through_register[0, layout.patches.stop - 1] = True
    assert not is_causal(through_register, layout)


def test_the_causal_fractal_mask_refuses_grids_of_several_rows_and_no_summaries():
    with pytest.raises(ConfigError, match="requires summary tokens"):
        build_mask("fractal_causal", layout_of((1, 16), None))
    with pytest.raises(ConfigError, match="of one row of patches"):
        build_mask("fractal_causal", layout_of((4, 4), 2))


def test_sincos1d_is_the_formula():
    table_PxD = sincos1d((1, 7), 6)
    for t in range(7):
        angles = [t / 10_000 ** (2 * i / 6) for i in range(3)]
        np.testing.assert_allclose(table_PxD[t], [*np.sin(angles), *np.cos(angles)], atol=1e-6)
    assert table_PxD.dtype == np.float32
    with pytest.raises(ConfigError, match=r"sincos1d.*width=7: the width must be even"):
        sincos1d((1, 7), 7)
    with pytest.raises(ConfigError, match=r"sincos1d.*of one row of patches"):
        ViT(dataclasses.replace(TEXT, positions="sincos1d", image_size=(2, 8)), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="the width must be even"):
        ViT(dataclasses.replace(TEXT, positions="sincos1d", width=15, num_heads=3), rngs=nnx.Rngs(0))


def test_a_byte_is_embedded_as_its_row_of_a_table():
    model = ViT(TEXT, rngs=nnx.Rngs(0))
    byte_BxP = np.random.default_rng(0).integers(0, 256, (3, 8))
    found = model(byte_BxP.reshape(3, 1, 8, 1).astype(np.float32)).taps["embed"]
    table, bias = (np.asarray(one[...]) for one in (model.patch_embed.kernel, model.patch_embed.bias))
    table = table[0, 0]
    assert table.shape == (NUM_BYTES, 16)
    np.testing.assert_allclose(found, 16.0 * table[byte_BxP] + bias, rtol=1e-6, atol=1e-6)
    assert 0.8 < np.std(16.0 * table) < 1.2  # as for normalised images


@pytest.mark.parametrize("setting", [{"patch_size": 2}, {"channels": 3}])
def test_bytes_in_patches_or_in_channels_are_refused(setting):
    with pytest.raises(ConfigError, match="a token is one byte, so set both to 1"):
        ViT(dataclasses.replace(TEXT, image_size=(2, 8), **setting), rngs=nnx.Rngs(0))


def test_an_unknown_kind_of_pixels_is_refused():
    with pytest.raises(ConfigError, match=r"model.pixels.*byte"):
        ViT(dataclasses.replace(TEXT, pixels="bytes"), rngs=nnx.Rngs(0))
