"""Images with boxes: folders as of PASCAL VOC, examples of TFDS, and what is said when these are broken."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_registers.analysis.given_images import open_boxes
from vit_registers.data.sources.boxes import from_tfds, open_tfds_boxes, open_voc, read_image
from vit_registers.errors import ConfigError, DataError

RACCOONS = Path(__file__).parents[4] / "shared" / "data" / "raccoon-voc.zip"


def voc_object(box, *, truncated=None, difficult=None, part=""):
    marks = [("truncated", truncated), ("difficult", difficult)]
    marks = "".join(f"<{key}>{mark}</{key}>" for key, mark in marks if mark is not None)
    sides = "".join(
        f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
    )
    return f"<object><name>thing</name>{marks}{part}<bndbox>{sides}</bndbox></object>"


def write_voc(root, annotations, *, folders=("JPEGImages", "Annotations"), suffix=".jpg"):
    """`annotations`: name -> XML of the objects."""
    images, xml = (root / folder for folder in folders)
    images.mkdir(parents=True)
    xml.mkdir()
    for number, (name, objects) in enumerate(annotations.items()):
        Image.new("RGB", (20 + number, 10), (number, 5, 9)).save(
            images / f"{name}{suffix}", format="PNG" if suffix.lower() == ".png" else "JPEG"
        )
        (xml / f"{name}.xml").write_text(f"<annotation><filename>lie.jpg</filename>{objects}</annotation>")


ANNOTATIONS = {
    "b": voc_object((1, 2, 20, 10), truncated=1, difficult=0) + voc_object((3, 4, 5, 6), truncated=0),
    "a": voc_object((2.5, 1, 9, 9), difficult=1),
    "c": "",
    "d": voc_object((4, 4, 4, 4)),
}


@pytest.mark.parametrize(
    ("folders", "suffix"),
    [
        (("JPEGImages", "Annotations"), ".jpg"),
        (("images", "annotations"), ".JPEG"),
        (("images", "annotations"), ".Png"),
    ],
)
def test_records(tmp_path, folders, suffix):
    write_voc(tmp_path, ANNOTATIONS, folders=folders, suffix=suffix)
    (tmp_path / folders[0] / "without_annotation.jpg").write_bytes(b"")
    (tmp_path / folders[1] / "._a.xml").write_bytes(b"\x00")
    (tmp_path / folders[1] / "notes.txt").write_text("")
    found = open_voc(tmp_path)
    assert [record.name for record in found] == ["a", "b", "c", "d"]
    a, b, c, d = found
    assert a.path == tmp_path / folders[0] / f"a{suffix}"
    assert b.box_xyxy_px.tolist() == [[0, 1, 20, 10], [2, 3, 5, 6]]
    assert a.box_xyxy_px.tolist() == [[1.5, 0, 9, 9]]
    assert c.box_xyxy_px.shape == (0, 4)
    assert d.box_xyxy_px.tolist() == [[3, 3, 4, 4]]
    assert all(r.box_xyxy_px.dtype == np.float64 for r in found)
    image = read_image(b)
    assert image.shape == (10, 20, 3) and image.dtype == np.uint8


def test_boxes_of_parts_are_no_objects(tmp_path):
    part = voc_object((5, 5, 6, 6)).replace("object>", "part>")
    write_voc(tmp_path, {"a": voc_object((1, 1, 9, 9), part=part)})
    assert open_voc(tmp_path)[0].box_xyxy_px.tolist() == [[0, 0, 9, 9]]


def test_splits(tmp_path):
    write_voc(tmp_path, ANNOTATIONS)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    with pytest.raises(DataError, match=r"Main has no lists, so there is no split 'trainval'"):
        open_voc(tmp_path, split="trainval")
    for name, text in (
        ("trainval", "d\r\nb\r\n"),
        ("cat_trainval", "d -1\nb  1\n"),
        ("gone", "a\nzz\n"),
        ("no", "\n"),
    ):
        (lists / f"{name}.txt").write_text(text)
    assert [record.name for record in open_voc(tmp_path, split="trainval")] == ["d", "b"]
    for split, message in (
        (None, "has lists of images: name a split, such as trainval"),
        ("trainvall", "has no split 'trainvall': did you mean 'trainval'"),
        ("cat_trainval", "is the list of one class"),
        ("gone", "1 of 2 images in .*gone.txt have no annotation, such as zz"),
        ("no", "no.txt is empty"),
    ):
        with pytest.raises(DataError, match=message):
            open_voc(tmp_path, split=split)


def test_folders_that_are_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder: the layout must be root/JPEGImages"):
        open_voc(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(DataError, match="lacks the folder of images or that of annotations"):
        open_voc(tmp_path)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="has no annotations"):
        open_voc(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "a.xml cannot be read as XML"),
        ("", "a.xml cannot be read as XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml cannot be read as XML"),
        ("<dataset/>", "a.xml begins with <dataset> instead of <annotation>"),
        ("<annotation><object/></annotation>", "a.xml has an object with xmin, .* not a box"),
        (f"<annotation>{voc_object((1, 2, 'x', 4))}</annotation>", "'x'.* not a box"),
        (f"<annotation>{voc_object((1, 2, 3))}</annotation>", "None.* not a box"),
        (f"<annotation>{voc_object((3,))}</annotation>", "None.* not a box"),
        (f"<annotation>{voc_object((1, 2, 'nan', 4))}</annotation>", "not a box"),
        (f"<annotation>{voc_object((1, 2, 'inf', 4))}</annotation>", "not a box"),
        (f"<annotation>{voc_object((5, 5, 4, 9))}</annotation>", "not a box"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path, text, message):
    write_voc(tmp_path, {"a": "", "b": ""})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        open_voc(tmp_path)
    assert "\n" not in str(error.value)


def test_images_that_are_missing_broken_or_twice_there(tmp_path):
    write_voc(tmp_path, ANNOTATIONS)
    record = open_voc(tmp_path)[0]
    record.path.write_bytes(record.path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a.jpg cannot be decoded as an image"):
        read_image(record)
    record.path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.jpg cannot be decoded as an image"):
        read_image(record)
    record.path.unlink()
    with pytest.raises(DataError, match=r"has no image a \(jpg, jpeg, png\) for .*a.xml"):
        open_voc(tmp_path)
    for suffix in ("png", "jpg"):
        record.path.with_suffix(f".{suffix}").write_bytes(b"")
    with pytest.raises(DataError, match=r"has both a.jpg and a.png"):
        open_voc(tmp_path)


def test_boxes_outside_of_their_image(tmp_path):
    """Those over the edge stay as they are; those that share no pixel with the image cannot be meant."""
    over = voc_object((0, 0, 21, 11)) + voc_object((20, 10, 90, 90))
    write_voc(tmp_path, {"a": over})
    assert open_voc(tmp_path)[0].box_xyxy_px.tolist() == [[-1, -1, 21, 11], [19, 9, 90, 90]]
    for box in ((21, 1, 30, 5), (1, 11, 5, 30), (-8, 1, 0, 5), (1, -3.5, 5, 0)):
        (tmp_path / "Annotations" / "a.xml").write_text(
            f"<annotation>{voc_object((1, 1, 5, 5))}{voc_object(box)}</annotation>"
        )
        line = ", ".join(map(str, box))
        with pytest.raises(DataError, match=rf"a.xml has a box .*= {line} outside of a.jpg.* 20 x 10 px"):
            open_voc(tmp_path)


def test_images_that_cannot_be_opened_are_found_before_they_are_needed(tmp_path):
    write_voc(tmp_path, {"a": "", "b": ""})
    image = tmp_path / "JPEGImages" / "b.jpg"
    for content in (b"", b"no image"):
        image.write_bytes(content)
        with pytest.raises(DataError, match=r"b.jpg cannot be decoded as an image"):
            open_voc(tmp_path)
    image.unlink()
    image.mkdir()
    with pytest.raises(DataError, match=r"b.jpg cannot be decoded as an image"):
        open_voc(tmp_path)


def test_kinds_of_images(tmp_path):
    write_voc(tmp_path, {"a": ""}, suffix=".png")
    path = tmp_path / "JPEGImages" / "a.png"
    grey = np.random.default_rng(0).integers(0, 256, (10, 20), dtype=np.uint8)
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 256 + 200),  # 16 bits
        Image.fromarray(np.stack([grey] * 3 + [grey // 2], axis=-1)),  # with alpha, which is left out
    ):
        image.save(path)
        found = read_image(open_voc(tmp_path)[0])
        np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=-1), err_msg=image.mode)


def test_a_list_that_is_no_text(tmp_path):
    write_voc(tmp_path, {"a": ""})
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"1 of 1 images in .*trainval.txt have no annotation"):
        open_voc(tmp_path, split="trainval")


def test_raccoons(tmp_path):
    if not RACCOONS.exists():
        pytest.skip(f"{RACCOONS.name} is not there: real annotations are tested only where they are")
    zipfile.ZipFile(RACCOONS).extractall(tmp_path)
    found = open_voc(tmp_path)
    assert len(found) == 200
    # counted apart from any XML parser
    texts = [(tmp_path / "annotations" / f"{record.name}.xml").read_text() for record in found]
    for record, text in zip(found, texts, strict=True):
        sides = np.array(re.findall(r"<(?:x|y)(?:min|max)>(\d+)<", text), float).reshape(-1, 4)
        np.testing.assert_array_equal(record.box_xyxy_px, sides - (1, 1, 0, 0))
    assert sum(len(record.box_xyxy_px) for record in found) == 217
    grey = next(record for record in found if record.name == "raccoon-150")
    with Image.open(grey.path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(read_image(grey)[..., 1], np.asarray(image))


def encode(height, width):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (7, 8, 9)).save(stream, "PNG")
    return stream.getvalue()


def shares(boxes_xyxy, height, width):
    """As TFDS stores them."""
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4) / (width, height, width, height)
    return boxes[:, [1, 0, 3, 2]].astype(np.float32)


def test_tfds_voc_is_the_same_as_the_folder():
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(n) for n in rng.integers(100, 501, 2))
        low = rng.integers(1, 50, (6, 2))
        boxes = np.concatenate([low, low + rng.integers(0, 50, (6, 2))], axis=1)
        is_difficult, is_truncated = rng.integers(0, 2, (2, 6)).astype(bool)
        record = from_tfds(
            {
                "image": encode(height, width),
                "image/filename": b"000012.jpg",
                "objects": {
                    "bbox": shares(boxes, height, width),
                    "is_difficult": is_difficult,
                    "is_truncated": is_truncated,
                },
            },
            record=3,
        )
        assert record.name == "000012" and record.path is None
        np.testing.assert_array_equal(record.box_xyxy_px, boxes - (1, 1, 0, 0))
    assert read_image(record).shape == (height, width, 3)


def test_tfds_coco_without_crowds_and_rounded():
    boxes = [[116.95, 305.86, 402.25, 450.2], [0, 0, 640, 480], [10.5, 11.5, 20.5, 21.5]]
    objects = {"bbox": shares(boxes, 480, 640), "is_crowd": np.array([False, True, False])}
    record = from_tfds({"image": encode(480, 640), "objects": objects}, record=3)
    assert record.name == "record 3"
    # halves to even, as Python rounds
    assert record.box_xyxy_px.tolist() == [[117, 306, 402, 450], [10, 12, 20, 22]]
    empty = {"bbox": np.zeros((0, 4), np.float32), "is_crowd": np.zeros(0, bool)}
    assert from_tfds({"image": encode(4, 4), "objects": empty}, record=0).box_xyxy_px.shape == (0, 4)
    with pytest.raises(DataError, match="record 7 cannot be decoded"):
        from_tfds({"image": b"no image", "objects": empty}, record=7)


def write_tfds(path, file_format, *, has_boxes=True):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    boxes = {"objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "is_crowd": np.bool_})}

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
            features = tfds.features.FeaturesDict(features | (boxes if has_boxes else {}))
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                things = [
                    {"bbox": tfds.features.BBox(0.5, 0.0, 1.0, 0.25 * j), "is_crowd": j == 2}
                    for j in range(1, i + 2)
                ]
                image = np.full((10, 20, 3), i, np.uint8)
                example = {"image": image, "image/filename": f"image_{i}.jpg"}
                yield i, example | ({"objects": things} if has_boxes else {})

    tfds.disable_progress_bar()
    Toy(data_dir=path, file_format=file_format).download_and_prepare()
    return str(path)


@pytest.mark.slow
def test_prepared_tfds(tmp_path):
    data = open_tfds_boxes("toy", "train", data_dir=write_tfds(tmp_path / "a", "array_record"))
    assert len(data) == 3
    assert [record.name for record in data] == ["image_0", "image_1", "image_2"]
    assert data[2].box_xyxy_px.tolist() == [[0, 5, 5, 10], [0, 5, 15, 10]]  # the second of three is a crowd
    np.testing.assert_array_equal(read_image(data[1]), np.full((10, 20, 3), 1, np.uint8))
    part = open_tfds_boxes("toy", "train[1:]", data_dir=str(tmp_path / "a"))
    assert [record.name for record in part] == ["image_1", "image_2"]
    with pytest.raises(DataError, match="reaches 1000, but 'train' has 3 examples"):
        open_tfds_boxes("toy", "train[1:1000]", data_dir=str(tmp_path / "a"))
    assert len(open_tfds_boxes(str(tmp_path / "a" / "toy" / "1.0.0"), "train")) == 3
    assert len(open_boxes(f"{tmp_path}/a/toy/1.0.0:train[1:]")) == 2
    with pytest.raises(DataError, match=r"--boxes='toy:2.0.0' is not prepared in .*, which has toy:1.0.0"):
        open_tfds_boxes("toy:2.0.0", "train", data_dir=str(tmp_path / "a"))
    with pytest.raises(DataError, match="toy has no split 'trian': did you mean 'train'"):
        open_tfds_boxes("toy", "trian", data_dir=str(tmp_path / "a"))
    with pytest.raises(
        DataError, match=r"toi is not prepared in .*: run 'python -m vit_registers.prepare --name=toi"
    ):
        open_tfds_boxes("toi", "train", data_dir=str(tmp_path / "a"))
    with pytest.raises(DataError, match="toy is prepared as TFRecord files"):
        open_tfds_boxes("toy", "train", data_dir=write_tfds(tmp_path / "b", "tfrecord"))
    with pytest.raises(
        DataError, match="toy has image, image/filename: must have image and objects with bbox"
    ):
        open_tfds_boxes("toy", "train", data_dir=write_tfds(tmp_path / "c", "array_record", has_boxes=False))


def test_a_folder_in_an_object_store_is_refused():
    with pytest.raises(ConfigError, match="--boxes=gs://bucket/voc must be on this machine"):
        open_boxes("gs://bucket/voc")
