"""Small data sets in every form: 57 train and 11 test images; pixel (0, 0) is the number of the example."""

import itertools
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vit_registers.config import ClassificationSettings, Config, Data, Model, ObjectiveSettings, Run
from vit_registers.data.loaders import open_data

NUM_TRAIN, NUM_TEST = 57, 11
CLASSES = ("ant", "bee", "cow")


def make_image(number):
    image_HxW = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    image_HxW[0, 0] = number
    return image_HxW


def _write_tfds(path, file_format):
    import tensorflow_datasets as tfds

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(NUM_TRAIN),
                "test": self._generate_examples(NUM_TEST),
            }

        def _generate_examples(self, number):
            for i in range(number):
                yield i, {"image": make_image(i)[..., None], "label": i % 3}

    tfds.disable_progress_bar()
    builder = Toy(data_dir=path, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))


def _write_folder(path):
    for split, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for name in CLASSES:
            (path / split / name).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(make_image(i)).save(path / split / CLASSES[i % 3] / f"{i:03}.png")


@pytest.fixture(scope="session")
def data_dirs(tmp_path_factory):
    """Where the data set lies in the forms 'tfrecord', 'array_record' and 'folder'."""
    dirs = {kind: tmp_path_factory.mktemp(kind) for kind in ("tfrecord", "array_record", "folder")}
    _write_tfds(dirs["tfrecord"], "tfrecord")
    _write_tfds(dirs["array_record"], "array_record")
    _write_folder(dirs["folder"])
    return dirs


@pytest.fixture(scope="session")
def make_config(data_dirs):
    """make_config(kind, **settings of Data) -> Config."""

    def make(kind, *, seed=0, image_size=(8, 8), channels=1, mix_groups=1, **settings):
        base = kind.removeprefix("memory_")
        defaults = {
            "loader": "memory" if kind.startswith("memory_") else "tfdata",
            "name": "folder" if base == "folder" else "toy",
            "data_dir": str(data_dirs[base]),
            "batch_size": 10,
            "eval_batch_size": 4,
            "eval_split": "test",
            "train_ops": "",
            "eval_ops": "",
            "shuffle_buffer": 20,
        }
        return Config(
            model=Model(image_size=image_size, channels=channels, num_classes=3),
            data=Data(**(defaults | settings)),
            objective=ObjectiveSettings(classification=ClassificationSettings(mix_groups=mix_groups)),
            run=Run(seed=seed),
        )

    return make


@pytest.fixture(scope="session")
def make_loader(make_config):
    """make_loader(kind, **settings of Data) -> Loader."""
    return lambda kind, **settings: open_data(make_config(kind, **settings))


@pytest.fixture(scope="session")
def device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def take(batches, number):
    """The next `number` batches as numpy, concatenated; the iterator is closed."""
    taken = [jax.tree.map(np.asarray, b) for b in itertools.islice(batches, number)]
    batches.close()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *taken)


def numbers(batch):
    """The numbers of the examples in a batch that was not augmented."""
    return np.asarray(batch.views["image"])[:, 0, 0, 0].astype(int)


def assert_equal(a, b):
    """Both batches are equal bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="session")
def small():
    """The numbers and functions above, for tests."""
    return types.SimpleNamespace(
        NUM_TRAIN=NUM_TRAIN,
        NUM_TEST=NUM_TEST,
        make_image=make_image,
        take=take,
        numbers=numbers,
        assert_equal=assert_equal,
    )


@pytest.fixture(scope="session")
def imagenet_paths(tmp_path_factory):
    """24 real JPEGs, from beside the repository; skips where there are none."""
    archive = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample.zip"
    if not archive.exists():
        pytest.skip("no real images: ../shared/data/imagenet-sample.zip is not there")
    folder = tmp_path_factory.mktemp("imagenet")
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".JPEG"))[::42]
        return [Path(file.extract(name, folder)) for name in names]
