"""TFDS data sets without class labels, such as coco: refused to train and to evaluate, shown by analyze."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.analysis.opening import OpenedModel
from vit_registers.analysis.options import Options
from vit_registers.analysis.run import analyze
from vit_registers.data.loaders import open_data
from vit_registers.errors import DataError
from vit_registers.models.vit import ViT

NUMBER = 12


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def detection(request, tmp_path_factory):
    """A folder with a data set of grey images with boxes, and one whose second split has no labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    f = tfds.features

    class Boxes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def more(self):
            label = f.ClassLabel(names=["ant", "bee"])
            return {"objects": f.Sequence({"bbox": f.BBoxFeature(), "label": label})}

        def _info(self):
            features = f.FeaturesDict({"image": f.Image(shape=(8, 8, 1)), **self.more()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

        def _generate_examples(self, seed):
            rng = np.random.default_rng(seed)
            for i in range(NUMBER):
                yield i, {"image": rng.integers(0, 256, (8, 8, 1), dtype=np.uint8), **self.values(i, seed)}

        def values(self, i, seed):
            box = {"bbox": f.BBox(0.0, 0.0, 1.0, 1.0), "label": i % 2}
            return {"objects": [box] * (i % 3)}

    class Hidden(Boxes, skip_registration=True):
        def more(self):
            return {"label": f.ClassLabel(names=list("0123456789"))}

        def values(self, i, seed):
            return {"label": -1 if seed else i % 10}

    path = tmp_path_factory.mktemp("detection")
    tfds.disable_progress_bar()
    for builder in (Boxes, Hidden):
        builder(data_dir=path, file_format=request.param).download_and_prepare()
    return request.param, path


def _config(detection, name="boxes", loader="tfdata", **settings):
    data = {"name": name, "data_dir": str(detection[1]), "loader": loader, "eval_batch_size": 8}
    return make_config(data=data | settings)


@pytest.mark.parametrize("loader", ["tfdata", "memory", "pil"])
@pytest.mark.parametrize("name", ["boxes", "hidden"])
def test_images_without_a_class_have_the_label_minus_one(detection, device, loader, name):
    if loader != "tfdata" and detection[0] == "tfrecord":
        return
    config = _config(detection, name, loader)
    opened = open_data(config, needs_labels=False)
    assert opened.class_names == (() if name == "boxes" else tuple("0123456789"))
    batches = [jax.tree.map(np.asarray, batch) for batch in opened.eval_batches("test", device)]
    mask = np.concatenate([batch.mask_B for batch in batches])
    assert mask.sum() == NUMBER
    label = np.concatenate([batch.targets["label"] for batch in batches])[mask]
    assert label.tolist() == [-1] * NUMBER and label.dtype == np.int32
    image = np.concatenate([batch.views["image"] for batch in batches])[mask]
    rng = np.random.default_rng(1)
    expected = np.stack([rng.integers(0, 256, (8, 8, 1), dtype=np.uint8) for _ in range(NUMBER)])
    np.testing.assert_array_equal(image, expected)


def test_what_needs_labels_refuses_them_with_the_keys_that_fit(detection):
    message = r"data.label_key='label': boxes has no such feature: set data.label_key to objects/label"
    with pytest.raises(DataError, match=message):
        open_data(_config(detection))
    with pytest.raises(DataError, match=r"data.label_key='kind': boxes has no such feature"):
        open_data(_config(detection, label_key="kind"), needs_labels=False)


NEED_CLASSES = ("accuracy", "probe-global", "one-shot")
NEED_NONE = ("norms", "neighbours", "probe-position", "cls-terms", "remove-outliers")


@pytest.mark.slow
def test_analyze_shows_them_and_names_what_needs_classes(detection, tmp_path):
    """Each experiment measures, or has a gap of one line."""
    if detection[0] == "tfrecord":
        return
    config = _config(detection, "hidden")
    model = ViT(dataclasses.replace(config.model, depth=2), rngs=nnx.Rngs(0))
    opened = OpenedModel(
        name="m", path="m", step=None, sha256="m", model=model, config=config, loader=None, num_images=NUMBER
    )
    boxes = dataclasses.replace(config, data=_config(detection, eval_split="test").data)
    one = dataclasses.replace(opened, config=boxes, loader=open_data(boxes, needs_labels=False))
    trained = dataclasses.replace(boxes, data=dataclasses.replace(boxes.data, eval_split="train"))
    one = dataclasses.replace(one, train=dataclasses.replace(one, config=trained))
    options = Options(rule="quantile:0.9", num_edited=NUMBER)
    entries = analyze([*NEED_CLASSES, *NEED_NONE], [one], options, tmp_path)
    found = {entry.name: entry.result for entry in entries}
    for name in NEED_CLASSES:
        assert not found[name].tables, name
        assert len(found[name].gaps) == 1 and "the images have no classes" in found[name].gaps[0], name
    for name in NEED_NONE:
        assert found[name].tables, name
    assert found["probe-position"].images == [
        "Trained on 12 of the 12 images of boxes, split 'train'; tested on 12 of the 12 images of boxes, "
        "split 'test'"
    ]
    assert not [gap for one in found.values() for gap in one.gaps if "\n" in gap or "nan" in gap]
    assert "m: no accuracy, as the images have no classes" in found["remove-outliers"].gaps


def test_a_folder_without_classes_is_one_class(tmp_path, device):
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    config = make_config(data={"name": "images", "data_dir": str(tmp_path), "eval_batch_size": 8})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eval_split="all"))
    assert open_data(config, needs_labels=False).class_names == (".",)
