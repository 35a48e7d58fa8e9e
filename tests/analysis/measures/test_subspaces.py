"""Canonical angles and rank correlation: against worked cases, scipy and an average over random draws."""

import numpy as np
import pytest
import scipy.linalg

from vit_registers.analysis.measures.subspaces import canonical_angles, rank_correlation

RNG = np.random.default_rng(5)


def basis(d, k):
    return np.linalg.qr(RNG.normal(size=(d, k)))[0]


def test_angles_of_planes_that_are_turned():
    eye = np.eye(5)
    turned = np.stack([eye[0], np.cos(0.5) * eye[1] + np.sin(0.5) * eye[3]], axis=1)
    found = canonical_angles(eye[:, :2], turned)
    np.testing.assert_allclose(found.degrees_K, np.rad2deg([0, 0.5]), atol=1e-9)
    assert found.overlap == pytest.approx((1 + np.cos(0.5) ** 2) / 2)
    assert canonical_angles(eye[:, :2], eye[:, 3:]).overlap == pytest.approx(0)
    assert canonical_angles(eye[:, :3], eye[:, 1:2]).degrees_K.shape == (1,)
    assert canonical_angles(eye[:, :3], eye[:, 1:2]).overlap == pytest.approx(1)


def test_angles_are_those_of_scipy_and_of_the_cosines():
    a, b = basis(12, 4), basis(12, 3)
    found = canonical_angles(a, b)
    np.testing.assert_allclose(np.deg2rad(found.degrees_K)[::-1], scipy.linalg.subspace_angles(a, b))
    cosines = np.linalg.svd(a.T @ b, compute_uv=False)
    np.testing.assert_allclose(np.cos(np.deg2rad(found.degrees_K)), cosines, atol=1e-10)
    turn = basis(4, 4)
    np.testing.assert_allclose(canonical_angles(a @ turn, b).degrees_K, found.degrees_K, atol=1e-9)


def test_by_chance_is_the_mean_overlap_of_random_subspaces():
    found = [canonical_angles(basis(20, 5), basis(20, 3)) for _ in range(200)]
    assert np.mean([one.overlap for one in found]) == pytest.approx(found[0].by_chance, abs=0.02)
    assert found[0].by_chance == 0.25


def test_rank_correlation():
    x = RNG.normal(size=20)
    assert rank_correlation(x, np.exp(3 * x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, np.ones(20)) is None
    assert rank_correlation(x[:2], x[:2]) is None
