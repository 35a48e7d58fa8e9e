"""The k-NN evaluator on digits, against scikit-learn, for cls and the mean of the patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from configs import dino_digits
from vit_registers.config import from_mapping
from vit_registers.data.batch import IMAGE, LABEL
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.evaluation.knn import CLS, PATCH, KnnEvaluator, model_features
from vit_registers.models.params import init_params
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.sharding import batch_sharding

CONFIG = from_mapping(dino_digits.get_config("registers=2").to_dict())
MODEL = dataclasses.replace(CONFIG.model, width=16, depth=1, num_heads=2)


@pytest.fixture(scope="module")
def split():
    return EvalSplit(open_data(CONFIG), "test")


def _all(split, params, name):
    """(features, labels) of the images of a split of the loader, computed without the evaluator."""
    features = model_features(MODEL, CONFIG.data)
    batches = split.loader.eval_batches(name, batch_sharding(make_mesh(CONFIG.mesh)))
    found = [(features(params, one), one.targets[LABEL], one.mask_B) for one in batches]
    x = {kind: np.concatenate([one[kind][mask] for one, _, mask in found]) for kind in (CLS, PATCH)}
    return x, np.concatenate([label[mask] for _, label, mask in found])


def test_against_scikit_learn(split):
    mesh = make_mesh(CONFIG.mesh)
    params = init_params(MODEL, key=jax.random.key(0))
    evaluate = KnnEvaluator(CONFIG.data, split, mesh, model_features(MODEL, CONFIG.data))
    with jax.set_mesh(mesh):
        found = evaluate({"vit": params})
        (bank, label), (query, want) = _all(split, params, "train"), _all(split, params, "test")
    assert (found["images"], found["non_finite"]) == (359, 0)
    assert [*found][:4] == ["top1_k10", "top1_k20", "top1_k100", "top1_k200"]
    for kind, name in ((CLS, "top1_k20"), (PATCH, "patch/top1_k20")):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank[kind], query[kind])]
        reference = KNeighborsClassifier(
            20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute"
        )
        reference.fit(unit[0], label)
        assert found[name] == pytest.approx((reference.predict(unit[1]) == want).mean(), abs=2 / 359)
    assert found["top1_k20"] != found["patch/top1_k20"]


def test_an_image_counts_as_wrong_by_the_feature_that_is_not_finite(split):
    def features(backbone, batch):
        image = batch.views[IMAGE].astype(jnp.float32).reshape(len(batch.mask_B), -1)
        return {CLS: image, PATCH: jnp.where(batch.targets[LABEL][:, None] == 3, jnp.nan, image)}

    mesh = make_mesh(CONFIG.mesh)
    with jax.set_mesh(mesh):
        found = KnnEvaluator(CONFIG.data, split, mesh, features)({"vit": {}})
    threes = sum((split.loader._source.labels(name) == 3).sum() for name in ("train", "test"))
    assert found["non_finite"] == threes
    assert found["patch/top1_k20"] < 0.92 < found["top1_k20"]
