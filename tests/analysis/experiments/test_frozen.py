"""What frozen features are good for: the row of each model, where its numbers are from, and edited models."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from sklearn.neighbors import KNeighborsClassifier

from tests.fixtures.digits import make_config
from vit_registers.analysis import given_images, opening
from vit_registers.analysis.experiments import frozen_heads, frozen_knn, frozen_logistic, frozen_tasks
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.measures.nearest import knn_right
from vit_registers.analysis.options import Options
from vit_registers.config import Tasks
from vit_registers.data.loaders import open_data
from vit_registers.errors import ConfigError
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import ViT

NAMES = ("ant", "bee", "cow")
LAYOUT = TokenLayout(has_cls=True, num_registers=0, summary_grids=(), patch_grid=(2, 2))


def _subject(name="m", number=90, seed=0, *, run=None, train=None, label=None):
    rng = np.random.default_rng(seed)
    label = np.arange(number) % 3 if label is None else label
    frozen = rng.normal(size=(number, 2, 8)).astype(np.float32)
    frozen[np.arange(number), :, np.maximum(label, 0)] += 3
    arrays = {"frozen_2xD": frozen, "label": label}
    return SimpleNamespace(
        name=name,
        layout=LAYOUT,
        run=run,
        step=None if run is None else 8,
        params_name="params",
        class_names=NAMES,
        images=f"{number} images of set {seed}",
        train=train,
        store=SimpleNamespace(read=arrays.__getitem__, num_read=lambda: number),
    )


@pytest.fixture
def run(tmp_path):
    """A run folder with results of linear and depth."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    (tmp_path / "checkpoints" / "8" / "manifest.json").write_text("{}")
    os.utime(tmp_path / "checkpoints" / "8" / "manifest.json", (1000, 1000))
    (tmp_path / "evaluation").mkdir()
    about = {"step": 8, "params": "params", "data": "d:test", "train_data": "d:train"}
    for task, values in (
        ("linear", {"top1": 0.9, "images": 100}),
        ("depth", {"rmse": 0.25, "rmse_se": 0.01, "test_images": 50, "position_only_rmse": 0.5}),
    ):
        text = json.dumps(about | {"task": task} | values)
        (tmp_path / "evaluation" / f"{task}.json").write_text(text)
    return tmp_path


def test_neighbours_vote_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    bank, query = rng.normal(size=(150, 6)), rng.normal(size=(300, 6))
    label, own = rng.integers(0, 4, 150), rng.integers(0, 4, 300)
    right = knn_right(bank, label, query, own, num_classes=4, neighbors=(1, 7, 20))
    for k, is_right in right.items():
        weigh = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
        fitted = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(bank, label)
        np.testing.assert_array_equal(is_right, fitted.predict(query) == own)


def test_a_row_for_each_model_from_its_run_and_from_the_features(run):
    result = frozen_tasks.EXPERIMENT.result([_subject("a", run=run), _subject("b", seed=1)], Options())
    table, sources = result.tables
    assert table.is_open and not sources.is_open
    assert table.columns[1:] == (
        "k-NN, %",
        "linear, %",
        "logistic, %",
        "segmentation mIoU, %",
        "depth RMSE, m",
    )
    (first, second) = table.rows
    assert first[2] == "90.0 \u00b1 5.9 (n = 100)" and first[5] == "0.250 \u00b1 0.020 (n = 50)"
    assert first[1].endswith("(n = 45)") and first[4] is None
    assert second[0] == "b" and second[2] is None and second[5] is None
    found = {(row[0], row[1]): row for row in sources.rows}
    assert sources.columns[5:7] == ("random backbone", "position only")
    assert found["a", "depth"][5:7] == (None, 0.5)
    assert found["a", "linear"][7:] == ("d:train", "d:test", "evaluation/linear.json")
    assert found["a", "depth"][2:5] == (0.25, 0.01, 50)
    half = "45 of the 90 images of set 0 (half of each class)"
    assert found["a", "knn"][7:] == (half, half, "this report")
    assert "a: not measured: segmentation; vit-registers evaluate --task=NAME measures them" in result.gaps
    assert "b: not measured: linear, segmentation, depth; vit-registers" in result.gaps[1]
    # Of other images: no comparison, neither in the finding nor in the head of the report.
    assert [gap.partition(":")[0] for gap in result.gaps[2:]] == ["knn", "logistic"]
    assert "lowest" not in result.finding
    assert [head.what for head in result.headlines["a"]] == [
        "frozen features by a linear head, %",
        "depth RMSE from frozen features, m",
    ]


def test_models_of_the_same_images_are_compared():
    models = [_subject("a"), _subject("b")]
    result = frozen_tasks.EXPERIMENT.result(models, Options())
    assert [head.what for head in result.headlines["b"]] == [
        "frozen features by k-NN, %",
        "frozen features by logistic regression, %",
    ]
    assert all("compared" not in gap for gap in result.gaps)


def test_shuffled_labels_are_at_chance_on_other_images():
    rng = np.random.default_rng(3)
    train = _subject("m", 60, 1)
    test = _subject("m", 600, 2, train=train)
    read, label = test.store.read, rng.integers(0, 3, 600)
    test.store.read = lambda name: label if name == "label" else read(name)
    result = frozen_tasks.EXPERIMENT.result([test], Options())
    values = {row[1]: row[2] for row in result.tables[1].rows}
    assert values.keys() == {"knn", "logistic"}
    for value in values.values():
        assert abs(value - 100 / 3) < 4 * 100 * np.sqrt(2 / 9 / 600)
    assert result.images == [
        "Trained on 60 of the 60 images of set 1; tested on 600 of the 600 images of set 2"
    ]


def test_images_without_classes_leave_what_the_run_has(run):
    label = np.full(90, -1)
    result = frozen_tasks.EXPERIMENT.result([_subject("a", run=run, label=label)], Options())
    assert [row[1] for row in result.tables[1].rows] == ["linear", "depth"]
    assert result.gaps[0] == "a: the images have no classes, which k-NN requires"
    alone = frozen_tasks.EXPERIMENT.result([_subject("b", label=label)], Options())
    assert not alone.tables and len(alone.gaps) == 1 and "no classes" in alone.gaps[0]


def _opened(split="test", **settings):
    config = make_config(
        model={"width": 32, "num_heads": 4, "depth": 2, "patch_size": 2, **settings},
        data={"eval_split": split, "eval_batch_size": 64},
    )
    model = ViT(config.model, rngs=nnx.Rngs(0))
    return opening.OpenedModel(
        name="a",
        path="a",
        step=None,
        sha256="a",
        model=model,
        config=config,
        loader=open_data(config),
        num_images=359 if split == "test" else 1438,
    )


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A model with random weights on digits:test, and on digits:train to train on."""
    opened = _opened()
    features = ("norms_LxT", "image_HxWxC", "frozen_2xD")
    whole = dataclasses.replace(opened, train=_opened("train"))
    options = Options(rule="quantile:0.95", num_edited=64)
    return extract(whole, features, tmp_path_factory.mktemp("frozen"), options, train_names=features), options


@pytest.mark.slow
def test_each_edit_has_a_row_of_the_same_images(subject):
    one, options = subject
    edits = ["unedited", "with a test-time register", "with outliers removed"]
    for experiment in (frozen_knn, frozen_logistic):
        result = experiment.EXPERIMENT.result([one], options)
        (table,) = result.tables
        assert [row[2] for row in table.rows if row[1] == "cls"] == edits
        assert {row[5:] for row in table.rows} == {(64, 64)}
        assert result.images[0].startswith("Trained on 64 of the 1438 images of digits, split 'train'")
        assert not result.gaps


@pytest.mark.slow
def test_a_task_gives_what_the_stored_features_give(subject):
    """k-NN by evaluation/knn_task.py on both splits, against k-NN of the features of the analysis."""
    one, _ = subject
    opened = dataclasses.replace(_opened(), train=_opened("train"))
    options = given_images.with_tasks(Options(rule="absolute:1e9"), ["knn"], None, opened)
    result = frozen_heads.EXPERIMENT.result([one], options)
    values = {row[2]: row[3] for row in result.tables[0].rows}
    assert [*values] == ["unedited"]
    assert result.gaps == ["a: no outliers by absolute:1e9, so only the unedited model is measured"]
    here = frozen_tasks.EXPERIMENT.result([one], options).tables[1].rows
    assert values["unedited"] == pytest.approx(next(row[2] for row in here if row[1] == "knn"), abs=1e-4)


@pytest.mark.parametrize(
    ("tasks", "given", "train", "message"),
    [
        (["segmentation"], None, True, "give --task_data=TRAIN,TEST, such as --task_data=digit_scenes:train"),
        (["depth"], ["digit_scenes:test"], True, "give --task_data=TRAIN,TEST"),
        (["depth"], ["a:b", "digit_scenes"], True, "--task_data=digit_scenes: must be NAME:SPLIT"),
        (["linear"], None, False, "--tasks=linear requires --train_data=NAME:SPLIT, to train on"),
        (["liner"], None, True, "did you mean 'linear'"),
        (["linear"], None, "images", "has no splits: give FOLDER:SPLIT"),
    ],
)
def test_tasks_without_what_they_need_are_refused(tasks, given, train, message):
    data = SimpleNamespace(name="images" if train == "images" else "digits", data_dir="x", eval_split="all")
    config = SimpleNamespace(data=data, tasks=Tasks())
    opened = SimpleNamespace(train=SimpleNamespace(config=config) if train else None, config=config)
    with pytest.raises(ConfigError, match=message) as error:
        given_images.with_tasks(Options(), tasks, given, opened)
    assert "\n" not in str(error.value)
