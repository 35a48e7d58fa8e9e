"""What the tests of files of tensors share: arrays, the writers, files by kind, what is read and refused."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vit_registers.errors import CheckpointError
from vit_registers.interop import containers
from vit_registers.interop.export import files


def shared(function):
    """A fixture that is the function."""
    return pytest.fixture(scope="session", name=function.__name__.lstrip("_"))(lambda: function)


def _arrays():
    return {
        "blocks.0.w": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5,
        "half": np.arange(4).astype(np.float16),
        "brain": (np.arange(6) / 3).astype(ml_dtypes.bfloat16).reshape(3, 2),
        "brain scalar": np.array(1.5, ml_dtypes.bfloat16),
        "ints": np.array([-(2**40), 7]),
        "bools": np.array([[True], [False]]),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "params/img/kernel": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    }


@pytest.fixture
def arrays():
    """The arrays of most files here."""
    return _arrays()


def _to_torch(array):
    """A torch tensor of the same dtype and bits."""
    torch = pytest.importorskip("torch")
    array = np.array(array)
    if array.dtype.isbuiltin == 2:
        bits = torch.from_numpy(array.view(f"uint{8 * array.dtype.itemsize}"))
        return bits.view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


to_torch = shared(_to_torch)


def _save_torch(path, value, *, is_zip=True):
    torch = pytest.importorskip("torch")
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)


save_torch = shared(_save_torch)


def _write(kind, path, content):
    """Writes arrays by name, or Weights as they are, as safetensors or npz."""
    weights = content if isinstance(content, containers.Weights) else containers.from_arrays(content)
    if kind == "npz":
        files.write_npz(path, weights)
    else:
        files.write_safetensors(path, weights, None)


write = shared(_write)


@shared
def save(kind, folder):
    """The path of a file with the arrays: safetensors, npz, pth (torch's zip) or legacy (its pickle)."""
    path = folder / f"weights.{kind}"
    if kind in ("safetensors", "npz"):
        _write(kind, path, _arrays())
    else:
        _save_torch(path, {n: _to_torch(a) for n, a in _arrays().items()}, is_zip=kind == "pth")
    return path


@shared
def check_same(weights, arrays=None):
    """That the Weights have the names, dtypes, shapes and bits of the arrays."""
    arrays = _arrays() if arrays is None else arrays
    assert list(weights.shapes) == list(weights.dtypes) == list(weights) and len(weights) == len(arrays)
    assert set(weights) == set(arrays)
    for name, array in arrays.items():
        read = weights[name]
        assert isinstance(read, np.ndarray)
        assert read.dtype == weights.dtypes[name] == array.dtype, name
        assert read.shape == weights.shapes[name] == array.shape, name
        assert read.tobytes() == array.tobytes(), name


@shared
def error_of(function, *args):
    """The message of the CheckpointError, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    line = str(caught.value)
    assert line and "\n" not in line and "\x1b" not in line and len(line) < 500, line
    return line


class _Planted:
    """A pickle of it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@shared
def planted(marker: Path) -> _Planted:
    """An object whose pickle runs a program, which makes the marker."""
    return _Planted(marker)
