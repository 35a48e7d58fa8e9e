"""Reads files of named tensors one tensor at a time: safetensors, npz, and files of torch.

The format is recognized by the first bytes of a file, not by its name. Pickles are only read by torch's
restricted unpickler. Tensors are numpy arrays in the dtype of the file.
"""

import argparse
import contextlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - with it, numpy knows bfloat16 and float8 by name
import numpy as np
from safetensors import safe_open

from vit_registers.errors import CheckpointError
from vit_registers.interop.folders import AGAIN, find_weights, read_index

# Dtypes of safetensors files -> the name in numpy and torch.
SAFETENSORS_DTYPES = {
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz"},
    **{"F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu"},
}
_MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
_MAX_MAPPED = 1 << 25  # bytes of a mapped file in memory before it is mapped again
_ELSEWHERE = "and save its state_dict with safetensors.torch.save_file, in an environment that you trust"
Facts = tuple[tuple[int, ...], np.dtype]  # shape and dtype
Read = Callable[[str], np.ndarray]


class Weights(Mapping[str, np.ndarray]):
    """Named tensors of a file. A tensor is read at each access, and not cached."""

    def __init__(self, where: str, container: str, facts: Mapping[str, Facts], read: Read):
        self.where = where  # the path, for messages
        self.container = container  # "safetensors" | "npz" | "torch" | "memory"
        self.shapes: Mapping[str, tuple[int, ...]] = {name: shape for name, (shape, _) in facts.items()}
        self.dtypes: Mapping[str, np.dtype] = {name: dtype for name, (_, dtype) in facts.items()}
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        with _one_line(self.where):
            return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # that of Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def select(self, names: Mapping[str, str]) -> "Weights":
        """The tensors under other names, {new name: name}. Raises CheckpointError if one is missing."""
        names = dict(names)
        if missing := [name for name in names.values() if name not in self]:
            raise CheckpointError(f"{self.where} has no tensor {', '.join(missing)}")
        facts = {new: (self.shapes[name], self.dtypes[name]) for new, name in names.items()}
        return Weights(self.where, self.container, facts, lambda new: self[names[new]])


@contextlib.contextmanager
def _one_line(where: object) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes raise anything: IndexError, zlib.error, ...
        raise CheckpointError(f"{where} cannot be read ({error_line(error)}): if damaged, {AGAIN}") from error


def error_line(error: Exception) -> str:
    """The type of the error, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _facts(value: Any, name: str, where: str) -> Facts:
    """Shape and dtype of an array of numpy, jax or torch. Raises CheckpointError for anything else."""
    what = f"{where}: '{name}' is"
    if not (hasattr(value, "__array__") and hasattr(value, "dtype")):
        raise CheckpointError(f"{what} no array but of type {type(value).__name__}: leave it out")
    if hasattr(value, "detach") and (  # torch's
        value.is_quantized or value.is_nested or value.is_meta or str(value.layout) != "torch.strided"
    ):
        raise CheckpointError(f"{what} sparse, quantised, nested or without data: save it as a dense tensor")
    dtype = str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")
    if dtype not in SAFETENSORS_DTYPES.values():
        raise CheckpointError(f"{what} of dtype {dtype}, which is not supported: save it in another one")
    return tuple(map(int, value.shape)), np.dtype(dtype)


def _to_numpy(value: Any, dtype: np.dtype) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value, dtype)
    import torch  # pyright: ignore[reportMissingImports]  # already imported, as the tensor is one of torch

    tensor = value.detach().cpu().resolve_conj().resolve_neg()
    if dtype.isbuiltin == 1:
        return tensor.numpy()
    return tensor.view(torch.int16 if dtype.itemsize == 2 else torch.uint8).numpy().view(dtype)


def from_arrays(state: Mapping[str, Any], where: str = "the state given") -> Weights:
    """Weights of arrays of numpy, jax or torch. Raises CheckpointError for a value that is not an array."""
    state = dict(state)
    facts = {name: _facts(value, name, where) for name, value in state.items()}
    return Weights(where, "memory", facts, lambda name: _to_numpy(state[name], facts[name][1]))


def open_weights(path: str | Path) -> Weights:
    """The tensors of a file, or of a Hugging Face folder. Raises CheckpointError if there are none."""
    path = Path(path).expanduser()
    with _one_line(path):
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file or folder")
        path = find_weights(path) if path.is_dir() else path
        return _open_index(path) if path.name.endswith(".index.json") else _open_file(path)


def _open_index(path: Path) -> Weights:
    files = read_index(path)
    shards: dict[Path, Weights] = {}
    for name, file in files.items():
        if file not in shards:
            shards[file] = _open_file(file)
        if name not in shards[file]:
            raise CheckpointError(f"{file} has no tensor {name}, which {path.name} says it has: {AGAIN}")
    facts = {name: (shards[file].shapes[name], shards[file].dtypes[name]) for name, file in files.items()}
    container = next((shard.container for shard in shards.values()), "safetensors")
    return Weights(str(path), container, facts, lambda name: shards[files[name]][name])


def _open_file(path: Path) -> Weights:
    with _one_line(path):
        if not path.is_file():  # opening a named pipe would block
            raise CheckpointError(f"{path} is not a regular file")
        with path.open("rb") as file:
            head = file.read(9)
        if not head:
            raise CheckpointError(f"{path} is empty: {AGAIN}")
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return _open_zip(path)
        is_json = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER
        if is_json or (len(head) < 9 and path.suffix == ".safetensors"):
            return _open_safetensors(path)
        if re.match(rb"\x80[\x02-\x05]", head):
            return _open_torch(path, is_zip=False)
        raise CheckpointError(f"{path} is not a safetensors, npz or torch file (it begins {head!r}): {AGAIN}")


def _open_safetensors(path: Path) -> Weights:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if (missing := max(start, 9) - size) > 0:
            raise CheckpointError(f"{path} is cut short: at least {missing} bytes are missing; {AGAIN}")
        header = {n: e for n, e in json.loads(file.read(start - 8)).items() if n != "__metadata__"}
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < end:
        raise CheckpointError(f"{path} is cut short: {end - size} of {end} bytes are missing; {AGAIN}")
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            what = f"'{name}' is {entry['dtype']}, perhaps quantised, which is not supported"
            raise CheckpointError(f"{path}: {what}: save it in floating point")
    safe_open(path, framework="numpy")  # checks that dtypes, shapes, offsets and the size fit each other
    facts = {n: (tuple(e["shape"]), np.dtype(SAFETENSORS_DTYPES[e["dtype"]])) for n, e in header.items()}

    def read(name: str) -> np.ndarray:
        # The library has no float8 in numpy, and pages that it maps count as memory.
        (shape, dtype), offset = facts[name], start + header[name]["data_offsets"][0]
        return np.fromfile(path, dtype, np.prod(shape, dtype=int), offset=offset).reshape(shape)

    return Weights(str(path), "safetensors", facts, read)


def _open_zip(path: Path) -> Weights:
    facts: dict[str, Facts] = {}
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        inside = {entry.partition("/")[2] for entry in archive.namelist()}  # torch has one folder
        if "data.pkl" in inside:
            if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
                raise CheckpointError(f"{path} is TorchScript, which is code: torch.jit.load it {_ELSEWHERE}")
            return _open_torch(path, is_zip=True)
        for entry in (entry for entry in archive.namelist() if entry.endswith(".npy")):
            with archive.open(entry) as file:
                shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
            if dtype.hasobject:
                raise CheckpointError(f"{path}: '{entry[:-4]}' is a pickle, which can run code: leave it out")
            # npz has no bfloat16: numpy, and thus big_vision, writes it as two bytes of unknown type.
            facts[entry[:-4]] = shape, np.dtype("bfloat16") if dtype == np.dtype("V2") else dtype
        if archive.namelist() and not facts:
            raise CheckpointError(f"{path} is a zip of something else: it has no .npy and no data.pkl inside")

    def read(name: str) -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False).view(facts[name][1])

    return Weights(str(path), "npz", facts, read)


def _open_torch(path: Path, *, is_zip: bool) -> Weights:
    tensors = _load_torch(path, is_zip=is_zip)
    facts = {name: _facts(tensor, name, str(path)) for name, tensor in tensors.items()}
    mapped_bytes = 0

    def read(name: str) -> np.ndarray:
        nonlocal tensors, mapped_bytes
        if is_zip and mapped_bytes > _MAX_MAPPED:  # pages that were read count as memory
            tensors, mapped_bytes = _load_torch(path, is_zip=True), 0
        array = np.array(_to_numpy(tensors[name], facts[name][1]))
        mapped_bytes += array.nbytes
        return array

    return Weights(str(path), "torch", facts, read)


class _Untouched:
    """Replaces an object of a pickle that is not a tensor. Its arguments are neither called nor kept."""

    def __init__(self, *parts: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Array(_Untouched):
    """Replaces an array of numpy, which is refused because it is not a tensor of torch."""


# Objects that training saves beside tensors. A Namespace, as in DINO and DeiT, only holds attributes.
_KNOWN_GLOBALS: list[Any] = [argparse.Namespace, (_Untouched, "numpy.dtype"), (_Untouched, "numpy.ndarray")]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
    _KNOWN_GLOBALS += [(_Untouched, f"{_module}.scalar"), (_Array, f"{_module}._reconstruct")]
for _name in ("bytes", "bytearray", "complex", "range", "slice", "frozenset"):
    _KNOWN_GLOBALS += [(_Untouched, f"builtins.{_name}"), (_Untouched, f"__builtin__.{_name}")]
for _name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
    _KNOWN_GLOBALS += [(_Untouched, f"pathlib.{_name}"), (_Untouched, f"pathlib._local.{_name}")]


def _load_torch(path: Path, *, is_zip: bool) -> dict[str, Any]:
    """The tensors of a torch file by name; keys of nested dicts are joined by dots. Zip files are mapped."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        advice = 'pip install torch, or "vit-registers[torch]"; or convert it to safetensors where torch is'
        raise CheckpointError(f"{path} is a torch file, which needs torch: {advice}") from error
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is a torch file: rename it to .pth, since torch relies on the suffix")
    with warnings.catch_warnings(), torch.serialization.safe_globals(_KNOWN_GLOBALS):
        warnings.simplefilter("ignore")
        try:
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL \S+|Unsupported operand \d+", str(error))
            what = f"{path} is damaged, or a pickle of more than tensors ({found[0] if found else 'unnamed'})"
            raise CheckpointError(f"{what}, which can run code: load it {_ELSEWHERE}") from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}: save a state_dict, tensors by name")
    leaves = list(_flatten(tree))
    if len(tensors := dict(leaves)) < len(leaves):
        raise CheckpointError(f"{path} holds tensors whose names are the same when joined by dots")
    if arrays := [name for name, value in leaves if isinstance(value, _Array)]:
        raise CheckpointError(f"{path}: '{arrays[0]}' is an array of numpy: save torch.from_numpy of it")
    return tensors


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif hasattr(value, "detach") or isinstance(value, _Array):
            yield f"{prefix}{key}", value
