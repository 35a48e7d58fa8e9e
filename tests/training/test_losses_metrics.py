"""Losses and metrics against references and by their properties."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.metrics import top_k_accuracy_score

from vit_registers.training.losses import LOSSES
from vit_registers.training.metrics import classification_sums


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
        sums = batch if sums is None else sums + batch
    means = sums.means()
    assert means["images"] == 100
    assert means["loss"] == 1.0
    for k, name in ((1, "top1"), (5, "top5")):
        assert means[name] == pytest.approx(top_k_accuracy_score(label, logits, k=k))


def test_equal_logits_are_ranked_as_argmax_does():
    label = jnp.arange(3)
    sums = classification_sums(jnp.zeros((3, 3)), label[:, None], jnp.ones(3, bool), jnp.zeros(3))
    assert int(sums.top1) == 1


def test_any_of_several_labels_is_right_and_none_does_not_count():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(200, 9)).astype(np.float32)
    sets = [rng.choice(9, size=rng.integers(0, 4), replace=False) for _ in range(200)]
    label_BxK = np.array([[*labels, *[-1] * (4 - len(labels))] for labels in sets])
    sums = classification_sums(logits, jnp.asarray(label_BxK), jnp.arange(200) < 150, jnp.ones(200))
    counted = [i for i in range(150) if len(sets[i])]
    assert int(sums.count) == len(counted) < 150
    for k, got in ((1, sums.top1), (5, sums.top5)):
        best = np.argsort(-logits, axis=-1)[:, :k]
        assert int(got) == sum(bool(set(best[i]) & set(sets[i])) for i in counted)
    assert float(sums.loss) == len(counted)
