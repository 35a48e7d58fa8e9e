"""Correlations and their intervals, against closed forms, scipy and a simulation of their coverage."""

import numpy as np
import pytest
from scipy import stats

from vit_registers.analysis.measures.correlation import pearson, spearman

RNG = np.random.default_rng(0)


def _pairs(rho, count, draws=1):
    x, noise = RNG.normal(size=(2, draws, count))
    return x, rho * x + np.sqrt(1 - rho**2) * noise


def test_pearson_is_that_of_scipy_with_its_interval():
    x, y = (one[0] for one in _pairs(0.6, 40))
    found, known = pearson(x, y), stats.pearsonr(x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.p_value == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_spearman_is_pearson_of_the_ranks_and_ignores_the_scale():
    x, y = RNG.normal(size=(2, 30))
    y[:10] = np.round(y[:10])  # with ties
    found = spearman(x, y)
    assert found.value == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert found == pytest.approx(spearman(np.exp(x), 5 * y - 3))
    # n = 30, by hand: the half width of the interval of arctanh(r)
    half = 1.959964 * np.sqrt((1 + found.value**2 / 2) / 27)
    ends = np.arctanh([found.low, found.high]) - np.arctanh(found.value)
    np.testing.assert_allclose(ends, [-half, half], rtol=1e-6)
    assert spearman(x, y).low < pearson(stats.rankdata(x), stats.rankdata(y)).low  # it is wider


def test_a_perfect_correlation_is_its_own_interval():
    x = np.arange(6.0)
    assert spearman(x, -(x**3)) == pytest.approx((-1, -1, -1, 0), abs=1e-6)
    assert pearson(x, 2 * x + 1) == pytest.approx((1, 1, 1, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("measure", "true"),
    [(pearson, 0.7), (spearman, 6 / np.pi * np.arcsin(0.35))],
    ids=["pearson", "spearman"],
)
def test_intervals_cover_the_true_correlation_as_often_as_they_say(measure, true):
    """The rank correlation of normal pairs is 6 / pi arcsin(rho / 2)."""
    found = [measure(x, y) for x, y in zip(*_pairs(0.7, 40, 1500), strict=True)]
    share = np.mean([one.low <= true <= one.high for one in found])
    assert 0.93 < share < 0.97
