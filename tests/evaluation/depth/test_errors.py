"""The errors of depths, by hand and against formulas in float64."""

import numpy as np
import pytest

from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.depth.errors import ERRORS, depth_errors, eval_region, summarize

WHOLE = (slice(None), slice(None))


def errors(predicted, depth, crop=WHOLE):
    found = depth_errors(np.asarray(predicted), np.asarray(depth), low=0.001, high=10.0, crop=crop)
    assert found is not None
    return found


def test_errors_by_hand():
    """Half of the pixels 10 % too deep, half exact."""
    depth = np.full((2, 4), 2.0)
    predicted = depth.copy()
    predicted[0] *= 1.1
    found = errors(predicted, depth)
    log = np.log(1.1)
    assert found["rmse"] == pytest.approx((0.2**2 / 2) ** 0.5)
    assert found["abs_rel"] == pytest.approx(0.05) and found["log10"] == pytest.approx(np.log10(1.1) / 2)
    assert found["silog"] == pytest.approx(100 * log / 2)
    assert (found["a1"], found["a2"], found["a3"]) == (1, 1, 1)
    predicted[0] = 2.0 * 1.3
    far = errors(predicted, depth)
    assert (far["a1"], far["a2"]) == (0.5, 1)


def test_errors_are_those_of_the_formulas_in_float64():
    """The formulas of the evaluations by Eigen's protocol, on the pixels of its crop that have a depth."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 11, (480, 640)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = 0
    predicted = np.clip(depth * rng.uniform(0.6, 1.6, depth.shape) + 0.1, 0, 12).astype(np.float32)
    found = errors(predicted, depth, eval_region("eigen", 480, 640))
    mask = np.zeros(depth.shape, bool)
    mask[45:471, 41:601] = True
    mask &= (depth > 0.001) & (depth < 10)
    gt, pred = depth[mask].astype(np.float64), np.clip(predicted, 0.001, 10)[mask].astype(np.float64)
    thresh = np.maximum(gt / pred, pred / gt)
    err = np.log(pred) - np.log(gt)
    want = {
        "rmse": np.sqrt(((gt - pred) ** 2).mean()),
        "abs_rel": np.mean(np.abs(gt - pred) / gt),
        "log10": np.abs(np.log10(gt) - np.log10(pred)).mean(),
        "silog": np.sqrt(np.mean(err**2) - np.mean(err) ** 2) * 100,
        "a1": (thresh < 1.25).mean(),
        "a2": (thresh < 1.25**2).mean(),
        "a3": (thresh < 1.25**3).mean(),
    }
    assert set(want) == set(ERRORS)
    assert found == pytest.approx(want, rel=1e-6)


def test_errors_of_the_valid_part():
    depth = np.array([[0.0, 10.0, 3.0, 5.0]])
    found = errors([[9.0, 9.0, 4.0, 50.0]], depth)
    # 50 is limited to 10; 0 and 10 have no depth
    assert found["rmse"] == pytest.approx(((1 + 25) / 2) ** 0.5)
    assert depth_errors(depth, depth * 0, low=0.001, high=10.0, crop=WHOLE) is None
    only = errors([[9.0, 9.0, 4.0, 50.0]], depth, (slice(None), slice(2, 3)))
    assert only["rmse"] == pytest.approx(1)


def test_predictions_that_are_not_finite_are_as_wrong_as_can_be():
    found = errors([[np.nan, np.inf, -np.inf]], [[3.0, 3.0, 6.0]])
    assert found["rmse"] == pytest.approx(np.sqrt((7**2 + 7**2 + 5.999**2) / 3))
    assert all(np.isfinite(value) for value in found.values())


def test_parts_that_count():
    assert eval_region("eigen", 480, 640) == (slice(45, 471), slice(41, 601))
    # of the 352 x 1216 pixels of KITTI: int(0.40810811 * 352) ...
    assert eval_region("garg", 352, 1216) == (slice(143, 349), slice(43, 1172))
    assert eval_region("all", 7, 9) == (slice(7), slice(9))
    with pytest.raises(DataError, match=r"eigen.*480 x 640 pixels.*24 x 24"):
        eval_region("eigen", 24, 24)
    with pytest.raises(ConfigError, match=r"tasks\.depth\.eval_crop"):
        eval_region("eigan", 480, 640)


def test_summary_is_over_images():
    """The mean of each image's RMSE, not the RMSE of all pixels; its standard error; and what is left out."""
    one = errors([[3.0, 3.0]], [[1.0, 1.0]])
    other = errors([[1.0, 1.0, 1.0, 1.5]], [[1.0, 1.0, 1.0, 1.0]])
    found = summarize([one, None, other], where="split 'test' of x")
    assert (found.num_images, found.num_without_depth) == (2, 1)
    assert found.means["rmse"] == pytest.approx((2 + 0.25) / 2)
    assert found.spreads["rmse"] == pytest.approx(np.std([2, 0.25], ddof=1) / 2**0.5)
    assert summarize([one], where="x").spreads["rmse"] == 0
    with pytest.raises(DataError, match=r"split 'test' of x: none of 2 images has a depth"):
        summarize([None, None], where="split 'test' of x")
