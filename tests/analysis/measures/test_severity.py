"""Entropy, neighbours' cosines, variance: against scipy, plain loops and cases worked by hand."""

import numpy as np
import pytest
import scipy.stats

from vit_registers.analysis.measures import severity
from vit_registers.errors import DataError

RNG = np.random.default_rng(0)


def angle(x, y):
    return float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))


def test_cosine_of_each_row_and_nan_for_zero_vectors():
    x, y = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 5, 3))
    y[1, 2] = 0
    found = severity.cosine_similarity(x, y)
    assert np.isnan(found[1, 2]) and np.isnan(found).sum() == 1
    for i, j in np.argwhere(~np.isnan(found)):
        assert found[i, j] == pytest.approx(angle(x[i, j], y[i, j]), abs=1e-14)
    assert (severity.cosine_similarity(x, x) <= 1).all()


def test_cosine_of_float16_is_computed_in_float64():
    x = np.full((1, 1000), 200, np.float16)  # the squares do not fit float16
    assert severity.cosine_similarity(x, x) == pytest.approx(1, abs=1e-12)


def test_mean_pairwise_cosine_is_that_of_all_pairs():
    x = RNG.normal(size=(12, 4)) + 0.5
    pairs = [angle(x[i], x[j]) for i in range(12) for j in range(i)]
    assert severity.mean_pairwise_cosine(x) == pytest.approx(np.mean(pairs), abs=1e-13)
    assert severity.mean_pairwise_cosine(np.vstack([x, np.zeros(4)])) == pytest.approx(
        np.mean(pairs), abs=1e-13
    )
    assert severity.mean_pairwise_cosine(np.array([[1.0, 0], [0, 1], [-1, 0]])) == pytest.approx(-1 / 3)
    assert severity.mean_pairwise_cosine(x[:1]) is None


def test_summary_leaves_nan_out_and_counts_it():
    found = severity.summarize_values(np.array([1.0, np.nan, 2.0, 6.0]))
    assert found[:4] == (3, 1, 3.0, 2.0)
    assert found.std == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert severity.summarize_values(np.array([np.nan])) == (0, 1, None, None, None)
    assert severity.summarize_values(np.array([2.0])) == (1, 0, 2.0, 2.0, None)


def test_entropy_is_scipys_and_has_its_extremes():
    weight = RNG.dirichlet(np.ones(7), size=(2, 3, 4))
    nats, share = severity.attention_entropy(weight)
    np.testing.assert_allclose(nats, scipy.stats.entropy(weight, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(share, nats / np.log(7))
    nats, share = severity.attention_entropy(np.stack([np.eye(8)[2], np.full(8, 1 / 8)]))
    np.testing.assert_allclose(nats, [0, np.log(8)], atol=1e-15)
    np.testing.assert_allclose(share, [0, 1], atol=1e-15)


def test_entropy_of_a_cut_row_is_that_of_what_is_left():
    row = np.array([0.6, 0.1, 0.3])
    np.testing.assert_allclose(severity.attention_entropy(row[1:])[0], scipy.stats.entropy([0.25, 0.75]))
    assert np.isnan(severity.attention_entropy(np.zeros(3))[0])
    nats, share = severity.attention_entropy(np.ones((2, 1)))
    assert (nats == 0).all() and share is None


def neighbours_by_loops(feature, rows, columns):
    """(centre, direction) -> cosine, of one image."""
    found = {}
    steps = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    for y in range(rows):
        for x in range(columns):
            for name, (dy, dx) in steps.items():
                if 0 <= y + dy < rows and 0 <= x + dx < columns:
                    other = (y + dy) * columns + x + dx
                    found[y * columns + x, name] = angle(feature[y * columns + x], feature[other])
    return found


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (4, 1), (2, 2)])
def test_neighbours_are_those_of_the_loops(grid):
    rows, columns = grid
    feature = RNG.normal(size=(2, rows * columns, 6)).astype(np.float32)
    found = severity.neighbour_cosine(feature, grid)
    assert np.isfinite(found.cosine_Bx4xP).all()
    for image in range(2):
        expected = neighbours_by_loops(feature[image].astype(float), rows, columns)
        assert found.is_valid_Bx4xP[image].sum() == len(expected)
        for (centre, name), value in expected.items():
            direction = severity.DIRECTIONS.index(name)
            assert found.is_valid_Bx4xP[image, direction, centre]
            assert found.cosine_Bx4xP[image, direction, centre] == pytest.approx(value, abs=1e-12)


def test_pairs_with_a_zero_vector_are_not_valid():
    feature = np.ones((1, 9, 2))
    feature[0, 4] = 0  # the middle of 3 x 3 has four neighbours
    found = severity.neighbour_cosine(feature, (3, 3))
    assert found.is_valid_Bx4xP.sum() == 24 - 8
    assert not found.is_valid_Bx4xP[0, :, 4].any()
    np.testing.assert_array_equal(found.cosine_Bx4xP[~found.is_valid_Bx4xP], 0)
    np.testing.assert_allclose(found.cosine_Bx4xP[found.is_valid_Bx4xP], 1)


def test_split_counts_each_pair_with_its_centre_and_is_scipys():
    feature, is_outlier = RNG.normal(size=(5, 12, 3)), RNG.random((5, 12)) < 0.3
    found = severity.split_by_outlier(severity.neighbour_cosine(feature, (3, 4)), is_outlier, seed=0)
    values = {True: [], False: []}
    for image in range(5):
        for (centre, _), value in neighbours_by_loops(feature[image], 3, 4).items():
            values[bool(is_outlier[image, centre])].append(value)
    for group, expected in [(found.outliers, values[True]), (found.background, values[False])]:
        assert group.num_pairs == len(expected)
        assert group.mean == pytest.approx(np.mean(expected))
        assert group.median == pytest.approx(np.median(expected))
        density = scipy.stats.gaussian_kde(expected)(severity.DENSITY_POINTS)
        np.testing.assert_allclose(group.density, density, rtol=1e-9)
    assert found.outliers.num_tokens == is_outlier.sum()
    assert found.background.num_tokens == (~is_outlier).sum()
    points = np.sort(values[True] + values[False])
    steps = [np.searchsorted(np.sort(v), points, side="right") / len(v) for v in values.values()]
    assert found.ks_distance == pytest.approx(np.abs(steps[0] - steps[1]).max())


def test_split_of_two_worlds_and_of_no_outliers():
    pairs = severity.NeighbourCosine(np.full((2, 4, 3), 0.25), np.ones((2, 4, 3), bool))
    pairs.cosine_Bx4xP[1] = 0.75
    is_outlier = np.array([[False] * 3, [True] * 3])
    found = severity.split_by_outlier(pairs, is_outlier, seed=0)
    assert found.ks_distance == 1
    assert found.outliers == (3, 12, 0.75, 0.75, None)  # equal values have no density
    none = severity.split_by_outlier(pairs, np.zeros_like(is_outlier), seed=0)
    assert none.outliers == (0, 0, None, None, None) and none.ks_distance is None
    assert none.background.num_pairs == 24 and none.background.density is not None


def test_density_of_a_large_group_is_of_a_seeded_draw():
    pairs = severity.NeighbourCosine(RNG.uniform(-0.5, 0.5, (50, 4, 20)), np.ones((50, 4, 20), bool))
    is_outlier = np.zeros((50, 20), bool)

    def density(seed):
        split = severity.split_by_outlier(pairs, is_outlier, seed=seed, max_points=500)
        assert split.background.num_pairs == 4000
        assert split.background.mean == pytest.approx(pairs.cosine_Bx4xP.mean())
        return split.background.density

    np.testing.assert_array_equal(density(0), density(0))
    assert np.abs(density(0) - density(1)).max() > 0.01
    assert np.trapezoid(density(0), severity.DENSITY_POINTS) == pytest.approx(1, abs=0.01)
    assert np.interp(0, severity.DENSITY_POINTS, density(0)) == pytest.approx(
        1, abs=0.25
    )  # uniform on width 1


def variance(feature, is_outlier):
    sums = severity.VarianceSums()
    sums.add(feature, is_outlier)
    return sums.result()


def test_variance_is_numpys_and_shares_sum_to_one():
    feature, is_outlier = RNG.normal(size=(4, 10, 3)) + 50, RNG.random((4, 10)) < 0.25
    feature[is_outlier] = feature[is_outlier] * 3 + 7
    found = variance(feature, is_outlier)
    outliers, background, every = feature[is_outlier], feature[~is_outlier], feature.reshape(-1, 3)
    assert found.num_outliers == len(outliers) and found.num_background == len(background)
    assert found.variance_outliers == pytest.approx(np.trace(np.cov(outliers.T, bias=True)))
    assert found.variance_background == pytest.approx(np.trace(np.cov(background.T, bias=True)))
    total = np.trace(np.cov(every.T, bias=True)) * len(every)
    assert found.share_outliers == pytest.approx(found.variance_outliers * len(outliers) / total)
    assert found.share_background == pytest.approx(found.variance_background * len(background) / total)
    assert sum(found[4:]) == pytest.approx(1)


def test_variance_in_batches_is_that_in_one_beside_a_large_mean():
    feature = (RNG.normal(size=(9, 7, 2)) * 0.01 + 1000).astype(np.float32)
    is_outlier = RNG.random((9, 7)) < 0.2
    is_outlier[:2] = False  # a batch without outliers first
    sums = severity.VarianceSums()
    for part in (slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 9)):
        sums.add(feature[part], is_outlier[part])
    np.testing.assert_allclose(sums.result(), variance(feature, is_outlier), rtol=1e-9)
    expected = feature[is_outlier].astype(float).var(axis=0).sum()
    assert sums.result().variance_outliers == pytest.approx(expected, rel=1e-9)


def test_variance_without_outliers_or_without_any():
    feature = RNG.normal(size=(2, 5, 3))
    found = variance(feature, np.zeros((2, 5), bool))
    assert found.variance_outliers is None and found.num_outliers == 0
    assert found[4:] == (0, 1, 0)
    is_outlier = np.eye(2, 5, dtype=bool)
    same = variance(np.full((2, 5, 3), 0.1), is_outlier)
    assert same.variance_outliers == pytest.approx(0) and same[4:] == (None, None, None)
    assert severity.VarianceSums().result() == (0, 0) + (None,) * 5


def test_values_that_are_not_finite_are_refused():
    feature = np.ones((1, 4, 2))
    feature[0, 0, 0] = np.inf
    with pytest.raises(DataError, match="rows of the patch features are not finite"):
        severity.neighbour_cosine(feature, (2, 2))
    with pytest.raises(DataError, match="attention weights"):
        severity.attention_entropy(np.array([np.nan, 1]))
