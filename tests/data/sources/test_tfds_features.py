"""Which features of a TFDS record are the image and the label: settings, and what is refused."""

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import open_data
from vit_registers.errors import ConfigError, DataError

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module", params=["array_record", "memory", "tfrecord"])
def make(request, tmp_path_factory):
    """make(**settings of Data) -> the Loader of 7 color images with features of many kinds."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    f = tfds.features

    class Many(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            label = f.ClassLabel(names=NAMES)
            features = {
                "picture": f.Image(shape=(8, 8, 3)),
                "grey": f.Image(shape=(8, 8, 1), dtype=np.uint16),
                "rgba": f.Image(shape=(None, None, 4)),
                "depth": f.Image(shape=(8, 8, 1), dtype=np.float32),
                "inside": {"view": f.Image(shape=(8, 8, 3)), "kind": label},
                "kind": label,
                "tags": f.Sequence(label),
                "number": np.int64,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=f.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(7), "unlabelled": self._generate_examples(2)}

        def _generate_examples(self, number):
            for i in range(number):
                label = i % 3 if number == 7 else -1
                view = np.full((8, 8, 3), 100 + i, np.uint8)
                yield (
                    i,
                    {
                        "picture": np.full((8, 8, 3), i, np.uint8),
                        "grey": np.full((8, 8, 1), 256 * (50 + i), np.uint16),
                        "rgba": np.full((8, 8, 4), 200 + i, np.uint8),
                        "depth": np.full((8, 8, 1), i, np.float32),
                        "inside": {"view": view, "kind": 2 - i % 3},
                        "kind": label,
                        "tags": [0, i % 3],
                        "number": i,
                    },
                )

    path = tmp_path_factory.mktemp("many")
    file_format = "tfrecord" if request.param == "tfrecord" else "array_record"
    tfds.disable_progress_bar()
    Many(data_dir=path, file_format=file_format).download_and_prepare()

    def make(channels=3, **settings):
        data = Data(
            loader="memory" if request.param == "memory" else "tfdata",
            name="many",
            data_dir=str(path),
            batch_size=7,
            eval_batch_size=7,
            train_ops="",
            eval_ops="",
            **settings,
        )
        return open_data(Config(model=Model(image_size=(8, 8), channels=channels, num_classes=3), data=data))

    return make


@parametrize_quick(
    ("image_key", "label_key", "first", "labels"),
    [
        ("picture", "kind", 0, [0, 1, 2, 0, 1, 2, 0]),
        ("inside/view", "inside/kind", 100, [2, 1, 0, 2, 1, 0, 2]),
        ("rgba", "inside/kind", 200, [2, 1, 0, 2, 1, 0, 2]),
    ],
)
def test_keys_are_settings(make, image_key, label_key, first, labels, device):
    loader = make(image_key=image_key, label_key=label_key)
    assert loader.class_names == NAMES
    batch = next(iter(loader.eval_batches("train", device)))
    assert np.asarray(batch.targets["label"]).tolist() == labels
    assert np.asarray(batch.views["image"])[:, 0, 0, 0].tolist() == list(range(first, first + 7))
    train = next(loader.train_batches(0, device))
    number_B = np.asarray(train.views["image"])[:, 0, 0, 0].astype(int) - first
    assert np.asarray(train.targets["label"]).tolist() == [labels[i] for i in number_B]


def test_several_labels_by_key(make, request, device):
    if request.node.callspec.params["make"] == "memory":
        with pytest.raises(DataError, match=r"has several labels for an image: set data.loader='tfdata'"):
            make(image_key="picture", label_key="tags")
        return
    batch = next(iter(make(image_key="picture", label_key="tags").eval_batches("train", device)))
    assert np.asarray(batch.targets["label"])[:, :3].tolist() == [[0, i % 3, -1] for i in range(7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "data.image_key='image': many has no such feature: set data.image_key to grey or inside/view or",
        ),
        (
            {"image_key": "picture"},
            "data.label_key='label': many has no such feature: set data.label_key to inside/kind or kind or",
        ),
        ({"image_key": "pictur", "label_key": "kind"}, "data.image_key='pictur': many has no such feature"),
        ({"image_key": "kind", "label_key": "kind"}, "data.image_key='kind' of many is ClassLabel("),
        ({"image_key": "depth", "label_key": "kind"}, "dtype=float32), not an image of uint8 or uint16"),
        (
            {"image_key": "picture", "label_key": "number"},
            "is Tensor(shape=(), dtype=int64), not a ClassLabel",
        ),
        (
            {"image_key": "picture", "label_key": "inside"},
            "data.label_key='inside': many has no such feature",
        ),
    ],
)
def test_wrong_keys_name_the_right_ones(make, settings, message):
    with pytest.raises(DataError) as error:
        make(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_that_are_no_class(make, device):
    loader = make(image_key="picture", label_key="kind")
    with pytest.raises(
        DataError, match=r"record 0 of split 'unlabelled' of many has the kind -1, which is none"
    ):
        next(iter(loader.eval_batches("unlabelled", device)))


@pytest.mark.parametrize(
    ("image_key", "channels", "message"),
    [
        ("picture", 1, "many: its images have 3 channels (color) and become grey, as model.channels=1"),
        ("grey", 3, "many: its images have 1 channels (grey) and become color, as model.channels=3"),
        (
            "rgba",
            3,
            "many: its images have 4 channels (color and alpha) and become color, as model.channels=3",
        ),
        ("picture", 3, None),
        ("grey", 1, None),
    ],
)
def test_other_channels_are_said(make, image_key, channels, message, caplog):
    make(channels=channels, image_key=image_key, label_key="kind")
    found = [record.getMessage() for record in caplog.records if record.name.startswith("vit_registers")]
    assert found == ([] if message is None else [message])


@pytest.mark.parametrize("key", ["image_key", "label_key"])
@pytest.mark.parametrize(
    ("name", "loader", "to"),
    [("folder", "memory", "None"), ("folder", "tfdata", "None"), ("digits", "memory", "(image|label)")],
)
def test_keys_of_what_is_not_read_from_tfds(key, name, loader, to):
    data = Data(name=name, loader=loader, data_dir="none", train_ops="flip", eval_ops="resize", **{key: "x"})
    with pytest.raises(ConfigError, match=f"data.{key}='x': '{name}' .*: set data.{key} to {to}$"):
        open_data(Config(data=data))
