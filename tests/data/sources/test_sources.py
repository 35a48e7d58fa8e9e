"""Finding data sets: folders, TFDS data sets, and what is said when they are not there."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from vit_registers.data.batch import labelled_batch, normalize, pad_batch
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.digits import load_split
from vit_registers.data.sources.folder import Folder
from vit_registers.errors import ConfigError, DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_folder_lists_what_tfds_lists(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    touch(
        tmp_path,
        *("train/cat/2.JPG", "train/cat/10.jpeg", "train/ant/1.png", "train/ant/notes.txt"),
        *("validation/dog/0.jpg", "validation/ant/5.jpg"),
    )
    ours, theirs = Folder(tmp_path), tfds.ImageFolder(str(tmp_path))
    assert ours.class_names == tuple(theirs.info.features["label"].names) == ("ant", "cat", "dog")
    for split in ("train", "validation"):
        assert ours.num_examples(split) == theirs.info.splits[split].num_examples
        paths, label_N = ours.files(split)
        assert {
            (str(tmp_path / path), ours.class_names[i]) for path, i in zip(paths, label_N, strict=True)
        } == {(example.image_path, example.label) for example in theirs._split_examples[split]}
    assert ours.files("train")[0] == ["train/ant/1.png", "train/cat/10.jpeg", "train/cat/2.JPG"]


def test_folder_errors(tmp_path, make_config):
    touch(tmp_path, "train/cat/1.jpg", "train/dog/readme.txt", "test/cat/1.jpg")
    folder = Folder(tmp_path)
    with pytest.raises(DataError, match=r"class folder .*train/dog has no images"):
        folder.files("train")
    assert folder.files("test")[0] == ["test/cat/1.jpg"]
    with pytest.raises(DataError, match="has no split 'tset': did you mean 'test'"):
        folder.files("tset")
    with pytest.raises(DataError, match=r"is not a folder: the layout must be root/<split>/<class>"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no classes under"):
        Folder(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"data.name='folder' requires data.data_dir"):
        open_data(make_config("folder", data_dir=None))


@pytest.mark.parametrize("kind", ["array_record", "memory_array_record"])
def test_tfds_errors(kind, make_config, tmp_path):
    def message(**settings):
        with pytest.raises(DataError) as error:
            open_data(make_config(kind, **settings))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean 'imagenet2012'" in message(name="imagnet2012")
    where = str(tmp_path)
    line = f"'python -m vit_registers.prepare --name=imagenet2012 --data_dir={where}'"
    assert line in message(name="imagenet2012", data_dir=where)
    loader = open_data(make_config(kind))
    for split in ("tset", "train[:x]", "test[20:]"):
        with pytest.raises(DataError):
            loader.num_examples(split)
    with pytest.raises(DataError, match="toy has no split 'tset': did you mean 'test'"):
        loader.num_examples("tset")


def test_digits_are_those_of_scikit_learn():
    theirs = load_digits()
    for split, is_chosen_N in (("train", np.arange(1797) % 5 != 4), ("test", np.arange(1797) % 5 == 4)):
        image_NxHxWxC, label_N = load_split(split)
        assert image_NxHxWxC.dtype == np.uint8 and label_N.dtype == np.int32
        scaled_NxHxW = np.round(theirs.images[is_chosen_N] * (255 / 16))
        np.testing.assert_array_equal(image_NxHxWxC[..., 0], scaled_NxHxW)
        np.testing.assert_array_equal(label_N, theirs.target[is_chosen_N])


def test_digits_without_a_place(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot prepare digits in data.data_dir="):
        open_data(make_config("folder", name="digits", data_dir=str(tmp_path / "file" / "sub")))


def test_tfrecords_in_memory_are_refused(make_config):
    with pytest.raises(DataError, match=r"prepare it with vit_registers\.prepare"):
        open_data(make_config("memory_tfrecord"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loader": "grain"}, "data.loader='grain' is unknown: known: memory, pil, tfdata"),
        ({"channels": 4}, "model.channels=4: must be 1 or 3 for images"),
        ({"seed": -1}, "run.seed=-1: must be >= 0"),
        ({"batch_size": 0}, "data.batch_size=0: must be >= 1"),
    ],
)
def test_settings_that_cannot_work(settings, message, make_config):
    with pytest.raises(ConfigError, match=message):
        open_data(make_config("folder", **settings))


def test_normalize():
    image = np.arange(48, dtype=np.uint8).reshape(2, 4, 2, 3) * 5
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    out = normalize(jnp.asarray(image), mean=mean, std=std)
    np.testing.assert_allclose(out, (image / 255.0 - mean) / np.array(std), atol=2e-6)
    assert out.dtype == jnp.float32


def test_pad_batch():
    batch = labelled_batch(np.ones((2, 4, 4, 1), np.uint8), np.array([3, 4], np.int32), np.ones(2, bool))
    padded = pad_batch(batch, 5)
    assert padded.views["image"].shape == (5, 4, 4, 1)
    assert list(padded.targets["label"]) == [3, 4, 0, 0, 0]
    assert list(padded.mask_B) == [True, True, False, False, False]
    assert pad_batch(batch, 2) is batch
