"""Data with a label for each pixel: what is refused, in one line that names the example; the catalog."""

import numpy as np
import pytest

from vit_registers.data.sources.dense import CLASSES, DEPTH, IGNORED, DensePair, DenseSource, check_split
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.data.sources.digit_scenes import scene
from vit_registers.errors import DataError


class One(DenseSource):
    """A source with one example."""

    name = protocol = "one"

    def __init__(self, kind, label, first_label=0):
        self.kind, self.class_names, self.first_label = kind, ("a", "b", "c"), first_label
        self._label = label

    def num_examples(self, split):
        check_split(self.name, split, ["train"])
        return 1

    def read(self, split, i, channels):
        return DensePair(np.zeros((4, 5, channels), np.uint8), self._label)


def labels(value, kind=CLASSES, shape=(4, 5)):
    return np.full(shape, value, np.int32 if kind == CLASSES else np.float32)


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        (CLASSES, labels(0, shape=(5, 4)), "the labels are 5 x 4 pixels and the image is 4 x 5"),
        (CLASSES, labels(3), "the label 3 is no class: those are 0 to 2"),
        (CLASSES, labels(-1), "the label -1 is no class"),
        (CLASSES, labels(IGNORED), "every pixel is ignored"),
        (DEPTH, labels(0, DEPTH), "the depth of every pixel is 0"),
        (DEPTH, labels(-1, DEPTH), "a depth is negative or not finite"),
        (DEPTH, labels(np.nan, DEPTH), "a depth is negative or not finite"),
    ],
)
def test_labels_that_are_refused(kind, label, message):
    with pytest.raises(DataError, match=f"^example 0 of split 'train' of one: {message}") as error:
        One(kind, label).load("train", 0, 1)
    assert "\n" not in str(error.value)


def test_labels_are_called_as_in_the_files():
    with pytest.raises(DataError, match="the label 4 is no class: those are 1 to 3"):
        One(CLASSES, labels(3), first_label=1).load("train", 0, 1)


def test_some_ignored_pixels_and_some_without_depth_are_fine():
    label = labels(2)
    label[0] = IGNORED
    assert (One(CLASSES, label).load("train", 0, 3).label_HxW == label).all()
    depth = labels(0, DEPTH)
    depth[1, 1] = 3.5
    assert One(DEPTH, depth).load("train", 0, 3).label_HxW[1, 1] == 3.5


@pytest.mark.parametrize("kind", [CLASSES, DEPTH])
def test_digit_scenes(kind):
    source = open_dense("digit_scenes", kind)
    assert (source.num_examples("train"), source.num_examples("test")) == (1000, 200)
    image, label = source.load("test", 7, 3)
    grey, classes, depth = scene("test", 7)
    assert image.shape == (24, 24, 3) and (image == grey).all()
    assert (label == (classes if kind == CLASSES else depth)).all()
    assert label.dtype == (np.int32 if kind == CLASSES else np.float32)
    assert len(source.class_names) == (11 if kind == CLASSES else 0)
    with pytest.raises(DataError, match=r"^digit_scenes has no split 'tset': did you mean 'test'\?$"):
        source.num_examples("tset")


def test_the_catalog_names_what_there_is(tmp_path):
    with pytest.raises(DataError, match="did you mean 'digit_scenes'"):
        open_dense("digit_scene", CLASSES)
    with pytest.raises(DataError, match="there is no such folder"):
        open_dense(str(tmp_path / "nothing"), CLASSES)
    with pytest.raises(DataError, match=r"has none of the layouts .*ADE20k.*VOC.*masks/SPLIT"):
        open_dense(str(tmp_path), CLASSES)
