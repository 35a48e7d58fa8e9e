"""The tokenizer of a sentencepiece model, as SigLIP uses one."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.cleaning import canonical
from vit_registers.errors import DataError, require_extra


class Pieces(Tokenizer):
    """A sentencepiece model: no start, one end, padded with the end, as in SigLIP.

    With `is_canonical`, texts lose punctuation and upper case first, as for the released SigLIP models.
    """

    name = "sentencepiece"

    def __init__(self, model: bytes, *, is_canonical: bool, where: str) -> None:
        """Raises DataError, which names `where`, for what is not such a model or has no end token."""
        require_extra("text", "sentencepiece", what="data.captions.tokenizer='sentencepiece'")
        import sentencepiece  # pyright: ignore[reportMissingImports]

        self._bytes, self._is_canonical = model, is_canonical
        self._model: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model)
        except RuntimeError:
            raise DataError(
                f"{where} is not a sentencepiece model: give the .model file of one, as "
                "\"sentencepiece(path='c4_en.model')\""
            ) from None
        self.vocab_size = self._model.vocab_size()
        self.end = self.pad = self._model.eos_id()
        if self.end < 0:
            raise DataError(f"{where} has no end token (</s>): train the model with eos_id >= 0")

    def ids(self, text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode("utf-8")
        return [*self._model.EncodeAsIds(canonical(text) if self._is_canonical else text), self.end]

    def saved(self) -> Mapping[str, Any]:
        model = base64.b64encode(self._bytes).decode("ascii")
        return {"tokenizer": self.name, "is_canonical": self._is_canonical, "model": model}


def open_pieces(path: str, *, is_canonical: bool) -> Pieces:
    """The tokenizer of the sentencepiece model in a file. Raises DataError or MissingPackageError."""
    file = Path(path).expanduser()
    try:
        model = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.captions.tokenizer: {file} cannot be read: {error.strerror or error}: give the path of a "
            "sentencepiece model"
        ) from None
    return Pieces(model, is_canonical=is_canonical, where=str(file))
