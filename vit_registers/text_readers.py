"""What reads the texts of a checkpoint: its text settings and its tokenizer."""

from vit_registers.config import Data, Text
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.catalog import open_tokenizer
from vit_registers.errors import ConfigError
from vit_registers.evaluation.catalog import has_texts
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.loading import ExternalCheckpoint
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.runs.tokenizer_file import read_tokenizer
from vit_registers.storage import paths


def fitting_tokenizer(data: Data, text: Text, *, flag: str) -> Tokenizer:
    """The tokenizer data.captions.tokenizer, for weights of another code base, which do not have their own.

    `flag` is the one that sets it, for errors.
    Raises ConfigError if it has more ids than the text tower, MissingPackageError or DataError.
    """
    tokenizer = open_tokenizer(data.captions.tokenizer, lambda: ())
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"the text tower has {text.vocab_size:,} token ids, and the tokenizer "
            f"{data.captions.tokenizer!r} has {tokenizer.vocab_size:,}: give that of the model with "
            f"{flag}, such as \"sentencepiece(path='FILE.model')\""
        )
    return tokenizer


def text_reader(checkpoint: RunCheckpoint | ExternalCheckpoint) -> TextReader | None:
    """What reads texts for a run with texts or for whole weights; None for others.

    Raises ConfigError, MissingPackageError or DataError.
    """
    config = checkpoint.config
    if isinstance(checkpoint, ExternalCheckpoint):
        if checkpoint.whole is None:
            return None
        flag = "--config.data.captions.tokenizer"
        return TextReader(config.text, fitting_tokenizer(config.data, config.text, flag=flag))
    if not has_texts(config.objective):
        return None
    return TextReader(config.text, read_tokenizer(paths.folder(checkpoint.run)))
