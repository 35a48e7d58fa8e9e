"""Writes files of named tensors one tensor at a time, without a second copy of the model in memory."""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop.containers import SAFETENSORS_DTYPES, Weights, error_line

WRITTEN = (".safetensors", ".npz")  # suffixes of files of tensors
# Suffixes of other files of weights, which users may expect.
_OTHERS = (
    ".h5",
    ".hdf5",
    ".keras",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
    ".msgpack",
    ".onnx",
    ".pkl",
    ".npy",
    ".zip",
)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` on success and is deleted on failure."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} cannot be written: it exists and is not a file")
        yield temporary
        os.replace(temporary, path)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} could not be written: {error_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_file(path: str | Path) -> bool:
    """Whether an export to `path` is one file of tensors; otherwise it is a folder, with all that belongs."""
    return Path(path).suffix in WRITTEN


def check_name(output: str, target: str, *, is_folder: bool) -> None:
    """Raises ConfigError for an output whose suffix is that of a file which is not written.

    `is_folder` says that the format `target` has folders only.
    """
    suffix = Path(output).suffix.lower()
    if suffix in _OTHERS or (suffix in WRITTEN and is_folder):
        file = "" if is_folder else f", or of a file that ends in {' or '.join(WRITTEN)}"
        raise ConfigError(
            f"--output={output}: --to={target} writes no {suffix} files: give the name of a folder{file}"
        )


def write_safetensors(path: str | Path, weights: Weights, metadata: Mapping[str, str] | None) -> None:
    """Writes a file. An existing one is kept if this raises CheckpointError.

    The safetensors library needs all tensors at once, so that this function writes the format: eight bytes
    with the length of a JSON header of names, dtypes, shapes and offsets, the header, and the tensors.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    with _written_whole(Path(path).expanduser()) as temporary, temporary.open("wb") as file:
        # The widest first, as in the library: each starts at a multiple of its item size.
        order = sorted(weights, key=lambda name: -weights.dtypes[name].itemsize)
        for name in order:
            shape, dtype = weights.shapes[name], weights.dtypes[name]
            if dtype.name not in names:
                raise TypeError(f"safetensors has no {dtype}, which '{name}' is")
            start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=int))
            header[name] = {"dtype": names[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:  # tofile does not report why, or that, it failed
            array = np.ascontiguousarray(weights[name], weights.dtypes[name].newbyteorder("<"))
            file.write(array.view(np.uint8).data)


def write_npz(path: str | Path, weights: Weights) -> None:
    """Writes an uncompressed file. An existing one is kept if this raises CheckpointError."""
    with _written_whole(Path(path).expanduser()) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in weights:
            array = weights[name]
            array = array.view("V2") if array.dtype == np.dtype("bfloat16") else array
            if array.dtype.isbuiltin == 2:  # a dtype of ml_dtypes, which numpy cannot read
                raise TypeError(f"npz has no {array.dtype}, which '{name}' is: write safetensors")
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
