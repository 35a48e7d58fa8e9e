"""Weighted nearest_rows neighbours against the released formula, torch, scikit-learn, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vit_registers.config import Mesh
from vit_registers.evaluation.neighbours import Bank, make_bank, nearest_rows, unit_features, votes
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.sharding import batch_sharding


def wave(shape, phase, frequency):
    number = int(np.prod(shape))
    return np.sin(phase + frequency * np.arange(number)).astype(np.float32).reshape(shape)


def _bank(x, label):
    return Bank(unit_features(jnp.asarray(x))[None], jnp.asarray(label)[None])


def test_check_values():
    """Of DINOv2's KnnModule: five neighbours, votes of the first three, T = 0.07."""
    bank = _bank(wave((12, 4), 0.2, 2.3), np.arange(12) % 3)
    query = unit_features(jnp.asarray(wave((2, 4), 0.7, 2.3)))
    rows = _bank(wave((12, 4), 0.2, 2.3), np.arange(12))
    similarity, row = nearest_rows(rows, query, 5)
    np.testing.assert_array_equal(row, [[11, 0, 9, 2, 7], [1, 10, 3, 8, 6]])
    similarity, label = nearest_rows(bank, query, 5)
    (found,) = votes(similarity, label, num_classes=3, numbers=[3])
    np.testing.assert_allclose(found, [[0.24387, 0, 0.75325], [0.00577, 0.98921, 0]], rtol=2e-4, atol=1e-5)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((5, 16)).astype(np.float32)
    label = rng.integers(0, 5, 400)
    x = centre[label] + 1.5 * rng.standard_normal((400, 16)).astype(np.float32)
    return x[:320], label[:320].astype(np.int32), x[320:], label[320:]


@pytest.mark.parametrize("number", [1, 10, 20, 200])
def test_against_scikit_learn(features, number):
    x, label, query, _ = features
    bank, unit_query = _bank(x, label), unit_features(jnp.asarray(query))
    similarity, found = nearest_rows(bank, unit_query, 200)
    (ours,) = votes(similarity, found, num_classes=5, numbers=[number])

    def weights(distance):  # of unit vectors: |a - b|² = 2 - 2 ab
        return np.exp((1 - distance**2 / 2) / 0.07)

    reference = KNeighborsClassifier(number, weights=weights, algorithm="brute")
    reference.fit(np.asarray(bank.x_SxMxD[0]), label)
    want = reference.predict_proba(np.asarray(unit_query))
    ours = np.asarray(ours)
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), want, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(("sizes", "devices"), [({}, 1), ({"fsdp": 4}, 8), ({"tensor": 2}, 8)])
def test_a_split_bank_finds_the_same_neighbours(features, sizes, devices):
    x, label, query, _ = features
    mesh = make_mesh(Mesh(**sizes), devices=jax.devices()[:devices])
    layout = batch_sharding(mesh)
    mask = np.arange(80) < 76
    batches = [
        tuple(jax.device_put(one, layout) for one in (x[i : i + 80], label[i : i + 80], mask))
        for i in range(0, 320, 80)
    ]
    with jax.set_mesh(mesh):
        bank, left_out = make_bank(batches, mesh)
        similarity, found = jax.jit(nearest_rows, static_argnums=2)(
            bank, unit_features(jnp.asarray(query)), 50
        )
    assert left_out == 0
    is_kept = np.tile(mask, 4)
    want = nearest_rows(_bank(x[is_kept], label[is_kept]), unit_features(jnp.asarray(query)), 50)
    np.testing.assert_allclose(similarity, want[0], rtol=1e-5, atol=1e-6)
    assert (np.asarray(found) == np.asarray(want[1])).mean() > 0.999


def test_a_small_bank_and_features_that_are_not_finite():
    x = wave((6, 4), 0.2, 2.3)
    x[2] = np.nan
    mesh = make_mesh(Mesh(), devices=jax.devices()[:1])
    bank, left_out = make_bank([(jnp.asarray(x), jnp.arange(6), jnp.arange(6) != 5)], mesh)
    assert left_out == 1
    similarity, label = nearest_rows(bank, unit_features(jnp.asarray(x[:1])), 200)
    assert set(np.asarray(label)[0]) == {0, 1, 3, 4, -1}
    (found,) = votes(similarity, label, num_classes=6, numbers=[200])
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
    assert found[0].argmax() == 0
    assert not np.asarray(unit_features(jnp.zeros((1, 4)))).any()
