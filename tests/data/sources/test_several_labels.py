"""Data sets with any number of right labels for an image, laid out as TFDS's imagenet2012_real."""

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.classification import CLASSIFICATION
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh

SETS = [[0, 2], [], [1], [0, 1, 2], [2], [], [1, 0]]


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def real(request, tmp_path_factory):
    """A Config of 7 grey images of 8 x 8 with the labels SETS."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")

    class Real(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            label = tfds.features.ClassLabel(names=("ant", "bee", "cow"))
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "original_label": label,
                "real_label": tfds.features.Sequence(label),
                "file_name": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for i, labels in enumerate(SETS):
                image = np.full((8, 8, 1), 30 * i, np.uint8)
                yield i, {"image": image, "original_label": 0, "real_label": labels, "file_name": str(i)}

    path = tmp_path_factory.mktemp("real")
    tfds.disable_progress_bar()
    Real(data_dir=path, file_format=request.param).download_and_prepare()
    data = Data(name="real", data_dir=str(path), eval_batch_size=4, eval_ops="", mean=(0.5,), std=(0.5,))
    model = Model(width=16, depth=1, num_heads=2, patch_size=4, image_size=(8, 8), channels=1, num_classes=3)
    return Config(model=model, data=data)


@pytest.mark.slow
def test_any_right_label_counts_and_images_without_one_do_not(real):
    mesh = make_mesh(real.mesh, devices=jax.devices()[:1])
    model = ViT(real.model, rngs=nnx.Rngs(0))
    head = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    model.head.kernel[...] = head
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with jax.set_mesh(mesh):
        split = EvalSplit(open_data(real), "validation")
        evaluators = CLASSIFICATION.make(real.objective, real.model, real.data, {"validation": split}, mesh)
        result = evaluators["validation"]({"vit": params})
    image_BxHxWxC = np.stack([np.full((8, 8, 1), 30 * i / 127.5 - 1, np.float32) for i in range(7)])
    logits = np.asarray(model(image_BxHxWxC).logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    counted = [i for i in range(7) if SETS[i]]
    assert result["images"] == len(counted) == 5
    assert result["top1"] == pytest.approx(np.mean([logits[i].argmax() in SETS[i] for i in counted]))
    assert result["loss"] == pytest.approx(np.mean([-log_p[i][SETS[i]].mean() for i in counted]), rel=1e-5)


def test_it_is_for_evaluation_only(real, device):
    with pytest.raises(ConfigError, match=r"data.name='real' has several labels"):
        next(open_data(real).train_batches(0, device))
    memory = Config(model=real.model, data=Data(loader="memory", name="real", data_dir=real.data.data_dir))
    with pytest.raises((ConfigError, DataError)) as error:
        open_data(memory)
    assert "\n" not in str(error.value)
