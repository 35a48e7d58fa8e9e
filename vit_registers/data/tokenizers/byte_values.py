"""The tokenizer of single bytes, which requires no vocabulary and no package."""

from collections.abc import Mapping
from typing import Any

from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.cleaning import plain

_START, _END = 256, 257


class Bytes(Tokenizer):
    """Ids are the values of the bytes in UTF-8, between a start (256) and an end (257); padded with 0.

    Texts are made NFC and lower case, with one space between words. What is not Unicode becomes "?".
    """

    name = "bytes"
    vocab_size, end, pad = 258, _END, 0

    def ids(self, text: str) -> list[int]:
        return [_START, *plain(text).encode("utf-8", "replace"), _END]

    def saved(self) -> Mapping[str, Any]:
        return {"tokenizer": self.name}
