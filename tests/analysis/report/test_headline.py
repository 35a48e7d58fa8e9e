"""Headlines: means with their 95 % interval against scipy, paired differences, samples too small to claim."""

import numpy as np
import pytest
from scipy import stats

from vit_registers.analysis.report.headline import (
    FEWEST,
    Headline,
    difference,
    over_images,
    share_of_images,
    statement,
)

RNG = np.random.default_rng(0)


def test_the_error_is_the_standard_error_of_the_mean():
    values = RNG.gamma(2, size=200)
    one = over_images("x, %", values)
    assert (one.value, one.error, one.count) == (
        pytest.approx(values.mean()),
        pytest.approx(stats.sem(values)),
        200,
    )
    low, high = stats.norm.interval(0.95, loc=one.value, scale=one.error)
    text, half = (float(part) for part in one.text().split(" \u00b1 "))
    assert text == pytest.approx(one.value, abs=0.01) and half == pytest.approx((high - low) / 2, abs=0.01)


def test_images_without_a_value_are_left_out():
    one = over_images("x", np.array([1.0, np.nan, 3.0]))
    assert (one.value, one.count) == (2.0, 2)
    assert over_images("x", np.array([np.nan])).value is None


def test_a_share_has_the_error_of_a_proportion():
    hits = np.repeat([1.0, 0.0], [30, 70])
    one = share_of_images("top-1, %", 30.0, 100)
    assert one.error == pytest.approx(100 * hits.std() / 10)
    assert share_of_images("top-1, %", None, 0).value is None


def test_models_are_compared_image_by_image():
    shared = RNG.normal(0, 10, 400)
    a, b = over_images("x", shared + 1), over_images("x", shared + RNG.normal(0, 0.1, 400))
    value, error = difference(a, b)
    assert value == pytest.approx(1, abs=0.05)
    assert error == pytest.approx(stats.sem(a.value_B - b.value_B)) and error < 0.02 < a.error
    apart = difference(a, over_images("x", b.value_B[:100]))[1]
    assert apart > a.error  # not the same images: the errors add up


def test_a_difference_is_claimed_only_beyond_the_uncertainty():
    values = RNG.normal(50, 10, 100)
    same = {"a": over_images("x, %", values), "b": over_images("x, %", RNG.permutation(values))}
    assert "no difference beyond the uncertainty" in statement("x, %", same)
    other = {"a": over_images("x, %", values), "b": over_images("x, %", values + 20 + RNG.normal(0, 1, 100))}
    text = statement("x, %", other)
    assert "b is higher by 2" in text and "(n = 100 images)" in text and text.startswith("X: a ")


def test_few_images_are_named_and_nothing_is_claimed():
    values = np.arange(FEWEST - 1, dtype=float)
    few = {"a": over_images("x, %", values), "b": over_images("x, %", values + 100)}
    text = statement("x, %", few)
    assert "too few images for a claim" in text and "higher" not in text
    assert not over_images("x", np.arange(FEWEST)).is_small


def test_of_many_models_lowest_and_highest_are_given():
    many = {
        name: over_images("x", RNG.normal(mean, 0.1, 50))
        for name, mean in {"a": 2, "b": 0, "c": 5, "d": 1}.items()
    }
    text = statement("x", many)
    assert text.index("b ") < text.index("c ") and "lowest and highest of 4 models" in text
    assert " a " not in text.replace("for a", "") and "c is higher by" in text


@pytest.mark.parametrize("value", [None, np.nan])
def test_no_number_is_invented(value):
    assert "nan" not in Headline(what="x", value=value, error=0.1, count=50).text()
    assert statement("x", {"a": Headline(what="x", value=None)}) == ""
