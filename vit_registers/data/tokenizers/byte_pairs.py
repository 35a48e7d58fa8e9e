"""Byte pair encoding as in CLIP: words of byte symbols, the last of which is marked, are merged by rank.

The order of the vocabulary: 256 byte symbols, the same at the end of a word, merges, start, end.
"""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.cleaning import clean_as_clip
from vit_registers.errors import ConfigError, require_extra

NUM_SYMBOLS = 512  # of single bytes, within and at the end of a word
MIN_VOCAB_SIZE = NUM_SYMBOLS + 2  # with start and end
_WORD_END = "</w>"
_START, _END = "<start_of_text>", "<end_of_text>"  # their names in text, as in open_clip; OpenAI has others
# start and end, English contractions, letters, single digits, anything else
_PATTERN = rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
_PACKAGES = ("regex", "tokenizers", "ftfy")
_MAX_CACHED = 1 << 18  # words
_FIRST_STAND_IN = 0x4E00  # see `train_merges`

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # bytes that are their own symbol
_HIDDEN = tuple(byte for byte in range(256) if byte not in _VISIBLE)
_SYMBOL = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
_SYMBOLS = [_SYMBOL[byte] for byte in (*_VISIBLE, *_HIDDEN)]
_ALPHABET = [*_SYMBOLS, *(symbol + _WORD_END for symbol in _SYMBOLS)]

Merge = tuple[str, str]


class BytePairs(Tokenizer):
    """The tokenizer of a list of merges; padded with 0, which is harmless behind the end under a causal mask.

    Texts are cleaned as CLIP does. The names of start and end in a text become these tokens, as in open_clip.
    Raises MissingPackageError without the packages of the extra [text].
    """

    pad = 0

    def __init__(self, merges: Sequence[Merge], *, name: str) -> None:
        require_extra("text", *_PACKAGES, what=f"data.captions.tokenizer={name!r}")
        import regex
        from tokenizers import models

        self.name, self._merges = name, merges
        vocabulary = [*_ALPHABET, *map("".join, merges), _START, _END]
        self.vocab_size, self.end = len(vocabulary), len(vocabulary) - 1
        self._start = self.end - 1
        ids = {token: i for i, token in enumerate(vocabulary)}
        self._model = models.BPE(vocab=ids, merges=list(merges), end_of_word_suffix=_WORD_END)
        self._find_words = regex.compile(_PATTERN, regex.IGNORECASE).findall
        self._special = {_START: [self._start], _END: [self.end]}
        self._known = dict(self._special)

    def ids(self, text: str) -> list[int]:
        found = [self._start]
        for word in self._find_words(clean_as_clip(text)):
            found += self._known[word] if word in self._known else self._ids_of(word)
        return [*found, self.end]

    def _ids_of(self, word: str) -> list[int]:
        found = [token.id for token in self._model.tokenize(_symbols(word))]
        if len(self._known) >= _MAX_CACHED:
            self._known = dict(self._special)
        self._known[word] = found
        return found

    def saved(self) -> Mapping[str, Any]:
        return {"tokenizer": self.name, "merges": [" ".join(merge) for merge in self._merges]}


def train_merges(texts: Iterable[str], vocab_size: int) -> list[Merge]:
    """The merges of a vocabulary of at most `vocab_size` ids that is trained on texts.

    They are a function of the texts, whatever their order. Raises ConfigError for a vocabulary that has no
    room for the single bytes, MissingPackageError without the packages of the extra [text].
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(
            f"data.captions.tokenizer: bpe(vocab_size={vocab_size}): must be at least {MIN_VOCAB_SIZE}, for "
            "the bytes, start and end"
        )
    require_extra("text", *_PACKAGES, what="training data.captions.tokenizer='bpe'")
    import regex
    import tokenizers

    find_words = regex.compile(_PATTERN, regex.IGNORECASE).findall
    number = collections.Counter(word for text in texts for word in find_words(clean_as_clip(text)))
    words = [word for word in sorted(number) if word not in (_START, _END)]
    # Marked symbols have several characters. tokenizers numbers those that it meets in the order of a hash
    # map, which breaks ties, so each symbol has one character here.
    stand_in = {symbol: chr(_FIRST_STAND_IN + i) for i, symbol in enumerate(_ALPHABET)}
    symbol_of = {char: symbol for symbol, char in stand_in.items()}
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=list(symbol_of), show_progress=False
    )
    lines = ("".join(stand_in[s] for s in _marked(word)) + " " for word in words)
    model.train_from_iterator((line * number[word] for word, line in zip(words, lines, strict=True)), trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    return [
        ("".join(map(symbol_of.__getitem__, a)), "".join(map(symbol_of.__getitem__, b))) for a, b in merges
    ]


def _symbols(word: str) -> str:
    return "".join(_SYMBOL[byte] for byte in word.encode("utf-8"))


def _marked(word: str) -> list[str]:
    symbols = _symbols(word)
    return [*symbols[:-1], symbols[-1] + _WORD_END]
