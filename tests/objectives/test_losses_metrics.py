"""Losses and metrics against references and by their properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.metrics import top_k_accuracy_score

from vit_registers.analysis.experiments.accuracy import score_head
from vit_registers.config import ClassificationSettings, Config, Data, Model, ObjectiveSettings
from vit_registers.data.batch import labelled_batch
from vit_registers.errors import ConfigError
from vit_registers.evaluation.classification import classification_metrics, classification_sums
from vit_registers.objectives.base import add_sums, find_non_finite
from vit_registers.objectives.classification import Classification
from vit_registers.objectives.losses import LOSSES, make_loss_per_example, smooth_labels


def _logits_and_labels(num_examples=64, num_classes=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_examples, num_classes)).astype(np.float32), rng.dirichlet(
        np.ones(num_classes), num_examples
    ).astype(np.float32)


def test_softmax_loss_is_the_cross_entropy():
    logits, labels = _logits_and_labels()
    want = -(labels * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
    np.testing.assert_allclose(LOSSES["softmax"](logits, labels), want, rtol=1e-5)


def test_sigmoid_loss_is_binary_cross_entropy_summed_over_classes():
    logits, labels = _logits_and_labels()
    p = expit(logits.astype(np.float64))
    want = -(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum(-1)
    np.testing.assert_allclose(LOSSES["sigmoid"](logits, labels), want, rtol=1e-5)


def test_multi_hot_loss_is_binary_cross_entropy_against_all_classes_that_were_mixed():
    logits, labels = _logits_and_labels()
    labels[:, 3:] = 0.0
    labels[0] = np.eye(12)[5]
    target = (labels > 0).astype(np.float64)
    x = logits.astype(np.float64)
    want = (np.logaddexp(0, x) - x * target).mean(-1)
    np.testing.assert_allclose(LOSSES["multi_hot"](logits, labels), want, rtol=1e-5)
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(labels).gt(0.0).float()
    )
    np.testing.assert_allclose(LOSSES["multi_hot"](logits, labels).mean(), theirs.numpy(), rtol=1e-6)


def test_smoothed_labels_give_the_loss_of_torch():
    logits, _ = _logits_and_labels()
    label_B = np.random.default_rng(1).integers(0, 12, 64)
    label_BxY = np.eye(12, dtype=np.float32)[label_B]
    smooth = smooth_labels(jnp.asarray(label_BxY), 0.1)
    np.testing.assert_allclose(np.unique(smooth), [0.1 / 12, 0.9 + 0.1 / 12], rtol=1e-6)
    np.testing.assert_allclose(smooth.sum(-1), 1.0, rtol=1e-6)
    assert smooth_labels(label_BxY, 0.0) is label_BxY
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(label_B), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(LOSSES["softmax"](logits, smooth), theirs.numpy(), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"label_smoothing=0.1 with .*: every class would be a label"):
        make_loss_per_example(ClassificationSettings(loss="multi_hot", label_smoothing=0.1), 12)


def test_the_objective_smooths_the_labels_after_it_has_mixed_them():
    """As timm's Mixup: the same distribution whether labels are smoothed before or after."""
    settings = ClassificationSettings(cutmix_alpha=1.0, label_smoothing=0.1, mix_partner="flip")
    config = Config(
        model=Model(width=8, depth=1, num_heads=1, patch_size=4, image_size=(8, 8), num_classes=5),
        data=Data(batch_size=4),
        objective=ObjectiveSettings(classification=settings),
    )
    batch = labelled_batch(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), np.ones(4, bool))
    prepared = Classification(config).prepare(batch, jax.random.key(1))
    bare = dataclasses.replace(settings, label_smoothing=0.0)
    plain = Classification(
        dataclasses.replace(config, objective=ObjectiveSettings(classification=bare))
    ).prepare(batch, jax.random.key(1))
    mixed = np.asarray(plain.targets["label"])
    assert ((mixed > 0) & (mixed < 1)).any()
    np.testing.assert_allclose(prepared.targets["label"], 0.9 * mixed + 0.02, rtol=1e-6)


def test_the_softmax_over_one_class_is_refused_with_a_remedy():
    remedy = r"model.num_classes=1 with .*; give .* or set objective.classification.loss='sigmoid'"
    with pytest.raises(ConfigError, match=remedy):
        make_loss_per_example(ClassificationSettings(), 1)
    for settings, num_classes in ((ClassificationSettings(loss="sigmoid"), 1), (ClassificationSettings(), 2)):
        assert make_loss_per_example(settings, num_classes) is LOSSES[settings.loss]


def test_top1_and_top5_equal_scikit_learn_over_masked_parts():
    logits, _ = _logits_and_labels(100)
    label = np.random.default_rng(1).integers(0, 12, 100)
    sums = None
    for start in (0, 40, 80):
        part = slice(start, start + 40)
        pad = 40 - len(label[part])
        batch = classification_sums(
            jnp.pad(jnp.asarray(logits[part]), ((0, pad), (0, 0))),
            jnp.pad(jnp.asarray(label[part]), (0, pad))[:, None],
            jnp.arange(40) < 40 - pad,
            jnp.ones(40),
        )
        sums = batch if sums is None else add_sums(sums, batch)
    means = classification_metrics(sums)
    assert means["images"] == 100
    assert means["loss"] == 1.0
    for k, name in ((1, "top1"), (5, "top5")):
        assert means[name] == pytest.approx(top_k_accuracy_score(label, logits, k=k))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3, 7, slice(None)], ids=["label", "other", "last", "all"])
def test_an_example_with_a_logit_that_is_not_finite_is_wrong(value, at):
    """Against NaN every comparison is false, so that no class would be ahead of the label."""
    logits = np.zeros((6, 8), np.float32)
    logits[:, 0] = 1.0  # all of label 0, and right
    broken = np.array([False, True, True, True, True, True])
    logits[broken, at] = value
    labels = jnp.array([[0, -1], [0, -1], [0, 5], [-1, 0], [-1, -1], [0, -1]])  # one none, two of several
    mask = jnp.array([True, True, True, True, True, False])
    means = classification_metrics(classification_sums(jnp.asarray(logits), labels, mask, jnp.zeros(6)))
    assert means == {"loss": 0.0, "top1": 0.25, "top5": 0.25, "images": 4, "non_finite": 3}


def test_top1_and_top5_are_those_of_the_analysis_and_of_scikit_learn_on_what_is_finite():
    rng = np.random.default_rng(3)
    logits = np.round(rng.normal(size=(200, 9)) * 2).astype(np.float32)  # with ties
    label = rng.integers(0, 9, 200)
    for broken in (np.zeros(200, bool), rng.random(200) < 0.3):
        logits[broken, rng.integers(0, 9, broken.sum())] = rng.choice([np.nan, np.inf, -np.inf], broken.sum())
        means = classification_metrics(
            classification_sums(logits, label[:, None], jnp.ones(200, bool), jnp.zeros(200))
        )
        theirs = score_head(logits, label)
        assert (means["top1"], means["top5"]) == (pytest.approx(theirs.top1), pytest.approx(theirs.top5))
        assert means["non_finite"] == theirs.num_non_finite == broken.sum()
        # scikit-learn takes the last of equal scores for the highest, and refuses NaN.
        distinct = logits[~broken].astype(np.float64) - 1e-9 * np.arange(9)
        for k, name in ((1, "top1"), (5, "top5")):
            right = top_k_accuracy_score(label[~broken], distinct, k=k, labels=range(9), normalize=False)
            assert means[name] == pytest.approx(right / 200)


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_of_few_classes_is_left_out(num_classes, has_top5):
    sums = classification_sums(
        jnp.zeros((2, num_classes)), jnp.zeros((2, 1), int), jnp.ones(2, bool), jnp.ones(2)
    )
    assert ("top5" in classification_metrics(add_sums(sums, sums))) == has_top5


def test_a_label_beyond_the_classes_is_wrong():
    sums = classification_sums(jnp.zeros((2, 6)), jnp.array([[6], [9]]), jnp.ones(2, bool), jnp.ones(2))
    assert classification_metrics(sums) == {
        "loss": 1.0,
        "top1": 0.0,
        "top5": 0.0,
        "images": 2,
        "non_finite": 0,
    }


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"loss": 1.0, "top1": 0.5, "images": 9, "non_finite": 0}, None),
        ({"top1": 0.5}, None),  # of another evaluator
        (
            {"loss": np.nan, "top1": 0.5, "images": 9, "non_finite": 2},
            "the logits of 2 of 9 images are not finite",
        ),
        ({"loss": np.inf, "top1": 1.0}, "the loss is not finite"),
        ({"loss": None, "top1": 1.0, "images": 9}, "the loss is not finite"),  # of JSON
        ({"loss": 1.0, "top1": None}, "the top1 is not finite"),
    ],
)
def test_what_is_not_finite_in_an_evaluation_is_said(metrics, found):
    said = find_non_finite(metrics)
    assert said is None if found is None else said.startswith(found)


def test_equal_logits_are_ranked_as_argmax_does():
    label = jnp.arange(3)
    sums = classification_sums(jnp.zeros((3, 3)), label[:, None], jnp.ones(3, bool), jnp.zeros(3))
    assert int(sums["top1"][0]) == 1


def test_any_of_several_labels_is_right_and_none_does_not_count():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(200, 9)).astype(np.float32)
    sets = [rng.choice(9, size=rng.integers(0, 4), replace=False) for _ in range(200)]
    label_BxK = np.array([[*labels, *[-1] * (4 - len(labels))] for labels in sets])
    sums = classification_sums(logits, jnp.asarray(label_BxK), jnp.arange(200) < 150, jnp.ones(200))
    counted = [i for i in range(150) if len(sets[i])]
    assert int(sums["loss"][1]) == len(counted) < 150
    for k, got in ((1, sums["top1"][0]), (5, sums["top5"][0])):
        best = np.argsort(-logits, axis=-1)[:, :k]
        assert int(got) == sum(bool(set(best[i]) & set(sets[i])) for i in counted)
    assert float(sums["loss"][0]) == len(counted)
