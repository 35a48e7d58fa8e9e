"""The contract of a tokenizer, which data.captions.tokenizer selects (catalog.py). No JAX, no TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vit_registers.errors import ConfigError

MIN_CONTEXT = 2  # the start or one token, and the end


class Tokenizer(Protocol):
    """Text to ids. A new one subclasses this protocol and implements what has no default.

    The end token has the largest id where the text tower pools at it (CLIP). `pad` fills what a text leaves
    of the context.
    """

    name: str  # as data.captions.tokenizer has it, without the path of a file
    vocab_size: int  # ids are less
    end: int
    pad: int

    def ids(self, text: str) -> list[int]:
        """The ids of a text of any length, with the start, if there is one, and the end."""
        ...

    def saved(self) -> Mapping[str, Any]:
        """What `catalog.tokenizer_from_saved` makes an equal tokenizer of, as JSON."""
        ...

    def encode(self, texts: Sequence[str], context: int) -> np.ndarray:
        """tokens_NxL, int32, with L = `context`. Longer texts are cut, and their last token is the end."""
        return self.encode_and_count(texts, context)[0]

    def encode_and_count(self, texts: Sequence[str], context: int) -> tuple[np.ndarray, int]:
        """(tokens_NxL, number of texts that were cut). Raises ConfigError if `context` is less than 2."""
        if context < MIN_CONTEXT:
            raise ConfigError(f"a context of {context} tokens: must be at least {MIN_CONTEXT}")
        tokens_NxL = np.full((len(texts), context), self.pad, np.int32)
        num_cut = 0
        for i, text in enumerate(texts):
            ids = self.ids(text)
            if len(ids) > context:
                ids = [*ids[: context - 1], self.end]
                num_cut += 1
            tokens_NxL[i, : len(ids)] = ids
        return tokens_NxL, num_cut
