"""What of a folder of images is listed, in which order, with which classes, and what is said of the rest."""

import os
import socket
import unicodedata

import pytest

from vit_registers.config import Config, Data
from vit_registers.data.loaders import check_classes, open_data
from vit_registers.data.sources import folder as folder_lib
from vit_registers.data.sources.folder import Folder, ImageTree
from vit_registers.errors import ConfigError, DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


@pytest.fixture(params=[Folder, ImageTree])
def listed(request, tmp_path, caplog):
    """listed() -> the files under train/cat, and the lines that were said."""
    touch(tmp_path, "train/cat/1.jpg")

    def listed():
        opened = request.param(tmp_path)
        files = opened.files(opened.splits[0])[0]
        lines = [record.getMessage() for record in caplog.records if record.name == folder_lib.__name__]
        return [file.removeprefix("train/cat/") for file in files], lines

    return listed


def _hidden(cat):
    touch(cat, "._0.jpg", ".DS_Store", ".thumbnails/0.jpg")


def _macos(cat):
    touch(cat, "__MACOSX/0.jpg")


def _other_types(cat):
    touch(cat, "labels.txt", "README", "0.npy", "2.heic")


def _pipe(cat):
    os.mkfifo(cat / "0.jpg")


def _socket(cat):
    here = os.getcwd()
    os.chdir(cat)  # the whole path may be longer than a socket's may be
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("0.png")
    finally:
        os.chdir(here)


def _device(cat):
    (cat / "0.jpg").symlink_to("/dev/zero")


def _dangling(cat):
    (cat / "0.jpg").symlink_to("nothing")
    (cat / "2.jpg").symlink_to("2.jpg")  # to itself


def _loop(cat):
    (cat / "itself").symlink_to(".")
    (cat / "above").symlink_to("../..")
    (cat / "top").symlink_to("/")


LEFT_OUT = {
    _hidden: "2 hidden files, 1 hidden folder",
    _macos: "1 __MACOSX folder",
    _other_types: "4 files of another type (.heic, .npy, .txt, no suffix)",
    _pipe: "1 named pipe",
    _socket: "1 socket",
    _device: "1 device file",
    _dangling: "2 links to nothing",
    _loop: "3 links to folders that hold them or are listed already",
}


@pytest.mark.parametrize("add", LEFT_OUT, ids=lambda add: add.__name__[1:])
def test_what_is_no_image_is_left_out_in_one_line(add, listed, tmp_path):
    add(tmp_path / "train" / "cat")
    files, lines = listed()
    assert files == ["1.jpg"]
    assert len(lines) == 1
    assert lines[0].endswith(f": left out {LEFT_OUT[add]}")


def test_nothing_is_said_where_nothing_is_left_out(listed):
    assert listed() == (["1.jpg"], [])


def test_all_reasons_share_a_line(listed, tmp_path):
    for add in (_hidden, _other_types, _pipe, _loop):
        add(tmp_path / "train" / "cat")
    os.remove(tmp_path / "train" / "cat" / "0.jpg")
    _, lines = listed()
    assert len(lines) == 1
    assert "2 hidden files, 1 hidden folder, 3 links" in lines[0]


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jpeg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "a.TIFF", "a.ppm", "a.pgm"]
)
def test_suffixes(name, listed, tmp_path):
    touch(tmp_path / "train" / "cat", name)
    assert listed() == (sorted(["1.jpg", name]), [])


def test_nested_folders_and_links_to_files_and_folders(listed, tmp_path):
    cat, elsewhere = tmp_path / "train" / "cat", tmp_path.parent / f"{tmp_path.name}-elsewhere"
    touch(cat, "b/c/2.jpg", "b.jpg/3.jpg")
    touch(elsewhere, "0.jpg", "deep/1.jpg")
    (cat / "linked").symlink_to(elsewhere)
    (cat / "a.jpg").symlink_to(elsewhere / "0.jpg")
    (elsewhere / "back").symlink_to(elsewhere)
    files, lines = listed()
    expected = ["1.jpg", "a.jpg", "b.jpg/3.jpg", "b/c/2.jpg", "linked/0.jpg", "linked/deep/1.jpg"]
    assert files == sorted(expected)
    assert len(lines) == 1
    assert lines[0].endswith("left out 1 link to a folder that holds it or is listed already")


def test_many_links_to_each_other_are_listed_once(listed, tmp_path):
    cat = tmp_path / "train" / "cat"
    for i in range(12):
        touch(cat, f"{i}/x.jpg")
    for i in range(12):
        for j in range(12):
            (cat / str(i) / f"to{j}").symlink_to(f"../{j}")
    assert len(listed()[0]) == 13


def test_a_class_that_links_to_its_split_is_none(tmp_path, caplog):
    touch(tmp_path, "train/cat/1.jpg", "train/0.jpg")
    (tmp_path / "train" / "all").symlink_to(".")
    (tmp_path / "train" / "gone").symlink_to("nowhere")
    (tmp_path / "train" / "dog").symlink_to("cat")
    opened = Folder(tmp_path)
    assert opened.class_names == ("cat", "dog")
    assert opened.files("train")[0] == ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert "1 image outside of the class folders" in caplog.text
    assert "1 link to a folder" in caplog.text


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may list all")
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    (tmp_path / "train" / "cat").chmod(0)
    with pytest.raises(DataError, match=r"train/cat cannot be listed: Permission denied"):
        Folder(tmp_path).files("train")


# --- classes ---------------------------------------------------------------------------------


def open_with(root, loader="memory", **settings):
    data = Data(name="folder", data_dir=str(root), loader=loader, train_ops="", eval_ops="", **settings)
    return open_data(Config(data=data))


@pytest.mark.parametrize("loader", ["memory", "tfdata"])
def test_classes_are_those_of_the_given_splits(loader, tmp_path, caplog):
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/ant/1.jpg", "val/cat/1.jpg", "more/eel/1.jpg")
    touch(tmp_path, "trian/fox/1.jpg")
    settings = {"train_split": "train", "eval_split": "val"}
    opened = open_with(tmp_path, loader, **settings)
    assert opened.class_names == ("ant", "cat", "dog")
    assert "folders that no setting names as splits are not read: more, trian" in caplog.text
    assert opened.num_examples("val") == 2
    with pytest.raises(
        DataError, match=r"split 'more' of .* has the class 'eel', which train and val do not"
    ):
        opened.num_examples("more")
    also = open_with(tmp_path, loader, also_eval=("folder more",), **settings)
    assert also.class_names == ("ant", "cat", "dog", "eel")
    assert list(also._source.labels("val")) == [0, 1]


def test_classes_are_named_where_their_number_is_wrong(tmp_path):
    touch(tmp_path, *(f"train/{name}/1.jpg" for name in ("ant", "bee", "cow", "trash")))
    config = Config()
    with pytest.raises(ConfigError, match=r"has 4 classes: set .*=4; they are ant, bee, cow, trash$"):
        check_classes(open_with(tmp_path), config.model.num_classes)
    touch(tmp_path, *(f"train/{i:03}/1.jpg" for i in range(100)))
    with pytest.raises(ConfigError, match=r"has 104 classes: .* 000, 001, .*, 007, \.\.\., trash$"):
        check_classes(open_with(tmp_path), config.model.num_classes)


@pytest.mark.parametrize("loader", ["memory", "tfdata"])
def test_splits_that_are_not_there(loader, tmp_path):
    touch(tmp_path, "trian/cat/1.jpg")
    with pytest.raises(DataError, match="has no split 'train': did you mean 'trian'"):
        open_with(tmp_path, loader, eval_split="val")
    touch(tmp_path, "vall/cat/1.jpg", "train/cat/1.jpg")
    with pytest.raises(DataError, match="has no split 'val': did you mean 'vall'"):
        open_with(tmp_path, loader, eval_split="val").num_examples("val")


@pytest.mark.parametrize("loader", ["memory", "tfdata"])
def test_a_root_without_splits_is_explained(loader, tmp_path):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with pytest.raises(DataError) as error:
        open_with(tmp_path, loader, eval_split="val")
    assert "its folders (cat, dog) hold images themselves" in str(error.value)
    assert "move class folders into" in str(error.value)


def test_names_are_compared_in_one_form(tmp_path):
    touch(tmp_path, f"train/{NFD}/1.jpg", "train/zoo/1.jpg", f"val/{NFC}/1.jpg")
    opened = Folder(tmp_path)
    assert opened.class_names == (NFC, "zoo")
    assert list(opened.files("train")[1]) == [0, 1]
    assert opened.files("train")[0][0] == f"train/{NFD}/1.jpg"
    assert list(opened.files("val")[1]) == [0]


@pytest.mark.parametrize("kind", [Folder, ImageTree])
def test_names_that_are_equal_in_one_form_are_refused(kind, tmp_path):
    touch(tmp_path, f"train/{NFD}/1.jpg", f"train/{NFC}/1.jpg")
    with pytest.raises(
        DataError, match=f"two folders named '.*{NFC}', which differ only in their Unicode form"
    ):
        kind(tmp_path)


@pytest.mark.parametrize("kind", [Folder, ImageTree])
def test_classes_that_are_not_utf8_are_refused(kind, tmp_path):
    touch(tmp_path, f"train/{os.fsdecode(b'caf' + bytes([0xE9]))}/1.jpg")
    with pytest.raises(DataError, match=r"caf\\xe9 is not UTF-8: rename it"):
        kind(tmp_path)


def test_names_in_messages_are_one_line(tmp_path):
    touch(tmp_path, "train/cat/a\nb.jpg", f"train/cat/{os.fsdecode(bytes([0xFF]))}.jpg")
    opened = Folder(tmp_path)
    assert [opened.describe("train", i) for i in range(2)] == [r"train/cat/a\nb.jpg", r"train/cat/\xff.jpg"]


def test_an_empty_class_folder_says_what_it_holds(tmp_path):
    touch(tmp_path, "train/cat/1.jpg", "train/dog/notes.txt", "train/dog/.0.jpg")
    with pytest.raises(
        DataError, match=r"train/dog has no images \(left out: 1 file of another .* 1 hidden file\)"
    ):
        Folder(tmp_path).files("train")
