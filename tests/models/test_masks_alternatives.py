"""The alternative masks against their rules, pair by pair, and masks from files."""

import dataclasses
import hashlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models.masks import build_mask, is_same_mask, resolve
from vit_registers.models.tokens import TokenLayout, summary_grids
from vit_registers.models.vit import ViT


def layout_of(grid, factor, *, has_cls=True, num_registers=2):
    grids = summary_grids(grid, factor)
    return TokenLayout(has_cls=has_cls, num_registers=num_registers, summary_grids=grids, patch_grid=grid)


LAYOUTS = [
    layout_of((8, 8), 2),
    layout_of((14, 14), 3, num_registers=0),
    layout_of((14, 8), 2, has_cls=False),
    layout_of((5, 9), 4, has_cls=False, num_registers=0),
]


def pairs_with_patches(layout, mask_TxT):
    """(summaries that patches attend to [P, S], patches that summaries attend to [S, P])."""
    return mask_TxT[layout.patches, layout.summaries], mask_TxT[layout.summaries, layout.patches]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("offset", [-3, 0, 1, 2, 5, 100])
def test_shifted_summaries_read_the_patches_of_their_cell_displaced_by_the_offset(layout, offset):
    fractal, mask_TxT = build_mask("fractal", layout), build_mask(f"shifted(offset={offset})", layout)
    rows, columns = layout.patch_grid
    (before_PxS, _), (seen_PxS, read_SxP) = (pairs_with_patches(layout, m) for m in (fractal, mask_TxT))
    for row in range(rows):
        for column in range(columns):
            moved = (row + offset) % rows * columns + (column + offset) % columns
            np.testing.assert_array_equal(seen_PxS[moved], before_PxS[row * columns + column])
    np.testing.assert_array_equal(read_SxP, seen_PxS.T)
    for grid, at in zip(layout.summary_grids, layout.grid_slices, strict=False):
        counts = mask_TxT[layout.patches, at].sum(axis=1)
        np.testing.assert_array_equal(counts, 1, err_msg=f"one summary of {grid} for each patch")
    assert mask_TxT.sum() == fractal.sum()
    same = mask_TxT.copy()  # all other pairs are those of the fractal mask
    same[layout.patches, layout.summaries], same[layout.summaries, layout.patches] = before_PxS, before_PxS.T
    np.testing.assert_array_equal(same, fractal)


def test_a_shift_by_whole_sides_is_the_fractal_mask_and_a_shift_by_a_cell_is_another_summary():
    layout = layout_of((8, 8), 2)
    fractal = build_mask("fractal", layout)
    for offset in (0, 8, -16):
        np.testing.assert_array_equal(build_mask(f"shifted({offset})", layout), fractal)
    (before_PxS, _), (after_PxS, _) = (
        pairs_with_patches(layout, m) for m in (fractal, build_mask("shifted(2)", layout))
    )
    finest = slice(5, 21)  # after levels of 1 and 4 cells: 4 x 4 cells of 2 x 2 patches
    cells = before_PxS[:, finest].reshape(8, 8, 4, 4)
    np.testing.assert_array_equal(
        after_PxS[:, finest].reshape(8, 8, 4, 4), np.roll(cells, (-1, -1), axis=(2, 3))
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_way_patches_never_attend_to_summaries_and_all_else_is_fractal(layout):
    fractal, mask_TxT = build_mask("fractal", layout), build_mask("one_way", layout)
    seen_PxS, read_SxP = pairs_with_patches(layout, mask_TxT)
    assert not seen_PxS.any()
    np.testing.assert_array_equal(read_SxP, pairs_with_patches(layout, fractal)[1])
    assert read_SxP.any(axis=1).all()
    expected = fractal.copy()
    expected[layout.patches, layout.summaries] = False
    np.testing.assert_array_equal(mask_TxT, expected)


@pytest.mark.parametrize("layout", [*LAYOUTS, layout_of((6, 4), None), layout_of((3, 3), None)], ids=str)
@pytest.mark.parametrize("radius", [0, 1, 3, 10**30])
def test_window_is_a_chebyshev_distance_between_patches_and_all_other_pairs_are_allowed(layout, radius):
    mask_TxT = build_mask(f"window(radius={radius})", layout)
    cells = list(np.ndindex(layout.patch_grid))
    expected = [[max(abs(r1 - r2), abs(c1 - c2)) <= radius for r2, c2 in cells] for r1, c1 in cells]
    np.testing.assert_array_equal(mask_TxT[layout.patches, layout.patches], expected)
    others = mask_TxT.copy()
    others[layout.patches, layout.patches] = True
    assert others.all()
    np.testing.assert_array_equal(mask_TxT, mask_TxT.T)


@pytest.mark.parametrize("factor", [None, 2])
def test_cls_through_registers_leaves_out_the_pairs_from_cls_to_patches_only(factor):
    layout = layout_of((4, 4), factor)
    mask_TxT = build_mask("cls_through_registers", layout)
    without = {(0, column) for column in range(layout.patches.start, layout.patches.stop)}
    assert {(int(row), int(column)) for row, column in np.argwhere(~mask_TxT)} == without


@pytest.mark.parametrize("missing", [{"has_cls": False}, {"num_registers": 0}])
def test_cls_through_registers_requires_both(missing):
    with pytest.raises(ConfigError, match=r"requires cls and registers: set model\.use_cls=True"):
        build_mask("cls_through_registers", layout_of((4, 4), None, **missing))


def test_cls_sees_patches_through_registers_one_block_later():
    """The gradient of cls by the pixels is zero after one block and not after two."""
    settings = {"use_cls": True, "num_registers": 1, "image_size": (4, 4), "patch_size": 2, "num_classes": 0}
    for depth, is_seen in ((1, False), (2, True)):
        model = Model(width=16, num_heads=2, depth=depth, mask="cls_through_registers", **settings)
        graphdef, params = nnx.split(ViT(model, rngs=nnx.Rngs(0)))
        cls = lambda image: nnx.merge(graphdef, params)(image).pooled[0, 0]  # noqa: E731, B023
        gradient = jax.grad(cls)(jax.random.normal(jax.random.key(1), (1, 4, 4, 3)))
        assert bool((np.abs(gradient) > 1e-8).any()) == is_seen


@pytest.mark.parametrize("mask", ["shifted(offset=1)", "one_way", "window(radius=1)"])
def test_cls_and_registers_attend_to_all_and_all_attend_to_them(mask):
    layout = layout_of((8, 8), 2)
    mask_TxT = build_mask(mask, layout)
    assert mask_TxT.dtype == bool
    assert mask_TxT[:3].all() and mask_TxT[:, :3].all()
    assert mask_TxT.diagonal().all()


LAYOUT = layout_of((2, 2), None)  # cls, 2 registers, 4 patches


@pytest.fixture
def matrix():
    matrix = np.random.default_rng(0).random((7, 7)) < 0.3
    np.fill_diagonal(matrix, True)
    return matrix


def test_a_mask_of_a_file_is_its_matrix(tmp_path, matrix):
    np.save(tmp_path / "m.npy", matrix)
    text = f"file(path='{tmp_path}/m.npy')"
    np.testing.assert_array_equal(build_mask(text, LAYOUT), matrix)
    resolved = resolve(Model(mask=text)).mask
    digest = hashlib.sha256((tmp_path / "m.npy").read_bytes()).hexdigest()
    assert resolved == f"file(path='{tmp_path}/m.npy', sha256='{digest}')"
    np.testing.assert_array_equal(build_mask(resolved, LAYOUT), matrix)
    np.save(tmp_path / "m.npy", ~matrix)
    with pytest.raises(ConfigError, match=f"m.npy has changed: its SHA-256 is [0-9a-f]*, not {digest}"):
        build_mask(resolved, LAYOUT)
    assert resolve(Model(mask=resolved)).mask == resolved  # not that of the changed file


def empty_rows(matrix):
    matrix[[2, 5]] = False
    return matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[:, :6], "has shape (7, 6): must be (7, 7), for 1 cls, 2 registers, 4 patches"),
        (lambda m: m[None], "has shape (1, 7, 7): must be (7, 7)"),
        (lambda m: m.astype(np.uint8), "has dtype uint8: save a matrix of bool, True = may attend"),
        (empty_rows, "has 2 rows without a True, first row 2: each row requires one"),
        (lambda m: m.astype(object), "is not a .npy file of an array: Object arrays cannot be loaded"),
    ],
)
def test_a_matrix_that_is_no_mask_of_the_model_is_one_line(tmp_path, matrix, change, message):
    np.save(tmp_path / "m.npy", change(matrix), allow_pickle=True)
    with pytest.raises(ConfigError, match=re.escape(f"model.mask: {tmp_path}/m.npy {message}")):
        build_mask(f"file('{tmp_path}/m.npy')", LAYOUT)


def test_a_file_that_is_no_matrix_is_one_line(tmp_path, matrix):
    np.save(tmp_path / "whole.npy", matrix)
    whole = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-5])
    (tmp_path / "header.npy").write_bytes(whole[:12] + b"}{'" + whole[15:])
    (tmp_path / "text.npy").write_text("True False")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", matrix)
    (tmp_path / "folder.npy").mkdir()
    for name in ("cut.npy", "header.npy", "text.npy", "empty.npy", "several.npz", "folder.npy", "gone.npy"):
        with pytest.raises(ConfigError, match=r"model\.mask: .* is (not a|missing)") as error:
            build_mask(f"file('{tmp_path}/{name}')", LAYOUT)
        assert "\n" not in str(error.value)


def test_masks_are_the_same_if_their_arguments_or_files_are(tmp_path, matrix):
    for name, content in (("a", matrix), ("b", matrix), ("c", ~matrix)):
        np.save(tmp_path / f"{name}.npy", content)
    a, b, c = (Model(mask=f"file('{tmp_path}/{name}.npy')") for name in "abc")
    assert is_same_mask(a, b) and not is_same_mask(a, c)
    resolved = resolve(b)
    (tmp_path / "b.npy").unlink()
    assert is_same_mask(a, resolved)
    assert is_same_mask(Model(mask="window(2)"), Model(mask="window( radius=2 )"))
    assert not is_same_mask(Model(mask="window(2)"), Model(mask="window(3)"))
    assert not is_same_mask(Model(mask="one_way"), Model(mask="fractal"))
    assert resolve(dataclasses.replace(a, mask="shifted(-1)")).mask == "shifted(offset=-1)"


@pytest.mark.slow
def test_a_model_keeps_the_matrix_that_it_was_built_with(build, forward, images, tmp_path):
    matrix = np.eye(17, dtype=bool)
    matrix[0] = True
    np.save(tmp_path / "m.npy", matrix)
    model = build(mask=f"file('{tmp_path}/m.npy')")
    assert "sha256='" in model.model.mask
    gap = forward(model, images()).patches
    with pytest.raises(ConfigError, match=r"has shape \(17, 17\): must be \(65, 65\)"):
        model(images(size=(32, 32)))
    np.save(tmp_path / "m.npy", np.ones((17, 17), bool))
    dense = forward(build(mask=f"file('{tmp_path}/m.npy')"), images()).patches
    np.testing.assert_array_equal(forward(model, images()).patches, gap)
    np.testing.assert_allclose(dense, forward(build(), images()).patches, atol=1e-6)
    assert np.abs(dense - gap).max() > 1e-3
