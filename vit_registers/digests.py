"""SHA-256 digests, as hexadecimal text."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from etils import epath

BLOCK_BYTES = 1 << 20


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
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
