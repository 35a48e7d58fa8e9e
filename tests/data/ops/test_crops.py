"""The parts that inception_crop takes, against TensorFlow's sampler restated in numpy."""

import numpy as np
import pytest
from scipy import stats

from vit_registers.data.ops import crops

tf = pytest.importorskip("tensorflow")

NUM = 20_000


def restated(height, width, areas, aspects, rng):
    """y, x, height, width of NUM parts: attempts until one fits, at most 100, then the whole image."""
    box_Mx4 = np.tile([0, 0, height, width], (NUM, 1))
    least, most = areas[0] * height * width, areas[1] * height * width
    todo = np.arange(NUM)
    for _ in range(100):
        aspect = rng.uniform(*aspects, todo.size)
        low, high = np.rint(np.sqrt(least / aspect)), np.rint(np.sqrt(most / aspect))
        widest = np.floor((width + 0.5 - 1e-7) / aspect)
        widest -= np.rint(widest * aspect) > width
        high = np.where(np.rint(high * aspect) > width, widest, high)
        high = np.minimum(high, height)
        low = np.minimum(low, high)
        h = low + np.floor(rng.random(todo.size) * (high - low + 1))
        h += h * np.rint(h * aspect) < least
        h -= h * np.rint(h * aspect) > most
        w = np.rint(h * aspect)
        fits = (h * w >= least) & (h * w <= most) & (w <= width) & (h <= height) & (w > 0) & (h > 0)
        # the last row and column that a smaller part could start at are never drawn
        y, x = (np.floor(rng.random(todo.size) * room) for room in (height - h, width - w))
        box_Mx4[todo[fits]] = np.stack([y, x, h, w], 1)[fits]
        todo = todo[~fits]
    return box_Mx4


@pytest.mark.parametrize(
    ("height", "width", "areas"),
    [(375, 500, (0.05, 1.0)), (300, 800, (0.05, 1.0)), (300, 800, (0.49, 1.0))],
    ids=["photo", "wide", "few fit"],
)
def test_parts_follow_the_law_of_the_sampler(height, width, areas):
    aspects = 0.75, 1.33
    shape = tf.constant([height, width, 3])
    seeds = tf.stack([tf.range(NUM, dtype=tf.int64), tf.fill([NUM], tf.constant(5, tf.int64))], 1)
    box = tf.function(
        lambda: tf.map_fn(
            lambda seed: crops.inception_box(shape, seed, areas, aspects), seeds, fn_output_signature=tf.int32
        )
    )
    drawn_Mx4 = box().numpy()
    expected_Mx4 = restated(height, width, areas, aspects, np.random.default_rng(0))

    def measures(box_Mx4):
        y, x, h, w = box_Mx4.T.astype(float)
        is_part = (h < height) | (w < width)
        return {
            "area": h * w / (height * width),
            "aspect": w / h,
            "y": (y / np.maximum(height - h, 1))[is_part & (h < height)],
            "x": (x / np.maximum(width - w, 1))[is_part & (w < width)],
            "whole": ~is_part,
        }

    drawn, expected = measures(drawn_Mx4), measures(expected_Mx4)
    for name in ("area", "aspect", "y", "x"):
        if min(drawn[name].size, expected[name].size) < 1000:
            continue  # hardly a part is lower than the image
        p = stats.ks_2samp(drawn[name], expected[name]).pvalue
        print(f"{height} x {width}, {areas}: {name}: p = {p:.3f}")
        assert p > 1e-3, name
    for name, room in (("y", height - drawn_Mx4[:, 2]), ("x", width - drawn_Mx4[:, 3])):
        is_roomy = room >= 20
        if is_roomy.sum() < 1000:
            continue
        start = drawn_Mx4[:, 0 if name == "y" else 1][is_roomy]
        middle = (start + 0.5) / room[is_roomy]  # of the pixel, among those drawn from
        p = stats.kstest(middle, "uniform").pvalue
        print(f"{height} x {width}, {areas}: {name} uniform: p = {p:.3f}")
        assert p > 1e-3, name
    counts = [[part["whole"].sum(), (~part["whole"]).sum()] for part in (drawn, expected)]
    print(f"{height} x {width}, {areas}: whole images {counts[0][0]} and {counts[1][0]} of {NUM}")
    if max(counts[0][0], counts[1][0]):
        assert stats.fisher_exact(counts).pvalue > 1e-3
    if areas[0] > 0.4:
        assert 0 < counts[0][0] < NUM
