"""A source that the package does not have: in its own class, added to the catalog, read by both loaders."""

import io
import types

import numpy as np
import pytest
from PIL import Image

from vit_registers.data.loaders import open_data
from vit_registers.data.sources import catalog
from vit_registers.data.sources.base import DataSource
from vit_registers.errors import DataError

LOADERS = ("folder", "memory_folder")
NUM = 40


def encoded(record):
    """A PNG whose pixel (0, 0) is the record."""
    image_HxW = np.random.default_rng(record).integers(0, 256, (8, 8), dtype=np.uint8)
    image_HxW[0, 0] = record
    file = io.BytesIO()
    Image.fromarray(image_HxW).save(file, "PNG")
    return file.getvalue()


class Shards(DataSource):
    """Images in two shards of bytes with an index of offsets, as a tar archive or a column of a table is."""

    class_names = ("ant", "bee", "cow")

    def __init__(self, damaged=(), labels=None):
        images = [encoded(i) if i not in damaged else b"text" for i in range(NUM)]
        self.shards = [b"".join(images[:25]), b"".join(images[25:])]
        self.index = []  # (shard, start, stop)
        for shard, part in enumerate((images[:25], images[25:])):
            ends = np.cumsum([len(image) for image in part])
            self.index += [(shard, end - len(image), end) for image, end in zip(part, ends, strict=True)]
        self.label_N = np.arange(NUM, dtype=np.int32) % 3 if labels is None else np.array(labels, np.int32)

    def num_examples(self, split):
        if split != "test":
            raise DataError(f"shards has no split '{split}'")
        return NUM

    def describe(self, split, record):
        return f"image {record} of shard {self.index[record][0]}"

    def labels(self, split):
        return self.label_N

    def image_reader(self, split):
        def read(record):
            shard, start, stop = self.index[record]
            if start == stop:
                raise OSError(5, "Input/output error")
            return self.shards[shard][start:stop]

        return read


@pytest.fixture
def open_with(monkeypatch, make_config):
    """open_with(kind of loader, source, **settings) -> Loader."""

    def opened(kind, source, **settings):
        monkeypatch.setitem(catalog.SOURCES, "shards", lambda data, channels, broken: source)
        return open_data(make_config(kind, name="shards", train_split="test", **settings))

    return opened


def test_both_loaders_read_it_alike(open_with, device, small):
    batches = []
    for kind in LOADERS:
        loader = open_with(kind, Shards())
        assert loader.class_names == Shards.class_names
        batches.append(
            types.SimpleNamespace(
                evaluated=small.take(loader.eval_batches("test", device), None),
                trained=small.take(loader.train_batches(3, device), 9),
            )
        )
        np.testing.assert_array_equal(small.numbers(batches[-1].evaluated), range(NUM))
        np.testing.assert_array_equal(batches[-1].evaluated.targets["label"], np.arange(NUM) % 3)
        with pytest.raises(DataError, match="has no split 'tset'"):
            loader.num_examples("tset")
    small.assert_equal(batches[0].evaluated, batches[1].evaluated)
    small.assert_equal(batches[0].trained, batches[1].trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOADERS)
def test_broken_images_have_its_names(kind, open_with, device, small, caplog):
    source = Shards(damaged=(30,))
    source.index[4] = (0, 7, 7)
    loader = open_with(kind, source, on_broken="skip")
    evaluated = small.take(loader.eval_batches("test", device), None)
    np.testing.assert_array_equal(np.flatnonzero(~evaluated.mask_B), [4, 30])
    assert len(loader.broken_names) == 2
    assert "left out: image 4 of shard 0 cannot be read: Input/output error" in caplog.text
    assert "left out: image 30 of shard 1 cannot be decoded as an image (it is in none" in caplog.text
    with pytest.raises(DataError, match=r"image (4|30) of shard"):
        small.take(open_with(kind, source).eval_batches("test", device), None)


@pytest.mark.slow
def test_invalid_labels_have_its_names(open_with, device, small):
    loader = open_with("folder", Shards(labels=[3] * NUM))
    with pytest.raises(DataError, match="image 0 of shard 0 has the label 3, which is none of the 3 classes"):
        small.take(loader.eval_batches("test", device), None)
