"""CLIP's tokenizer: its vocabulary file, from an installed package, which is not imported, or by path."""

import gzip
import importlib.util
import zlib
from pathlib import Path

from vit_registers.data.tokenizers.byte_pairs import BytePairs, Merge
from vit_registers.errors import DataError, MissingPackageError

FILE = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGES = {"open_clip": "open_clip_torch", "clip": "clip-anytorch"}  # package: its name for pip
_NUM_MERGES = 48_894  # of the 262,144 of the file, after its first line
_REMEDY = (
    f"install {' or '.join(_PACKAGES.values())} (pip install --no-deps {_PACKAGES['clip']}), or give the "
    f"file: \"clip(path='.../{FILE}')\""
)


def find_vocabulary() -> Path:
    """The vocabulary file of an installed package. Raises MissingPackageError if none has it."""
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (path := Path(folder, FILE)).is_file():
                return path
    raise MissingPackageError(
        "data.captions.tokenizer='clip' requires CLIP's vocabulary, and no installed package has it: "
        f"{_REMEDY}"
    )


def read_merges(path: Path) -> list[Merge]:
    """The merges of a vocabulary file, gzipped or plain. Raises DataError for a file that is none."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}: {_REMEDY}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged, or not CLIP's vocabulary ({error}): {_REMEDY}") from None
    pairs = [tuple(line.split()) for line in text.split("\n")[1 : _NUM_MERGES + 1]]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) < _NUM_MERGES:
        raise DataError(
            f"{path} has {len(merges):,} merges, and CLIP's vocabulary has {_NUM_MERGES:,}: {_REMEDY}"
        )
    return merges


def open_clip_tokenizer(path: str = "") -> BytePairs:
    """CLIP's tokenizer, 49,408 ids; `path` is its vocabulary file, "" for that of an installed package.

    Raises MissingPackageError or DataError.
    """
    file = Path(path).expanduser() if path else find_vocabulary()
    return BytePairs(read_merges(file), name="clip")
