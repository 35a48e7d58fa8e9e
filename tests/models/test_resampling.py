"""Every way of resampling positions against the library of those who use it."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vit_registers.models.resampling import RESAMPLINGS, resample

RESIZES = [
    ((37, 37), (16, 16)),
    ((37, 37), (16, 20)),
    ((14, 14), (10, 18)),
    ((14, 14), (7, 28)),
    ((4, 7), (9, 5)),
]


def _table(source):
    return np.random.default_rng(0).normal(size=(source[0] * source[1], 6)).astype(np.float32)


def _torch(table, source, target, mode="bicubic", **how):
    torch = pytest.importorskip("torch")
    grid_1xDxHxW = torch.from_numpy(table).reshape(1, *source, 6).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid_1xDxHxW, mode=mode, align_corners=False, **how)
    assert theirs.shape[2:] == target
    return theirs.permute(0, 2, 3, 1).reshape(-1, 6).numpy()


@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_bicubic_aa_is_torch_bicubic_with_antialias(source, target):
    expected = _torch(_table(source), source, target, size=target, antialias=True)
    np.testing.assert_allclose(resample(_table(source), source, target, "bicubic_aa"), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_bicubic_is_torch_bicubic_with_a_size(source, target):
    expected = _torch(_table(source), source, target, size=target)
    np.testing.assert_allclose(resample(_table(source), source, target, "bicubic"), expected, atol=2e-5)


@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_bicubic_offset_is_torch_bicubic_with_a_scale_factor_a_tenth_too_large(source, target):
    scale = tuple((t + 0.1) / s for s, t in zip(source, target, strict=True))
    expected = _torch(_table(source), source, target, scale_factor=scale)
    np.testing.assert_allclose(
        resample(_table(source), source, target, "bicubic_offset"), expected, atol=2e-5
    )


@pytest.mark.parametrize(("source", "target"), [*RESIZES, ((5, 5), (1, 3))])
def test_bilinear_is_torch_bilinear_with_a_size(source, target):
    expected = _torch(_table(source), source, target, mode="bilinear", size=target)
    np.testing.assert_allclose(resample(_table(source), source, target, "bilinear"), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [*RESIZES, ((5, 5), (1, 3))])
def test_linear_is_scipy_zoom_of_order_1(source, target):
    zoom = (*(t / s for s, t in zip(source, target, strict=True)), 1)
    expected = ndimage.zoom(_table(source).reshape(*source, 6), zoom, order=1).reshape(-1, 6)
    np.testing.assert_allclose(resample(_table(source), source, target, "linear"), expected, atol=1e-5)


@pytest.mark.parametrize("method", RESAMPLINGS)
@pytest.mark.parametrize("grid", [(14, 14), (3, 5)])
def test_the_same_grid_hands_back_the_table(grid, method):
    table = jnp.ones((grid[0] * grid[1], 4))
    assert resample(table, grid, grid, method) is table


@pytest.mark.parametrize("method", RESAMPLINGS)
@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_a_constant_table_stays_and_the_axes_are_kept_apart(source, target, method):
    rows, columns = np.mgrid[: source[0], : source[1]].astype(np.float32)
    table = np.stack([np.ones_like(rows), rows, columns], axis=-1).reshape(-1, 3)
    constant, by_row, by_column = np.moveaxis(np.asarray(resample(table, source, target, method)), -1, 0)
    np.testing.assert_allclose(constant, 1.0, atol=1e-5)
    assert np.ptp(by_row.reshape(target), axis=1).max() < 1e-4
    assert np.ptp(by_column.reshape(target), axis=0).max() < 1e-4


def test_the_ways_differ():
    tables = [resample(_table((7, 7)), (7, 7), (4, 5), method) for method in RESAMPLINGS]
    for i, one in enumerate(tables):
        for other in tables[i + 1 :]:
            assert np.abs(one - other).max() > 0.01
