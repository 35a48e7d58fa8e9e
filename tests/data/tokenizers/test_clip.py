"""CLIP's tokenizer against the packages that ship it: open_clip_torch, clip-anytorch and transformers."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.awkward_texts import AWKWARD, random_texts
from vit_registers.data.tokenizers import clip
from vit_registers.data.tokenizers.catalog import open_tokenizer, tokenizer_from_saved
from vit_registers.errors import DataError, MissingPackageError

for package in ("regex", "tokenizers", "ftfy"):
    pytest.importorskip(package)


def _package(name):
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent


def _module(path):
    spec = importlib.util.spec_from_file_location(f"outside_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    try:
        return open_tokenizer("clip", list)
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def open_clip(tokenizer):
    pytest.importorskip("torch")
    return _module(_package("open_clip") / "tokenizer.py")


def test_check_value(tokenizer):
    expected = [49406, 320, 1125, 539, 320, 2368, 269, 49407] + [0] * 69
    texts = ["a photo of a cat.", "A photo of a CAT .", ""]
    tokens = tokenizer.encode(texts, 77)
    assert tokens.dtype == np.int32 and tokenizer.vocab_size == 49_408 and tokenizer.end == 49_407
    assert tokens[0].tolist() == tokens[1].tolist() == expected
    assert tokens[2].tolist() == [49406, 49407] + [0] * 75


@pytest.mark.parametrize("context", [77, 16, 2])
def test_equals_open_clip(tokenizer, open_clip, context):
    texts = [*AWKWARD, *random_texts(300)]
    expected = open_clip.SimpleTokenizer()(texts, context).numpy()
    np.testing.assert_array_equal(tokenizer.encode(texts, context), expected)


def test_equals_openai_where_no_special_token_is_named(tokenizer):
    outside = _module(_package("clip") / "simple_tokenizer.py").SimpleTokenizer()
    texts = [text for text in (*AWKWARD, *random_texts(300)) if "_of_text" not in text and "|" not in text]
    for text in texts:
        assert tokenizer.ids(text)[1:-1] == outside.encode(text), text


def test_long_texts_are_cut_and_counted_and_end_with_the_end(tokenizer):
    tokens, num_cut = tokenizer.encode_and_count(["word " * 75, "word " * 76, "word " * 500], 77)
    assert num_cut == 2 and (tokens[:, 76] == tokenizer.end).all() and (tokens[:, 75] != tokenizer.end).all()


def test_the_end_is_the_largest_id_and_occurs_once(tokenizer):
    texts = [text for text in AWKWARD if "end_of_text" not in text]
    tokens = tokenizer.encode(texts, 32)
    assert ((tokens == tokens.max(axis=1, keepdims=True)).sum(axis=1) == 1).all()


def test_saved_and_from_a_path(tokenizer, tmp_path):
    plain = tmp_path / "vocabulary.txt"
    plain.write_bytes(gzip.decompress(clip.find_vocabulary().read_bytes()))
    expected = tokenizer.encode(AWKWARD, 40)
    for other in (
        tokenizer_from_saved(tokenizer.saved(), where="it"),
        open_tokenizer(f"clip(path={str(plain)!r})", list),
    ):
        np.testing.assert_array_equal(other.encode(AWKWARD, 40), expected)


def test_what_lacks_a_vocabulary_is_refused_in_one_line(tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(b"#version\na b\n" * 9)[:-9])
    short = tmp_path / "short.txt"
    short.write_text("#version: 0.2\ni n\nt h\n")
    for path, message in (
        (tmp_path / "none.gz", r"none.gz cannot be read: No such file or directory: .*pip install"),
        (damaged, "damaged.gz is damaged, or not CLIP's vocabulary .*pip install"),
        (short, "short.txt has 2 merges, and CLIP's vocabulary has 48,894"),
    ):
        with pytest.raises(DataError, match=message) as raised:
            open_tokenizer(f"clip(path={str(path)!r})", list)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(clip.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"install open_clip_torch or clip-anytorch .* or give the file"
    ):
        clip.find_vocabulary()


def test_packages_with_the_vocabulary_are_not_imported(tokenizer):
    import subprocess
    import sys

    code = (
        "import sys; from vit_registers.data.tokenizers.catalog import open_tokenizer; "
        "open_tokenizer('clip', list).ids('a cat'); "
        "print({'torch', 'open_clip', 'clip', 'tensorflow', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
