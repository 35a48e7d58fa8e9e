"""Findings: one line of plain English with the numbers of all models, and never one that is not finite."""

import math

import numpy as np
import pytest

from vit_registers.analysis.report.finding import labels, sentence
from vit_registers.analysis.report.result import Rows, counted, number


def _rows(name, share, *, count="196 images"):
    text = f"{number(share, '%')} of 12,544 patches are outliers"
    return Rows(name=name, tables={}, text=text, compared=share, count=count)


def test_models_with_different_numbers_of_registers():
    found = [_rows("a", 0.0), _rows("b", 2.1)]
    assert sentence(found, labels({"a": (4, 0), "b": (0, 0)}), "share of outliers, %") == (
        "With 4 registers: 0 % of 12,544 patches are outliers; without registers: 2.1 % of 12,544 "
        "patches are outliers (n = 196 images). The share of outliers is lowest with 4 registers (0 %) and "
        "highest without registers (2.1 %)."
    )


def test_models_that_only_their_names_tell_apart():
    assert labels({"a": (1, 0)}) == {"a": "for a"}
    assert labels({"a": (1, 0), "b": (1, 0)}) == {"a": "for a", "b": "for b"}
    assert labels({"a": (1, 0), "b": (0, 0)}) == {"a": "with 1 register", "b": "without registers"}


def test_models_with_summaries_are_not_called_without_registers():
    assert labels({"a": (4, 0), "b": (0, 5), "c": (0, 0), "d": (2, 1)}) == {
        "a": "with 4 registers",
        "b": "with 5 summaries",
        "c": "without registers and summaries",
        "d": "with 2 registers and 1 summary",
    }


def test_one_model_has_no_comparison():
    assert sentence([_rows("a", 2.1)], {"a": "for a"}, "share of outliers, %") == (
        "For a: 2.1 % of 12,544 patches are outliers (n = 196 images)."
    )


def test_equal_numbers_and_other_counts():
    found = [_rows("a", 5.0, count="2 images"), _rows("b", 5.0)]
    assert sentence(found, {"a": "for a", "b": "for b"}, "share of outliers, %") == (
        "For a: 5 % of 12,544 patches are outliers, n = 2 images; for b: 5 % of 12,544 patches are outliers, "
        "n = 196 images. The share of outliers is the same, 5 %."
    )


def test_many_models_are_summed_up():
    found = [_rows(name, share) for name, share in {"a": 3.0, "b": 1.0, "c": 2.0}.items()]
    assert sentence(found, {name: f"for {name}" for name in "abc"}, "share of outliers, %") == (
        "Of 3 models (n = 196 images), the share of outliers is lowest for b (1 %) and highest for a (3 %)."
    )


def test_many_models_of_other_counts_have_the_counts_of_both_ends():
    shares = {"a": 3.0, "b": 1.0, "c": 2.0}
    found = [_rows(name, share, count=f"{share:g} images") for name, share in shares.items()]
    assert sentence(found, {name: f"for {name}" for name in "abc"}, "share of outliers, %") == (
        "Of 3 models, the share of outliers is lowest for b (1 %, n = 1 images) and highest for a (3 %, "
        "n = 3 images)."
    )
    equal = [_rows(name, 5.0, count=count) for name, count in zip("abc", "112", strict=True)]
    assert sentence(equal, {name: f"for {name}" for name in "abc"}, "share of outliers, %") == (
        "Of 3 models, the share of outliers is the same, 5 %, n = 1, n = 2."
    )


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -np.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_are_not_compared(value):
    assert number(value, "%") == "not defined"
    text = sentence([_rows("a", value), _rows("b", 1.0)], {"a": "for a", "b": "for b"}, "share, %")
    assert text.startswith("For a: not defined of 12,544") and "lowest" not in text and "nan" not in text
    three = [_rows("a", value), _rows("b", 1.0), _rows("c", value)]
    assert (
        sentence(three, {name: f"for {name}" for name in "abc"}, "share, %") == "3 models (n = 196 images)."
    )


def test_numbers_are_short():
    assert [number(x) for x in (0, 1234567.8, 0.00123456, 12.345)] == ["0", "1,234,568", "0.00123", "12.3"]
    assert (
        number(2.5, "%") == "2.5 %" and counted(1, "image") == "1 image" and counted(0, "image") == "0 images"
    )
