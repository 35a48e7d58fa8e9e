"""Outlier rules, on planted norms."""

import numpy as np
import pytest

from vit_registers.analysis.measures.outliers import find
from vit_registers.errors import ConfigError

RNG = np.random.default_rng(0)
BULK = RNG.normal(40.0, 5.0, (50, 196))
PLANTED = RNG.random((50, 196)) < 0.02
BIMODAL = np.where(PLANTED, RNG.normal(400.0, 40.0, PLANTED.shape), BULK)


@pytest.mark.parametrize("rule", ["absolute:150", "std:3", "valley"])
def test_planted_outliers_are_found(rule):
    found = find(BIMODAL, rule)
    np.testing.assert_array_equal(found.is_outlier_BxP, PLANTED)
    assert found.share == pytest.approx(PLANTED.mean())


def test_quantile_flags_its_share_whether_there_are_outliers_or_not():
    assert find(BULK, "quantile:0.98").share == pytest.approx(0.02, abs=1e-3)
    assert find(BIMODAL, "quantile:0.98").share == pytest.approx(0.02, abs=1e-3)


def test_one_mode_has_no_valley():
    for norms in (BULK, np.full((3, 4), 7.0), RNG.lognormal(1.0, 0.5, (50, 196))):
        found = find(norms, "valley")
        assert found.threshold is None
        assert not found.is_outlier_BxP.any()


def test_mean_and_standard_deviation_by_hand():
    assert find(np.array([[1.0, 3.0]]), "std:0.5").threshold == pytest.approx(2.5)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "-1"])
@pytest.mark.parametrize("kind", ["absolute", "quantile", "std", "batch"])
def test_rules_with_a_number_that_cannot_be_are_refused(kind, number):
    with pytest.raises(
        ConfigError, match=f"--rule={kind}:{number}(/64)?: the number must be finite and >= 0"
    ):
        find(BULK, f"{kind}:{number}{'/64' * (kind == 'batch')}")


def test_a_quantile_of_each_batch_in_closed_form():
    """Image i has the norms 100 i + 0 .. 99: the quantile of all flags the last images, of a batch each last.

    The quantile 0.9 of the integers a .. b is a + 0.9 (b - a).
    """
    norm_BxP = np.arange(500.0).reshape(5, 100)
    np.testing.assert_array_equal(find(norm_BxP, "quantile:0.9").is_outlier_BxP.sum(1), [0, 0, 0, 0, 50])
    one = find(norm_BxP, "batch:0.9/1")
    np.testing.assert_array_equal(one.is_outlier_BxP, np.tile(np.arange(100) > 89.1, (5, 1)))
    assert one.threshold == pytest.approx(200 + 89.1)
    two = find(norm_BxP, "batch:0.9/2")  # the last batch has one image
    np.testing.assert_array_equal(two.is_outlier_BxP.sum(1), [0, 20, 0, 20, 10])
    assert two.threshold == pytest.approx((179.1 + 379.1 + 489.1) / 3)
    assert two.rule == "batch:0.9/2"


@pytest.mark.parametrize("size", [50, 64, 10**12])
def test_one_batch_of_all_images_is_the_quantile_of_all(size):
    whole, batch = find(BIMODAL, "quantile:0.98"), find(BIMODAL, f"batch:0.98/{size}")
    np.testing.assert_array_equal(batch.is_outlier_BxP, whole.is_outlier_BxP)
    assert batch.threshold == whole.threshold


@pytest.mark.parametrize("rule", ["batch:0.98", "batch:0.98/0", "batch:0.98/x", "batch", "quantile:0.98/64"])
def test_a_rule_of_batches_states_the_size_of_a_batch(rule):
    with pytest.raises(ConfigError, match=r"batch:0\.98/64, .*64 is the number of images in a batch"):
        find(BULK, rule)


BAD = ["std", "std:x", "quantile:2", "quantile:0", "valley:3", "mean", "absolute", "batch:2/64", "batch:/64"]


@pytest.mark.parametrize("rule", BAD)
def test_bad_rules(rule):
    with pytest.raises(ConfigError):
        find(BULK, rule)
