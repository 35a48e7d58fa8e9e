"""Features on disk are read as written; extraction stops at any batch and resumes with what is missing."""

import hashlib
import json

import numpy as np
import pytest

from vit_registers.analysis.features import store as store_file
from vit_registers.analysis.features.store import VALID, Store
from vit_registers.analysis.file_names import file_names
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


def _damage_file(change):
    def damage(folder):
        path = folder / "a.npy"
        path.write_bytes(change(path.read_bytes()))

    return damage


def _damage_progress(change):
    def damage(folder):
        path = folder / "progress.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def _replace_by_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


OTHER_HEADER = b"\x93NUMPY\x01\x00\x06\x00[{((\n\n"
DAMAGED_FEATURE = {
    "cut": _damage_file(lambda data: data[:-5]),
    "cut after whole rows": _damage_file(lambda data: data[: -2 * 24]),
    "longer": _damage_file(lambda data: data + bytes(24)),
    "empty": _damage_file(lambda data: b""),
    "a value changed": _damage_file(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "dtype changed": _damage_file(lambda data: data.replace(b"<f4", b"<i4")),
    "shape changed": _damage_file(lambda data: data.replace(b"(10, 3, 2)", b"(10, 2, 3)")),
    "order changed": _damage_file(lambda data: data.replace(b"False", b"True ")),
    "header is garbage": _damage_file(lambda data: OTHER_HEADER + data[len(OTHER_HEADER) :]),
    "missing": lambda folder: (folder / "a.npy").unlink(),
    "fewer counted": _damage_progress(lambda progress: progress | {"a": 9}),
    "more counted": _damage_progress(lambda progress: progress | {"a": 11}),
    "no digest": _damage_progress(lambda progress: {"a": 10, VALID: 10}),
}


@pytest.mark.parametrize("case", DAMAGED_FEATURE)
def test_a_damaged_feature_is_computed_again(tmp_path, case, capfd):
    """A line names the file; the other feature is used again, unless it has no digest either."""
    folder = _store(tmp_path).folder
    _fill(_store(tmp_path), [(0, 4), (4, 10)])
    DAMAGED_FEATURE[case](folder)
    store = _store(tmp_path)
    assert store.missing(("a",)) == ("a",)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{folder}/a.npy is damaged (") and line.endswith("a is computed again")
    left = store.missing(tuple(VALUES))
    assert left == (("a", VALID) if case == "no digest" else ("a",))
    _fill(store, [(0, 10)], {name: VALUES[name] for name in left})
    again = _store(tmp_path)
    assert again.missing(tuple(VALUES)) == ()
    np.testing.assert_array_equal(again.read("a"), VALUES["a"])


@pytest.mark.parametrize("case", ["cut", "a value changed", "missing"])
def test_a_damaged_part_of_a_feature_is_computed_again(tmp_path, case):
    _fill(_store(tmp_path), [(0, 4)])
    DAMAGED_FEATURE[case](_store(tmp_path).folder)
    store = _store(tmp_path)
    with store.writer(tuple(VALUES)) as writer:
        assert writer.num_done == 0
        writer.append(VALUES)
    np.testing.assert_array_equal(_store(tmp_path).read("a"), VALUES["a"])


def test_what_is_counted_is_on_the_disk(tmp_path, monkeypatch):
    """progress.json never counts rows that the file does not hold, at whatever append it is saved."""
    monkeypatch.setattr(store_file, "_SAVE_EVERY_S", 0.0)
    store = _store(tmp_path)
    with store.writer(tuple(VALUES)) as writer:
        for start in range(10):
            writer.append({name: value[start : start + 1] for name, value in VALUES.items()})
            (size, digest) = json.loads((store.folder / "progress.json").read_text())["files"]["a"]
            data = (store.folder / "a.npy").read_bytes()
            assert len(data) == size and hashlib.sha256(data).hexdigest() == digest
    np.testing.assert_array_equal(np.load(store.folder / "a.npy"), VALUES["a"])


def test_a_file_damaged_while_it_is_used_is_named(tmp_path):
    store = _store(tmp_path)
    _fill(store, [(0, 10)])
    DAMAGED_FEATURE["cut"](store.folder)
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        store.read("a")


DAMAGED_PROGRESS = {
    "text": lambda folder: (folder / "progress.json").write_text("{"),
    "binary": lambda folder: (folder / "progress.json").write_bytes(b"\xff\x00"),
    "a list": _damage_progress(lambda progress: [progress]),
    "null": _damage_progress(lambda progress: None),
    "negative": _damage_progress(lambda progress: progress | {"a": -1}),
    "a fraction": _damage_progress(lambda progress: progress | {"a": 10.0}),
    "digests of another kind": _damage_progress(lambda progress: progress | {"files": {"a": 3}}),
    "a folder": _replace_by_folder("progress.json"),
}


@pytest.mark.parametrize("case", DAMAGED_PROGRESS)
def test_damaged_progress_is_named(tmp_path, case):
    _fill(_store(tmp_path), [(0, 10)])
    folder = _store(tmp_path).folder
    DAMAGED_PROGRESS[case](folder)
    with pytest.raises(DataError, match=r"progress\.json is damaged: delete .* and start again"):
        _store(tmp_path).missing(("a",))


def test_features_of_another_provenance_are_not_used(tmp_path, capfd):
    _fill(_store(tmp_path), [(0, 10)])
    path = _store(tmp_path).folder / "provenance.json"
    path.write_text(path.read_text().replace('"x"', '"y"'))
    assert _store(tmp_path).missing(("a",)) == ("a",)
    assert f"{path} is not what was written" in capfd.readouterr().err
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot be"):
        _store(tmp_path)


def test_names_of_checkpoints_may_hold_any_character(tmp_path):
    store = Store(tmp_path, "a|b/../\n[c]" + "x" * 300, {"num_images": 10})
    _fill(store, [(0, 10)])
    assert store.folder.parent == tmp_path
    assert file_names(["a|b", "a[b", "A-b", "c"]) == ["a-b", "a-b-2", "A-b-3", "c"]
