"""ADE20k, PASCAL VOC and folders of index PNGs: labels, classes, splits, and files that are refused."""

import numpy as np
import pytest
from PIL import Image

from vit_registers.data.sources.dense import CLASSES, IGNORED
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import DataError

NUMBERS = np.array([[0, 1, 2], [3, 150, 0]], np.uint8)


def write(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray(array, "P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)


@pytest.fixture
def ade(tmp_path):
    for split, number in (("training", 2), ("validation", 1)):
        for i in range(number):
            write(tmp_path / "images" / split / f"ADE_{i}.png", picture(i))
            write(tmp_path / "annotations" / split / f"ADE_{i}.png", NUMBERS)
    return tmp_path


@pytest.fixture
def masks(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "images" / split / "a.png", picture())
        write(tmp_path / "masks" / split / "a.png", np.array([[0, 1, 2], [255, 1, 0]], np.uint8))
    return tmp_path


def test_ade20k_ignores_0_and_counts_classes_from_1(ade):
    source = open_dense(str(ade), CLASSES)
    assert (source.protocol, len(source.class_names)) == ("ade20k", 150)
    assert (source.num_examples("training"), source.num_examples("validation")) == (2, 1)
    image, label = source.load("training", 1, 3)
    assert (image == picture(1)).all() and label.dtype == np.int32
    assert label.tolist() == [[IGNORED, 0, 1], [2, 149, IGNORED]]
    rows = [f"{i}\t0.1\t9\t9\tname {i}, other" for i in range(1, 151)]
    (ade / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert open_dense(str(ade), CLASSES).class_names[149] == "name 150"


@pytest.mark.parametrize("number", [151, 255])
def test_ade20k_refuses_numbers_above_150(ade, number):
    write(ade / "annotations" / "training" / "ADE_1.png", np.full((2, 3), number, np.uint8))
    with pytest.raises(DataError, match=f"annotations/training/ADE_1.png: the label {number} is no class"):
        open_dense(str(ade), CLASSES).load("training", 1, 3)


def test_voc_reads_the_indices_of_palettes(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write(root / "JPEGImages" / "2007_1.jpg", picture())
    write(root / "SegmentationClass" / "2007_1.png", np.array([[0, 20, 255], [1, 1, 1]], np.uint8), "P")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_1\n2007_2\n")
    for folder in (tmp_path, root.parent, root):
        source = open_dense(str(folder), CLASSES)
        assert (source.protocol, len(source.class_names), source.num_examples("val")) == ("voc2012", 21, 2)
        assert source.load("train", 0, 3).label_HxW.tolist() == [[0, 20, IGNORED], [1, 1, 1]]
    with pytest.raises(DataError, match=r"2007_2.png cannot be read: No such file"):
        source.load("val", 1, 3)
    with pytest.raises(DataError, match="voc2012 has no split 'test'"):
        source.num_examples("test")


def test_any_folder(masks):
    source = open_dense(str(masks), CLASSES)
    assert source.class_names == ("0", "1", "2") and source.protocol == "folder"
    image, label = source.load("val", 0, 1)
    assert image.shape == (2, 3, 1) and label.tolist() == [[0, 1, 2], [IGNORED, 1, 0]]
    (masks / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(DataError, match=r"masks/val/a.png: the label 2 is no class: those are 0 to 1"):
        open_dense(str(masks), CLASSES).load("val", 0, 1)


def test_files_that_are_refused(masks):
    (masks / "masks" / "train" / "a.png").rename(masks / "masks" / "train" / "b.png")
    with pytest.raises(DataError, match=r"masks/train lacks the masks of 1 of 1 images, such as a.png"):
        open_dense(str(masks), CLASSES)
    write(masks / "masks" / "train" / "a.png", picture())
    (masks / "classes.txt").write_text("sky\nsea\nsand\n")
    with pytest.raises(DataError, match=r"masks/train/a.png has colors \(mode RGB\)"):
        open_dense(str(masks), CLASSES).load("train", 0, 3)
    write(masks / "masks" / "train" / "a.png", np.zeros((3, 2), np.uint8))
    with pytest.raises(
        DataError, match=r"masks/train/a.png: the labels are 3 x 2 pixels and the image is 2 x"
    ):
        open_dense(str(masks), CLASSES).load("train", 0, 3)
    (masks / "images" / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images/train/a.png is no image that can be decoded"):
        open_dense(str(masks), CLASSES).load("train", 0, 3)
    (masks / "masks" / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"masks/train/a.png is no mask that can be decoded"):
        open_dense(str(masks), CLASSES).load("train", 0, 3)
    for file in (masks / "images" / "val").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"split 'val' of .* has no images"):
        open_dense(str(masks), CLASSES).num_examples("val")
    (masks / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match=r"has no classes: list them in classes.txt"):
        open_dense(str(masks), CLASSES)
