"""The segmentation head, its loss, windows and IoU, against torch, scikit-learn and hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.data.sources.dense import IGNORED
from vit_registers.evaluation.segmentation.head import (
    SegmentationHead,
    Statistics,
    enlarge,
    init_segmentation_head,
    pixel_cross_entropy,
    segmentation_logits,
)
from vit_registers.evaluation.segmentation.iou import class_iou, confusion, pixel_accuracy
from vit_registers.evaluation.segmentation.windows import predicted_classes, sliding_logits, window_starts


def sines(shape, phase, frequency):
    return np.sin(phase + frequency * np.arange(np.prod(shape)), dtype=np.float64).reshape(shape)


def test_cross_entropy_of_the_fact_sheet():
    logits = jnp.asarray(sines((1, 3, 2, 2), 0.1, 1.3).transpose(0, 2, 3, 1), jnp.float32)
    labels = jnp.asarray([[[0, 2], [IGNORED, 1]]])
    assert pixel_cross_entropy(logits, labels, divisor="all") == pytest.approx(1.006041, rel=1e-5)
    assert pixel_cross_entropy(logits, labels, divisor="valid") == pytest.approx(1.341388, rel=1e-5)
    nothing = jnp.full((1, 2, 2), IGNORED)
    for divisor in ("all", "valid"):
        value, grad = jax.value_and_grad(lambda x, d=divisor: pixel_cross_entropy(x, nothing, divisor=d))(
            logits
        )
        assert value == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("divisor", ["all", "valid"])
def test_training_is_torchs(divisor):
    """Three steps' logits, gradients and running statistics; then evaluation."""
    torch = pytest.importorskip("torch")
    channels, classes, size = 5, 4, (9, 7)
    norm, conv = torch.nn.BatchNorm2d(channels), torch.nn.Conv2d(channels, classes, 1)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(rng.standard_normal(channels)))
        norm.bias.copy_(torch.tensor(rng.standard_normal(channels)))
    head = SegmentationHead(
        *(jnp.asarray(x.detach().numpy()) for x in (norm.weight, norm.bias)),
        jnp.asarray(conv.weight.detach().numpy()[:, :, 0, 0].T),
        jnp.asarray(conv.bias.detach().numpy()),
    )
    statistics = Statistics(jnp.zeros(channels), jnp.ones(channels))

    def ours(head, statistics, x, label):
        logits, statistics = segmentation_logits(head, statistics, x, is_training=True)
        large = enlarge(logits, size)
        return pixel_cross_entropy(large, label, divisor=divisor), (logits, statistics)

    for _ in range(3):
        x = (3 + 2 * rng.standard_normal((3, 4, 3, channels))).astype(np.float32)
        label = rng.choice([0, 1, 2, 3, IGNORED], size=(3, *size))
        theirs = conv(norm(torch.tensor(x.transpose(0, 3, 1, 2))))
        large = torch.nn.functional.interpolate(theirs, size=size, mode="bilinear", align_corners=False)
        reduction = "mean" if divisor == "valid" else "sum"
        loss = torch.nn.functional.cross_entropy(
            large, torch.tensor(label), ignore_index=IGNORED, reduction=reduction
        )
        loss = loss / (1 if divisor == "valid" else label.size)
        norm.zero_grad(), conv.zero_grad()
        loss.backward()
        (value, (logits, statistics)), grads = jax.value_and_grad(ours, has_aux=True)(
            head, statistics, jnp.asarray(x), jnp.asarray(label)
        )
        assert value == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(
            logits, theirs.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=2e-5
        )
        want = (norm.weight.grad, norm.bias.grad, conv.weight.grad[:, :, 0, 0].T, conv.bias.grad)
        for got, expected in zip(grads, want, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistics.mean_C, norm.running_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(statistics.variance_C, norm.running_var.numpy(), rtol=1e-5)
    norm.eval()
    logits, same = segmentation_logits(head, statistics, jnp.asarray(x), is_training=False)
    theirs = conv(norm(torch.tensor(x.transpose(0, 3, 1, 2)))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=2e-5)
    assert same is statistics


def test_a_new_head():
    head, statistics = init_segmentation_head(jax.random.key(0), 64, 500)
    assert float(head.kernel_CxY.std()) == pytest.approx(0.01, rel=0.02) and not head.bias_Y.any()
    assert (statistics.variance_C == 1).all() and (head.scale_C == 1).all()


def test_windows():
    assert window_starts(41, 24, 16) == [0, 16, 17]
    assert window_starts(24, 24, 16) == [0] and window_starts(20, 24, 16) == [0]
    for length in range(5, 80):
        starts = window_starts(length, 24, 16)
        covered = {p for s in starts for p in range(s, min(s + 24, length))}
        assert covered == set(range(length)) and starts == sorted(set(starts))


def test_sliding_is_the_mean_over_windows():
    """With logits that depend on the place in the window, against a plain sum; any batch gives the same."""
    rng = np.random.default_rng(1)
    image, weight = rng.standard_normal((41, 30, 3)), rng.standard_normal((24, 24, 2))

    def predict(windows):
        return windows[..., :1] * weight[: windows.shape[1], : windows.shape[2]]

    total, count = np.zeros((41, 30, 2)), np.zeros((41, 30, 1))
    for y in (0, 16, 17):
        for x in (0, 6):
            total[y : y + 24, x : x + 24] += image[y : y + 24, x : x + 24, :1] * weight
            count[y : y + 24, x : x + 24] += 1
    for batch in (1, 4, 6, 8):  # the second image has windows of another shape, the others share batches
        images = [image, image[:10], image, -image, 2 * image]
        found = list(sliding_logits(predict, images, window=24, stride=16, batch=batch))
        for sign, place in ((1, 0), (1, 2), (-1, 3), (2, 4)):
            np.testing.assert_allclose(found[place], sign * total / count, rtol=1e-5, atol=1e-6)
        assert found[1].shape == (10, 30, 2) and len(found) == 5
    assert list(sliding_logits(predict, [], window=24, stride=16, batch=2)) == []


@pytest.mark.parametrize("size", [(13, 11), (4, 5), (3, 2), (5, 30)])
def test_classes_at_the_original_size_are_torchs(size):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(2).standard_normal((5, 7, 6)).astype(np.float32)
    large = torch.nn.functional.interpolate(
        torch.tensor(logits.transpose(2, 0, 1))[None], size=size, mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(predicted_classes(logits, size), large[0].argmax(0).numpy())


def test_iou():
    """Against scikit-learn where a class is labelled, and by hand where it is not."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    label, predicted = rng.choice([0, 1, 2, IGNORED], size=(40, 30)), rng.integers(0, 4, (40, 30))
    found = class_iou(confusion(label[:20], predicted[:20], 5) + confusion(label[20:], predicted[20:], 5))
    valid = label != IGNORED
    want = metrics.jaccard_score(label[valid], predicted[valid], average=None, labels=range(3))
    np.testing.assert_allclose(found[:3], want)
    assert found[3] == 0 and np.isnan(found[4])  # predicted, never labelled; neither
    accuracy = metrics.accuracy_score(label[valid], predicted[valid])
    assert pixel_accuracy(confusion(label, predicted, 5)) == pytest.approx(accuracy)
    assert (
        np.isnan(pixel_accuracy(np.zeros((2, 2), int))) and np.isnan(class_iou(np.zeros((2, 2), int))).all()
    )
