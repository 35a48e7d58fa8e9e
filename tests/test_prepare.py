"""Builders of one's own are prepared by path, and trained on by path; what cannot be prepared is one line."""

import os
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.folder import Folder

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class NAME(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        features = {"image": f.Image(shape=(8, 8, 1)), "label": f.ClassLabel(num_classes=3)}
        return self.dataset_info_from_configs(features=f.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6)}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, {"image": np.full((8, 8, 1), 3 * i, np.uint8), "label": i % 3}
"""


@pytest.fixture
def prepare(run_here, monkeypatch, tmp_path):
    """prepare(name) -> (exit code, standard output, standard error); prepares into tmp_path/data."""
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda name: run_here("prepare", f"--name={name}", f"--data_dir={tmp_path}/data")


@pytest.mark.parametrize(
    ("file", "class_name", "given"),
    [
        ("mine_file.py", "MineFile", "mine_file.py"),
        ("mine_new/mine_new_dataset_builder.py", "Builder", "mine_new"),
        ("mine_old/mine_old.py", "MineOld", "mine_old"),
        ("mine_built/code.py", "Builder", "mine_built/code.py"),
        ("mnist.py", "Mnist", "mnist.py"),  # a name that TFDS has
    ],
)
def test_builders_are_prepared_and_read_by_path(file, class_name, given, prepare, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(BUILDER.replace("NAME", class_name))
    for said in (" is in ", "is already prepared"):
        code, out, err = prepare(tmp_path / given)
        assert (code, err) == (0, "")
        assert said in out
    common = {"batch_size": 6, "eval_batch_size": 6, "train_ops": "", "eval_ops": ""}
    for loader in ("memory", "tfdata"):
        data = Data(loader=loader, name=str(tmp_path / given), data_dir=f"{tmp_path}/data", **common)
        opened = open_data(Config(model=Model(image_size=(8, 8), channels=1, num_classes=3), data=data))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        batch = next(iter(opened.eval_batches("train", sharding)))
        number_B = np.asarray(batch.views["image"])[:, 0, 0, 0] // 3
        assert sorted(number_B) == list(range(6))  # TFDS shuffles
        assert np.asarray(batch.targets["label"]).tolist() == [number % 3 for number in number_B]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("bad_raises", 'raise RuntimeError("two\\nlines")', "bad_raises.py:1: RuntimeError: two lines"),
        ("bad_exits", "import sys\nsys.exit(3)", "bad_exits.py:2: SystemExit: 3"),
        ("bad_syntax", "x = (", "bad_syntax.py:1: SyntaxError: '(' was never closed"),
        ("bad_import", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "bad_empty",
            "x = 1",
            "bad_empty.py: give one class that derives from a builder of tfds.core, not none",
        ),
        ("bad_two", BUILDER.replace("NAME", "A") + BUILDER.replace("NAME", "B"), "tfds.core, not A, B"),
        (
            "bad_abstract",
            BUILDER.replace("NAME", "BadAbstract").replace("def _generate", "def _make"),
            "BadAbstract lacks _generate_examples",
        ),
        (
            "bad_shape",
            BUILDER.replace("NAME", "BadShape").replace("(8, 8, 1), 3", "(200, 8, 1), 3"),
            "ValueError: Failed to encode example: {'image': array(",
        ),
        (
            "bad_later",
            BUILDER.replace("NAME", "BadLater").replace("yield i,", "yield 1 // i,"),
            "bad_later.py:18: ZeroDivisionError: integer division or modulo by zero",
        ),
        (
            "bad_none",
            BUILDER.replace("NAME", "BadNone").replace("range(number)", "range(0)"),
            'split "train": No examples were yielded',
        ),
    ],
)
def test_builders_that_fail_are_one_line(name, code, message, prepare, tmp_path):
    path = tmp_path / f"{name}.py"
    path.write_text(code)
    result, _, err = prepare(path)
    assert result == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 700
    assert message in err
    assert not list((tmp_path / "data").glob("*/*.*.*"))  # so that it can be started again


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "--name=mnits is not known to TFDS: did you mean 'mnist'?"),
        ("imagenette/160px-v3", "imagenette has no config '160px-v3': did you mean '160px-v2'?"),
        ("mnist/small", "mnist has no config 'small': it has no configs"),
        ("mnist:9.9.9", "Dataset mnist cannot be loaded at version 9.9.9, only: 3.0.1"),
        ("digits", "--name=digits: this data set needs no preparation"),
        ("no such", "--name='no such' is neither a name of TFDS"),
        ("/nowhere.py", "--name=/nowhere.py does not exist"),
        ("/nowhere", "--name='/nowhere' is neither a name of TFDS"),
    ],
)
def test_names_that_cannot_be_prepared(name, message, prepare):
    code, _, err = prepare(name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_what_is_half_there_is_not_taken_for_prepared(prepare, tmp_path):
    path = tmp_path / "mine_half.py"
    path.write_text(BUILDER.replace("NAME", "MineHalf"))
    assert prepare(path)[0] == 0
    folder = tmp_path / "data" / "mine_half" / "1.0.0"
    records = folder / "mine_half-train.array_record-00000-of-00001"
    for file in (records, folder / "features.json", folder / "dataset_info.json"):
        file.unlink()
        code, _, err = prepare(path)
        assert code == 2
        assert file.name in err
        assert err.count("\n") == 1
    (folder / "label.labels.txt").unlink(missing_ok=True)
    os.rmdir(folder)
    (folder.parent / "incomplete.ABCDEF_1.0.0").mkdir()  # left by one that was killed
    assert prepare(path)[0] == 0


def test_a_data_set_in_another_format_is_not_written_over(prepare, tmp_path):
    path = tmp_path / "mine_records.py"
    path.write_text(BUILDER.replace("NAME", "MineRecords"))
    assert prepare(path)[0] == 0
    info = tmp_path / "data" / "mine_records" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    records = info.parent / "mine_records-train.array_record-00000-of-00001"
    records.rename(info.parent / "mine_records-train.tfrecord-00000-of-00001")
    code, _, err = prepare(path)
    assert code == 2
    assert f"{info.parent} holds tfrecord files: delete the folder to prepare it as array_record" in err


def test_a_data_dir_that_cannot_be_written(run_here, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "file").write_text("")
    code, _, err = run_here("prepare", "--name=mnist", f"--data_dir={tmp_path}/file")
    assert (code, err) == (2, f"error: --data_dir={tmp_path}/file cannot be written to: File exists\n")


@pytest.fixture
def photos(tmp_path):
    """An image folder: DIR/train/{ant,bee} with 3 images each, and DIR/val/bee with 1."""
    for i in range(7):
        split, label = ("train", ("ant", "bee")[i % 2]) if i < 6 else ("val", "bee")
        path = tmp_path / "photos" / split / label / f"{i}.{('png', 'jpg', 'gif')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8 + i, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_folder_is_prepared_with_its_bytes_labels_and_order(
    is_on_disk, photos, run_here, tmp_path, monkeypatch
):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import shuffle

    from vit_registers.data.sources.tfds_prepared import open_prepared

    if is_on_disk:  # as TFDS does from 1 GB on
        monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    command = ("prepare", "--name=mine", f"--from_folder={photos}", f"--data_dir={tmp_path}/data")
    for said in ("mine is in ", f"mine is already prepared; delete {tmp_path}/data/mine/1.0.0 to"):
        code, out, err = run_here(*command)
        assert (code, err) == (0, "")
        assert said in out
    ours = open_prepared(Data(name="mine", data_dir=f"{tmp_path}/data"), 3)
    theirs = Folder(photos)
    assert ours.class_names == theirs.class_names == ("ant", "bee")
    for split, number in (("train", 6), ("val", 1)):
        np.testing.assert_array_equal(ours.labels(split), theirs.labels(split))
        read, read_file = ours.image_reader(split), theirs.image_reader(split)
        assert [read(i) for i in range(number)] == [read_file(i) for i in range(number)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--name=mine", "--from_folder=DIR/nowhere"), "--from_folder=DIR/nowhere is not a folder"),
        (("--name=mine", "--from_folder=DIR/photos/train"), "no classes under DIR/photos/train: the layout"),
        (("--name=My-photos", "--from_folder=DIR/photos"), "--name=My-photos: must be lower-case letters"),
        (("--name=folder", "--from_folder=DIR/photos"), "--name=folder: give another name"),
        (
            ("--name=mine", "--from_folder=gs://bucket/photos"),
            "--from_folder=gs://bucket/photos: image folders are",
        ),
        (("--name=mine", "--local_dir=DIR"), "--local_dir=DIR is for a --data_dir in gs://: give only"),
        (("--name=mine", "--data_dir=s3://b/data"), "--data_dir=s3://b/data: s3:// is not supported"),
        (("--name=mine", "--from_folder=DIR/odd"), "odd/train set: the name of a split must be letters"),
        (("--name=mine", "--from_folder=DIR/spaced"), "the class ' ant' of DIR/spaced begins or ends with"),
    ],
)
def test_folders_that_cannot_be_prepared(flags, message, photos, run_here, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    for folder in ("odd/train set/ant", "spaced/train/ ant"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(photos / "train/ant/0.png", tmp_path / folder)
    code, _, err = run_here("prepare", *(flag.replace("DIR", str(tmp_path)) for flag in flags))
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message.replace("DIR", str(tmp_path)) in err
