"""Losses, metrics and mixing against references and by their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.metrics import top_k_accuracy_score

from vit_registers.config import Data
from vit_registers.training.losses import LOSSES
from vit_registers.training.metrics import classification_sums
from vit_registers.training.mixing import cutmix, mix, mixup


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


def test_top1_and_top5_equal_scikit_learn_over_masked_parts():
    logits, _ = _logits_and_labels(100)
    label = np.random.default_rng(1).integers(0, 12, 100)
    sums = None
    for start in (0, 40, 80):
        part = slice(start, start + 40)
        pad = 40 - len(label[part])
        batch = classification_sums(
            jnp.pad(jnp.asarray(logits[part]), ((0, pad), (0, 0))),
            jnp.pad(jnp.asarray(label[part]), (0, pad)),
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
    sums = classification_sums(jnp.zeros((3, 3)), label, jnp.ones(3, bool), jnp.zeros(3))
    assert int(sums.top1) == 1


def test_nothing_is_mixed_unless_asked():
    image, label = jnp.ones((4, 2, 2, 1)), jnp.eye(4)
    mixed = mix(jax.random.key(0), Data(), image, label, jnp.ones(4, bool))
    assert mixed[0] is image and mixed[1] is label


def test_mixup_is_the_same_convex_combination_of_images_and_labels():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(6, 3, 3, 2)), jnp.float32)
    label = jnp.eye(6)
    mixed_image, mixed_label = mixup(jax.random.key(3), 0.4, image, label)
    lam = float(mixed_label[0, 0])
    assert 0.0 < lam < 1.0
    np.testing.assert_allclose(mixed_image, lam * image + (1 - lam) * image[jnp.arange(6) - 1], atol=1e-6)
    np.testing.assert_allclose(mixed_label.sum(-1), 1.0, atol=1e-6)


def test_cutmix_pastes_one_box_and_weights_labels_by_its_area():
    image = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 8, 10, 1))
    for seed in range(8):
        mixed, label = cutmix(jax.random.key(seed), 1.0, image, jnp.eye(6))
        is_foreign = np.asarray(mixed[3, :, :, 0]) != 3.0
        assert np.all(np.asarray(mixed[3, :, :, 0])[is_foreign] == 2.0)
        assert label[3, 3] == pytest.approx(1.0 - is_foreign.mean(), abs=1e-6)
        rows, columns = is_foreign.any(1).sum(), is_foreign.any(0).sum()
        assert is_foreign.sum() == rows * columns


def test_mean_of_mixup_weights_is_that_of_the_beta_law():
    data = Data(mixup_alpha=0.2)
    keys = jax.random.split(jax.random.key(0), 4000)
    own = jax.vmap(lambda k: mix(k, data, jnp.ones((2, 1, 1, 1)), jnp.eye(2), jnp.ones(2, bool))[1][0, 0])(
        keys
    )
    assert float(own.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(own.var()) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


def test_an_example_mixed_with_one_left_out_is_left_out():
    mask = jnp.array([True, False, True, True])
    mixed = mix(jax.random.key(0), Data(mixup_alpha=1.0), jnp.ones((4, 1, 1, 1)), jnp.eye(4), mask)
    assert mixed[2].tolist() == [True, False, False, True]
