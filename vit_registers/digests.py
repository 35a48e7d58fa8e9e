"""SHA-256 digests as hexadecimal text, and CRC32C. No other module computes hashes."""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

_BLOCK_BYTES = 1 << 20


def text_digest(text: str) -> str:
    """The digest of the UTF-8 encoding of a text."""
    return bytes_digest(text.encode())


def bytes_digest(data: bytes) -> str:
    """The digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def files_in(path: Path) -> list[Path]:
    """The files of a folder, sorted, without those of folders in it; of a file, itself."""
    return sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]


def files_digest(paths: Iterable[Path | epath.Path]) -> str:
    """The digest of the concatenated contents of files. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def file_crc32c(path: Path | epath.Path) -> str:
    """The CRC32C of a file, which is read, in base64, as stores give it. Raises OSError.

    Requires google-crc32c, of the extra [gcs].
    """
    import google_crc32c

    digest = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def prefix_hash(file: BinaryIO, num_bytes: int) -> Any:
    """The SHA-256 object of hashlib, updated with the next `num_bytes` of a file, or fewer at its end."""
    digest = hashlib.sha256()
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest
