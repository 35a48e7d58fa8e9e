"""What is written is read, whatever the file is called; what others write is read too; folders."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from vit_registers.interop.containers import open_weights

FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")

# Not ru_maxrss, which a program inherits from the one that started it.
PEAK = """
import sys
from vit_registers.interop.containers import open_weights

def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))

open_weights(sys.argv[1])["w"]  # what has to be imported is
before, total = peak_mb(), 0
weights = open_weights(sys.argv[2])
for name in weights:
    total += weights[name].nbytes
print(total, peak_mb() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth", "legacy"])
def test_round_trip(save, check_same, kind, tmp_path):
    path = save(kind, tmp_path)
    weights = open_weights(str(path))
    check_same(weights)
    assert weights.container == ("torch" if kind in ("pth", "legacy") else kind)
    assert weights.where == str(path)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth", "legacy"])
def test_the_content_says_what_a_file_is_and_not_the_name(save, check_same, kind, tmp_path):
    for name in ("weights.bin", "no suffix", "weights.npz"):
        check_same(open_weights(save(kind, tmp_path).rename(tmp_path / name)))


def test_float8_in_safetensors_and_torch(write, to_torch, save_torch, check_same, tmp_path):
    arrays = {name: np.array([1, 2, 4, 0.5]).astype(getattr(ml_dtypes, name)) for name in FLOAT8}
    write("safetensors", tmp_path / "a.safetensors", arrays)
    check_same(open_weights(tmp_path / "a.safetensors"), arrays)
    save_torch(tmp_path / "a.pth", {name: to_torch(array) for name, array in arrays.items()})
    check_same(open_weights(tmp_path / "a.pth"), arrays)


def test_safetensors_of_torch_and_of_ours_are_the_same_to_both(arrays, to_torch, save, check_same, tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    save_file({n: to_torch(a).contiguous() for n, a in arrays.items()}, tmp_path / "theirs.safetensors")
    check_same(open_weights(tmp_path / "theirs.safetensors"))
    theirs = load_file(save("safetensors", tmp_path))
    assert all(theirs[name].equal(to_torch(array)) for name, array in arrays.items())


def test_npz_is_what_numpy_reads_and_writes(arrays, save, check_same, tmp_path):
    with np.load(save("npz", tmp_path), allow_pickle=False) as archive:
        assert set(archive.files) == set(arrays)
        assert archive["brain"].dtype == np.dtype("V2")  # as big_vision's are
        np.testing.assert_array_equal(archive["brain"].view(ml_dtypes.bfloat16), arrays["brain"])
        np.testing.assert_array_equal(archive["blocks.0.w"], arrays["blocks.0.w"])
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "theirs.npz", **arrays)
        check_same(open_weights(tmp_path / "theirs.npz"))


def test_files_without_tensors(write, tmp_path):
    for kind in ("npz", "safetensors"):
        write(kind, tmp_path / f"none.{kind}", {})
        assert dict(open_weights(tmp_path / f"none.{kind}")) == {}


@pytest.fixture
def save_index(arrays, write, to_torch, save_torch):
    """save_index(folder, kind): a folder of two shards with an index, as Hugging Face's; the index's path."""

    def save_index(folder, kind):
        names = sorted(arrays)
        suffix = {"safetensors": "safetensors", "pth": "bin"}[kind]
        stem = {"safetensors": "model", "pth": "pytorch_model"}[kind]
        weight_map = {}
        for i, part in enumerate((names[:4], names[4:])):
            file = f"{stem}-0000{i + 1}-of-00002.{suffix}"
            content = {name: arrays[name] for name in part}
            if kind == "safetensors":
                write(kind, folder / file, content)
            else:
                save_torch(folder / file, {n: to_torch(a) for n, a in content.items()})
            weight_map |= dict.fromkeys(part, file)
        index = folder / f"{stem}.{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        return index

    return save_index


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_an_index_of_shards(check_same, save_index, kind, tmp_path):
    index = save_index(tmp_path, kind)
    for path in (tmp_path, index):
        weights = open_weights(path)
        check_same(weights)
        assert weights.container == ("torch" if kind == "pth" else kind) and weights.where == str(index)


def test_what_can_be_wrong_with_an_index(error_of, save_index, tmp_path):
    index = save_index(tmp_path, "safetensors")
    shard = tmp_path / "model-00002-of-00002.safetensors"
    whole = json.loads(index.read_text())

    whole["weight_map"]["blocks.7.w"] = shard.name
    index.write_text(json.dumps(whole))
    line = error_of(open_weights, tmp_path)
    assert "blocks.7.w" in line and str(shard) in line and index.name in line

    shard.write_bytes(shard.read_bytes()[:-3])
    assert f"{shard} is cut short: 3 of" in error_of(open_weights, tmp_path)
    shard.unlink()
    assert f"{shard} is missing" in error_of(open_weights, tmp_path)
    for text in ("", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\x80"):
        index.write_bytes(text.encode("latin-1"))
        assert str(index) in error_of(open_weights, tmp_path)


# What an index may not name; `outside` is a file beside its folder.
ODD_SHARDS = {
    "the folder above": "../outside.safetensors",
    "a longer way round": "../folder/model-00002-of-00002.safetensors",
    "absolute": "/{}/outside.safetensors",
    "a folder below": "below/model.safetensors",
    "a number": 3,
    "a list": ["model-00001-of-00002.safetensors"],
    "nothing": None,
    "no name": "",
    "a dot": ".",
    "two dots": "..",
    "a folder": "below",
    "a link out": "link.safetensors",
    "a link to the folder above": "up.safetensors",
    "a link to nothing": "dangling.safetensors",
    "a link to itself": "loop.safetensors",
    "a named pipe": "pipe.safetensors",
}


@pytest.mark.parametrize("what", ODD_SHARDS)
def test_an_index_names_only_files_of_its_folder(what, save, save_index, error_of, tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    index = save_index(folder, "safetensors")
    outside = save("safetensors", tmp_path).rename(tmp_path / "outside.safetensors")
    (folder / "below" / "model.safetensors").write_bytes(outside.read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "up.safetensors").symlink_to(tmp_path)
    (folder / "dangling.safetensors").symlink_to(tmp_path / "nothing")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    whole = json.loads(index.read_text())
    name = ODD_SHARDS[what]
    whole["weight_map"]["half"] = name.format(tmp_path) if isinstance(name, str) else name
    index.write_text(json.dumps(whole))
    line = error_of(open_weights, folder)
    assert str(folder) in line or index.name in line


def test_links_within_the_folder_and_of_the_cache_of_hugging_face(save_index, check_same, tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs").mkdir()
    save_index(folder, "safetensors")
    first, second = sorted(folder.glob("*.safetensors"))
    first.symlink_to(first.rename(folder / "elsewhere.bytes").name)
    second.symlink_to(second.rename(tmp_path / "models--org--name" / "blobs" / "e3b0c4"))
    check_same(open_weights(folder))


def test_a_named_pipe_and_a_folder_are_no_weights(error_of, tmp_path):
    os.mkfifo(tmp_path / "weights.safetensors")
    assert "is not a regular file" in error_of(open_weights, tmp_path / "weights.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    assert "is not a regular file" in error_of(open_weights, tmp_path)


def test_which_file_of_a_folder(arrays, write, save, error_of, tmp_path):
    line = error_of(open_weights, tmp_path)
    assert "model.safetensors.index.json" in line and "open_clip_pytorch_model.bin" in line and ".npz" in line
    (tmp_path / "config.json").write_text("{}")
    save("npz", tmp_path)
    assert open_weights(tmp_path).where == str(tmp_path / "weights.npz")
    save("safetensors", tmp_path)
    assert "weights.npz, weights.safetensors: name one" in error_of(open_weights, tmp_path)
    order = ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "pytorch_model.bin"]
    for name in [*order, "model.safetensors"]:
        write("safetensors", tmp_path / name, arrays)
        assert open_weights(tmp_path).where == str(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth"])
def test_memory_does_not_grow_with_the_file(write, to_torch, save_torch, kind, tmp_path):
    arrays = {f"w{i}": np.zeros((1 << 20) * 5, np.float32) for i in range(10)}
    for name, content in (("small", {"w": np.zeros(2)}), ("big", arrays)):
        if kind == "pth":
            save_torch(tmp_path / name, {n: to_torch(a) for n, a in content.items()})
        else:
            write(kind, tmp_path / name, content)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big")]
    done = subprocess.run(command, capture_output=True, text=True)
    total, grown_mb = map(float, done.stdout.split())
    assert total == 200 << 20 and grown_mb < 60, done
