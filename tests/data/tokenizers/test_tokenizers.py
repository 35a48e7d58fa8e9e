"""Bytes, byte pairs that are trained, sentencepiece models, and settings that are no tokenizer."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures.awkward_texts import AWKWARD, random_texts
from vit_registers.data.tokenizers import cleaning
from vit_registers.data.tokenizers.byte_pairs import MIN_VOCAB_SIZE
from vit_registers.data.tokenizers.catalog import TOKENIZERS, open_tokenizer, tokenizer_from_saved
from vit_registers.errors import ConfigError, DataError, MissingPackageError

CAPTIONS = [f"a photo of the digit {name}" for name in ("zero", "one", "two", "three", "four", "five")]


def test_bytes():
    tokenizer = open_tokenizer("bytes", list)
    tokens = tokenizer.encode(["  A\ncafe\u0301 ", "", "\ud800"], 10)
    assert tokens.tolist() == [
        [256, *b"a caf\xc3\xa9", 257, 0],
        [256, 257] + [0] * 8,
        [256, *b"?", 257] + [0] * 7,
    ]
    tokens = tokenizer.encode([*AWKWARD, *random_texts(50)], 30)
    assert tokens.max() < tokenizer.vocab_size == 258
    assert ((tokens == tokenizer.end).sum(axis=1) == 1).all()  # the largest id, where CLIP pools


def test_canonical_and_plain_text():
    assert cleaning.canonical(" A_photo,  of: it's\tHERE! ") == "a photo of its here"
    assert cleaning.plain("  E\u0301\n b ") == "é b"


def test_a_context_has_room_for_start_and_end():
    with pytest.raises(ConfigError, match="a context of 1 tokens: must be at least 2"):
        open_tokenizer("bytes", list).encode(["a"], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clap", "data.captions.tokenizer='clap' is unknown: did you mean 'clip'"),
        ("bpe", "bpe requires 'vocab_size'"),
        ("bytes | bytes", "has 2 names: give one, as in 'bpe"),
        ("bytes(3)", "bytes takes 0 arguments at most"),
        ("", "has 0 names"),
        ("sentencepiece", "sentencepiece requires 'path'"),
    ],
)
def test_what_is_no_tokenizer_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        open_tokenizer(text, list)


@pytest.mark.parametrize("saved", [{}, {"tokenizer": "bpe"}, {"tokenizer": "bpe", "merges": ["a"]}, []])
def test_what_describes_no_tokenizer_is_refused(saved):
    with pytest.raises(DataError, match="its file does not describe a tokenizer"):
        tokenizer_from_saved(saved, where="its file")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("vit_registers.errors.missing_package", lambda *names: names[0])
    for text in ("bpe(vocab_size=600)", "sentencepiece(path='a.model')"):
        with pytest.raises((MissingPackageError, DataError), match=r"vit-registers\[text\]|cannot be read"):
            open_tokenizer(text, lambda: CAPTIONS)


def test_the_catalog_says_what_can_be_saved():
    assert set(TOKENIZERS) == {"clip", "sentencepiece", "bytes", "bpe"}


class TestTrained:
    @pytest.fixture(autouse=True)
    def packages(self):
        for package in ("regex", "tokenizers", "ftfy"):
            pytest.importorskip(package)

    def test_words_of_the_captions_become_tokens(self):
        tokenizer = open_tokenizer("bpe(vocab_size=600)", lambda: CAPTIONS)
        assert MIN_VOCAB_SIZE < tokenizer.vocab_size <= 600
        assert len(tokenizer.ids(CAPTIONS[3])) == 2 + 6  # one for each word
        assert len(tokenizer.ids("xyz é")) == 2 + 5  # bytes

    def test_the_size_is_that_of_the_setting_if_the_captions_have_as_many_words(self):
        texts = random_texts(300)
        assert open_tokenizer("bpe(vocab_size=700)", lambda: texts).vocab_size == 700

    def test_saved_as_json(self):
        tokenizer = open_tokenizer("bpe(vocab_size=600)", lambda: CAPTIONS)
        other = tokenizer_from_saved(json.loads(json.dumps(tokenizer.saved())), where="it")
        assert other.vocab_size == tokenizer.vocab_size
        texts = [*AWKWARD, *CAPTIONS]
        np.testing.assert_array_equal(other.encode(texts, 50), tokenizer.encode(texts, 50))

    def test_a_function_of_the_texts(self):
        code = (
            "import json; from tests.fixtures.awkward_texts import random_texts as r; "
            "from vit_registers.data.tokenizers.byte_pairs import train_merges; "
            "print(json.dumps([train_merges(r(200), 900), train_merges(r(200)[::-1], 900)]))"
        )
        runs = [
            json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
            for _ in range(2)
        ]
        assert runs[0][0] == runs[0][1] == runs[1][0] == runs[1][1] and len(runs[0][0]) == 900 - 514

    def test_too_small(self):
        with pytest.raises(ConfigError, match=r"bpe\(vocab_size=100\): must be at least 514"):
            open_tokenizer("bpe(vocab_size=100)", lambda: CAPTIONS)

    def test_no_captions_give_a_tokenizer_of_bytes(self):
        assert open_tokenizer("bpe(vocab_size=600)", list).vocab_size == MIN_VOCAB_SIZE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("pieces") / "small.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 20 + ["letters and a few more words for pieces"] * 9),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=3,
        )
    return path


class TestSentencepiece:
    def test_padded_with_the_end_and_cut_before_it(self, model):
        tokenizer = open_tokenizer(f"sentencepiece(path={str(model)!r})", list)
        long, short = tokenizer.encode(["a photo of the digit three " * 9, ""], 16)
        assert tokenizer.end == 1 and long[-1] == 1 and 1 not in long[:-1] and (short == 1).all()

    def test_canonical_unless_told_otherwise(self, model):
        path = str(model)
        tokenizer = open_tokenizer(f"sentencepiece(path={path!r})", list)
        raw = open_tokenizer(f"sentencepiece(path={path!r}, canonical=False)", list)
        assert tokenizer.ids("A Photo, of") == tokenizer.ids("a photo of") == raw.ids("a photo of")
        assert raw.ids("A Photo, of") != raw.ids("a photo of")

    def test_equals_transformers(self, model):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("google.protobuf")
        outside = transformers.SiglipTokenizer(str(model))
        tokenizer = open_tokenizer(f"sentencepiece(path={str(model)!r})", list)
        texts = [*CAPTIONS, "A photo, of the digit: three!", "four " * 50, ""]
        expected = outside(texts, padding="max_length", truncation=True, max_length=64).input_ids
        np.testing.assert_array_equal(tokenizer.encode(texts, 64), np.array(expected))

    def test_saved(self, model):
        tokenizer = open_tokenizer(f"sentencepiece(path={str(model)!r}, canonical=False)", list)
        other = tokenizer_from_saved(json.loads(json.dumps(tokenizer.saved())), where="it")
        np.testing.assert_array_equal(other.encode(AWKWARD, 50), tokenizer.encode(AWKWARD, 50))

    def test_what_is_no_model_is_refused(self, tmp_path):
        pytest.importorskip("sentencepiece")
        (tmp_path / "text.model").write_text("text")
        for name, message in (
            ("text.model", "is not a sentencepiece model"),
            ("none", "cannot be read: No such"),
        ):
            with pytest.raises(DataError, match=message):
                open_tokenizer(f"sentencepiece(path={str(tmp_path / name)!r})", list)
