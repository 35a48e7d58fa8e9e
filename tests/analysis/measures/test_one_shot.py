"""One-shot classifiers against scikit-learn, and properties of what is drawn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from vit_registers.analysis.measures.one_shot import draw_pairs, one_shot
from vit_registers.errors import ConfigError, DataError

RNG = np.random.default_rng(2)


def make_classes(num_classes, num_each, noise=0.6, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(num_classes) * 10 + 3, num_each))  # labels with gaps
    centres = rng.normal(size=(num_classes, 8))
    return centres[label // 10] + noise * rng.normal(size=(len(label), 8)), label


def test_one_shot_is_scikit_learns():
    train, train_label = make_classes(12, 1, seed=3)
    test, test_label = make_classes(12, 1, seed=3)
    test = test + np.random.default_rng(4).normal(size=test.shape)
    terms = {"full": test, "patches": 0.3 * test[:, ::-1]}
    logistic = one_shot(train, train_label, terms, test_label, seed=0, classifier="logistic")
    nearest = one_shot(train, train_label, terms, test_label, seed=0, classifier="nearest")
    assert logistic.num_classes == nearest.num_classes == 12
    scale = np.sqrt((train**2).mean())
    model = LogisticRegression(max_iter=5000).fit(train / scale, train_label)
    by_angle = KNeighborsClassifier(1, metric="cosine").fit(train, train_label)
    for name, term in terms.items():
        scores = model.decision_function(term / scale)
        assert logistic.top1[name] == pytest.approx(model.score(term / scale, test_label))
        assert logistic.top5[name] == pytest.approx(top_k_accuracy_score(test_label, scores, k=5))
        assert nearest.top1[name] == pytest.approx(by_angle.score(term, test_label))
        order = by_angle.kneighbors(term, 5, return_distance=False)
        assert nearest.top5[name] == pytest.approx(np.mean(train_label[order] == test_label[:, None]) * 5)
    assert 0.3 < logistic.top1["full"] < 1 and logistic.top1["patches"] < logistic.top1["full"]
    assert nearest.top1["full"] != nearest.top5["full"]


@pytest.mark.parametrize("classifier", ["logistic", "nearest"])
def test_one_shot_of_itself_and_of_zeros(classifier):
    train, label = make_classes(8, 1)
    terms = {"itself": 1e-6 * train, "zeros": 0 * train}
    found = one_shot(1e-6 * train, label, terms, label, seed=0, classifier=classifier)
    assert found.top1 == {"itself": 1.0, "zeros": 1 / 8}
    assert found.top5 == {"itself": 1.0, "zeros": 5 / 8}


@pytest.mark.parametrize("classifier", ["logistic", "nearest"])
def test_one_shot_of_many_classes_converges_without_a_warning(classifier):
    train, label = make_classes(200, 1)
    test = {"turned": -train, "near": train + 0.1 * RNG.normal(size=train.shape)}
    found = one_shot(train, label, test, label, seed=0, classifier=classifier)
    assert found.top1["near"] > 0.8 and found.top5["near"] > 0.95 and found.top5["turned"] < 0.05


@pytest.mark.parametrize("classifier", ["logistic", "nearest"])
def test_one_shot_of_two_classes(classifier):
    train, label = np.array([[1.0, 0], [0, 1]]), np.array([5, 2])
    test = {"same": np.array([[0, 3.0], [2, 0]]), "swapped": np.array([[2.0, 0], [0, 2]])}
    found = one_shot(train, label, test, np.array([2, 5]), seed=0, classifier=classifier)
    assert found.top1 == {"same": 1.0, "swapped": 0.0} and found.top5 is None


def test_one_shot_draws_one_image_of_each_class_with_the_seed():
    features, label = make_classes(6, 30, noise=1.5)
    test, test_label = make_classes(7, 30, noise=1.5)

    def run(seed):
        return one_shot(features, label, {"full": test}, test_label, seed=seed, classifier="nearest")

    assert run(0) == run(0)
    assert run(0).num_classes == 6
    accuracies = {run(seed).top1["full"] for seed in range(8)}
    assert len(accuracies) > 1 and all(6 * x == pytest.approx(round(6 * x)) for x in accuracies)


def test_one_shot_matches_classes_that_both_sides_have():
    train, label = np.eye(4), np.array([8, 2, 5, 3])
    test, test_label = np.eye(4)[[2, 0, 3, 1]], np.array([5, 8, 1, 2])  # no 3 in one, no 1 in the other
    found = one_shot(train, label, {"full": test}, test_label, seed=0, classifier="nearest")
    assert found == (3, {"full": 1.0}, None)


def test_pairs_are_two_different_images_of_each_class_with_two():
    label = RNG.permutation([4] * 5 + [1] * 2 + [9] * 1 + [7] * 3)
    drawn = set()
    for seed in range(40):
        train, test = draw_pairs(label, seed=seed)
        np.testing.assert_array_equal(label[train], [1, 4, 7])
        np.testing.assert_array_equal(label[test], [1, 4, 7])
        assert not set(train) & set(test)
        drawn |= set(train) | set(test)
    assert drawn == set(np.flatnonzero(label != 9))
    np.testing.assert_array_equal(draw_pairs(label, seed=1), draw_pairs(label, seed=1))


def test_one_shot_says_what_it_cannot_do():
    x, label = np.eye(3), np.arange(3)
    with pytest.raises(ConfigError, match="classifier='nearst' is unknown: did you mean 'nearest'"):
        one_shot(x, label, {"full": x}, label, seed=0, classifier="nearst")
    with pytest.raises(DataError, match="1 classes have a training and a test image"):
        one_shot(x, label, {"full": x}, label + 2, seed=0, classifier="nearest")
