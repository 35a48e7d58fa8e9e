"""Pixels from tokens: patches, the linear probe, the MLP, and the floor."""

import dataclasses

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import Ridge

from vit_registers.analysis.measures.reconstruction import (
    Pairs,
    _apply_mlp,
    fit_linear,
    fit_mean,
    fit_mlp,
    initial_mlp,
    patchify,
    score_reconstruction,
)
from vit_registers.errors import ConfigError, DataError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_pairs(seed, num_images, *, width=10, noise=1.0, mixing=None, scale=1.0):
    """Images of 8 x 12 px in patches of 4; tokens are a fixed mixture of their pixels, and noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num_images, 8, 12, 3), dtype=np.uint8)
    pixel = patchify((image / 255 - MEAN) / STD, 4)
    mixing = np.random.default_rng(99).normal(size=(48, width)) if mixing is None else mixing
    token = scale * (pixel @ mixing + noise * rng.normal(size=(num_images, 6, mixing.shape[1])) + 3)
    return Pairs(token_BxPxD=token.astype(np.float32), image_BxHxWxC=image, patch_size=4, mean=MEAN, std=STD)


def everything(pairs):
    """(tokens, pixels) of all images, by loops over cells."""
    pixels = []
    for image in pairs.image_BxHxWxC:
        for top in (0, 4):
            for left in (0, 4, 8):
                values = image[top : top + 4, left : left + 4].astype(float) / 255
                pixels.append(((values - MEAN) / STD).ravel())
    return pairs.token_BxPxD.reshape(-1, pairs.token_BxPxD.shape[2]).astype(float), np.stack(pixels)


def test_patches_are_row_major_and_hold_rows_columns_channels():
    image = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for index in range(6):
        top, left = 2 * (index // 3), 2 * (index % 3)
        np.testing.assert_array_equal(patches[1, index], image[1, top : top + 2, left : left + 2].ravel())


def test_images_that_are_not_made_of_patches_are_refused():
    with pytest.raises(DataError, match="images of 8 x 10 px are not made of patches of 4 px"):
        patchify(np.zeros((1, 8, 10, 3)), 4)


def test_pairs_are_normalised_pixels_beside_their_tokens():
    pairs = make_pairs(0, 5)
    token, pixel = everything(pairs)
    for images, at in ((slice(1, 3), slice(6, 18)), (np.array([4]), slice(24, 30))):
        tokens, pixels = pairs.take(images)
        np.testing.assert_array_equal(tokens, token[at])
        np.testing.assert_allclose(pixels, pixel[at], atol=2e-6)
        assert tokens.dtype == pixels.dtype == np.float32


@pytest.mark.parametrize("num_images", [3, 16, 37])
@pytest.mark.parametrize("penalty", [1e-6, 0.5])
def test_the_linear_probe_is_ridge_regression(num_images, penalty):
    pairs, test = make_pairs(0, num_images), make_pairs(1, 4)
    token, pixel = everything(pairs)
    alpha = penalty * len(token) * token.var(axis=0).mean()
    model = Ridge(alpha=alpha).fit(token, pixel)
    test_token, _ = everything(test)
    np.testing.assert_allclose(
        fit_linear(pairs, penalty=penalty)(test_token), model.predict(test_token), atol=1e-4
    )


def test_the_linear_probe_finds_a_linear_truth_at_any_scale():
    mixing = np.linalg.qr(np.random.default_rng(5).normal(size=(48, 48)))[0]
    for scale in (1e-3, 1.0, 1e4):
        train = make_pairs(0, 30, noise=0.0, mixing=mixing, scale=scale)
        test = make_pairs(1, 8, noise=0.0, mixing=mixing, scale=scale)
        normal, outlier = score_reconstruction(fit_linear(train), test, np.zeros((8, 6), bool))
        assert normal.mse < 1e-6 and normal.l2 < 1e-2
        assert (outlier.num_tokens, outlier.mse, outlier.l2) == (0, None, None)


def test_overwritten_tokens_are_no_better_than_the_mean():
    mixing = np.linalg.qr(np.random.default_rng(5).normal(size=(48, 48)))[0]
    train, test = (make_pairs(seed, 60, noise=0.0, mixing=mixing) for seed in (0, 1))
    is_outlier = np.random.default_rng(2).random((60, 6)) < 0.2
    noise = np.random.default_rng(3).normal(size=test.token_BxPxD.shape) + 3
    token = np.where(is_outlier[..., None], noise, test.token_BxPxD).astype(np.float32)
    test = dataclasses.replace(test, token_BxPxD=token)
    normal, outlier = score_reconstruction(fit_linear(train), test, is_outlier)
    floor_normal, floor_outlier = score_reconstruction(fit_mean(train), test, is_outlier)
    assert normal.mse < 1e-6 < 1 < floor_normal.mse < outlier.mse
    assert outlier.num_tokens == floor_outlier.num_tokens == is_outlier.sum()
    assert floor_outlier.mse == pytest.approx(floor_normal.mse, rel=0.1)


def test_tokens_that_say_nothing_give_the_mean():
    pairs = make_pairs(0, 5)
    pairs = dataclasses.replace(pairs, token_BxPxD=np.full_like(pairs.token_BxPxD, 7))
    _, pixel = everything(pairs)
    for predict in (fit_linear(pairs), fit_mean(pairs)):
        np.testing.assert_allclose(predict(np.zeros((2, 10))), np.tile(pixel.mean(axis=0), (2, 1)), atol=1e-5)


def test_scores_are_the_errors_of_their_definition():
    pairs = make_pairs(0, 20)
    _, pixel = everything(pairs)
    is_outlier = np.random.default_rng(1).random((20, 6)) < 0.3
    scores = score_reconstruction(lambda token: np.ones((len(token), 48)), pairs, is_outlier)
    for score, kind, at in zip(scores, ("normal", "outlier"), (~is_outlier, is_outlier), strict=True):
        errors = 1 - pixel[at.ravel()]
        assert (score.kind, score.num_tokens) == (kind, at.sum())
        assert score.mse == pytest.approx((errors**2).mean(), rel=1e-5)
        assert score.l2 == pytest.approx(np.linalg.norm(errors, axis=1).mean(), rel=1e-5)


def test_no_images_have_no_scores():
    pairs = make_pairs(0, 2)
    none = dataclasses.replace(
        pairs, token_BxPxD=pairs.token_BxPxD[:0], image_BxHxWxC=pairs.image_BxHxWxC[:0]
    )
    for score in score_reconstruction(fit_mean(pairs), none, np.zeros((0, 6), bool)):
        assert (score.num_tokens, score.mse, score.l2) == (0, None, None)


def test_the_mlp_is_that_of_the_formula():
    pairs = make_pairs(0, 1, width=5)
    parameters = initial_mlp(np.random.default_rng(0), pairs)
    assert {name: value.shape for name, value in parameters.items()} == {
        "weight0": (5, 20),
        "bias0": (1, 20),
        "weight1": (20, 48),
        "bias1": (1, 48),
    }
    assert 0.9 * 5**-0.5 < abs(parameters["weight0"]).max() <= 5**-0.5
    assert 0.9 * 20**-0.5 < abs(parameters["weight1"]).max() <= 20**-0.5
    token = np.random.default_rng(0).normal(size=(3, 5))
    p = {name: np.asarray(value, float) for name, value in parameters.items()}
    hidden = token @ p["weight0"] + p["bias0"]
    hidden *= 0.5 * (1 + scipy.special.erf(hidden / 2**0.5))
    expected = hidden @ p["weight1"] + p["bias1"]
    np.testing.assert_allclose(_apply_mlp(parameters, token.astype(np.float32)), expected, atol=1e-6)


def squared_pairs(seed, num_images):
    """Grey images of one value per patch; tokens hold it in a form that no linear map undoes."""
    rng = np.random.default_rng(seed)
    value = rng.integers(0, 256, (num_images, 2, 3), dtype=np.uint8)
    image = np.repeat(value.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    angle = value.reshape(num_images, 6, 1) / 255 * 2 * np.pi
    token = np.concatenate([np.cos(angle), np.sin(angle), np.cos(2 * angle)], axis=2)
    return Pairs(
        token_BxPxD=token.astype(np.float32),
        image_BxHxWxC=image,
        patch_size=4,
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
    )


def test_the_mlp_learns_what_no_linear_map_can():
    train, test = squared_pairs(0, 400), squared_pairs(1, 100)
    is_outlier = np.zeros((100, 6), bool)
    mlp, linear, mean = (
        score_reconstruction(predict, test, is_outlier)[0].mse
        for predict in (
            fit_mlp(train, seed=0, epochs=40, learning_rate=0.02),
            fit_linear(train),
            fit_mean(train),
        )
    )
    assert mlp < 0.5 * linear
    assert linear < 0.8 * mean


def test_the_mlp_follows_the_seed_and_no_scale_of_the_tokens():
    train, token = squared_pairs(0, 70), squared_pairs(1, 2).token_BxPxD.reshape(-1, 3)
    scaled = dataclasses.replace(train, token_BxPxD=1024 * train.token_BxPxD)  # exact in binary
    a, b, c = (fit_mlp(pairs, seed=seed, epochs=2) for pairs, seed in ((train, 0), (train, 0), (train, 1)))
    np.testing.assert_array_equal(a(token), b(token))
    assert (a(token) != c(token)).any()
    np.testing.assert_allclose(fit_mlp(scaled, seed=0, epochs=2)(1024 * token), a(token), atol=1e-5)


def test_fewer_images_than_a_batch_are_one_batch():
    pairs = squared_pairs(0, 5)
    is_outlier = np.zeros((5, 6), bool)
    before, after = (
        score_reconstruction(fit_mlp(pairs, seed=0, epochs=epochs), pairs, is_outlier)[0].mse
        for epochs in (0, 60)
    )
    assert after < 0.9 * before


def test_memory_maps_give_what_arrays_give(tmp_path):
    pairs = make_pairs(0, 20)
    np.save(tmp_path / "t.npy", pairs.token_BxPxD)
    np.save(tmp_path / "i.npy", pairs.image_BxHxWxC)
    token, image = (np.load(tmp_path / name, mmap_mode="r") for name in ("t.npy", "i.npy"))
    mapped = dataclasses.replace(pairs, token_BxPxD=token, image_BxHxWxC=image)
    rows = pairs.token_BxPxD.reshape(-1, 10)
    for fit in (fit_mean, fit_linear, lambda p: fit_mlp(p, seed=0, epochs=1, batch_images=8)):
        np.testing.assert_array_equal(fit(pairs)(rows), fit(mapped)(rows))


def test_what_cannot_be_fitted_is_refused():
    pairs = make_pairs(0, 3)
    none = dataclasses.replace(
        pairs, token_BxPxD=pairs.token_BxPxD[:0], image_BxHxWxC=pairs.image_BxHxWxC[:0]
    )
    for fit in (fit_mean, fit_linear, lambda p: fit_mlp(p, seed=0)):
        with pytest.raises(DataError, match="no images"):
            fit(none)
    with pytest.raises(ConfigError, match=r"penalty=0.* must be > 0"):
        fit_linear(pairs, penalty=0)
    pairs.token_BxPxD[2, 0, 0] = np.nan
    for fit in (fit_linear, lambda p: fit_mlp(p, seed=0)):
        with pytest.raises(DataError, match="tokens of image 2 are not finite"):
            fit(pairs)
