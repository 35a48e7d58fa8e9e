"""What --data and --train_data name: folders, folders with splits, TFDS; and images that both have."""

from types import SimpleNamespace

import pytest

from vit_registers.analysis.given_images import check_apart, shown
from vit_registers.config import Data
from vit_registers.errors import ConfigError, DataError

OWN = Data(name="digits", data_dir="own", eval_split="test", eval_ops="", image_key="a", label_key="b")


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
    return tmp_path / "photos"


def _brief(data):
    return data.name, data.data_dir, data.eval_split, data.eval_ops


def test_what_is_named(folder, monkeypatch):
    assert _brief(shown(OWN, None, {})) == ("digits", "own", "test", "")
    assert _brief(shown(OWN, f"{folder}", {})) == ("images", str(folder), "all", "resize")
    with_split = shown(OWN, f"{folder}:val", {})
    assert _brief(with_split) == ("folder", str(folder), "val", "resize")
    assert (with_split.train_split, with_split.image_key, with_split.label_key) == ("val", None, None)
    assert _brief(shown(OWN, "coco/2017:validation[:10]", {})) == ("coco/2017", "own", "validation[:10]", "")
    monkeypatch.chdir(folder.parent)
    assert _brief(shown(OWN, "photos:val", {}))[:2] == ("folder", str(folder))
    assert _brief(shown(OWN, "photos:vall", {}))[:2] == ("photos", "own")  # a name of TFDS
    assert _brief(shown(OWN, f"{folder}:vall", {}))[:2] == ("folder", str(folder))  # whose error names it
    (folder.parent / "digits" / "test").mkdir(parents=True)
    assert _brief(shown(OWN, "digits:test", {}))[:2] == ("digits", "own")
    with pytest.raises(ConfigError, match=r"--train_data=nowhere: there is no such folder"):
        shown(OWN, "nowhere", {}, flag="--train_data")


@pytest.mark.parametrize("place", ["", "1.0.0", "2017/1.0.0"])
def test_a_prepared_data_set_is_no_folder_of_images(folder, place):
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / "dataset_info.json").write_text("{}")
    assert _brief(shown(OWN, f"{folder}:val", {}))[:2] == (str(folder), "own")


def _refuse(split):
    raise DataError(f"split '{split}' has 5 examples twice")


@pytest.mark.parametrize(
    ("test", "train", "message"),
    [
        (Data(name="digits", eval_split="test"), Data(name="digits", eval_split="test"), "another split"),
        (Data(name="toy", eval_split="train[5:]"), Data(name="toy", eval_split="train"), "5 examples twice"),
        (Data(name="images", data_dir="/a"), Data(name="images", data_dir="/a/b"), "not inside the other"),
        (Data(name="images", data_dir="/a/b"), Data(name="images", data_dir="/a"), "not inside the other"),
        (Data(name="images", data_dir="/a/b"), Data(name="images", data_dir="/a/bc"), None),
        (Data(name="folder", data_dir="/a", eval_split="x"), Data(name="folder", data_dir="/b"), None),
        (Data(name="toy", eval_split="train"), Data(name="boy", eval_split="train"), None),
    ],
)
def test_images_that_both_have_are_refused(test, train, message):
    loader = SimpleNamespace(num_examples=_refuse)
    if message is None:
        check_apart(test, train, loader, "given")
        return
    with pytest.raises(ConfigError, match=message) as error:
        check_apart(test, train, loader, "given")
    assert str(error.value).startswith("--train_data=given has images of --data") and "\n" not in str(error)
