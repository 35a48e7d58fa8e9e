"""Data sets with depth, in small folders: NYU's and KITTI's lists, any folder, and TFDS's NYU."""

import numpy as np
import pytest
from PIL import Image

from vit_registers.data.sources.dense import DEPTH
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import DataError


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def image(number, height=12, width=16):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def units(number, height=12, width=16):
    raw = np.random.default_rng(100 + number).integers(0, 20_000, (height, width)).astype(np.uint16)
    raw[0, 0] = 0
    return raw


@pytest.fixture
def nyu(tmp_path):
    lines = []
    for i in range(3):
        write(tmp_path / f"kitchen_{i}/rgb.png", image(i))
        write(tmp_path / f"kitchen_{i}/depth.png", units(i))
        lines.append(f"/kitchen_{i}/rgb.png /kitchen_{i}/depth.png 518.8579")
    (tmp_path / "nyu_train.txt").write_text("\n".join([*lines[:2], "/hall/rgb.png None 518.8579", ""]))
    (tmp_path / "nyu_test.txt").write_text(lines[2].replace(" 518.8579", ""))
    return tmp_path


def test_nyu(nyu, caplog):
    source = open_dense(str(nyu), DEPTH)
    assert (source.protocol, source.kind, source.class_names) == ("nyu", DEPTH, ())
    assert (source.num_examples("train"), source.num_examples("test")) == (2, 1)
    assert "left out 1 images whose depth is None" in caplog.text
    for split, i, number in (("train", 1, 1), ("test", 0, 2)):
        pair = source.load(split, i, 3)
        np.testing.assert_array_equal(pair.image_HxWxC, image(number))
        np.testing.assert_allclose(pair.label_HxW, units(number) / 1000.0, rtol=1e-6)
        assert pair.label_HxW.dtype == np.float32 and pair.label_HxW[0, 0] == 0
    assert source.load("test", 0, 1).image_HxWxC.shape == (12, 16, 1)
    assert source.describe("test", 0) == f"{nyu}/kitchen_2/rgb.png and {nyu}/kitchen_2/depth.png"


def test_kitti_is_cut_at_the_bottom(tmp_path):
    line = "2011/drive/5.png drive/depth/5.png 721.5377"
    write(tmp_path / "input/2011/drive/5.png", image(0, 375, 1242))
    write(tmp_path / "gt_depth/drive/depth/5.png", units(0, 375, 1242))
    (tmp_path / "kitti_eigen_test.txt").write_text(line)
    source = open_dense(str(tmp_path), DEPTH)
    assert source.protocol == "kitti"
    pair = source.load("test", 0, 3)
    np.testing.assert_array_equal(pair.image_HxWxC, image(0, 375, 1242)[23:, 13:1229])
    np.testing.assert_allclose(pair.label_HxW, units(0, 375, 1242)[23:, 13:1229] / 256.0, rtol=1e-6)
    with pytest.raises(DataError, match=r"kitti_eigen_train\.txt cannot be read: No such file"):
        source.num_examples("train")
    write(tmp_path / "input/2011/drive/5.png", image(0))
    write(tmp_path / "gt_depth/drive/depth/5.png", units(0))
    with pytest.raises(DataError, match="12 x 16 pixels: images of KITTI have at least 352 x 1216"):
        source.load("test", 0, 3)


def test_any_folder(tmp_path):
    for split, i in (("train", 0), ("train", 1), ("val", 2)):
        write(tmp_path / f"images/{split}/room/{i}.jpg", image(i))
        write(tmp_path / f"depth/{split}/room/{i}.png", units(i))
    source = open_dense(str(tmp_path), DEPTH)
    assert source.protocol == "folder" and source.num_examples("train") == 2
    np.testing.assert_allclose(source.load("val", 0, 3).label_HxW, units(2) / 1000.0, rtol=1e-6)
    with pytest.raises(DataError, match=r"no split 'vall': .*val"):
        source.num_examples("vall")
    (tmp_path / "depth/val/room/2.png").unlink()
    with pytest.raises(DataError, match=r"val/room/2\.jpg in .*images has no depth: .*2\.png is missing"):
        open_dense(str(tmp_path), DEPTH).num_examples("val")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", r"nyu_test\.txt lists no image with a depth"),
        ("one\n", r"nyu_test\.txt, line 1, is 'one': must be 'IMAGE DEPTH \[FOCAL\]'"),
        ("no.png no.png", r"no\.png cannot be read: No such file"),
        (
            "/kitchen_0/rgb.png /kitchen_0/rgb.png",
            r"rgb\.png has pixels of mode RGB: .* 16 bits, 1000 a metre",
        ),
        ("/kitchen_0/rgb.png /nyu_train.txt", r"nyu_train\.txt cannot be decoded as a PNG of depths"),
        ("/nyu_train.txt /kitchen_0/depth.png", r"nyu_train\.txt cannot be decoded as an image"),
        (
            "/kitchen_0/rgb.png /other.png",
            r"rgb\.png and .*other\.png: the labels are 8 x 9 pixels and the im",
        ),
        ("/kitchen_0/rgb.png /zero.png", r"the depth of every pixel is 0"),
    ],
)
def test_what_is_refused(nyu, lines, said):
    write(nyu / "other.png", units(0, 8, 9))
    write(nyu / "zero.png", units(0) * 0)
    (nyu / "nyu_test.txt").write_text(lines)
    with pytest.raises(DataError, match=said) as error:
        source = open_dense(str(nyu), DEPTH)
        for i in range(source.num_examples("test")):
            source.load("test", i, 3)
    assert "\n" not in str(error.value)


def test_a_list_that_is_no_text(nyu):
    (nyu / "nyu_test.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="is not text"):
        open_dense(str(nyu), DEPTH).num_examples("test")


def test_other_folders(tmp_path):
    with pytest.raises(DataError, match=r"none of the layouts .*nyu_train\.txt.*kitti_eigen.*images/SPLIT"):
        open_dense(str(tmp_path), DEPTH)


@pytest.fixture(scope="module")
def tfds_nyu(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")

    class NyuDepthV2(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("0.0.1")
        code_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(12, 16, 3)),
                "depth": tfds.features.Tensor(shape=(12, 16), dtype=np.float16),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

        def _generate_examples(self, number):
            for i in range(number):
                depth = (units(i) / 2000.0).astype(np.float16)
                depth[0, 1:3] = np.nan, np.inf
                yield i, {"image": image(i), "depth": depth}

    path = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    NyuDepthV2(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_nyu_of_tfds(tfds_nyu):
    for folder in (tfds_nyu / "nyu_depth_v2", tfds_nyu / "nyu_depth_v2" / "0.0.1"):
        source = open_dense(str(folder), DEPTH)
        assert source.protocol == "nyu"
        assert (source.num_examples("train"), source.num_examples("validation")) == (3, 2)
        pair = source.load("validation", 1, 3)
        np.testing.assert_array_equal(pair.image_HxWxC, image(1))
        np.testing.assert_allclose(pair.label_HxW[1:], units(1)[1:] / 2000.0, rtol=1e-3)
        assert pair.label_HxW.dtype == np.float32 and (pair.label_HxW[0, :3] == 0).all()
    assert source.num_examples("train[:2]") == 2
    with pytest.raises(DataError, match="test"):
        source.num_examples("test")


def test_tfds_by_name(tfds_nyu, monkeypatch):
    from vit_registers.data.sources import tfds_location

    monkeypatch.setattr(tfds_location.constants, "DATA_DIR", str(tfds_nyu))
    assert open_dense("nyu_depth_v2", DEPTH).num_examples("train") == 3
    monkeypatch.setattr(tfds_location.constants, "DATA_DIR", str(tfds_nyu / "none"))
    with pytest.raises(
        DataError, match=r"--data='nyu_depth_v2' is not prepared in .*prepare --name=nyu_depth_v2"
    ):
        open_dense("nyu_depth_v2", DEPTH)
