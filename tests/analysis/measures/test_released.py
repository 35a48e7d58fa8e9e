"""The released reconstruction probe: its targets by index, its sums by hand, its training against torch."""

import numpy as np
import pytest

from vit_registers.analysis.measures.reconstruction import Pairs, initial_mlp, patchify
from vit_registers.analysis.measures.released import (
    cut_channels_first,
    cut_channels_last,
    fit_released,
    score_released,
)

RNG = np.random.default_rng(0)


def make_pairs(num_images, *, width=4):
    """Images of 4 x 6 px in patches of 2: P = 6, M = 12."""
    return Pairs(
        token_BxPxD=RNG.normal(5, 3, (num_images, 6, width)).astype(np.float32),
        image_BxHxWxC=RNG.integers(0, 256, (num_images, 4, 6, 3), dtype=np.uint8),
        patch_size=2,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )


def normal(pairs):
    return (pairs.image_BxHxWxC / 255 - np.array(pairs.mean)) / np.array(pairs.std)


def test_targets_are_runs_of_the_values_in_two_orders():
    image = RNG.normal(size=(2, 4, 6, 3))
    first, last = cut_channels_first(image, 2), cut_channels_last(image, 2)
    assert first.shape == last.shape == (2, 6, 12)
    for piece in range(6):
        for i in range(12):
            flat = 12 * piece + i
            channel, row, column = flat // 24, flat % 24 // 6, flat % 6
            assert first[1, piece, i] == image[1, row, column, channel]
            row, column, channel = flat // 18, flat % 18 // 3, flat % 3
            assert last[1, piece, i] == image[1, row, column, channel]
    for cut in (first, last):  # not the values of the patch, in any order
        assert (np.sort(cut[0, 1]) != np.sort(patchify(image, 2)[0, 1])).any()


def test_scores_are_sums_over_whole_batches():
    pairs = make_pairs(150)
    is_outlier = RNG.random((150, 6)) < 0.1
    is_outlier[64:128] = False  # the second batch has none
    is_outlier[128:] = True  # these fill no batch
    scores = score_released(lambda token: np.full((len(token), 12), 0.25), pairs, is_outlier)
    square = (normal(pairs).reshape(150, 6, 12) - 0.25) ** 2
    others = [square[at][~is_outlier[at]].mean() for at in (slice(0, 64), slice(64, 128))]
    for score, kind, total, count in zip(
        scores,
        ("normal", "outlier"),
        (sum(others), square[:64][is_outlier[:64]].mean()),
        ((~is_outlier[:128]).sum(), is_outlier[:64].sum()),
        strict=True,
    ):
        assert (score.kind, score.num_tokens, score.l2) == (kind, count, None)
        assert score.mse == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("num_images", [0, 5])
def test_few_images_are_one_batch_and_none_has_no_score(num_images):
    pairs, is_outlier = make_pairs(num_images), np.zeros((num_images, 6), bool)
    normal_score, outlier = score_released(lambda token: np.zeros((len(token), 12)), pairs, is_outlier)
    assert (outlier.num_tokens, outlier.mse) == (0, None)
    expected = pytest.approx(np.square(normal(pairs)).mean(), rel=1e-5) if num_images else None
    assert (normal_score.num_tokens, normal_score.mse) == (6 * num_images, expected)


def test_training_is_that_of_torch():
    """Five epochs of two whole batches of the images in their order, on raw tokens.

    Gradients are torch's, and the rule is AdamW's with torch's default values; its own class takes seconds
    to import.
    """
    torch = pytest.importorskip("torch")
    pairs = make_pairs(140)
    initial = initial_mlp(np.random.default_rng(3), pairs)
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Linear(16, 12))
    for layer, place in ((0, 0), (1, 2)):
        theirs[place].weight.data = torch.tensor(initial[f"weight{layer}"].T.copy())
        theirs[place].bias.data = torch.tensor(initial[f"bias{layer}"][0])
    parameters = list(theirs.parameters())
    first, second = ([torch.zeros_like(x) for x in parameters] for _ in range(2))
    steps = 0
    images = torch.tensor(np.moveaxis(normal(pairs), -1, 1).astype(np.float32))
    tokens = torch.tensor(pairs.token_BxPxD)
    for _ in range(5):
        for at in (slice(0, 64), slice(64, 128)):
            loss = torch.nn.functional.mse_loss(theirs(tokens[at]), images[at].reshape(64, 6, 12))
            steps += 1
            gradients = torch.autograd.grad(loss, parameters)
            for x, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m += 0.1 * (gradient - m)
                v += 0.001 * (gradient**2 - v)
                change = (m / (1 - 0.9**steps)) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)
                x.data -= 1e-3 * (0.01 * x.data + change)
    ours = fit_released(pairs, seed=3)(pairs.token_BxPxD[128:].reshape(-1, 4))
    np.testing.assert_allclose(ours, theirs(tokens[128:]).detach().numpy().reshape(-1, 12), atol=1e-4)
