"""Images that cannot be decoded, and images of a size that was not asked for."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.loaders import open_data
from vit_registers.errors import DataError

LOADERS = ("folder", "memory_folder")


@pytest.fixture(scope="module")
def broken_dir(tmp_path_factory):
    """40 JPEGs of 16 x 16; of a/007.jpg only a half is there, and b/008.png is text."""
    root = tmp_path_factory.mktemp("broken")
    for name in "ab":
        (root / "train" / name).mkdir(parents=True)
    for i in range(40):
        image = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "train" / "ab"[i // 20] / f"{i % 20:03}.jpg")
    half = root / "train" / "a" / "007.jpg"
    half.write_bytes(half.read_bytes()[:400])
    (root / "train" / "b" / "008.jpg").unlink()
    (root / "train" / "b" / "008.png").write_text("no image")
    shutil.copytree(root / "train", root / "test")
    return str(root)


@pytest.fixture(scope="module")
def settings(broken_dir):
    return {"data_dir": broken_dir, "name": "folder", "image_size": (16, 16), "channels": 3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOADERS)
def test_stopping_names_the_file(kind, make_loader, settings, device):
    for use in (lambda x: x.train_batches(0, device), lambda x: x.eval_batches("test", device)):
        loader = make_loader(kind, **settings)
        with pytest.raises(DataError) as error:
            for _ in zip(range(5), use(loader), strict=False):
                pass
        assert "/007.jpg cannot be" in str(error.value) or "/008.png cannot be" in str(error.value)
        assert "config.data.on_broken=skip" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", LOADERS)
def test_skipping_masks_and_counts_them(kind, make_loader, settings, device, small, caplog):
    loader = make_loader(kind, on_broken="skip", train_ops="flip", **settings)
    assert len(loader.broken_names) == 0
    batch = small.take(loader.train_batches(0, device), 8)  # two epochs
    assert (~batch.mask_B).sum() == 4
    assert not batch.views["image"][~batch.mask_B].any()
    assert len(loader.broken_names) == 2
    evaluated = small.take(loader.eval_batches("test", device), None)
    np.testing.assert_array_equal(np.flatnonzero(~evaluated.mask_B), [7, 28])
    assert len(loader.broken_names) == 4
    # TensorFlow logs as well, where warnings are errors that it works around.
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert len(lines) == 4
    assert "left out: train/a/007.jpg cannot be decoded as an image" in lines


@pytest.mark.slow
def test_the_other_images_are_not_touched_by_a_broken_one(make_loader, settings, device, small):
    crop = "inception_crop"
    skipping = make_loader("folder", on_broken="skip", train_ops=crop, **settings)
    batch = small.take(skipping.train_batches(0, device), 4)
    again = small.take(skipping.train_batches(0, device), 4)
    small.assert_equal(batch, again)
    assert all(image.any() for image in batch.views["image"][batch.mask_B])


def test_whole_chunks_may_be_broken(make_loader, tmp_path, device, small):
    (tmp_path / "test" / "a").mkdir(parents=True)
    for i in range(40):
        (tmp_path / "test" / "a" / f"{i}.jpg").write_bytes(b"")
    loader = make_loader("folder", data_dir=str(tmp_path), on_broken="skip")
    batch = small.take(loader.eval_batches("test", device), None)
    assert not batch.mask_B.any()
    assert len(loader.broken_names) == 40


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_tfds_records_are_named_by_number(kind, make_loader):
    loader = make_loader(kind)
    assert loader._source.describe("train[3:]", 5) == "record 5 of split 'train[3:]' of toy"


@pytest.mark.parametrize("kind", ["tfrecord", "array_record", "folder"])
@parametrize_quick("ops", ["", "central_crop", "resize_small(12) | flip"])
def test_a_wrong_size_is_refused_by_name(kind, ops, make_loader, device):
    loader = make_loader(kind, image_size=(16, 12), eval_ops=ops)
    with pytest.raises(DataError, match=r"is (8 x 8|12 x 12) after data.eval_ops.*16 x 12") as error:
        next(loader.eval_batches("test", device))
    assert ("test/ant/000.png" if kind == "folder" else "record 0 of split 'test'") in str(error.value)


def test_a_wrong_size_in_memory(make_loader, device):
    with pytest.raises(DataError, match=r"is 8 x 8, not 16 x 12: begin data.train_ops with 'resize'"):
        make_loader("memory_folder", image_size=(16, 12)).train_batches(0, device)
    loader = make_loader("memory_folder", image_size=(16, 12), train_ops="resize | flip")
    assert next(loader.train_batches(0, device)).views["image"].shape == (10, 16, 12, 1)


def test_an_unknown_policy(make_config):
    with pytest.raises(Exception, match=r"data.on_broken='skp' is unknown: did you mean .skip"):
        open_data(make_config("folder", on_broken="skp"))


def _remove(path):
    path.unlink()


def _cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "damage", "reason"),
    [
        ("array_record", _remove, r"open\(\) failed: No such file.*array_record-00001-of-00004"),
        ("array_record", _cut_off, r"record \d+ is empty"),
        ("tfrecord", _remove, "tfrecord-00001-of-00004; No such file"),
        ("tfrecord", _cut_off, "expected to contain 14 elements but contained only"),
        ("tfrecord", _flip, r"corrupted record at \d+"),
        ("folder", _remove, r"ant/003.png; No such file"),
    ],
)
def test_a_file_of_the_data_that_is_gone_or_damaged_is_one_line(
    kind, damage, reason, make_loader, data_dirs, device, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(data_dirs[kind], root)
    batches = make_loader(kind, data_dir=str(root)).train_batches(0, device)
    damage(sorted(p for p in root.rglob("*") if p.is_file() and "train" in str(p) and p.suffix != ".json")[1])
    name = "folder" if kind == "folder" else "toy"
    with pytest.raises(DataError, match=rf"^reading split 'train' of {name} failed: .*{reason}") as error:
        for _ in range(6):
            next(batches)
    assert "\n" not in str(error.value)
    assert "; see that all files of data.data_dir are there and whole" in str(error.value)


def _replace(path, content=None):
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def _link_to(path, target):
    path.unlink()
    path.symlink_to(target)


def _hide(path):
    path.chmod(0)


def _make_folder(path):
    path.unlink()
    path.mkdir()


# when: before the data set is opened, or after its files were listed
UNREADABLE = {
    "empty": ("before", lambda path: _replace(path, b""), r"cannot be decoded as an image"),
    "text": (
        "before",
        lambda path: _replace(path, b"text"),
        r"cannot be decoded as an image \(it is in none",
    ),
    "link_to_nothing": ("before", lambda path: _link_to(path, "nothing"), "it is a link to nothing"),
    "link_to_itself": ("before", lambda path: _link_to(path, path.name), "it is a link to nothing"),
    "forbidden": ("before", _hide, "Permission denied"),
    # a regular file that cannot be read from its start
    "unreadable": ("before", lambda path: _link_to(path, "/proc/self/mem"), "Input/output error"),
    "gone": ("after", _replace, "No such file or directory"),
    "link_that_breaks": ("after", lambda path: _link_to(path, "nothing"), "No such file or directory"),
    "folder": ("after", _make_folder, "Is a directory"),
}


@pytest.fixture(params=UNREADABLE)
def unreadable(request, tmp_path, make_config):
    """(config of kind and policy -> loader whose first test image cannot be read, its message)"""
    when, damage, message = UNREADABLE[request.param]
    if request.param == "unreadable" and not os.path.exists("/proc/self/mem"):
        pytest.skip("there is no /proc")
    if damage is _hide and os.geteuid() == 0:
        pytest.skip("root may read all")

    def open_damaged(kind, policy):
        root = tmp_path / kind
        (root / "test" / "a").mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), i).save(root / "test" / "a" / f"{i}.png")
        loader = open_data(make_config(kind, data_dir=str(root), on_broken=policy))
        if when == "after":
            loader.num_examples("test")
        damage(root / "test" / "a" / "0.png")
        return loader

    return open_damaged, message


@pytest.mark.slow
def test_unreadable_images_stop_both_loaders_with_the_same_line(unreadable, device, small):
    open_damaged, message = unreadable
    lines = []
    for kind in LOADERS:
        with pytest.raises(DataError, match=message) as error:
            small.take(open_damaged(kind, "stop").eval_batches("test", device), None)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "test/a/0.png" in lines[0]
    assert "set config.data.on_broken=skip to leave such images out" in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOADERS)
def test_unreadable_images_are_left_out_and_counted_by_both_loaders(kind, unreadable, device, small, caplog):
    open_damaged, _ = unreadable
    loader = open_damaged(kind, "skip")
    batch = small.take(loader.eval_batches("test", device), None)
    np.testing.assert_array_equal(batch.views["image"][batch.mask_B][:, 0, 0, 0], range(1, 6))
    assert len(loader.broken_names) == 1
    lines = [record.getMessage() for record in caplog.records if "left out: " in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("left out: test/a/0.png cannot be ")


@pytest.mark.parametrize("kind", LOADERS)
def test_names_that_are_not_utf8_are_read(kind, make_loader, tmp_path, device, small):
    (tmp_path / "test" / "a").mkdir(parents=True)
    for i, name in enumerate((b"0\xff.png", "1é.png".encode(), b"2\n.png")):
        Image.new("L", (8, 8), i).save(tmp_path / "test" / "a" / os.fsdecode(name))
    loader = make_loader(kind, data_dir=str(tmp_path))
    batch = small.take(loader.eval_batches("test", device), None)
    np.testing.assert_array_equal(small.numbers(batch)[batch.mask_B], [0, 1, 2])
    broken = tmp_path / "test" / "a" / os.fsdecode(b"3\xff.png")
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"^test/a/3\\xff.png cannot be decoded"):
        small.take(make_loader(kind, data_dir=str(tmp_path)).eval_batches("test", device), None)
