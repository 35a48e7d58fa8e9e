"""The examples of a split of images with captions, whatever holds them. No TensorFlow."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

CAPTION_KEYS = ("caption", "captions")  # of JSON and tables


class Samples(Protocol):
    """Images that have captions, by number."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """The image as errors name it."""
        ...

    def image(self, i: int) -> bytes:
        """The encoded image. Raises OSError."""
        ...

    def captions(self, i: int) -> list[str]:
        """The texts that describe it, in order; none if its text cannot be read."""
        ...


def lines_of(text: bytes) -> list[str]:
    """The captions of a text file: its lines that are not empty. Bytes that are not UTF-8 become U+FFFD."""
    return [line for line in text.decode("utf-8-sig", "replace").splitlines() if line.strip()]


def captions_in(value: Mapping[str, Any], key: str | None) -> list[str]:
    """The captions of a JSON object or of a row: one text or a list of texts; empty ones are left out.

    `key` is data.captions.key; None: the first of CAPTION_KEYS that it has.
    """
    found = next((value[name] for name in ((key,) if key else CAPTION_KEYS) if name in value), None)
    return [*_texts(found)]


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str) and found.strip():
        yield found
    elif isinstance(found, list):
        for one in found:
            yield from _texts(one)
