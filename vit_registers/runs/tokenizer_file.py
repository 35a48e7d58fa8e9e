"""The tokenizer of a run with captions, in its folder: texts are encoded without its vocabulary file."""

from etils import epath

from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.data.tokenizers.catalog import tokenizer_from_saved
from vit_registers.errors import ConfigError
from vit_registers.storage import files

FILE = "tokenizer.json"


def write_tokenizer(tokenizer: Tokenizer | None, run: epath.Path, *, is_resumed: bool) -> None:
    """Writes the tokenizer of a run, if it has one, into its folder.

    Raises ConfigError if the run is resumed and was trained with another one, OSError if the file cannot be
    written.
    """
    if tokenizer is None:
        return
    path, saved = run / FILE, dict(tokenizer.saved())
    if is_resumed and files.read_json_object(path) not in (None, saved):
        raise ConfigError(
            f"data.captions.tokenizer={tokenizer.name!r} is not the tokenizer that the run was trained with, "
            f"which is in {path}: set that of the run, or use another --workdir"
        )
    files.write_json(path, saved)


def read_tokenizer(run: epath.Path) -> Tokenizer:
    """The tokenizer of a run. Raises ConfigError if it has none, or DataError if its file is damaged."""
    saved = files.read_json_object(run / FILE)
    if saved is None:
        raise ConfigError(f"{run} has no {FILE}: it is not a run that was trained on captions")
    return tokenizer_from_saved(saved, where=str(run / FILE))
