"""The tokenizer in a run folder."""

import numpy as np
import pytest
from etils import epath

from tests.fixtures.awkward_texts import AWKWARD
from vit_registers.data.tokenizers.catalog import open_tokenizer
from vit_registers.errors import ConfigError, DataError
from vit_registers.runs.tokenizer_file import FILE, read_tokenizer, write_tokenizer


def bpe(*texts):
    for package in ("regex", "tokenizers", "ftfy"):
        pytest.importorskip(package)
    return open_tokenizer("bpe(vocab_size=600)", lambda: texts)


def test_written_and_read(tmp_path):
    run, tokenizer = epath.Path(tmp_path), bpe("a photo of a cat", "a photo of a dog")
    write_tokenizer(tokenizer, run, is_resumed=False)
    other = read_tokenizer(run)
    assert other.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(other.encode(AWKWARD, 30), tokenizer.encode(AWKWARD, 30))
    write_tokenizer(tokenizer, run, is_resumed=True)


def test_a_run_is_not_resumed_with_another_tokenizer(tmp_path):
    run = epath.Path(tmp_path)
    write_tokenizer(bpe("a photo of a cat"), run, is_resumed=False)
    before = (run / FILE).read_text()
    for other in (open_tokenizer("bytes", list), bpe("a photo of a dog")):
        with pytest.raises(
            ConfigError, match="is not the tokenizer that the run was trained with, which is in"
        ):
            write_tokenizer(other, run, is_resumed=True)
        assert (run / FILE).read_text() == before
    write_tokenizer(open_tokenizer("bytes", list), run, is_resumed=False)
    assert read_tokenizer(run).name == "bytes"


def test_runs_without_captions_have_none(tmp_path):
    run = epath.Path(tmp_path)
    write_tokenizer(None, run, is_resumed=False)
    assert not any(run.iterdir())
    with pytest.raises(
        ConfigError, match=r"has no tokenizer.json: it is not a run that was trained on captions"
    ):
        read_tokenizer(run)


@pytest.mark.parametrize(
    ("text", "message"), [('{"tokenizer": "bpe"}', "does not describe a tokenizer"), ("{", "cannot be read")]
)
def test_a_damaged_file(text, message, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        read_tokenizer(epath.Path(tmp_path))
