"""Features on disk: what is written is read, stopped at any batch and gone on with, whatever is missing."""

import json

import numpy as np
import pytest

from vit_registers.analysis.store import VALID, Store
from vit_registers.errors import DataError

RNG = np.random.default_rng(0)
VALUES = {"a": RNG.normal(size=(10, 3, 2)).astype(np.float32), VALID: np.ones(10, bool)}


def _store(root, **provenance):
    return Store(root, "model", {"num_images": 10, "sha256": "x"} | provenance)


def _fill(store, batches, values=VALUES):
    with store.writer(tuple(values)) as writer:
        for start, stop in batches:
            if writer.num_done <= start:
                writer.append({name: value[start:stop] for name, value in values.items()})


def test_what_is_written_is_read(tmp_path):
    store = _store(tmp_path)
    assert store.missing(("a", "b")) == ("a", "b")
    _fill(store, [(0, 4), (4, 8), (8, 10)])
    assert store.missing(("a", "b")) == ("b",)
    np.testing.assert_array_equal(store.read("a"), VALUES["a"])
    assert store.num_read() == 10


def test_goes_on_after_a_stop_with_the_same_bytes(tmp_path):
    whole, stopped = _store(tmp_path / "whole"), _store(tmp_path / "stopped")
    _fill(whole, [(0, 4), (4, 8), (8, 10)])
    _fill(stopped, [(0, 4)])
    with (stopped.folder / "a.npy").open("ab") as file:
        file.write(b"half a batch that was not counted")
    assert _store(tmp_path / "stopped").missing(("a",)) == ("a",)
    _fill(_store(tmp_path / "stopped"), [(0, 4), (4, 8), (8, 10)])
    assert (whole.folder / "a.npy").read_bytes() == (stopped.folder / "a.npy").read_bytes()


def test_images_left_out_are_not_read(tmp_path):
    store = _store(tmp_path)
    is_valid = np.arange(10) % 3 > 0
    _fill(store, [(0, 10)], VALUES | {VALID: is_valid})
    np.testing.assert_array_equal(store.read("a"), VALUES["a"][is_valid])
    assert store.num_read() == is_valid.sum()


@pytest.mark.parametrize("stop", [None, 4, 8])
def test_large_features_are_kept_of_the_first_images_only(tmp_path, stop):
    """Also where a run was stopped before or after the last of them."""
    is_valid = np.arange(10) != 2
    values = VALUES | {"large": np.arange(10.0), VALID: is_valid}

    def store():
        return Store(tmp_path, "model", {"num_images": 10}, {"large": 6})

    batches = [(0, 4), (4, 8), (8, 10)]
    _fill(store(), [batch for batch in batches if stop is None or batch[1] <= stop], values)
    left = store().missing(tuple(values))
    assert left == (() if stop is None else ("a", VALID) if stop == 8 else ("a", VALID, "large"))
    if left:
        _fill(store(), batches, {name: values[name] for name in left})
    assert store().missing(tuple(values)) == ()
    np.testing.assert_array_equal(store().read("large"), [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(store().read("a"), VALUES["a"][is_valid])


def test_other_provenance_is_another_folder(tmp_path):
    first, second = _store(tmp_path), _store(tmp_path, sha256="y")
    assert first.folder != second.folder
    assert json.loads((second.folder / "provenance.json").read_text())["sha256"] == "y"


def test_damaged_files_are_named(tmp_path):
    store = _store(tmp_path)
    _fill(store, [(0, 10)])
    path = store.folder / "a.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        store.read("a")
    (store.folder / "progress.json").write_text("{")
    with pytest.raises(DataError, match=r"progress\.json is damaged"):
        store.missing(("a",))
