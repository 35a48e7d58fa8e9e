"""Logistic regression on one token per image, and the choice of that token."""

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression

from vit_registers.analysis.measures.probes import ProbeInputs, choose_tokens, global_probe, logistic_probe
from vit_registers.errors import ConfigError, DataError


def make_classes(seed, count, *, num_classes=4, width=6, noise=1.0):
    """Gaussian classes around fixed means, in features of very unequal scale."""
    mean_YxD = np.random.default_rng(99).normal(size=(num_classes, width))
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, num_classes, count)
    token_NxD = mean_YxD[label_N] + noise * rng.normal(size=(count, width))
    return (token_NxD * np.logspace(-3, 3, width) + 7).astype(np.float32), label_N


def test_the_probe_is_that_of_scikit_learn_on_standardised_features():
    (train, train_label), (test, test_label) = make_classes(0, 200), make_classes(1, 150)
    result = logistic_probe(train, train_label, test, test_label, strengths=(0.1,), seed=0)
    mean, std = train.mean(0, dtype=float), train.std(0, dtype=float)
    model = LogisticRegression(C=0.1, max_iter=1000).fit((train - mean) / std, train_label)
    assert result.accuracy == model.score((test - mean) / std, test_label)
    assert 0.5 < result.accuracy < 1.0
    assert (result.strength, result.num_train, result.num_test) == (0.1, 200, 150)
    assert result.is_converged


def test_the_strength_neither_fits_noise_nor_only_the_commonest_class():
    # Feature 0 carries the class, the others are noise, as are a tenth of the training labels; three
    # quarters of the examples are of class 0.
    rng = np.random.default_rng(0)
    label = (np.arange(900) % 4 == 0).astype(int)
    token = rng.normal(size=(900, 180))
    token[:, 0] += 4 * label
    train_label = np.where(rng.random(600) < 0.1, 1 - label[:600], label[:600])
    parts = (token[:600], train_label, token[600:], label[600:])
    each = {c: logistic_probe(*parts, strengths=(c,), seed=0).accuracy for c in (1e-6, 1e-1, 1e6)}
    assert each[1e-6] == 0.75
    assert max(each[1e-6], each[1e6]) < each[1e-1] - 0.05
    chosen = [logistic_probe(*parts, strengths=(1e6, 1e-6, 1e-1), seed=seed) for seed in range(3)]
    assert {(result.strength, result.accuracy) for result in chosen} == {(1e-1, each[1e-1])}


def test_among_equal_accuracies_the_log_loss_decides():
    # All are right about every example, the weaker penalty with more certainty.
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    token = np.stack([2 * label - 1, 0.1 * rng.normal(size=40)], axis=1)
    strengths = (1e-2, 1.0, 1e-1)
    assert all(
        logistic_probe(token, label, token, label, strengths=(c,), seed=0).accuracy == 1 for c in strengths
    )
    assert logistic_probe(token, label, token, label, strengths=strengths, seed=0).strength == 1.0


def test_the_test_part_has_no_say_in_the_choice():
    (train, train_label), (test, test_label) = make_classes(0, 60, noise=3.0), make_classes(1, 60, noise=3.0)
    strengths = (1e-3, 1e-1, 10.0)
    straight = logistic_probe(train, train_label, test, test_label, strengths=strengths, seed=0)
    spoiled = logistic_probe(train, train_label, 100 * test, 3 - test_label, strengths=strengths, seed=0)
    assert straight.strength == spoiled.strength
    assert straight.accuracy != spoiled.accuracy


def test_the_held_out_part_follows_the_seed_alone():
    (train, train_label), (test, test_label) = make_classes(0, 40, noise=4.0), make_classes(1, 60, noise=4.0)
    runs = [
        logistic_probe(train, train_label, test, test_label, strengths=(0.01, 1.0), seed=s)
        for s in (*range(4), 0)
    ]
    assert runs[0] == runs[-1]
    assert len({run.strength for run in runs}) > 1


def test_noise_gives_chance():
    rng = np.random.default_rng(0)
    label = np.arange(900) % 3
    token = rng.normal(size=(900, 5))
    accuracy = logistic_probe(token[:300], label[:300], token[300:], label[300:], seed=0).accuracy
    assert abs(accuracy - 1 / 3) < 0.1  # five standard deviations


def test_classes_of_one_example_are_fitted_and_never_held_out():
    train = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 0.0], [0.0, 9.0]])
    result = logistic_probe(train, np.array([0, 0, 1, 2]), train, np.array([0, 0, 1, 2]), seed=0)
    assert (result.accuracy, result.num_train) == (1.0, 4)


def test_one_example_per_class_needs_a_single_strength():
    token, label = np.eye(3), np.arange(3)
    with pytest.raises(DataError, match=r"no class .* two training examples.* single strength"):
        logistic_probe(token, label, token, label, strengths=(0.1, 1.0), seed=0)
    assert logistic_probe(token, label, token, label, strengths=(1.0,), seed=0).accuracy == 1.0


def test_a_class_without_training_examples_counts_as_wrong():
    token, label = make_classes(0, 100, noise=1e-6)
    is_known = label != 3
    result = logistic_probe(token[is_known], label[is_known], token, label, strengths=(0.1, 1.0), seed=0)
    assert result.accuracy == is_known.mean() < 1


def test_a_fit_that_stops_early_says_so_without_a_warning():
    train, label = make_classes(0, 200, noise=2.0)
    result = logistic_probe(train, label, train, label, strengths=(100.0,), seed=0, max_iterations=2)
    assert not result.is_converged


def test_constant_features_are_harmless():
    token, label = make_classes(0, 100, noise=1e-6)
    wide = np.concatenate([token, np.full((100, 2), 3.3, np.float32)], axis=1)
    assert logistic_probe(wide, label, wide, label, strengths=(0.1, 1.0), seed=0).accuracy == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: (t, 0 * y, t, y), r"1 class\(es\): at least 2 are required"),
        (lambda t, y: (t[:0], y[:0], t, y), r"0 class\(es\): at least 2 are required"),
        (lambda t, y: (t, y, t[:0], y[:0]), "no test examples"),
        (
            lambda t, y: (np.where(np.arange(50)[:, None] == 7, np.inf, t), y, t, y),
            "1 of 50 rows of the training.* row 7",
        ),
        (lambda t, y: (t, y, np.full_like(t, np.nan), y), "50 of 50 rows of the test .* row 0"),
    ],
)
def test_data_that_no_probe_can_use_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        logistic_probe(*change(*make_classes(0, 50)), seed=0)


MASK = np.array(
    [
        [0, 1, 0, 0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
    bool,
)


@pytest.mark.parametrize(("kind", "is_allowed_BxP"), [("outlier", MASK), ("normal", ~MASK)])
def test_each_patch_of_the_kind_is_drawn_equally_often_and_no_other(kind, is_allowed_BxP):
    draws = [choose_tokens(MASK, kind, grid=(3, 3), seed=seed) for seed in range(900)]
    for image, allowed in enumerate(map(np.flatnonzero, is_allowed_BxP)):
        assert all(has_B[image] == (len(allowed) > 0) for _, has_B in draws)
        counts = np.bincount([index_B[image] for index_B, _ in draws], minlength=9)
        if len(allowed):
            assert set(np.flatnonzero(counts)) == set(allowed)
            assert len(allowed) == 1 or chisquare(counts[allowed]).pvalue > 1e-4
        else:
            assert counts[0] == 900


def test_images_are_drawn_independently_of_each_other():
    is_outlier_BxP = np.ones((2000, 4), bool)
    index_B, _ = choose_tokens(is_outlier_BxP, "outlier", grid=(2, 2), seed=0)
    pairs = np.bincount(4 * index_B[:-1] + index_B[1:], minlength=16)
    assert chisquare(pairs).pvalue > 1e-4


def test_normal_patches_can_be_those_of_the_images_with_outliers():
    _, has_B = choose_tokens(MASK, "outlier", grid=(3, 3), seed=5)
    everywhere_B, has_normal_B = choose_tokens(MASK, "normal", grid=(3, 3), seed=5)
    index_B, has_both_B = choose_tokens(MASK, "normal", grid=(3, 3), seed=5, among_B=has_B)
    assert has_B.tolist() == [True, False, True, True]
    assert has_normal_B.tolist() == [True, True, False, True]
    assert has_both_B.tolist() == [True, False, False, True]
    assert (index_B == np.where(has_both_B, everywhere_B, 0)).all()


@pytest.mark.parametrize(("grid", "middle"), [((3, 3), 4), ((1, 9), 4), ((9, 1), 4)])
def test_the_centre_of_odd_grids(grid, middle):
    index_B, has_B = choose_tokens(MASK, "center", grid=grid, seed=0)
    assert (index_B == middle).all() and has_B.all()


def test_the_centre_of_even_grids_is_below_and_right():
    index_B, has_B = choose_tokens(np.zeros((2, 24), bool), "center", grid=(4, 6), seed=0)
    assert [divmod(index, 6) for index in index_B.tolist()] == [(2, 3), (2, 3)]
    assert has_B.all()


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match="kind='outliers' is unknown: did you mean 'outlier'"):
        choose_tokens(MASK, "outliers", grid=(3, 3), seed=0)


def make_inputs(seed, *, noise, num_skipped=0, count=60):
    (train, train_label), (test, test_label) = (
        make_classes(s, count, noise=noise) for s in (seed, seed + 50)
    )
    return ProbeInputs(
        train_NxD=train,
        train_label_N=train_label,
        test_NxD=test,
        test_label_N=test_label,
        num_skipped=num_skipped,
    )


def test_rows_hold_the_mean_and_the_sample_deviation_over_seeds():
    outlier = [make_inputs(seed, noise=3.0, num_skipped=9) for seed in range(3)]
    rows = global_probe({"cls": [make_inputs(7, noise=1e-6)], "outlier": outlier}, strengths=(0.1, 1.0))
    each = [
        logistic_probe(
            part.train_NxD,
            part.train_label_N,
            part.test_NxD,
            part.test_label_N,
            strengths=(0.1, 1.0),
            seed=seed,
        )
        for seed, part in enumerate(outlier)
    ]
    a, b, c = (result.accuracy for result in each)
    mean = (a + b + c) / 3
    cls, row = rows
    assert (cls.kind, cls.accuracy, cls.std, cls.num_skipped) == ("cls", 1.0, None, 0)
    assert row.accuracy == pytest.approx(mean) and 0.3 < mean < 0.9
    assert row.std == pytest.approx((((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2) ** 0.5)
    assert row.std > 0
    assert (row.kind, row.num_train, row.num_test) == ("outlier", 60, 60)
    assert (row.num_skipped, row.strengths) == (9, tuple(result.strength for result in each))
    assert row.is_converged


def test_a_kind_that_no_image_has_gives_a_row_without_numbers():
    empty = make_inputs(0, noise=1.0, num_skipped=120, count=0)
    (row,) = global_probe({"outlier": [empty, empty]})
    assert (row.accuracy, row.std, row.strengths, row.num_train, row.num_skipped) == (None, None, (), 0, 120)


def test_errors_name_the_kind():
    with pytest.raises(DataError, match=r"kind 'outlier', seed 0: the 1 training examples .* 1 class"):
        global_probe({"outlier": [make_inputs(0, noise=1.0, count=1)]})
