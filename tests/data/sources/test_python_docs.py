"""The texts of Python: what is in which split, and how they become sequences."""

import ast
import email.message
import inspect
import pydoc_data.topics
import textwrap

import numpy as np
import pytest

from vit_registers.config import Data
from vit_registers.data.broken import BrokenImages
from vit_registers.data.pil_decoding import decode_image
from vit_registers.data.sources import python_docs
from vit_registers.data.sources.python_docs import (
    TEXT_KINDS,
    TEXT_SPLITS,
    joined_texts,
    load_texts,
    open_python_docs,
)
from vit_registers.errors import ConfigError, DataError

DATA = Data(name="python_docs", loader="memory", image_size=(1, 64))


def _open(**settings):
    data = Data(**{**vars(DATA), **settings})
    return open_python_docs(data, 1, BrokenImages(data))


def test_no_text_module_or_topic_is_in_both_splits():
    train, held_out = ([one for one in load_texts() if one.split == split] for split in TEXT_SPLITS)
    assert len(train) + len(held_out) == len(load_texts()) == len({one.text for one in load_texts()})
    places = [{(one.kind, one.origin) for one in part} for part in (train, held_out)]
    assert not places[0] & places[1]
    sizes = [sum(len(one.text) for one in part) for part in (train, held_out)]
    assert sizes[0] > 1_000_000 > sizes[1] > 30_000
    whole = joined_texts("train", "docstrings") + joined_texts("train", "topics")
    inside = sum(len(one.text) for one in held_out if len(one.text) > 200 and one.text in whole)
    assert inside == 0


def test_docstrings_and_topics_are_those_of_this_python():
    texts = {kind: {one.text for one in load_texts() if one.kind == kind} for kind in TEXT_KINDS}
    assert texts["topics"] == {text.encode().strip() for text in pydoc_data.topics.topics.values()}
    for thing in (textwrap, textwrap.dedent, email.message, email.message.Message.walk, ast.NodeVisitor):
        assert inspect.getdoc(thing).encode().strip() in texts["docstrings"]


def test_the_description_identifies_the_texts(monkeypatch):
    before = python_docs.describe_texts()
    assert before == _open().class_names
    assert all(len(one.rpartition("SHA-256 ")[2]) == 64 for one in before)
    first, *others = load_texts()
    monkeypatch.setattr(python_docs, "load_texts", lambda: (first._replace(text=b"x"), *others))
    python_docs.describe_texts.cache_clear()
    after = python_docs.describe_texts()
    python_docs.describe_texts.cache_clear()
    assert [a == b for a, b in zip(before, after, strict=True)] == [kind != first.kind for kind in TEXT_KINDS]


@pytest.mark.parametrize("split", TEXT_SPLITS)
def test_sequences_are_the_joined_texts_without_overlap(split):
    source = _open()
    label_N, read = source.labels(split), source.image_reader(split)
    assert source.num_examples(split) == len(label_N)
    for number, kind in enumerate(TEXT_KINDS):
        text = joined_texts(split, kind)
        records = np.flatnonzero(label_N == number)
        assert len(records) == len(text) // 64
        images = [decode_image(read(int(i)), channels=1) for i in (*records[:50], records[-1])]
        assert {image.shape for image in images} == {(1, 64, 1)}
        assert b"".join(image.tobytes() for image in images[:50]) == text[: 50 * 64]
        start = (len(records) - 1) * 64
        assert images[-1].tobytes() == text[start : start + 64]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": None}, r"image_size=None .*such as data.image_size=\(1, 256\)"),
        ({"image_size": (8, 8)}, "an image of one row"),
        ({"loader": "tfdata"}, "requires data.loader=memory"),
        ({"label_key": "kind"}, "label_key='kind'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        _open(**settings)


def test_an_unknown_split_and_missing_source_files_are_errors(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="python_docs has no split 'test'"):
        _open().num_examples("test")
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    load = python_docs.load_texts.__wrapped__
    with pytest.raises(DataError, match=f"source files of Python's library in {tmp_path} cannot be read"):
        load()
