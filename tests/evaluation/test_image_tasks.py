"""knn and logistic as tasks: against scikit-learn and NumPy, devices, few images, models without cls."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.fixtures.digits import make_config
from vit_registers.config import KnnSettings, LogisticSettings, Tasks
from vit_registers.data.sources.parts import held_out_records
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.features import block_features, run_features
from vit_registers.evaluation.images import open_images
from vit_registers.evaluation.knn_task import KNN_TASK
from vit_registers.evaluation.linear.host_features import feature_batches, host_features
from vit_registers.evaluation.logistic import fit_plain
from vit_registers.evaluation.logistic_task import LOGISTIC, LabelledFeatures, score_logistic
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.models.params import init_params
from vit_registers.runtime.mesh import make_mesh

CONFIG = make_config()
SPLITS = Splits(("digits", "train"), ("digits", "test"))
FEW = Tasks(knn=KnnSettings(neighbors=(5, 20), few_shot=3, num_draws=2))
LOGISTIC_ONLY = Tasks(logistic=LogisticSettings(exponents=(-2.0, 0.0), num_c=3, tolerance=1e-8))
pytestmark = pytest.mark.usefixtures("compiled_once")


class Killed(Exception):
    """The end of a process."""


def _frozen(num_devices=8, **model):
    model = dataclasses.replace(CONFIG.model, **model)
    devices = np.array(jax.devices()[:num_devices]).reshape(num_devices, 1, 1)
    mesh = jax.sharding.Mesh(devices, make_mesh(CONFIG.mesh).axis_names)
    params = jax.jit(lambda: init_params(model, key=jax.random.key(0)))()
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return FrozenModel("untrained", model, CONFIG.data, params, mesh)


def _measure(task, frozen, settings, *, splits=SPLITS, folder=None, say=lambda line: None):
    with jax.set_mesh(frozen.mesh):
        return task(frozen, settings, splits, folder=folder, say=say)


def _features(frozen):
    """((x_NxD, label_N) of the training images, the same of the test images), on the host."""
    images, found = open_images(frozen, Tasks(), SPLITS), []
    for split in (images.train, images.tests[""]):
        one = block_features(frozen.model, frozen.data, 1, None)
        with jax.set_mesh(frozen.mesh):
            made = run_features(one, frozen.backbone, split, frozen.mesh, say=lambda line: None)
            rows = host_features(feature_batches(made), frozen.mesh)
        x_NxD = rows.cls_BxLxD[rows.mask_B][:, -1].astype(np.float64)
        found.append((x_NxD, rows.label_BxK[rows.mask_B][:, 0]))
    return found


def test_few_images_of_each_class_against_numpy():
    frozen = _frozen()
    result = _measure(KNN_TASK, frozen, FEW)
    (x, label), (query, want) = _features(frozen)
    x, query = (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (x, query))
    top1, top5 = [], []
    for seed in (0, 1):
        members = [np.flatnonzero(label == one) for one in range(10)]
        bank = np.concatenate(
            [np.random.default_rng([seed, i]).permutation(one)[:3] for i, one in enumerate(members)]
        )
        similarity = query @ x[bank].T
        order = np.argsort(-similarity, axis=1)[:, :20]
        weight = np.exp(np.take_along_axis(similarity, order, axis=1) / 0.07)
        votes = np.stack([(weight * (label[bank][order] == one)).sum(1) for one in range(10)], axis=1)
        best = np.argsort(-votes, axis=1, kind="stable")
        top1.append((best[:, 0] == want).mean())
        top5.append((best[:, :5] == want[:, None]).any(axis=1).mean())
    assert result.values["bank"] == 30
    assert result.values["top1_k20"] == pytest.approx(np.mean(top1), abs=2 / 359)
    assert result.values["top5_k20"] == pytest.approx(np.mean(top5), abs=2 / 359)
    row = next(row for row in result.tables["neighbors"].rows if row[1:3] == ("cls", 20))
    assert row[5] == pytest.approx(np.std(top1, ddof=1), abs=4 / 359)
    one_device = _measure(KNN_TASK, _frozen(1), FEW)
    for name, value in result.values.items():
        assert one_device.values[name] == pytest.approx(value, abs=2 / 359)


def test_a_model_without_cls_has_the_mean_of_the_patches():
    settings = dataclasses.replace(FEW, knn=dataclasses.replace(FEW.knn, few_shot=None))
    result = _measure(KNN_TASK, _frozen(use_cls=False, pooling="gap"), settings)
    assert not any(name.startswith("patch/") for name in result.values) and result.values["bank"] == 1438
    assert any("no cls token" in note for note in result.notes)


@pytest.mark.parametrize("strength", [1e-2, 1.0])
def test_weights_are_those_of_scikit_learn_without_scaling(strength):
    rng = np.random.default_rng(0)
    x_NxD, label_N = rng.normal(size=(150, 6)) * [1, 2, 1, 0.5, 1, 1], rng.integers(0, 4, 150)
    x_NxD[:, 0] += label_N
    ours = fit_plain(x_NxD, label_N, strength=strength, max_iterations=1000, tolerance=1e-12)
    theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=1000).fit(x_NxD, label_N)
    expected = np.concatenate([theirs.coef_.T, theirs.intercept_[None]])
    np.testing.assert_allclose(ours.weight_ExY, expected, atol=1e-5)


@pytest.mark.slow
def test_logistic_chooses_as_scikit_learn_would(tmp_path):
    frozen = _frozen()

    def kill(line):
        if line.startswith("logistic regression: 2 of 3"):
            raise Killed

    with pytest.raises(Killed):
        _measure(LOGISTIC, frozen, LOGISTIC_ONLY, folder=tmp_path, say=kill)
    lines = []
    result = _measure(LOGISTIC, frozen, LOGISTIC_ONLY, folder=tmp_path, say=lines.append)
    fits = [line.partition("  ")[0] for line in lines if line.startswith("logistic")]
    assert fits == ["logistic regression: 2 of 3 values of C", "logistic regression: 3 of 3 values of C"]
    (x, label), (query, want) = _features(frozen)
    held = np.isin(np.arange(1438), held_out_records(1438, 0.1, 0))
    scores = []
    for strength in (0.01, 0.1, 1.0):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(x[~held], label[~held])
        scores.append(model.score(x[held], label[held]))
    rows = result.tables["strengths"].rows
    np.testing.assert_allclose([row[1] for row in rows], scores, atol=1.5 / 144)
    final = LogisticRegression(C=result.values["C"], tol=1e-8, max_iter=1000).fit(x, label)
    assert result.values["top1"] == pytest.approx(final.score(query, want), abs=1.5 / 359)
    assert result.values["C"] in (0.1, 1.0) and result.values["training_images"] == 1438


def test_several_labels_some_classes_and_values_that_are_not_finite():
    rng = np.random.default_rng(0)
    x_NxD, label_N = rng.normal(size=(90, 4)), np.repeat([0, 2, 4], 30)
    x_NxD[np.arange(90), label_N // 2] += 3
    model = fit_plain(x_NxD, label_N, strength=1.0, max_iterations=100, tolerance=1e-8)
    label_NxK = np.array([[0, 2], [4, -1], [-1, -1], [0, -1], [1, -1]])
    test_NxD = np.array([[0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 0], [np.nan, 0, 0, 0], [9, 0, 0, 0]], float)
    found = score_logistic(model, LabelledFeatures(test_NxD, label_NxK), None, 6)
    assert (found["images"], found["non_finite"], found["top1"]) == (4, 1, 0.5)
    some = score_logistic(
        model, LabelledFeatures(np.array([[1.0, 9, 0, 0]]), np.array([[0, -1]])), np.array([0, 4]), 6
    )
    assert some["top1"] == 1.0  # class 2, the likeliest of all, is not among them


@pytest.mark.parametrize(
    ("splits", "settings", "error", "message"),
    [
        (
            Splits(("digits", "trian"), SPLITS.test),
            Tasks(),
            DataError,
            "training images: digits has no split",
        ),
        (SPLITS, Tasks(logistic=LogisticSettings(chosen_on="best")), ConfigError, "tasks.logistic.chosen_on"),
    ],
)
def test_bad_input_is_one_line(splits, settings, error, message):
    with pytest.raises(error, match=message) as raised:
        _measure(LOGISTIC, _frozen(), settings, splits=splits)
    assert "\n" not in str(raised.value)
