"""What is no file of tensors, or a damaged one, ends as one clear line."""

import os
import re
import struct
import zipfile

import numpy as np
import pytest

from vit_registers.errors import CheckpointError
from vit_registers.interop import containers
from vit_registers.interop.containers import open_weights


def test_a_path_that_is_not_there(error_of, tmp_path):
    assert "no such file or folder" in error_of(open_weights, tmp_path / "no.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pth", "a"])
def test_an_empty_file(error_of, name, tmp_path):
    (tmp_path / name).touch()
    assert f"{tmp_path / name} is empty" in error_of(open_weights, tmp_path / name)


def test_a_file_of_something_else(error_of, tmp_path):
    for content in (
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\n",
        b"{}",
    ):
        for name in ("a.safetensors", "a.npz", "a.pth"):
            path = tmp_path / name
            path.write_bytes(content)
            line = error_of(open_weights, path)
            assert str(path) in line and ("begins" in line or "cut short" in line)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "zip of something else" in error_of(open_weights, tmp_path / "a.npz")


def test_safetensors_cut_short_say_how_many_bytes_are_missing(save, error_of, tmp_path):
    whole = save("safetensors", tmp_path).read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "cut.safetensors"
    for length in (1, 7, 8, 9, 100, header_end - 1, header_end, header_end + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        line = error_of(open_weights, path)
        missing = int(re.search(r"(\d+) (of \d+ )?bytes are missing", line)[1])
        if length >= header_end:
            assert missing == len(whole) - length
        elif length >= 8:
            assert "at least" in line and missing == header_end - length
        else:  # of the header's length, the low bytes
            assert "at least" in line and 0 < missing <= header_end - length


def test_damaged_safetensors(save, error_of, tmp_path):
    path = save("safetensors", tmp_path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for content in (
        whole + b"x",
        whole.replace(b'"F32"', b'"F99"', 1),
        whole.replace(b'"F32"', b'"F64"', 1),
        whole.replace(b'"shape":[2,3]', b'"shape":[2,4]', 1),
        whole.replace(b'"data_offsets"', b'"data_0ffsets"', 1),
        whole[:40] + b"\xff" + whole[41:],
        struct.pack("<Q", start - 8 - 3) + whole[8:],
        struct.pack("<Q", 4) + b"[1] ",
        struct.pack("<Q", 2) + b'{"',
    ):
        path.write_bytes(content)
        assert str(path) in error_of(open_weights, path)
    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    assert "F4" in error_of(open_weights, path)


@pytest.mark.parametrize("kind", ["npz", "pth", "legacy"])
def test_others_cut_short(save, error_of, kind, tmp_path):
    path = save(kind, tmp_path)
    whole = path.read_bytes()
    for length in (1, 2, 4, 11, 30, 100, 300, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in error_of(open_weights, path)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth", "legacy"])
def test_a_bit_that_has_changed_never_ends_in_a_trace(save, kind, tmp_path):
    path = save(kind, tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            dict(open_weights(path))
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_a_changed_bit_in_an_npz_is_found(write, error_of, tmp_path):
    path = tmp_path / "a.npz"
    write("npz", path, {"a": np.zeros(100_000), "b": np.ones(3)})
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1
    path.write_bytes(content)
    weights = open_weights(path)
    assert weights["b"].tolist() == [1, 1, 1]
    assert "CRC" in error_of(weights.__getitem__, "a")


def test_an_npz_of_objects_is_refused(error_of, planted, tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2), odd=np.array([planted(tmp_path / "marker")]))
    line = error_of(open_weights, tmp_path / "a.npz")
    assert "'odd' is a pickle" in line and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth"])
def test_a_file_that_goes_away_or_shrinks_after_it_was_opened(save, error_of, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAX_MAPPED", -1)  # a mapped file could still be read otherwise
    path = save(kind, tmp_path)
    weights = open_weights(path)
    whole = path.read_bytes()
    path.unlink()
    assert str(path) in error_of(weights.__getitem__, "blocks.0.w")
    path.write_bytes(whole[: len(whole) // 3])
    assert str(path) in error_of(weights.__getitem__, "blocks.0.w")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(save, error_of, tmp_path):
    path = save("npz", tmp_path)
    path.chmod(0)
    assert "Permission denied" in error_of(open_weights, path)
