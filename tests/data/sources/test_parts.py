"""Held-out parts of a split: which examples they have, and that loaders read them."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.fixtures.digits import make_config
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.digits import DigitsSource, load_split
from vit_registers.data.sources.parts import (
    Parts,
    every_records,
    held_out,
    held_out_records,
    kept,
    kept_records,
    whole,
)
from vit_registers.errors import ConfigError, DataError

NUMBER = 1438
HELD, KEPT = held_out("train", 0.1, 3), kept("train", 0.1, 3)


def test_the_parts_are_the_whole():
    held, rest = held_out_records(NUMBER, 0.1, 3), kept_records(NUMBER, 0.1, 3)
    assert len(held) == 144
    np.testing.assert_array_equal(np.sort(np.concatenate([held, rest])), np.arange(NUMBER))
    assert not np.array_equal(held, held_out_records(NUMBER, 0.1, 4))
    assert [len(held_out_records(number, 0.01, 0)) for number in (2, 3)] == [1, 1]
    with pytest.raises(DataError, match="none to hold out"):
        held_out_records(1, 0.1, 0)
    assert (whole(HELD), whole(KEPT), whole("train[:9]")) == ("train", "train", "train[:9]")


def test_a_source_with_parts():
    source, parts = DigitsSource(), Parts(DigitsSource())
    label_N, held = source.labels("train"), held_out_records(NUMBER, 0.1, 3)
    assert parts.num_examples("train") == NUMBER and parts.num_examples(HELD) == 144
    np.testing.assert_array_equal(parts.labels(HELD), label_N[held])
    assert parts.image_reader(HELD)(5) == source.image_reader("train")(int(held[5]))
    assert parts.describe(HELD, 5) == source.describe("train", int(held[5]))
    record_N = np.array([5, 0, 143])
    found = [x.numpy() for x in parts.tf_reader(HELD)(record_N)]
    want = [x.numpy() for x in source.tf_reader("train")(held[record_N])]
    assert list(found[0]) == list(want[0]) and list(found[1]) == list(want[1])
    with pytest.raises(DataError, match="no split 'trian'"):
        parts.num_examples(held_out("trian", 0.1, 3))

    class InOrder(DigitsSource):
        @property
        def tfrecords(self):
            return self

    with pytest.raises(ConfigError, match="prepared as TFRecord files, of which no part can be held out"):
        Parts(InOrder())


def test_a_loader_trains_on_one_part_and_evaluates_the_other():
    config = make_config(data={"train_split": KEPT, "eval_split": HELD, "batch_size": 128})
    loader, one = open_data(config), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    image_NxHxWx1, label_N = load_split("train")
    (batch,) = loader.eval_batches(HELD, one)
    held, mask = held_out_records(NUMBER, 0.1, 3), np.asarray(batch.mask_B)
    np.testing.assert_array_equal(np.asarray(batch.views["image"])[mask], image_NxHxWx1[held])
    trained = loader.train_batches(0, one)
    seen = np.concatenate([np.asarray(next(trained).views["image"]) for _ in range(11)])
    assert len(seen) == 1408
    images = {image.tobytes() for image in image_NxHxWx1[kept_records(NUMBER, 0.1, 3)]}
    assert all(image.tobytes() in images for image in seen[:1294])
    assert len(label_N) == NUMBER
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, loader="pil"))
    assert open_data(changed).num_examples(HELD) == 144


def test_every_fifth_example_of_each_class():
    label_N = load_split("train")[1]
    records = every_records(label_N, 5)
    want = np.sort(np.concatenate([np.flatnonzero(label_N == c)[::5] for c in range(10)]))
    np.testing.assert_array_equal(records, want)
    np.testing.assert_array_equal(every_records(label_N, 1), np.arange(NUMBER))
    np.testing.assert_array_equal(every_records(np.zeros(7, np.int32), 3), [0, 3, 6])
    assert len(every_records(label_N, NUMBER)) == 10


def test_a_part_of_a_part():
    source, parts = DigitsSource(), Parts(DigitsSource())
    fifth = every_records(source.labels("train"), 5)
    split = kept("train[::5]", 0.2, 1)
    inner = fifth[kept_records(len(fifth), 0.2, 1)]
    assert (whole(split), whole("train[::5][::2]")) == ("train", "train")
    np.testing.assert_array_equal(parts.labels(split), source.labels("train")[inner])
    assert parts.image_reader(split)(3) == source.image_reader("train")(int(inner[3]))
    twice = fifth[every_records(source.labels("train")[fifth], 2)]
    np.testing.assert_array_equal(parts.labels("train[::5][::2]"), source.labels("train")[twice])


@pytest.mark.parametrize("every", ["0", "-1", "x", "", "2.5", "\u0665"])
def test_a_stride_that_is_none_is_refused(every):
    with pytest.raises(DataError, match=r"such as 'train\[::5\]'"):
        Parts(DigitsSource()).num_examples(f"train[::{every}]")


@pytest.mark.parametrize("loader", ["memory", "tfdata"])
def test_a_loader_trains_on_every_fifth_example(loader, tmp_path):
    data = {"train_split": "train[::5]", "loader": loader, "batch_size": 32, "data_dir": str(tmp_path)}
    config = make_config(data=data)
    opened, one = open_data(config), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    records = every_records(load_split("train")[1], 5)
    assert opened.num_examples("train[::5]") == len(records)
    batches = opened.eval_batches("train[::5]", one)
    label = np.concatenate([np.asarray(b.targets["label"])[np.asarray(b.mask_B)] for b in batches])
    np.testing.assert_array_equal(np.sort(label.ravel()), np.sort(load_split("train")[1][records]))
