"""Images of another size than a model was made for."""

import jax
import numpy as np
import pytest

from vit_registers.models.positions import sincos2d
from vit_registers.models.resampling import resample
from vit_registers.models.vit import static_attention

POSITIONS = ["learned", "sincos2d", "alibi2d", "none"]
MASKS = [("none", None), ("none", 2), ("fractal", 2), ("fractal_local", 3), ("fractal_released", 2)]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("mask", "factor"), MASKS)
def test_every_model_takes_larger_and_oblong_images(build, images, positions, mask, factor):
    """By shapes alone; the next test computes."""
    extra = "none" if factor is None else "sincos2d"
    model = build(
        positions=positions, mask=mask, summary_factor=factor, num_registers=2, extra_positions=extra
    )
    sizes = [(24, 24)] if mask == "fractal_released" else [(24, 24), (12, 20)]
    for size in sizes:
        outputs = jax.eval_shape(model, images(1, size))
        assert outputs.logits.shape == (1, 5)
        assert outputs.patches.shape == (1, size[0] * size[1] // 16, 32)


@pytest.mark.parametrize("positions", POSITIONS)
def test_numbers_on_an_oblong_image_are_finite(build, images, forward, positions):
    model = build(positions=positions, summary_factor=2, mask="fractal", num_registers=2)
    assert np.isfinite(forward(model, images(1, (12, 20))).logits).all()


def test_patches_all_alike_give_the_same_logits_however_many_they_are(build, images, forward):
    model = build(positions="none", use_cls=False, pooling="gap")
    colours = images(2, (1, 1))
    small, large = (forward(model, np.tile(colours, (1, side, side, 1))).logits for side in (16, 24))
    np.testing.assert_allclose(large, small, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (12, 20), (8, 8), (16, 16)], ids=str)
def test_the_layout_changes_in_its_patch_grid_only(build, size):
    model = build(num_registers=2, summary_factor=2)
    layout = model.layout_for(size)
    assert layout.patch_grid == (size[0] // 4, size[1] // 4)
    assert layout.summary_grids == ((1, 1), (2, 2))
    assert (layout.has_cls, layout.num_registers) == (True, 2)
    assert (layout == model.layout) == (size == (16, 16))


@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
@pytest.mark.parametrize("size", [(24, 24), (12, 20)], ids=str)
def test_position_tables_are_resampled_from_the_grid_of_training(build, images, positions, size):
    model, x = build(positions=positions), images(1, size)
    layout = model.layout_for(size)
    embed_BxPxD, resid_BxTxD = model.embed(x, layout)
    native = model.pos_embed[...][0] if positions == "learned" else sincos2d((4, 4), 32)
    expected = embed_BxPxD + resample(native, (4, 4), layout.patch_grid, "bicubic_aa")[None]
    np.testing.assert_allclose(resid_BxTxD[:, layout.patches], expected, atol=1e-5)


def test_a_mask_covers_the_same_parts_of_a_larger_image(build):
    """Twice the grid: each patch becomes 2 x 2 patches that see what it saw."""
    model = build(use_cls=False, pooling="gap", summary_factor=2, mask="fractal_local")
    small, large = (model.layout_for((size, size)) for size in (16, 32))
    mask_small, mask_large = (static_attention(model.model, layout)[0] for layout in (small, large))
    each = [*range(5), *(5 + (row // 2) * 4 + column // 2 for row in range(8) for column in range(8))]
    np.testing.assert_array_equal(mask_large, mask_small[np.ix_(each, each)])
