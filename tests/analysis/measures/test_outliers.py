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
@pytest.mark.parametrize("kind", ["absolute", "quantile", "std"])
def test_rules_with_a_number_that_cannot_be_are_refused(kind, number):
    with pytest.raises(ConfigError, match=f"--rule={kind}:{number}: the number must be finite and >= 0"):
        find(BULK, f"{kind}:{number}")


@pytest.mark.parametrize("rule", ["std", "std:x", "quantile:2", "quantile:0", "valley:3", "mean", "absolute"])
def test_bad_rules(rule):
    with pytest.raises(ConfigError):
        find(BULK, rule)
