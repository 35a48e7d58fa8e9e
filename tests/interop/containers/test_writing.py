"""What is written is what others read, always the same bytes, tensor by tensor, whole or not at all."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file

from vit_registers.errors import CheckpointError
from vit_registers.interop.containers import SAFETENSORS_DTYPES, Weights, from_arrays, open_weights
from vit_registers.interop.export.files import write_safetensors

KINDS = ("safetensors", "npz")


@pytest.fixture
def lazy():
    """lazy(arrays): Weights of what from_arrays would refuse or change; errors among them are raised."""

    def lazy(arrays):
        def read(name):
            if isinstance(arrays[name], type):
                raise arrays[name]("no more")
            return arrays[name]

        stand_in = np.ones(2, np.float32)
        like = {n: stand_in if isinstance(a, type) else a for n, a in arrays.items()}
        facts = {n: (a.shape, a.dtype) for n, a in like.items()}
        return Weights("the lazy ones", "memory", facts, read)

    return lazy


@pytest.fixture
def every_dtype():
    """Random bits in every dtype: a matrix, a scalar and an empty array; odd sizes, so offsets are odd."""
    rng, arrays = np.random.default_rng(0), {}
    for dtype in SAFETENSORS_DTYPES.values():
        for what, shape in {"matrix": (3, 5), "scalar": (), "empty": (2, 0, 3), "one": (1,)}.items():
            count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
            bits = rng.integers(0, 2 if dtype == "bool" else 256, count, np.uint8)
            arrays[f"{dtype} {what}"] = bits.view(dtype).reshape(shape)
    return arrays


# --- others read it ----------------------------------------------------------------------------


def test_every_dtype_comes_back_bit_for_bit(every_dtype, write, check_same, tmp_path):
    write("safetensors", tmp_path / "a", every_dtype)
    check_same(open_weights(tmp_path / "a"), every_dtype)
    plain = {n: a for n, a in every_dtype.items() if a.dtype.isbuiltin == 1 or a.dtype.name == "bfloat16"}
    write("npz", tmp_path / "a.npz", plain)
    check_same(open_weights(tmp_path / "a.npz"), plain)


def test_the_library_reads_every_dtype_bit_for_bit(every_dtype, write, tmp_path):
    write("safetensors", tmp_path / "a", every_dtype)
    raw = dict(deserialize((tmp_path / "a").read_bytes()))
    assert set(raw) == set(every_dtype)
    for name, array in every_dtype.items():
        assert SAFETENSORS_DTYPES[raw[name]["dtype"]] == array.dtype.name
        assert (tuple(raw[name]["shape"]), bytes(raw[name]["data"])) == (array.shape, array.tobytes()), name

    known = {n: a for n, a in every_dtype.items() if "float8" not in n}  # numpy has none, says the library
    write("safetensors", tmp_path / "a", known)
    theirs = load_file(tmp_path / "a")
    assert set(theirs) == set(known)
    for name, array in known.items():
        assert (theirs[name].dtype, theirs[name].shape) == (array.dtype, array.shape), name
        assert theirs[name].tobytes() == array.tobytes(), name


def test_safetensors_of_torch_reads_every_dtype_bit_for_bit(every_dtype, write, to_torch, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    write("safetensors", tmp_path / "a", every_dtype)
    theirs = load_file(tmp_path / "a")
    assert set(theirs) == set(every_dtype)
    for name, array in every_dtype.items():
        tensor, ours = theirs[name], to_torch(array)
        assert (tensor.dtype, tensor.shape) == (ours.dtype, ours.shape), name
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes(), name
        assert tensor.data_ptr() % array.dtype.itemsize == 0, name  # aligned, as in files of the library


def test_metadata_is_kept(arrays, tmp_path):
    for metadata in ({"format": "pt", "note": "ä"}, {}, None):
        write_safetensors(tmp_path / "a", from_arrays(arrays), metadata)
        with safe_open(tmp_path / "a", framework="numpy") as file:
            assert (file.metadata() or {}) == (metadata or {}) and set(file.keys()) == set(arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_are_not_contiguous_or_big_endian_are_written_right(kind, lazy, write, tmp_path):
    arrays = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.arange(9)[::2], "b": np.arange(3, dtype=">f4")}
    for content in (arrays, lazy(arrays)):
        write(kind, tmp_path / "a", content)
        weights = open_weights(tmp_path / "a")
        for name, array in arrays.items():
            np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("source", ["safetensors", "npz", "pth", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_file_are_written_to_another(kind, source, save, write, check_same, tmp_path):
    path = save(source, tmp_path)
    write(kind, tmp_path / "other", open_weights(path))
    check_same(open_weights(tmp_path / "other"))
    write(kind, path, open_weights(path))  # over itself
    if not (kind == "npz" and path.suffix == ".safetensors"):
        check_same(open_weights(path))


# --- always the same ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_arrays_give_the_same_bytes(kind, save, write, tmp_path):
    path = save(kind, tmp_path)
    first = path.read_bytes()
    assert save(kind, tmp_path).read_bytes() == first
    write(kind, tmp_path / "again", open_weights(path))  # what is read is written as it was
    assert (tmp_path / "again").read_bytes() == first
    if kind == "npz":
        with zipfile.ZipFile(path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_files_have_the_usual_rights(kind, save, tmp_path):
    (tmp_path / "usual").touch()
    assert save(kind, tmp_path).stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- tensor by tensor --------------------------------------------------------------------------

# Not ru_maxrss, which a program inherits from the one that started it.
PEAK = """
import sys
import numpy as np
from vit_registers.interop.containers import Weights
from vit_registers.interop.export.files import write_npz, write_safetensors

def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))

def write(count, items):
    facts = {f"w{i}": ((items,), np.dtype("f4")) for i in range(count)}
    weights = Weights("made", "memory", facts, lambda name: np.full(items, int(name[1:]), "f4"))
    write_npz(path, weights) if kind == "npz" else write_safetensors(path, weights, None)

kind, path = sys.argv[1:]
write(1, 2)  # what has to be imported is
before = peak_mb()
write(10, 5 << 20)
print(peak_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_what_is_written(kind, tmp_path):
    command = [sys.executable, "-c", PEAK, kind, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) < 60, done
    weights = open_weights(tmp_path / "a")
    assert sum(weights[name].nbytes for name in weights) == 200 << 20
    assert all((weights[f"w{i}"] == i).all() for i in (0, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_is_read_once(kind, write, tmp_path):
    asked = []
    facts = {name: ((2,), np.dtype("f4")) for name in "cab"}
    write(kind, tmp_path / "a", Weights("x", "memory", facts, lambda n: asked.append(n) or np.ones(2, "f4")))
    assert asked == ["c", "a", "b"]


# --- whole or not at all -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    kind, lazy, write, error_of, every_dtype, tmp_path
):
    path = tmp_path / f"a.{kind}"
    path.write_text("as it was")
    bad = [np.array([None]), np.ones(1).astype("O")]
    bad += [np.array(["text"]), np.ones(2, np.complex128)] if kind == "safetensors" else []
    bad += [a for a in every_dtype.values() if "float8" in a.dtype.name] if kind == "npz" else []
    for values in bad:
        line = error_of(write, kind, path, lazy({"good": np.ones(1000), "bad": values}))
        assert f"{path} could not be written" in line
        assert values.dtype == object or (str(values.dtype) in line and "'bad'" in line)
        assert path.read_text() == "as it was" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [CheckpointError, OSError, IndexError, KeyboardInterrupt])
def test_a_reader_that_fails_leaves_what_was_there_and_nothing_else(error, kind, lazy, write, tmp_path):
    path = tmp_path / f"a.{kind}"
    weights = lazy({"good": np.ones(100_000, np.float32), "bad": error, "last": np.ones(2, np.float32)})
    wanted = CheckpointError if issubclass(error, Exception) else KeyboardInterrupt
    for before in ({}, {path.name: "as it was"}):
        for name, text in before.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(wanted, match="no more") as caught:
            write(kind, path, weights)
        assert issubclass(error, wanted) or "the lazy ones" in str(caught.value)
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_places_that_cannot_be_written(kind, arrays, write, error_of, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for place in ("none/a", "file/a", "folder", "pipe"):
        assert str(tmp_path / place) in error_of(write, kind, tmp_path / place, arrays)
    monkeypatch.chdir(tmp_path)
    for place in (".", "..", "folder/.."):
        assert "is not a file" in error_of(write, kind, place, arrays)
    assert sorted(os.listdir(tmp_path)) == before and os.listdir(tmp_path / "folder") == []


FULL = """
import resource, sys, numpy as np
from vit_registers.errors import CheckpointError
from vit_registers.interop.containers import from_arrays
from vit_registers.interop.export.files import write_npz, write_safetensors
path, items, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2)
weights = from_arrays({str(i): np.ones(items) for i in range(10)})
try:
    write_npz(path, weights) if path.endswith("npz") else write_safetensors(path, weights, None)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items, limit", [(5_000, 100_000), (50, 3_000)])  # few wait in buffers till the end
def test_a_full_disk(items, limit, kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_text("as it was")
    command = [sys.executable, "-c", FULL, str(path), str(items), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith(f"{path} could not be written") and "File too large" in done.stdout, done
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "as it was"
