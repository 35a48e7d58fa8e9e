"""The tokenizers by name, as data.captions.tokenizer has them. To add one, write its file and add it here."""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit_registers.config import lookup
from vit_registers.config.strings import parse_call
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.byte_pairs import BytePairs, train_merges
from vit_registers.data.tokenizers.byte_values import Bytes
from vit_registers.data.tokenizers.clip import open_clip_tokenizer
from vit_registers.data.tokenizers.pieces import Pieces, open_pieces
from vit_registers.errors import DataError

Texts = Callable[[], Iterable[str]]  # the captions of the training split, for what is trained on them

_WHERE = "data.captions.tokenizer"
_EXAMPLE = "bpe(vocab_size=600)"  # of a tokenizer, for errors


def _clip(texts: Texts, path: str = "") -> Tokenizer:
    return open_clip_tokenizer(path)


def _sentencepiece(texts: Texts, path: str, canonical: bool = True) -> Tokenizer:
    return open_pieces(path, is_canonical=canonical)


def _bytes(texts: Texts) -> Tokenizer:
    return Bytes()


def _bpe(texts: Texts, vocab_size: int) -> Tokenizer:
    return BytePairs(train_merges(texts(), vocab_size), name="bpe")


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "clip": _clip,
    "sentencepiece": _sentencepiece,
    "bytes": _bytes,
    "bpe": _bpe,
}

_SAVED: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "clip": lambda saved: _of_merges(saved, "clip"),
    "bpe": lambda saved: _of_merges(saved, "bpe"),
    "bytes": lambda saved: Bytes(),
    "sentencepiece": lambda saved: Pieces(
        base64.b64decode(saved["model"]), is_canonical=saved["is_canonical"], where="the saved tokenizer"
    ),
}


def open_tokenizer(text: str, texts: Texts) -> Tokenizer:
    """The tokenizer of a setting, such as "clip" or "bpe(vocab_size=600)".

    `texts` are called for by a tokenizer that is trained. Raises ConfigError for text that is no tokenizer,
    MissingPackageError or DataError if what it requires is not there.
    """
    call = parse_call(text, TOKENIZERS, where=_WHERE, example=_EXAMPLE)
    return TOKENIZERS[call.name](texts, **call.arguments)


def tokenizer_from_saved(saved: Mapping[str, Any], *, where: str) -> Tokenizer:
    """The tokenizer that `saved` describes (Tokenizer.saved). Raises DataError for what is none."""
    try:
        return lookup(_SAVED, saved["tokenizer"], where)(saved)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} does not describe a tokenizer ({error!r}): take that of another run"
        ) from None


def _of_merges(saved: Mapping[str, Any], name: str) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in saved["merges"]]
    return BytePairs([(a, b) for a, b in merges], name=name)
