"""The loss of neighbouring patches: worked cases, its other definition, and how it joins the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.analysis.measures.severity import neighbour_cosine
from vit_registers.errors import ConfigError
from vit_registers.models.tokens import TokenLayout
from vit_registers.objectives.catalog import make_objective
from vit_registers.objectives.losses import neighbour_distance

LAYOUT = TokenLayout(has_cls=True, num_registers=1, summary_grids=(), patch_grid=(3, 4))
FIELD_HxW = np.add.outer(np.arange(3), np.arange(4)) % 2


def tokens_of(patches_HxWxD, others=100.0):
    patches = np.asarray(patches_HxWxD, np.float32).reshape(1, 12, -1)
    return jnp.concatenate([jnp.full((1, 2, patches.shape[-1]), others), patches], axis=1)


@pytest.mark.parametrize(
    ("even", "odd", "expected"), [((1, 2), (3, 6), 0), ((1, 0), (0, 5), 1), ((1, 1), (-2, -2), 2)]
)
def test_a_chequerboard_of_two_vectors(even, odd, expected):
    tokens = tokens_of(np.where(FIELD_HxW[..., None] == 0, even, odd))
    np.testing.assert_allclose(neighbour_distance([tokens], LAYOUT), [expected], atol=1e-6)


def test_one_other_patch_counts_by_its_neighbours():
    patches = np.tile([1.0, 0.0], (3, 4, 1))
    patches[0, 0] = 0.0, 1.0  # two of 17 pairs
    np.testing.assert_allclose(neighbour_distance([tokens_of(patches)], LAYOUT), [2 / 17], atol=1e-6)
    patches[1, 1] = 0.0, 0.0  # four more
    np.testing.assert_allclose(neighbour_distance([tokens_of(patches)], LAYOUT), [6 / 17], atol=1e-6)


def test_it_is_one_minus_the_mean_over_pairs_of_the_analysis_and_over_blocks():
    tokens = [np.random.default_rng(i).normal(size=(5, 14, 6)).astype(np.float32) for i in range(3)]
    expected = []
    for one in tokens:
        found = neighbour_cosine(one[:, 2:], (3, 4))  # each pair twice
        expected.append(1 - np.sum(np.where(found.is_valid_Bx4xP, found.cosine_Bx4xP, 0), axis=(1, 2)) / 34)
    ours = neighbour_distance([jnp.asarray(one) for one in tokens], LAYOUT)
    np.testing.assert_allclose(ours, np.mean(expected, axis=0), atol=1e-5)
    scaled = neighbour_distance([jnp.asarray(7 * one) for one in tokens], LAYOUT)
    np.testing.assert_allclose(ours, scaled, atol=1e-5)


def test_gradients_are_finite_also_for_patches_of_zeros():
    gradient = jax.grad(lambda x: neighbour_distance([x], LAYOUT).sum())(tokens_of(np.zeros((3, 4, 2))))
    assert np.isfinite(gradient).all()


def test_off_changes_nothing_and_on_adds_its_weight(tiny, change, run_steps):
    plain, on = (change(tiny, classification={"neighbour_weight": weight}) for weight in (0.0, 0.5))
    (_, (off,)), (_, (metrics,)) = (run_steps(config, 1) for config in (plain, on))
    assert set(metrics) - set(off) == {"neighbour_distance"}
    assert metrics["neighbour_distance"] > 0.001
    np.testing.assert_allclose(metrics["loss"], off["loss"] + 0.5 * metrics["neighbour_distance"], rtol=1e-5)
    _, history = run_steps(change(tiny, classification={"neighbour_weight": 5.0}), 12)
    assert history[-1]["neighbour_distance"] < 0.5 * history[0]["neighbour_distance"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"optimizer": {"accumulation_steps": 4}}, {"devices": 8}], ids=str)
def test_micro_batches_and_devices_give_the_same(tiny, change, run_steps, changes):
    config = change(tiny, classification={"neighbour_weight": 0.5})
    whole, history = run_steps(config, 3)
    num_devices = changes.pop("devices", 1)
    parts, parts_history = run_steps(change(config, **changes), 3, num_devices=num_devices)
    for ours, theirs in ((whole.params, parts.params), (history, parts_history)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
            jax.device_get(ours),
            jax.device_get(theirs),
        )


@pytest.mark.parametrize("model", [{"depth": 0}, {"patch_size": 8, "image_size": (8, 8)}], ids=str)
def test_a_model_without_neighbours_is_refused(tiny, change, model):
    model = {"summary_factor": None, "mask": "none"} | model
    config = change(tiny, classification={"neighbour_weight": 0.5}, model=model)
    with pytest.raises(ConfigError, match="requires a block and two patches"):
        make_objective(config).check()
