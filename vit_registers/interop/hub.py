"""Models on the Hugging Face Hub, by hf://ORG/NAME[@REVISION], through the optional huggingface_hub."""

import functools
import re
from pathlib import Path

from vit_registers.errors import CheckpointError, ConfigError

PREFIX = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# Of a repository with weights in several formats, only one is downloaded.
_FORMATS = (("*.safetensors", "*.safetensors.index.json"), ("*.bin", "*.pth", "*.pt", "*.npz"))
_SETTINGS = ("*config.json",)


def is_hub(path: str) -> bool:
    """Whether a checkpoint is named as a model on the Hub."""
    return path.startswith(PREFIX)


def check_hub_name(name: str) -> None:
    """Raises ConfigError if `name` is no hf://ORG/NAME or hf://ORG/NAME@REVISION."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name} is no model on the Hub: give hf://ORG/NAME or hf://ORG/NAME@REVISION, such as "
            "hf://facebook/dinov2-with-registers-small"
        )


@functools.cache
def download(name: str) -> str:
    """The folder of the model in the cache of huggingface_hub, which downloads what is missing.

    Raises CheckpointError, one line, without the library, without network, and for a model that does not
    exist or cannot be accessed.
    """
    check_hub_name(name)
    match = _NAME.fullmatch(name)
    assert match is not None
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise CheckpointError(
            f'{name} requires huggingface_hub: pip install "vit-registers[hub]", or download the files '
            "and give their folder"
        ) from None
    for patterns in _FORMATS:
        try:
            folder = huggingface_hub.snapshot_download(
                match[1],
                revision=match[2],
                allow_patterns=[*_SETTINGS, *patterns],
                ignore_patterns=["*/*"],
            )
        except Exception as error:  # of huggingface_hub, of its HTTP client, of the disk
            raise _explain(name, error) from error
        if any(file.suffix != ".json" for file in Path(folder).iterdir()):
            return folder
    raise CheckpointError(f"{name} has no weights in a known format: {', '.join(sum(_FORMATS, ()))}")


def _explain(name: str, error: Exception) -> CheckpointError:
    from huggingface_hub import constants, errors  # pyright: ignore[reportMissingImports]

    missing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(f"{name} is gated: accept its terms on huggingface.co and run `hf auth login`")
    if isinstance(error, missing):
        return CheckpointError(f"{name}: there is no such model or revision, or it is private")
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | OSError):
        return CheckpointError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and the Hub cannot be reached: download "
            "it once with network, or set HF_HUB_CACHE to a folder that has it"
        )
    return CheckpointError(f"{name} cannot be downloaded: {type(error).__name__}: {first}")
