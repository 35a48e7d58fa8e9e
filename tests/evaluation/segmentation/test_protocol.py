"""Crops, learning rates, optimiser and sizes of the segmentation protocol; scores."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import Data, Model, SegmentationSettings
from vit_registers.config.tasks import head_settings
from vit_registers.data.sources.dense import CLASSES, IGNORED, DensePair
from vit_registers.data.sources.digit_scenes import DigitScenes
from vit_registers.errors import ConfigError
from vit_registers.evaluation.dense.pictures import palette, side_by_side
from vit_registers.evaluation.segmentation.crops import training_example
from vit_registers.evaluation.segmentation.iou import confusion
from vit_registers.evaluation.segmentation.protocol import learning_rate, resolved, segmentation_optimizer
from vit_registers.evaluation.segmentation.scores import class_table, scores

SETTINGS = SegmentationSettings()


def test_learning_rates_of_the_released_heads():
    """The table of mmcv: the regular decay, times the warm-up of its 1,500 of 40,000 steps."""
    for step in (0, 1, 700, 1499, 1500, 1501, 20_000, 39_999):
        regular = 1e-3 * (1 - step / 40_000)
        warm = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1
        found = float(learning_rate(SETTINGS, 40_000, step))
        assert found == pytest.approx(regular * warm, rel=1e-5), step
    plain = dataclasses.replace(SETTINGS, warmup_share=0.0)
    assert float(learning_rate(plain, 10, 0)) == pytest.approx(1e-3)


def test_the_optimiser_is_torchs():
    torch = pytest.importorskip("torch")
    settings, number = dataclasses.replace(SETTINGS, weight_decay=0.3, warmup_share=0.4), 10
    start = np.random.default_rng(0).standard_normal(7).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([theirs], lr=1.0, weight_decay=settings.weight_decay)
    ours, optimizer = jnp.asarray(start), segmentation_optimizer(settings, number)
    state = optimizer.init(ours)
    for step in range(number):
        grad = np.random.default_rng(step).standard_normal(7).astype(np.float32)
        adamw.param_groups[0]["lr"] = float(learning_rate(settings, number, step))
        theirs.grad = torch.tensor(grad)
        adamw.step()
        updates, state = optimizer.update(jnp.asarray(grad), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-7)


def pair(height, width, seed=0):
    """Labels are the pixels of the image, so that both must move together."""
    label = np.random.default_rng(seed).integers(0, 5, (height, width))
    return DensePair((label * 50).astype(np.uint8)[..., None], label.astype(np.int32))


def test_a_crop_has_the_labels_of_its_pixels():
    tall, corners = pair(60, 40), set()
    for seed in range(60):
        made = training_example(tall, np.random.default_rng(seed), short_side=40, crop=16, is_augmented=False)
        assert made.size == (16, 16) and made.image_HxWxC.shape == (16, 16, 1)
        np.testing.assert_array_equal(made.image_HxWxC[..., 0], made.label_HxW * 50)
        places = [
            (y, x)
            for y in range(45)
            for x in range(25)
            if (tall.label_HxW[y : y + 16, x : x + 16] == made.label_HxW).all()
        ]
        corners |= set(places)
        assert len(places) == 1
    ys, xs = zip(*corners, strict=True)
    assert min(ys) < 8 and max(ys) > 36 and min(xs) < 5 and max(xs) > 19


def test_small_images_are_padded_right_and_below():
    made = training_example(
        pair(10, 12), np.random.default_rng(0), short_side=10, crop=16, is_augmented=False
    )
    assert made.size == (10, 12)
    assert (made.label_HxW[10:] == IGNORED).all() and (made.label_HxW[:, 12:] == IGNORED).all()
    assert not made.image_HxWxC[10:].any() and (made.label_HxW[:10, :12] != IGNORED).all()


def test_augmentation_scales_by_a_half_to_two_and_flips():
    square = pair(16, 16)
    sizes, flips = [], 0
    for seed in range(200):
        made = training_example(
            square, np.random.default_rng(seed), short_side=16, crop=40, is_augmented=True
        )
        sizes.append(made.size[0])
        if made.size == (16, 16):
            flips += (made.label_HxW[:16, :16] == square.label_HxW[:, ::-1]).all()
    assert min(sizes) == 8 and max(sizes) == 31 and np.mean(sizes) == pytest.approx(19.5, abs=1.2)
    assert 0 < flips < sizes.count(16)


def test_crops_of_nearly_one_class_are_drawn_again():
    """One column of 4 in 40 has other classes: few of the first draws of 16 px have enough of it."""
    label = np.zeros((16, 400), np.int32)
    label[:, 200:] = IGNORED
    label[:, 180:200] = 1
    image = np.zeros((16, 400, 1), np.uint8)
    shares = []
    for seed in range(100):
        made = training_example(
            DensePair(image, label), np.random.default_rng(seed), short_side=16, crop=16, is_augmented=False
        )
        valid = made.label_HxW[made.label_HxW != IGNORED]
        shares.append(max((valid == 0).mean(), (valid == 1).mean()) if len(valid) else 1.0)
    first_draw = 8 / 385  # of the places of a crop, the share with both classes below 0.75
    assert np.mean(np.array(shares) < 0.75) > 4 * first_draw


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divisor": "some"}, r"tasks\.segmentation\.divisor"),
        ({"num_blocks": 4}, r"tasks\.segmentation\.num_blocks=4: the model has 3 blocks"),
        ({"crop": 48}, r"crop=48 is larger than tasks\.segmentation\.short_side=24"),
        ({"crop": 8, "stride": 9}, r"stride=9 is larger than tasks\.segmentation\.crop=8"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    model = Model(width=16, depth=3, num_heads=2, patch_size=2, image_size=(8, 8), channels=1)
    with pytest.raises(ConfigError, match=message):
        resolved(SegmentationSettings(**settings), DigitScenes(CLASSES), model, Data())


@pytest.mark.parametrize(("side", "want"), [(8, (24, 8, 8)), (24, (24, 24, 24)), (64, (64, 64, 64))])
def test_windows_of_digit_scenes_have_the_size_of_the_models_images(side, want):
    model = Model(width=16, depth=3, num_heads=2, patch_size=2, image_size=(8, 8), channels=1)
    data = Data(image_size=(side, side))
    settings, sizes = resolved(SegmentationSettings(), DigitScenes(CLASSES), model, data)
    assert (sizes.short_side, sizes.crop, sizes.stride) == want
    assert None not in head_settings(settings).values()


def test_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label, predicted = rng.choice([0, 1, 2, IGNORED], (30, 30)), rng.integers(0, 4, (30, 30))
    count, valid = confusion(label, predicted, 5), label != IGNORED
    np.testing.assert_array_equal(
        count, metrics.confusion_matrix(label[valid], predicted[valid], labels=range(5))
    )
    found = scores(count)
    recall = metrics.recall_score(label[valid], predicted[valid], average=None, labels=[0, 1, 2])
    assert found.class_accuracy == pytest.approx(recall.mean())  # of classes that are labelled
    rows = class_table(count, tuple("abcde")).rows
    assert rows[3][1:4] == (0.0, None, 0) and rows[4][1] is None


def test_pictures():
    colors = palette()
    assert len(np.unique(colors, axis=0)) > 250 and (colors[IGNORED] == 255).all()
    first = colors[:21].astype(int)
    distance = np.abs(first[:, None] - first[None]).sum(axis=-1) + 1000 * np.eye(21, dtype=int)
    assert distance.min() > 40
    image = np.zeros((24, 24, 3), np.uint8)
    sheet = side_by_side([[image, image]] * 2, ("image", "truth"), [("sea \u6d77", colors[1])])
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 2 * 144 and sheet.shape[0] > 2 * 144
