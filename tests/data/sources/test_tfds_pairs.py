"""oxford_iiit_pet in the format of TFDS: a tiny prepared copy."""

import numpy as np
import pytest

from vit_registers.data.sources.dense import CLASSES
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")
NUMBERS = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)[..., None]


def prepare(path, file_format="array_record", damage=False):
    class OxfordIiitPet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("4.0.0")
        name = "oxford_iiit_pet"
        code_path = None

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(num_classes=37),
                    "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

        def _generate_examples(self, number):
            for i in range(number):
                mask = NUMBERS * 0 if damage else NUMBERS
                yield i, {"image": np.full((2, 3, 3), i, np.uint8), "label": i, "segmentation_mask": mask}

    tfds.disable_progress_bar()
    OxfordIiitPet(data_dir=path, file_format=file_format).download_and_prepare()
    return path / "oxford_iiit_pet" / "4.0.0"


def test_pets(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    for name in (folder, folder.parent):
        source = open_dense(str(name), CLASSES)
        assert source.protocol == source.name == "oxford_iiit_pet"
        assert source.class_names == ("pet", "background", "border")
        assert (source.num_examples("train"), source.num_examples("train[:2]")) == (3, 2)
        image, label = source.load("train", 2, 3)
        assert (image == 2).all() and (label == NUMBERS[..., 0].astype(int) - 1).all()
    with pytest.raises(DataError, match="validation"):
        source.num_examples("validation")


def test_pets_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="the label 0 is no class: those are 1 to 3"):
        open_dense(str(prepare(tmp_path / "a", damage=True)), CLASSES).load("train", 0, 3)
    with pytest.raises(DataError, match="tfrecord files, without random access"):
        open_dense(str(prepare(tmp_path / "b", "tfrecord")), CLASSES)
