"""Captions that are made of classes: which one an image has in a step, in both loaders."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from tests.fixtures.digits import make_config
from vit_registers.config import Captions
from vit_registers.data.batch import IMAGE, TOKENS, Texts, Training, View
from vit_registers.data.caption_tokens import draws
from vit_registers.data.loaders import open_data
from vit_registers.data.tokenizers.catalog import open_tokenizer
from vit_registers.errors import ConfigError

TEMPLATES = ("a photo of the digit {}.", "{}", "the {} of {}")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTS = Texts(context=40, vocab_size=258, group=10)
CAPTIONS = Captions(tokenizer="bytes", templates=TEMPLATES, class_texts=WORDS)


def config_of(loader="memory", data_dir=None, captions=CAPTIONS, **data):
    settings = {"loader": loader, "data_dir": data_dir, "batch_size": 40, "captions": captions}
    return make_config(data=settings | data)


def open_with(config, texts=TEXTS):
    return open_data(config, Training({IMAGE: View(8, 8, "", "data.train_ops")}, {}, texts))


def take(loader, start_step, number, sharding):
    batches = loader.train_batches(start_step, sharding)
    taken = [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, number)]
    batches.close()
    return taken


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def loader():
    return open_with(config_of())


def test_tokens_say_the_class_in_one_of_the_templates(loader, device):
    tokenizer = open_tokenizer("bytes", list)
    used = set()
    for batch in take(loader, 0, 6, device):
        tokens_BxL = batch.targets[TOKENS]
        assert tokens_BxL.dtype == np.int32 and tokens_BxL.shape == (40, 40) and batch.mask_B.all()
        for tokens, label in zip(tokens_BxL, batch.targets["label"], strict=True):
            texts = [template.replace("{}", WORDS[label]) for template in TEMPLATES]
            found = (tokenizer.encode(texts, 40) == tokens).all(axis=1)
            assert found.sum() == 1
            used.add((int(label), int(found.argmax())))
    assert len(used) == 30  # each class with each template
    assert loader.texts.tokenizer.vocab_size == 258


def test_groups_have_ten_classes(loader, device):
    for batch in take(loader, 5, 3, device):
        assert (np.sort(batch.targets["label"].reshape(4, 10)) == np.arange(10)).all()
    assert loader.texts.counts.equal == 0


def test_resumed_batches_are_equal(loader, device):
    assert_equal(take(loader, 0, 7, device)[4:], take(open_with(config_of()), 4, 3, device))


def test_both_loaders_have_the_same_texts(loader, device, digits_tfds):
    other = open_with(config_of("tfdata", str(digits_tfds)))
    assert_equal(take(loader, 2, 3, device), take(other, 2, 3, device))
    assert_equal(take(other, 2, 3, device), take(other, 0, 5, device)[2:])


def test_processes_make_their_shares(loader, device, digits_tfds):
    other = open_with(config_of("tfdata", str(digits_tfds)))
    shares = [other.host_train_batches(3, process_index=i, process_count=4) for i in range(4)]
    parts = [next(share) for share in shares]
    for share in shares:
        share.close()
    whole = take(loader, 3, 1, device)[0]
    assert_equal(whole, jax.tree.map(lambda *x: np.concatenate(x), *parts))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_over_devices(loader, device):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert_equal(take(loader, 1, 2, device), take(loader, 1, 2, sharding))


def test_draws_are_a_function_of_seed_step_and_record():
    record_B = np.arange(10_000)
    drawn = draws(3, 7, record_B)
    assert drawn.dtype == np.uint64 and len(set(drawn.tolist())) == 10_000
    np.testing.assert_array_equal(draws(3, 7, record_B[::-1]), drawn[::-1])
    assert abs(np.bincount((drawn % np.uint64(5)).astype(int)) / 2000 - 1).max() < 0.08
    for other in (draws(4, 7, record_B), draws(3, 8, record_B), draws(7, 3, record_B)):
        assert (drawn % np.uint64(2) == other % np.uint64(2)).mean() == pytest.approx(0.5, abs=0.02)


def test_names_of_classes_have_spaces(device, make_config):
    config = make_config("memory_folder", batch_size=6)
    captions = Captions(tokenizer="bytes", templates=("a {}",))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, captions=captions))
    batch = take(open_with(config, Texts(context=16, vocab_size=300, group=3)), 0, 1, device)[0]
    names = ("ant", "bee", "cow")
    expected = open_tokenizer("bytes", list).encode([f"a {names[i]}" for i in batch.targets["label"]], 16)
    np.testing.assert_array_equal(batch.targets[TOKENS], expected)


def test_equal_captions_of_a_batch_are_counted_and_logged(device, caplog):
    captions = dataclasses.replace(CAPTIONS, templates=("{}",))
    loader = open_with(config_of(captions=captions, drop_last=True), TEXTS._replace(group=None))
    take(loader, 0, 3, device)
    assert loader.texts.counts.equal >= 3 * 30  # of 40 captions, at most 10 differ
    assert [record.message for record in caplog.records if "equal to an earlier one" in record.message]
    assert (
        "captions: 120; cut to 40 tokens: 0; equal to an earlier one of a batch: 9" in loader.texts.summary()
    )


@pytest.mark.parametrize(
    ("data", "texts", "message"),
    [
        (
            {"captions": Captions(tokenizer="bytes")},
            TEXTS,
            r"data.captions.templates=\(\): the data has classes",
        ),
        (
            {"captions": dataclasses.replace(CAPTIONS, class_texts=("a", "b"))},
            TEXTS,
            "data.captions.class_texts has 2 texts, and the data has 10 classes",
        ),
        (
            {"captions": dataclasses.replace(CAPTIONS, class_texts=("a",) * 10)},
            TEXTS,
            "all captions would be of the class 'a'",
        ),
        (
            {"captions": dataclasses.replace(CAPTIONS, templates=("a photo",))},
            TEXTS,
            "text with {} in the place",
        ),
        ({}, TEXTS._replace(vocab_size=200), "text.vocab_size=200 is less than the 258 ids"),
        ({}, TEXTS._replace(group=None), "data.drop_last=False: a batch at the end of an epoch"),
        ({"repeats": 2}, TEXTS, "data.repeats=2: a batch has no image twice"),
        ({"batch_size": 44}, TEXTS, "data.batch_size=44 does not consist of groups"),
    ],
)
def test_what_is_not_possible_is_refused_in_one_line(data, texts, message, device):
    with pytest.raises(ConfigError, match=message) as raised:
        open_with(config_of(**data), texts).train_batches(0, device)
    assert "\n" not in str(raised.value)


def test_captions_longer_than_the_context_end_with_the_end(device, caplog):
    loader = open_with(config_of(), TEXTS._replace(context=8))
    tokens_BxL = take(loader, 0, 1, device)[0].targets[TOKENS]
    assert (tokens_BxL == 257).sum() == 40
    assert "20 captions of classes are cut to 8 tokens" in caplog.text


def test_without_texts_nothing_changes(device):
    config = config_of()
    plain = take(open_data(config), 0, 2, device)
    assert TOKENS not in plain[0].targets
    assert open_data(config).texts is None and open_data(config).captions("train") is None
