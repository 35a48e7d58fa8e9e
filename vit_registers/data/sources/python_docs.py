"""Texts that every Python has: the docstrings of its standard library, and its topics of help. No TensorFlow.

Source files are parsed, and no module is imported. An example is a sequence of bytes of the texts, as an
image of one row.
"""

import ast
import functools
import hashlib
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_registers.config import Data, nearest
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources.base import DataSource, check_feature_keys
from vit_registers.errors import ConfigError, DataError

TEXT_SPLITS = ("train", "validation")
TEXT_KINDS = ("docstrings", "topics")
_HELD_OUT = 20  # one of so many modules and topics, by the digest of its name, is of the validation split
_END = b"\0"  # ends a text; no text has it
_TESTS = ("test", "tests", "idle_test")
_TOPICS = "pydoc_data"  # the package of the topics that help() shows


class Document(NamedTuple):
    """A docstring or a topic."""

    split: str
    kind: str
    origin: str  # the module, with a package as a whole, or the name of the topic
    text: bytes


def _split_of(kind: str, origin: str) -> str:
    digest = hashlib.sha256(f"{kind} {origin}".encode()).hexdigest()
    return "validation" if int(digest[:8], 16) % _HELD_OUT == 0 else "train"


def _docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """(module, docstring) of the standard library without its tests, in order of file names."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        module = parts[0].removesuffix(".py")
        if module not in sys.stdlib_module_names or module == _TOPICS or not {*_TESTS}.isdisjoint(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # an example of what a parser must refuse
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, ast.get_docstring(node) or ""


def _topics(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the topics, in order."""
    tree = ast.parse((folder / _TOPICS / "topics.py").read_bytes())
    found = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    yield from sorted(ast.literal_eval(found).items())


@functools.cache
def load_texts() -> tuple[Document, ...]:
    """All texts, each once: those of the validation split come first, and are in no other split.

    It takes about 3 s, once in a process. Raises DataError if this Python has no source files.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found: dict[bytes, Document] = {}
    try:
        pairs = [("docstrings", *pair) for pair in _docstrings(folder)]
        pairs += [("topics", *pair) for pair in _topics(folder)]
    except (OSError, SyntaxError, ValueError, StopIteration) as error:
        raise DataError(
            f"data.name=python_docs: the source files of Python's library in {folder} cannot be read: {error}"
        ) from None
    texts = [Document(_split_of(kind, origin), kind, origin, text.encode()) for kind, origin, text in pairs]
    for one in sorted(texts, key=lambda text: text.split != "validation"):  # stable
        text = one.text.replace(_END, b"").strip()
        if text:
            found.setdefault(text, one._replace(text=text))
    return tuple(found.values())


def joined_texts(split: str, kind: str) -> bytes:
    """The texts of a split of one kind, each with a zero byte behind it."""
    return b"".join(one.text + _END for one in load_texts() if (one.split, one.kind) == (split, kind))


@functools.cache
def describe_texts() -> tuple[str, ...]:
    """The kinds of texts with the version of Python, number of bytes and SHA-256: these identify the data."""
    parts = {kind: [joined_texts(split, kind) for split in TEXT_SPLITS] for kind in TEXT_KINDS}
    return tuple(
        f"{kind} of Python {platform.python_version()}: {len(train):,} + {len(held_out):,} bytes, "
        f"SHA-256 {hashlib.sha256(train + held_out).hexdigest()}"
        for kind, (train, held_out) in parts.items()
    )


class PythonDocsSource(DataSource):
    """Sequences of `length` bytes of the joined texts of a kind, without overlap; what remains is left out.

    The label is the kind of the text. The names of classes are those of describe_texts(), so that a run is
    resumed only with the same texts.
    """

    name = "python_docs"

    def __init__(self, length: int) -> None:
        self._length, self.class_names = length, describe_texts()

    def _sequences(self, split: str) -> list[np.ndarray]:
        """sequence_NxT, uint8, of each kind."""
        if split not in TEXT_SPLITS:
            raise DataError(f"python_docs has no split '{split}': {nearest(split, TEXT_SPLITS)}")
        texts = [np.frombuffer(joined_texts(split, kind), np.uint8) for kind in TEXT_KINDS]
        whole = [len(text) // self._length for text in texts]
        return [
            text[: number * self._length].reshape(number, self._length)
            for text, number in zip(texts, whole, strict=True)
        ]

    def num_examples(self, split: str) -> int:
        return sum(map(len, self._sequences(split)))

    def labels(self, split: str) -> np.ndarray:
        return np.repeat(
            np.arange(len(TEXT_KINDS), dtype=np.int32), [len(one) for one in self._sequences(split)]
        )

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        """A function record -> image of one row as PGM, which is a header and the bytes."""
        sequence_NxT = np.concatenate(self._sequences(split))
        header = f"P5 {self._length} 1 255\n".encode()
        return lambda record: header + sequence_NxT[record].tobytes()


def open_python_docs(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    """The texts in sequences of data.image_size. Raises ConfigError for settings that they do not fit."""
    del broken
    check_feature_keys(data, image_key="image", label_key="label")
    if data.image_size is None or data.image_size[0] != 1 or channels != 1:
        raise ConfigError(
            f"data.name=python_docs with data.image_size={data.image_size} and model.channels={channels}: a "
            "text is an image of one row and one channel, such as data.image_size=(1, 256)"
        )
    if data.loader == "tfdata":
        raise ConfigError("data.name=python_docs requires data.loader=memory")
    return PythonDocsSource(data.image_size[1])
