"""Weights: tensors that are read when they are asked for; those of arrays in memory."""

import argparse
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.interop.containers import Weights, from_arrays, open_weights


def test_nothing_is_read_before_it_is_asked_for():
    asked = []

    def read(name):
        asked.append(name)
        return np.zeros(2)

    weights = Weights("here", "memory", {n: ((2,), np.dtype("f8")) for n in "ab"}, read)
    view = weights.select({"x": "a"})
    assert "a" in weights and "c" not in weights and "x" in view and list(view) == ["x"]
    assert view.shapes == {"x": (2,)} and view.dtypes == {"x": np.dtype("f8")} and asked == []
    assert view["x"].shape == (2,) and weights["b"] is not weights["b"]
    assert asked == ["a", "b", "b"]  # not kept either


def test_select_strips_prefixes(arrays, save, check_same, error_of, tmp_path):
    weights = open_weights(save("safetensors", tmp_path))
    names = {n.removeprefix("blocks.0."): n for n in weights}
    view = weights.select(names)
    names.clear()  # the view keeps its own
    assert (view.where, view.container) == (weights.where, "safetensors")
    check_same(view, {n.removeprefix("blocks.0."): a for n, a in arrays.items()})
    line = error_of(weights.select, {"x": "half", "y": "not there", "z": "nor this"})
    assert weights.where in line and "not there, nor this" in line


def test_a_name_that_is_not_there_is_a_key_error(save, tmp_path):
    weights = open_weights(save("npz", tmp_path))
    assert weights.get("x") is None
    with pytest.raises(KeyError):
        weights["x"]


def test_from_mapping_takes_numpy_and_jax(arrays, check_same):
    weights = from_arrays(arrays)
    check_same(weights)
    assert weights.container == "memory" and weights.where == "the state given"
    assert np.shares_memory(weights["half"], arrays["half"])
    jaxes = {n: jnp.asarray(a) for n, a in arrays.items() if a.dtype not in (np.int64, np.float64)}
    check_same(from_arrays(jaxes), {n: arrays[n] for n in jaxes})
    assert from_arrays({"x": np.float16(2)})["x"].shape == ()


def test_from_mapping_takes_torch(arrays, to_torch, check_same):
    torch = pytest.importorskip("torch")
    tensors = {n: to_torch(a) for n, a in arrays.items()}
    check_same(from_arrays(tensors))
    tensors = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "brain, turned": to_torch(arrays["brain"]).T,
        "conjugate": torch.tensor([1j]).conj(),
    }
    weights = from_arrays(tensors)
    assert weights["parameter"].tolist() == [1, 1] and weights["conjugate"].tolist() == [-1j]
    np.testing.assert_array_equal(weights["brain, turned"], arrays["brain"].T)


@pytest.mark.parametrize(
    "value", [3, "text", None, [1.0], {"w": np.ones(2)}, argparse.Namespace(a=1), np.array([None]), sys.stdin]
)
def test_from_mapping_names_what_is_no_array(error_of, value):
    assert "'the key'" in error_of(from_arrays, {"w": np.ones(2), "the key": value}, "somewhere")


def test_torch_and_tensorflow_are_not_imported_where_nothing_asks_for_them():
    code = """
import sys, numpy as np
from vit_registers.interop.containers import from_arrays
from_arrays({"x": np.ones(2)})["x"]
print({"torch", "tensorflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
