"""Logistic regression against scikit-learn's: weights, classes, log loss and convergence."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vit_registers.evaluation.logistic import fit_logistic


def _examples(num_classes, *, count=120, width=9, seed=0):
    rng = np.random.default_rng(seed)
    label_N = 3 * rng.integers(0, num_classes, count) - 4  # neither from 0 nor without gaps
    token_NxD = rng.normal(size=(count, width)) * np.logspace(-3, 3, width) + label_N[:, None] * 0.3
    return token_NxD, label_N


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("strength", [1e-4, 1e-1, 100.0])
def test_weights_and_probabilities_are_those_of_scikit_learn(num_classes, strength):
    token, label = _examples(num_classes)
    ours = fit_logistic(token, label, strength=strength, max_iterations=2000)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=2000))
    theirs.fit(token, label)
    np.testing.assert_array_equal(ours.classes_Y, theirs.classes_)
    own = theirs[-1]
    expected = np.concatenate([own.coef_.T, own.intercept_[None]])
    # of two classes scikit-learn has one vector, the difference of ours
    actual = np.diff(ours.weight_ExY, axis=1) if num_classes == 2 else ours.weight_ExY
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5 * np.abs(expected).max())
    others, other_label = _examples(num_classes, seed=1)
    np.testing.assert_array_equal(ours.predict(others), theirs.predict(others))
    expected = log_loss(other_label, theirs.predict_proba(others), labels=theirs.classes_)
    assert ours.log_loss(others, other_label) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("limit", [1, 2000])
def test_convergence_is_what_scikit_learn_warns_about(limit):
    token, label = _examples(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        LogisticRegression(tol=1e-8, max_iter=limit).fit(StandardScaler().fit_transform(token), label)
    ours = fit_logistic(token, label, strength=1.0, max_iterations=limit)
    assert ours.is_converged == (not caught) == (limit == 2000)


def test_a_certain_mistake_has_the_clipped_loss_of_scikit_learn():
    token, label = np.array([[-1.0], [1.0]] * 20), np.array([0, 1] * 20)
    model = fit_logistic(token, label, strength=1e6, max_iterations=2000)
    wrong = 1 - label
    probability_NxY = np.eye(2)[label]
    loss = model.log_loss(token * 1e3, wrong)
    assert loss == pytest.approx(log_loss(wrong, probability_NxY), rel=1e-6)
