"""Ranks and recalls of retrieval, against their definitions."""

import jax
import numpy as np
import pytest

from vit_registers.config import Mesh
from vit_registers.evaluation import retrieval
from vit_registers.runtime.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh(), devices=jax.devices()[:2])


def plain_ranks(rows, columns, own_N, own_M):
    found = []
    for row, own in zip(rows, own_N, strict=True):
        near = columns @ row
        order = sorted(range(len(near)), key=lambda j: (-near[j], j))
        found.append(next((k for k, j in enumerate(order) if own_M[j] == own), len(near)))
    return found


def test_ranks_are_those_of_sorting(mesh, monkeypatch):
    """Also with equal columns, several own ones and rows without one, over blocks of rows."""
    monkeypatch.setattr(retrieval, "_ROWS", 8)
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (21, 3)).astype(np.float32)  # whole numbers: exact, and often equal
    columns = rng.integers(-2, 3, (50, 3)).astype(np.float32)
    own_N = np.arange(21, dtype=np.int32)
    own_M = rng.integers(0, 19, 50).astype(np.int32)
    found = retrieval.ranks(rows, columns, own_N, own_M, mesh)
    np.testing.assert_array_equal(found, plain_ranks(rows, columns, own_N, own_M))
    assert (found[19:] == 50).all()


def test_what_is_not_finite_is_never_found(mesh):
    rows = np.eye(3, dtype=np.float32)
    columns = np.eye(3, dtype=np.float32)
    rows[1] = np.nan
    own = np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(retrieval.ranks(rows, columns, own, own, mesh), [0, 3, 0])
