"""The tokens of a caption of each image of a training batch, made on the host. No TensorFlow.

The captions are those of the source (DataSource.captions), or made of class names and templates. Which one an
image has in a step is a function of (seed, step, record), so a run resumes exactly.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit_registers.config import Captions, Data
from vit_registers.data.batch import Texts
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources.base import DataSource, check_labels
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.catalog import open_tokenizer
from vit_registers.errors import ConfigError, DataError

_NUM_LEARNED = 100_000  # images whose captions train a tokenizer
_NUM_KEPT = 1 << 18  # images whose captions stay in memory
_NUM_COMPARED = 64  # images that must not all have the same caption
_logger = logging.getLogger(__name__)


class TextCounts(NamedTuple):
    """What happened to the captions of training batches so far, in this process."""

    texts: int = 0
    cut: int = 0  # to the context
    equal: int = 0  # to another caption that they are compared with


def draws(seed: int, step: int, record_B: np.ndarray) -> np.ndarray:
    """Random uint64 numbers, a function of (seed, step, record) each: SplitMix64 of the three in turn."""
    state_B = np.zeros(len(record_B), np.uint64)
    for part in (seed, step, record_B):
        state_B = state_B + np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state_B = (state_B ^ (state_B >> np.uint64(shift))) * np.uint64(factor)
        state_B = state_B ^ (state_B >> np.uint64(31))
    return state_B


def class_captions(settings: Captions, class_names: Sequence[str]) -> list[list[str]]:
    """The captions of each class: its text in each template. Raises ConfigError if there are none, or one."""
    if not settings.templates:
        raise ConfigError(
            "data.captions.templates=(): the data has classes and no captions: set templates to make "
            'captions of the names of classes, such as ("a photo of a {}.",)'
        )
    texts = settings.class_texts or [name.replace("_", " ") for name in class_names]
    if len(texts) != len(class_names):
        raise ConfigError(
            f"data.captions.class_texts has {len(texts)} texts, and the data has {len(class_names)} classes: "
            "give one for each, in the order of the classes"
        )
    if len(set(texts)) < 2:
        raise ConfigError(f"all captions would be of the class {texts[0]!r}: the data must have two classes")
    return [[template.replace("{}", text) for template in settings.templates] for text in texts]


class CaptionTokens:
    """The tokens of training batches, and the tokenizer."""

    def __init__(
        self, source: DataSource, data: Data, texts: Texts, *, seed: int, broken: BrokenImages
    ) -> None:
        """Raises ConfigError, DataError or MissingPackageError: see class_captions, open_tokenizer.

        Also if all captions are equal, and if the ids of the tokenizer are more than texts.vocab_size.
        """
        self._source, self._split, self.wanted = source, data.train_split, texts
        self._seed, self._broken = seed, broken
        read = source.captions(data.train_split)
        # To read a caption of TFDS, the whole record is read, with its image.
        self._read = None if read is None else functools.lru_cache(_NUM_KEPT)(read)
        self._of_classes: list[list[str]] = []
        if self._read is None:
            if source.lacks_labels is not None:
                raise DataError(f"{source.name} has neither captions nor classes: {source.lacks_labels}")
            self._of_classes = class_captions(data.captions, source.class_names)
        elif data.captions.templates:
            raise ConfigError(
                f"data.captions.templates: {source.name} has captions of its own: set templates to ()"
            )
        self._check_different()
        self.tokenizer: Tokenizer = open_tokenizer(data.captions.tokenizer, self._all_texts)
        if self.tokenizer.vocab_size > texts.vocab_size:
            raise ConfigError(
                f"text.vocab_size={texts.vocab_size} is less than the {self.tokenizer.vocab_size} ids of "
                f"data.captions.tokenizer={data.captions.tokenizer!r}: set it to at least as many"
            )
        encoded = [self.tokenizer.encode_and_count(own, texts.context) for own in self._of_classes]
        self._table_CxTxL = np.stack([tokens for tokens, _ in encoded]) if encoded else None
        if num_cut := sum(cut for _, cut in encoded):
            _logger.warning("%d captions of classes are cut to %d tokens", num_cut, texts.context)
        self.counts = TextCounts()

    def has_text(self, record: int) -> bool:
        """Whether the image has a caption. Without one, it is reported as data.on_broken says."""
        return self._read is None or bool(self._captions(record))

    def _captions(self, record: int) -> list[str]:
        assert self._read is not None
        found = _texts_of(self._read, record)
        if not found:
            self._broken.report_without_text(self._source.describe(self._split, record))
        return found

    def _check_different(self) -> None:
        number = min(self._source.num_examples(self._split), _NUM_COMPARED)
        if self._read is None or number < 2:
            return
        found = {tuple(_texts_of(self._read, record)) for record in range(number)} - {()}
        if not found:
            raise DataError(
                f"the first {number} images of '{self._split}' of {self._source.name} have no captions: "
                "give data with captions"
            )
        if len(found) == 1:
            raise DataError(
                f"the first {number} images of '{self._split}' of {self._source.name} all have the caption "
                f"{found.pop()[0]!r}: captions must say what differs between images"
            )

    def _all_texts(self) -> Iterator[str]:
        for own in self._of_classes:
            yield from own
        if self._read is not None:
            for record in range(min(self._source.num_examples(self._split), _NUM_LEARNED)):
                yield from _texts_of(self._read, record)

    def __call__(self, step: int, record_B: np.ndarray, label_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_BxL int32, has_text_B bool) of the examples `record_B` of a step.

        An image without a caption is reported as data.on_broken says, and has the tokens of an empty text.
        `label_B` are their classes; only captions that are made of classes depend on them.
        """
        drawn_B = draws(self._seed, step, record_B)
        if self._table_CxTxL is not None:
            check_labels(self._source, self._split, record_B, label_B)
            num_templates = np.uint64(self._table_CxTxL.shape[1])
            tokens_BxL = self._table_CxTxL[label_B, (drawn_B % num_templates).astype(np.int64)]
            self._count(tokens_BxL, 0)
            return tokens_BxL, np.ones(len(record_B), bool)
        texts = []
        for drawn, record in zip(drawn_B.tolist(), record_B.tolist(), strict=True):
            own = self._captions(record)
            texts.append(own[drawn % len(own)] if own else "")
        has_text_B = np.array([text != "" for text in texts], bool)
        tokens_BxL, num_cut = self.tokenizer.encode_and_count(texts, self.wanted.context)
        self._count(tokens_BxL[has_text_B], num_cut)
        return tokens_BxL, has_text_B

    def summary(self) -> str:
        """The counts in one line."""
        texts, cut, equal = self.counts
        what = "a batch" if self.wanted.group is None else "a group"
        return (
            f"captions: {texts:,}; cut to {self.wanted.context} tokens: {cut:,}; equal to an earlier one of "
            f"{what}: {equal:,}"
        )

    def _count(self, tokens_BxL: np.ndarray, num_cut: int) -> None:
        group = self.wanted.group or max(len(tokens_BxL), 1)
        rows = [row.tobytes() for row in tokens_BxL]
        parts = [rows[i : i + group] for i in range(0, len(rows), group)]
        num_equal = sum(len(part) - len(set(part)) for part in parts)
        if num_equal and not self.counts.equal:
            _logger.warning(
                "%d of %d captions of a batch are equal to an earlier one that they are compared with: each "
                "counts as wrong for the image of the other",
                num_equal,
                len(rows),
            )
        texts, cut, equal = self.counts
        self.counts = TextCounts(texts + len(rows), cut + num_cut, equal + num_equal)


def open_texts(
    source: DataSource, data: Data, texts: Texts | None, *, seed: int, broken: BrokenImages
) -> CaptionTokens | None:
    """What makes the tokens of training batches, None without `texts`. Raises errors as CaptionTokens."""
    return None if texts is None else CaptionTokens(source, data, texts, seed=seed, broken=broken)


def _texts_of(read: Callable[[int], list[str]], record: int) -> list[str]:
    """The captions of an image that are not empty."""
    return [text for text in read(record) if text.strip()]
