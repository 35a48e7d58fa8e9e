"""Resampling of position tables from one grid to another, by the methods of published models: RESAMPLINGS.

All methods are linear and separable, so each is a function (size, new_size) -> matrix [new_size, size],
float64, whose rows sum to 1. They differ at every grid but that of training, where the table is unchanged.
Those with "_crop" resample to a square of the longer side, and keep its upper left part; for squares they are
those without.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import lookup
from vit_registers.models.tokens import Grid


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_aa(size: int, new_size: int) -> np.ndarray:
    """torch's bicubic with antialias=True (a = -0.5, weights renormalised at the border).

    Used by DINOv2 with registers, timm, open_clip and transformers' Dinov2WithRegisters.
    """
    step = size / new_size
    centers = (np.arange(new_size) + 0.5) * step
    weights = _cubic((np.arange(size)[None] + 0.5 - centers[:, None]) / max(step, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _bicubic(size: int, new_size: int, scale: float) -> np.ndarray:
    """torch's bicubic without antialiasing (a = -0.75, border repeated), at `scale` new cells per cell."""
    centers = (np.arange(new_size) + 0.5) / scale - 0.5
    first = np.floor(centers).astype(int)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3):
        weights = _cubic(first + tap - centers, -0.75)
        np.add.at(matrix, (np.arange(new_size), np.clip(first + tap, 0, size - 1)), weights)
    return matrix


def bicubic_to_size(size: int, new_size: int) -> np.ndarray:
    """torch's bicubic with size=; used by DeiT, and by transformers' ViT, DeiT, CLIP and Dinov2."""
    return _bicubic(size, new_size, new_size / size)


def bicubic_offset(size: int, new_size: int) -> np.ndarray:
    """torch's bicubic with scale_factor=(new_size + 0.1) / size; of DINO, iBOT, DINOv2 without registers."""
    return _bicubic(size, new_size, (new_size + 0.1) / size)


def bilinear(size: int, new_size: int) -> np.ndarray:
    """torch's bilinear with size= (border repeated); used by the Perception Encoder's code."""
    centers = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(centers[:, None] - np.arange(size)[None]))


def linear(size: int, new_size: int) -> np.ndarray:
    """Linear with fixed corners, as scipy.ndimage.zoom with order=1; used by big_vision."""
    centers = np.arange(new_size) * ((size - 1) / (new_size - 1) if new_size > 1 else 1.0)
    return np.maximum(0.0, 1.0 - np.abs(centers[:, None] - np.arange(size)[None]))


RESAMPLINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic_aa": bicubic_aa,
    "bicubic": bicubic_to_size,
    "bicubic_offset": bicubic_offset,
    "bilinear": bilinear,
    "linear": linear,
    "bilinear_crop": bilinear,
    "linear_crop": linear,
}
# RADIO's: to a square of the longer side, whose first rows and columns are kept.
_CROPPED = ("bilinear_crop", "linear_crop")

Table = jax.Array | np.ndarray


def axis_matrices(source: Grid, target: Grid, method: str) -> tuple[np.ndarray, np.ndarray]:
    """(matrix of the rows, matrix of the columns) from one grid to another, [new_size, size], float64."""
    matrix = lookup(RESAMPLINGS, method, "model.position_resampling")
    sides = (max(target),) * 2 if method in _CROPPED else target
    rows, columns = (matrix(s, t) for s, t in zip(source, sides, strict=True))
    return rows[: target[0]], columns[: target[1]]


def resample(table_PxD: Table, source: Grid, target: Grid, method: str) -> Table:
    """The table of grid `source` resampled to grid `target`; the same table if both have the same shape."""
    if source == target:
        return table_PxD
    rows, columns = (matrix.astype(np.float32) for matrix in axis_matrices(source, target, method))
    width = table_PxD.shape[-1]
    table = jnp.reshape(jnp.asarray(table_PxD, jnp.float32), (*source, width))
    precision = jax.lax.Precision.HIGHEST
    resampled = jnp.einsum("rh,cw,hwd->rcd", rows, columns, table, precision=precision)
    return resampled.reshape(-1, width)
