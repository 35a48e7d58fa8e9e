"""The linear probe for the position of a token."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from vit_registers.analysis.measures.position_probe import (
    PositionProbe,
    _cross_entropy,
    feature_moments,
    fit_position_probe,
    score_positions,
)
from vit_registers.errors import DataError

GRID = (3, 5)


def make_tokens(seed, num_images, *, noise, width=12):
    """Tokens around a fixed vector per position; features of unequal scale and far from zero."""
    code_PxD = np.random.default_rng(99).normal(size=(GRID[0] * GRID[1], width))
    rng = np.random.default_rng(seed)
    token_BxPxD = code_PxD + noise * rng.normal(size=(num_images, *code_PxD.shape))
    return (token_BxPxD * np.logspace(-2, 2, width) + 50).astype(np.float32)


def constant_probe(position):
    """A probe that answers the same position for all tokens of width 2."""
    weight_DxP = np.zeros((2, 15), np.float32)
    bias_P = (np.arange(15) == position).astype(np.float32)
    return PositionProbe(
        mean_D=np.zeros(2), weight_DxP=weight_DxP, bias_P=bias_P, strength=1.0, is_converged=True
    )


def test_tokens_that_hold_their_position_are_all_found_and_noise_is_at_chance():
    train, test = make_tokens(0, 60, noise=0.05), make_tokens(1, 300, noise=0.05)
    is_outlier_BxP = np.random.default_rng(2).random(test.shape[:2]) < 0.3
    noise = np.random.default_rng(3).normal(size=test.shape).astype(np.float32)
    mixed = np.where(is_outlier_BxP[..., None], noise * test.std((0, 1)) + test.mean((0, 1)), test)
    normal, outlier = score_positions(fit_position_probe(train, seed=0), mixed, is_outlier_BxP, grid=GRID)
    assert (normal.kind, normal.top1, normal.distance_patches) == ("normal", 1.0, 0.0)
    assert (outlier.kind, outlier.num_tokens) == ("outlier", is_outlier_BxP.sum())
    assert normal.num_tokens + outlier.num_tokens == is_outlier_BxP.size
    assert outlier.top1 == pytest.approx(1 / 15, abs=0.04)
    cells = np.stack(np.divmod(np.arange(15), 5), axis=1)
    assert outlier.distance_patches == pytest.approx(cdist(cells, cells).mean(), abs=0.3)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_probe_is_that_of_scikit_learn_on_whitened_tokens(strength):
    train, test = make_tokens(0, 100, noise=1.0), make_tokens(1, 200, noise=1.0)
    probe = fit_position_probe(train, seed=0, strengths=(strength,))
    within = (train - train.mean(axis=0, dtype=float)).reshape(-1, 12)
    flat = train.reshape(-1, 12).astype(float)
    values, vectors = np.linalg.eigh(within.T @ within / len(within) + 1e-6 * np.diag(flat.var(axis=0)))
    whiten = vectors / np.sqrt(values)
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
    model.fit((flat - flat.mean(axis=0)) @ whiten, np.tile(np.arange(15), 100))
    test_NxD = test.reshape(-1, 12)
    theirs = model.decision_function((test_NxD - flat.mean(axis=0)) @ whiten)
    ours = (test_NxD - probe.mean_D) @ probe.weight_DxP + probe.bias_P
    np.testing.assert_allclose(ours, theirs, atol=0.1 * theirs.std())
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.99
    normal, _ = score_positions(probe, test, np.zeros(test.shape[:2], bool), grid=GRID)
    accuracy = (theirs.argmax(1).reshape(200, 15) == np.arange(15)).mean()
    assert normal.top1 == pytest.approx(accuracy, abs=0.003)
    assert 0.5 < accuracy < 0.95 and probe.is_converged and probe.strength == strength


def test_gradients_are_finite_differences_of_the_cross_entropy():
    rng = np.random.default_rng(0)
    weight, token = rng.normal(size=(5, 3)), rng.normal(size=(6, 4))

    def loss(weight):
        return -log_softmax(token @ weight[:4] + weight[4], axis=1)[np.arange(6), [0, 1, 2] * 2].sum()

    gradient, value = _cross_entropy(weight, token)
    assert value == pytest.approx(loss(weight))
    for at in np.ndindex(5, 3):
        step = np.zeros((5, 3))
        step[at] = 1e-5
        slope = (loss(weight + step) - loss(weight - step)) / 2e-5
        assert gradient[at] == pytest.approx(slope, abs=1e-8)


def test_the_strength_is_chosen_by_held_out_images():
    train, test = make_tokens(0, 20, noise=1.0), make_tokens(1, 100, noise=1.0)
    is_outlier = np.zeros(test.shape[:2], bool)
    probes = {c: fit_position_probe(train, seed=0, strengths=(c,)) for c in (1e-9, 1e-1, 1e4)}
    top1 = {c: score_positions(probe, test, is_outlier, grid=GRID)[0].top1 for c, probe in probes.items()}
    assert top1[1e-1] > max(top1[1e-9], top1[1e4]) + 0.05
    chosen = fit_position_probe(train, seed=0, strengths=(1e4, 1e-1, 1e-9))
    assert chosen.strength == 1e-1
    # It began elsewhere and saw the same images in the end.
    assert score_positions(chosen, test, is_outlier, grid=GRID)[0].top1 == pytest.approx(top1[1e-1], abs=0.01)


def test_a_fit_that_stops_early_says_so():
    probe = fit_position_probe(make_tokens(0, 20, noise=1.0), seed=0, strengths=(1.0,), max_iterations=2)
    assert not probe.is_converged


def test_a_memory_map_gives_what_an_array_gives_and_the_seed_draws_the_held_out_images(tmp_path):
    train = make_tokens(0, 21, noise=2.0)
    np.save(tmp_path / "tokens.npy", train)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    strengths = (1e-3, 3e-2, 1.0)
    fits = [fit_position_probe(x, seed=0, strengths=strengths) for x in (train, mapped)]
    for field in dataclasses.fields(PositionProbe):
        np.testing.assert_array_equal(*(getattr(fit, field.name) for fit in fits))
    assert fits[1].weight_DxP.dtype == np.float32 and type(fits[1].weight_DxP) is np.ndarray
    others = [fit_position_probe(train, seed=seed, strengths=strengths).strength for seed in range(1, 4)]
    assert {fits[0].strength, *others} > {fits[0].strength}


def test_scale_and_place_of_features_do_not_matter():
    train, test = make_tokens(0, 30, noise=0.3), make_tokens(1, 30, noise=0.3)
    is_outlier = np.zeros(test.shape[:2], bool)
    plain = score_positions(fit_position_probe(train, seed=0), test, is_outlier, grid=GRID)
    moved = score_positions(
        fit_position_probe(1000 * train - 3, seed=0), 1000 * test - 3, is_outlier, grid=GRID
    )
    assert plain[0].top1 == pytest.approx(moved[0].top1, abs=0.005)


def test_distances_are_euclidean_in_patches():
    # Cell 7 of 3 x 5 is the middle, (1, 2): corners lie at sqrt(1 + 4).
    tokens = np.zeros((1, 15, 2), np.float32)
    is_outlier_BxP = np.zeros((1, 15), bool)
    is_outlier_BxP[0, [0, 4, 10, 14]] = True
    normal, outlier = score_positions(constant_probe(7), tokens, is_outlier_BxP, grid=GRID)
    assert (outlier.top1, outlier.distance_patches) == (0.0, pytest.approx(5**0.5))
    expected = (0 + 1 * 4 + 2 * 2 + 2**0.5 * 4) / 11  # of the other cells, by hand
    assert (normal.top1, normal.distance_patches) == (1 / 11, pytest.approx(expected))
    # On 5 x 3, cell 7 is (2, 1); the four are (0, 0), (1, 1), (3, 1) and (4, 2).
    upright = score_positions(constant_probe(7), tokens, is_outlier_BxP, grid=(5, 3))[1]
    assert upright.distance_patches == pytest.approx((2 * 5**0.5 + 1 + 1) / 4)


def test_kinds_without_tokens_have_no_numbers():
    tokens = np.zeros((2, 15, 2), np.float32)
    none = np.zeros((2, 15), bool)
    for mask, place in ((none, 1), (~none, 0)):
        score = score_positions(constant_probe(0), tokens, mask, grid=GRID)[place]
        assert (score.num_tokens, score.top1, score.distance_patches) == (0, None, None)
    for score in score_positions(constant_probe(0), tokens[:0], none[:0], grid=GRID):
        assert (score.num_tokens, score.top1, score.distance_patches) == (0, None, None)


def test_moments_are_those_of_numpy_however_many_images():
    for count in (1, 16, 37):
        tokens = make_tokens(0, count, noise=1.0)
        tokens[..., 3] = 1234.567
        mean_D, scale_D = feature_moments(tokens)
        flat = tokens.reshape(-1, 12).astype(float)
        np.testing.assert_allclose(mean_D, flat.mean(0), rtol=1e-12)
        np.testing.assert_allclose(np.delete(scale_D, 3), np.delete(flat.std(0), 3), rtol=1e-9)
        assert scale_D[3] == 1.0


def test_small_variation_beside_a_large_mean_is_seen():
    tokens = 1e4 + np.arange(30, dtype=np.float64).reshape(2, 15, 1) * 1e-2
    assert feature_moments(tokens)[1][0] == pytest.approx(tokens.std(), rel=1e-9)


def test_tokens_that_no_probe_can_use_are_refused():
    tokens = make_tokens(0, 40, noise=1.0)
    with pytest.raises(DataError, match="no images"):
        fit_position_probe(tokens[:0], seed=0)
    with pytest.raises(DataError, match="one image is too few"):
        fit_position_probe(tokens[:1], seed=0)
    tokens[33, 2, 5], tokens[33, 4, 5] = np.inf, -np.inf
    with pytest.raises(DataError, match="tokens of image 33 are not finite"):
        fit_position_probe(tokens, seed=0)
