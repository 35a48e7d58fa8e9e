"""SHA-256 digests: the only module that hashes. Digests are hexadecimal text."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

_BLOCK_BYTES = 1 << 20


def text_digest(text: str) -> str:
    """The digest of a text in UTF-8."""
    return bytes_digest(text.encode())


def bytes_digest(data: bytes) -> str:
    """The digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def files_digest(paths: Iterable[Path | epath.Path]) -> str:
    """The digest of the contents of files, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def prefix_hash(file: BinaryIO, num_bytes: int) -> Any:
    """hashlib's SHA-256 object of the next `num_bytes` of a file, or of fewer at its end; can be updated."""
    digest = hashlib.sha256()
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest
