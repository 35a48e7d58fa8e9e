"""Classes without images or pixels, and labels that are no class: one line each."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.config import LinearSettings, LogisticSettings, SegmentationSettings, Tasks
from vit_registers.errors import DataError
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.evaluation.tasks import import_task
from vit_registers.models.params import init_params
from vit_registers.runtime.mesh import make_mesh

IMAGE_TASKS = ("knn", "linear", "logistic")
CONFIG = make_config(data={"eval_batch_size": 8, "batch_size": 8})
SETTINGS = Tasks(
    linear=LinearSettings(num_steps=3, batch_size=8, learning_rates=(0.1,)),
    logistic=LogisticSettings(num_c=2, max_iterations=5),
    segmentation=SegmentationSettings(
        num_steps=2, batch_size=8, short_side=8, crop=8, stride=8, augment=False
    ),
)
pytestmark = pytest.mark.usefixtures("compiled_once")


def _measure(task, train, test, settings=SETTINGS, **data):
    mesh = make_mesh(CONFIG.mesh)
    params = jax.jit(lambda: init_params(CONFIG.model, key=jax.random.key(0)))()
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    frozen = FrozenModel("m", CONFIG.model, dataclasses.replace(CONFIG.data, **data), params, mesh)
    with jax.set_mesh(mesh):
        return import_task(task)(frozen, settings, Splits(train, test), folder=None, say=lambda line: None)


def _write(path, image_HxW):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HxW).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of a, b and c; the split train has none of c."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, classes in (("train", "ab"), ("val", "abc")):
        for name in classes:
            for i in range(10):
                _write(root / split / name / f"{i}.png", rng.integers(0, 256, (8, 8), np.uint8))
    return root


@pytest.mark.parametrize("task", [*IMAGE_TASKS, "streamed"])
def test_a_class_without_training_images_is_named(folder, task):
    settings = SETTINGS
    if task == "streamed":  # with images that are drawn anew for each step
        task, linear = "linear", dataclasses.replace(SETTINGS.linear, train_ops="flip")
        settings = dataclasses.replace(SETTINGS, linear=linear)
    result = _measure(task, (str(folder), "train"), (str(folder), "val"), settings)
    (note,) = [note for note in result.notes if "not learned" in note]
    assert note.startswith("1 of 3 classes have no ") and note.endswith("so they are not learned: 'c'")
    assert result.values["images"] == 30


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_a_class_folder_without_images_is_one_line(folder, tmp_path, task):
    (tmp_path / "train").symlink_to(folder / "val")
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
    _write(tmp_path / "val" / "a" / "0.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"test images: class folder .*val/b has no images: ") as raised:
        _measure(task, (str(tmp_path), "train"), (str(tmp_path), "val"))
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module", params=[("array_record", "memory"), ("tfrecord", "tfdata")])
def over(request, tmp_path_factory):
    """(loader, data_dir) of a data set of TFDS with two classes, whose files have the labels 0, 1 and 2."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    features = tfds.features

    class Over(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            label = features.ClassLabel(names=["a", "b", "c"])
            own = features.FeaturesDict({"image": features.Image(shape=(8, 8, 1)), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=own, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            for i in range(12):
                yield i, {"image": np.full((8, 8, 1), i, np.uint8), "label": i % 3}

    path = tmp_path_factory.mktemp("over")
    form, loader = request.param
    tfds.disable_progress_bar()
    Over(data_dir=path, file_format=form).download_and_prepare()
    (path / "over" / "1.0.0" / "label.labels.txt").write_text("a\nb\n")
    schema = path / "over" / "1.0.0" / "features.json"
    schema.write_text(schema.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    return loader, str(path)


@pytest.mark.slow
@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_a_label_above_the_number_of_classes_is_one_line(over, task):
    loader, data_dir = over
    chosen = {"chosen_on": "test"}  # held-out images require random access
    settings = dataclasses.replace(
        SETTINGS,
        linear=dataclasses.replace(SETTINGS.linear, **chosen),
        logistic=dataclasses.replace(SETTINGS.logistic, **chosen),
    )
    with pytest.raises(DataError, match=r"the label 2, which is none of the 2 classes \(0 to 1\)") as raised:
        _measure(
            task, ("over", "train"), ("over", "test"), settings, name="over", data_dir=data_dir, loader=loader
        )
    assert "the data set must list all its classes" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_classes_without_pixels_are_named(tmp_path):
    """In the images of the training, and in the labels of the test split."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", (0, 1, 255)), ("test", (0, 2))):
        for i in range(4):
            _write(tmp_path / "images" / split / f"{i}.png", rng.integers(0, 256, (8, 8), np.uint8))
            mask = rng.choice(classes, (8, 8)).astype(np.uint8)
            _write(tmp_path / "masks" / split / f"{i}.png", mask)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    result = _measure("segmentation", (str(tmp_path), "train"), (str(tmp_path), "test"))
    first, second = [note for note in result.notes if " of 3 classes have no pixel" in note]
    assert first == (
        "1 of 3 classes have no pixel in the images of the training, so they are not learned: 'car'"
    )
    assert second.startswith("1 of 3 classes have no pixel in the test split (road): ")
