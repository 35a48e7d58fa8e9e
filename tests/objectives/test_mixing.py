"""Mixup and CutMix against a numpy restatement, by their laws and by their properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import ClassificationSettings
from vit_registers.errors import ConfigError
from vit_registers.objectives import mixing
from vit_registers.objectives.losses import LOSSES
from vit_registers.objectives.mixing import check_mixing

mix = functools.partial(mixing.mix, normalize=lambda image: image)


def test_nothing_is_mixed_unless_asked():
    image, label = jnp.ones((4, 2, 2, 1)), jnp.eye(4)
    mixed = mix(jax.random.key(0), ClassificationSettings(), image, label, jnp.ones(4, bool))
    assert mixed[0] is image and mixed[1] is label


def test_mixup_is_the_same_convex_combination_of_images_and_labels():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(6, 3, 3, 2)), jnp.float32)
    label = jnp.eye(6)
    settings = ClassificationSettings(mixup_alpha=0.4)
    mixed_image, mixed_label, _ = mix(jax.random.key(3), settings, image, label, jnp.ones(6, bool))
    lam = float(mixed_label[0, 0])
    assert 0.0 < lam < 1.0
    np.testing.assert_allclose(mixed_image, lam * image + (1 - lam) * image[jnp.arange(6) - 1], atol=1e-6)
    np.testing.assert_allclose(mixed_label.sum(-1), 1.0, atol=1e-6)


def test_cutmix_pastes_one_box_and_weights_labels_by_its_area():
    image = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 8, 10, 1))
    settings = ClassificationSettings(cutmix_alpha=1.0)
    for seed in range(8):
        mixed, label, _ = mix(jax.random.key(seed), settings, image, jnp.eye(6), jnp.ones(6, bool))
        is_foreign = np.asarray(mixed[3, :, :, 0]) != 3.0
        assert np.all(np.asarray(mixed[3, :, :, 0])[is_foreign] == 2.0)
        assert label[3, 3] == pytest.approx(1.0 - is_foreign.mean(), abs=1e-6)
        rows, columns = is_foreign.any(1).sum(), is_foreign.any(0).sum()
        assert is_foreign.sum() == rows * columns


@pytest.mark.slow
def test_mean_of_mixup_weights_is_that_of_the_beta_law():
    settings = ClassificationSettings(mixup_alpha=0.2)
    keys = jax.random.split(jax.random.key(0), 4000)
    own = jax.vmap(
        lambda k: mix(k, settings, jnp.ones((2, 1, 1, 1)), jnp.eye(2), jnp.ones(2, bool))[1][0, 0]
    )(keys)
    assert float(own.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(own.var()) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


def test_an_example_mixed_with_one_left_out_is_left_out():
    mask = jnp.array([True, False, True, True])
    mixed = mix(
        jax.random.key(0), ClassificationSettings(mixup_alpha=1.0), jnp.ones((4, 1, 1, 1)), jnp.eye(4), mask
    )
    assert mixed[2].tolist() == [True, False, False, True]


def restated(image_HxWxC, partner_HxWxC, own, other, *, lam, box):
    """One example of a mixed batch in plain numpy: the image and its label, from a box or from lam."""
    image = np.array(image_HxWxC, np.float64)
    if box is None:
        return lam * image + (1 - lam) * partner_HxWxC, lam * own + (1 - lam) * other
    y0, y1, x0, x1 = box
    image[y0:y1, x0:x1] = partner_HxWxC[y0:y1, x0:x1]
    kept = 1 - (y1 - y0) * (x1 - x0) / (image.shape[0] * image.shape[1])
    return image, kept * own + (1 - kept) * other


def box_of(image, partner):
    """The (y0, y1, x0, x1) in which an image is its partner."""
    rows, columns = np.nonzero(np.all(image == partner, axis=-1))
    return (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) if len(rows) else (0, 0, 0, 0)


@pytest.mark.parametrize("noise", ["global", "per_group"])
@pytest.mark.parametrize("partner", ["roll", "flip"])
@parametrize_quick("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)], number=2)
def test_batches_equal_a_restatement_group_by_group(alphas, partner, noise):
    """The draws are read off the result, once for each group, and must then explain all of it."""
    batch, groups, size = 12, 3, 4
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, 9, 7, 2)).astype(np.float32)
    label = np.eye(batch, dtype=np.float32)
    settings = ClassificationSettings(
        mixup_alpha=alphas[0],
        cutmix_alpha=alphas[1],
        mix_groups=groups,
        mix_noise=noise,
        mix_partner=partner,
    )
    check_mixing(settings, batch)
    logits = rng.normal(size=(batch, batch)).astype(np.float32)
    draws = set()
    draw = jax.jit(lambda key: mix(key, settings, image, label, jnp.ones(batch, bool)))
    for seed in range(6):
        mixed, mixed_label, _ = draw(jax.random.key(seed))
        mixed, mixed_label = np.asarray(mixed), np.asarray(mixed_label)
        of_groups = []
        for start in range(0, batch, size):
            order = np.arange(start, start + size)
            partners = order[::-1] if partner == "flip" else np.roll(order, 1)
            first, other = start, partners[0]
            is_boxed = np.all((mixed[first] == image[first]) | (mixed[first] == image[other]))
            lam = None if is_boxed else float(mixed_label[first, first])
            box = box_of(mixed[first], image[other]) if is_boxed else None
            of_groups.append((lam, box))
            for i, j in zip(order, partners, strict=True):
                want = restated(image[i], image[j], label[i], label[j], lam=lam, box=box)
                np.testing.assert_allclose(mixed[i], want[0], atol=1e-6)
                np.testing.assert_allclose(mixed_label[i], want[1], atol=1e-6)
        assert noise == "per_group" or len({(np.float32(lam or 0), box) for lam, box in of_groups}) == 1
        draws |= set(of_groups)
        target = np.asarray(mixed_label) > 0
        want = np.logaddexp(0, logits.astype(np.float64)) - logits * target
        np.testing.assert_allclose(LOSSES["multi_hot"](logits, mixed_label), want.mean(-1), rtol=1e-5)
    assert len(draws) > (6 if noise == "per_group" else 3)
    if all(alphas):
        assert {box is None for _, box in draws} == {True, False}


def test_folded_mixup_keeps_the_larger_share_for_itself():
    settings = ClassificationSettings(mixup_alpha=0.2, use_mixup_folding=True)
    for seed in range(20):
        label = mix(jax.random.key(seed), settings, jnp.ones((4, 1, 1, 1)), jnp.eye(4), jnp.ones(4, bool))[1]
        assert float(label[0, 0]) >= 0.5


@pytest.mark.slow
def test_share_of_cutmix_is_half_and_its_boxes_follow_the_law_of_timm():
    """The area kept on 2,000 draws, against the same rule with numpy's: two-sample Kolmogorov-Smirnov."""
    from scipy.stats import ks_2samp

    settings = ClassificationSettings(cutmix_alpha=1.0)
    keys = jax.random.split(jax.random.key(1), 2000)
    image, mask = jnp.ones((2, 32, 32, 1)), jnp.ones(2, bool)
    kept = jax.vmap(lambda key: mix(key, settings, image, jnp.eye(2), mask)[1][0, 0])(keys)
    rng = np.random.default_rng(0)
    want = []
    for _ in range(2000):
        cut = int(32 * np.sqrt(1 - rng.beta(1, 1)))
        sides = []
        for centre in rng.integers(0, 32, 2):
            sides.append(np.clip(centre + cut // 2, 0, 32) - np.clip(centre - cut // 2, 0, 32))
        want.append(1 - sides[0] * sides[1] / 32**2)
    assert ks_2samp(np.asarray(kept), want).pvalue > 1e-3
    both = ClassificationSettings(mixup_alpha=0.8, cutmix_alpha=1.0)
    image = jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 8, 8, 1))
    mixed = jax.vmap(lambda key: mix(key, both, image, jnp.eye(2), mask)[0])(keys)
    is_mixup = np.any((mixed > 0) & (mixed < 1), axis=(1, 2, 3, 4))
    assert abs(is_mixup.mean() - 0.5) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mix_partner": "rol"},
            "objective.classification.mix_partner='rol' is unknown: did you mean 'roll'",
        ),
        ({"mix_noise": "local"}, "objective.classification.mix_noise='local' is unknown"),
        ({"mix_groups": 3}, "objective.classification.mix_groups=3 does not divide data.batch_size=1024"),
        ({"mixup_alpha": -1.0}, "objective.classification.mixup_alpha=-1.0: must be >= 0"),
    ],
)
def test_settings_that_say_no_way_of_mixing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_mixing(ClassificationSettings(**settings), 1024)
