"""Probes that are trained on --train_data and tested on --data: what enters which, and unchanged without."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from vit_registers.analysis.experiments import one_shot, probe_global, probe_position, probe_reconstruction
from vit_registers.analysis.experiments.train_test import (
    ProbeImages,
    ProbeSets,
    halves_by_class,
    labelled_parts,
    num_shared,
    outliers_alike,
    random_halves,
)
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.measures.probes import logistic_probe
from vit_registers.analysis.options import Options
from vit_registers.models.tokens import TokenLayout

LAYOUT = TokenLayout(has_cls=True, num_registers=0, summary_grids=(), patch_grid=(2, 2))
OPTIONS = Options(rule="absolute:1.5")
GOLDEN = ["c1c127677d5fae3e", "fc491ddc367e6359", "f7b7dc58f032db20"]
NAMES = ("ant", "bee", "cow")


def _subject(number, seed, *, label=None, width=24, names=NAMES, train=None, signal=0.0):
    """Random tokens, with `signal` times the class in them, of 8 x 8 images of four patches."""
    rng = np.random.default_rng(seed)
    label = np.arange(number) % len(names) if label is None else np.asarray(label)
    patches = rng.normal(size=(number, 4, width)).astype(np.float32)
    extras = rng.normal(size=(number, 1, width)).astype(np.float32)
    terms = rng.normal(size=(number, 4, width)).astype(np.float32)
    for token in (patches, extras, terms):
        token[np.arange(number), :, np.maximum(label, 0)] += signal
    norms = np.linspace(0.5, 2.0, 5 * number).reshape(1, 5, number).transpose(2, 0, 1)
    arrays = {
        "patches_PxD": patches,
        "extras_ExD": extras,
        "terms_ExD": terms,
        "norms_LxT": norms,
        "label": label,
        "image_HxWxC": rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8),
    }
    subject = SimpleNamespace(
        name="m",
        layout=LAYOUT,
        class_names=names,
        images=f"{number} images of set {seed}",
        train=train,
        model=SimpleNamespace(patch_size=4),
        mean=(0.5,),
        std=(0.5,),
        store=SimpleNamespace(read=arrays.__getitem__, num_read=lambda: number),
    )
    subject.patch_norms = lambda: norms[:, -1, LAYOUT.patches]
    subject.outliers = lambda rule: find(subject.patch_norms(), rule)
    return subject


def _run(experiment, subject):
    result = experiment.result([subject], OPTIONS)
    columns = result.tables[0].columns if result.tables else ()
    return result, [dict(zip(columns, row, strict=True)) for row in result.tables[0].rows] if columns else []


def test_without_the_flag_the_halves_are_those_of_before():
    """Digests of the indices that the version without --train_data drew."""
    label = np.random.default_rng(5).integers(0, 7, 900)
    digests = [
        hashlib.sha256(np.stack([*map(np.asarray, halves)]).astype(np.int64).tobytes()).hexdigest()[:16]
        for halves in (random_halves(1000), random_halves(300), halves_by_class(np.repeat(np.arange(7), 20)))
    ]
    assert digests == GOLDEN
    train, test = halves_by_class(label)
    assert not set(train) & set(test) and len(train) + len(test) == 900
    parts = labelled_parts(_subject(40, 0), "patches_PxD", what="it")
    assert parts.is_split and parts.describe() == ""


def test_a_probe_of_shuffled_labels_is_at_chance_on_the_test_images():
    """24 numbers tell 20 training images apart whatever their labels, so images in both would be right."""
    rng = np.random.default_rng(1)
    train = _subject(20, 1, label=rng.permutation(np.arange(20) % 2), names=("ant", "bee"))
    test = _subject(400, 2, label=rng.permutation(np.arange(400) % 2), names=("ant", "bee"), train=train)
    _, rows = _run(probe_global.EXPERIMENT, test)
    own = next(row for row in rows if row["token"] == "cls")
    assert own["trained on"] == 20 and own["tested on"] == 400
    assert abs(own["accuracy, %"] - 50) < 4 * 100 * np.sqrt(0.25 / 400)
    leaked = logistic_probe(*[x for _ in "ab" for x in _cls(train)], seed=0, strengths=(100.0,))
    assert leaked.accuracy == 1.0


def _cls(subject):
    return subject.store.read("extras_ExD")[:, 0], subject.store.read("label")


def test_the_probe_of_cls_is_that_of_scikit_learn_on_the_two_sets():
    train = _subject(90, 1, signal=1.0)
    test = _subject(60, 2, signal=1.0, train=train)
    result, rows = _run(probe_global.EXPERIMENT, test)
    strength = logistic_probe(*_cls(train), *_cls(test), seed=0).strength
    scaler = StandardScaler().fit(_cls(train)[0])
    fitted = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
    fitted.fit(scaler.transform(_cls(train)[0]), _cls(train)[1])
    expected = 100 * fitted.score(scaler.transform(_cls(test)[0]), _cls(test)[1])
    assert next(row for row in rows if row["token"] == "cls")["accuracy, %"] == pytest.approx(expected)
    assert result.images == [
        "Trained on 90 of the 90 images of set 1; tested on 60 of the 60 images of set 2"
    ]
    assert result.numbers()["images"] == result.images


def test_the_linear_reconstruction_is_ridge_regression_on_the_two_sets():
    train = _subject(30, 1)
    test = _subject(20, 2, train=train)
    _, rows = _run(probe_reconstruction.EXPERIMENT, test)
    (x, y), (u, v) = (
        (
            one.store.read("patches_PxD").reshape(-1, 24).astype(np.float64),
            (one.store.read("image_HxWxC") / 255 - 0.5).reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
            / 0.5,
        )
        for one in (train, test)
    )
    alpha = 1e-6 * ((x - x.mean(0)) ** 2).sum() / 24
    error = np.square(Ridge(alpha=alpha).fit(x, y).predict(u) - v).mean(1)
    found = [row["squared error per value"] for row in rows if row["probe"] == "linear"]
    is_outlier = find(test.patch_norms(), OPTIONS.rule).is_outlier_BxP.ravel()
    assert found == pytest.approx([error[~is_outlier].mean(), error[is_outlier].mean()], rel=1e-5)


def test_no_test_image_is_read_to_train(monkeypatch):
    """Of each probe, what is fitted: the training images, which are those of the other set."""
    train = _subject(30, 1, signal=1.0)
    test = _subject(500, 2, signal=1.0, train=train)
    given = {}

    def note(module, name, of):
        original = getattr(module, name)

        def noted(first, *args, **kwargs):
            given.setdefault(name, []).append(of(first))
            return original(first, *args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    note(probe_position, "fit_position_probe", lambda token: token)
    note(probe_reconstruction.reconstruction, "fit_mean", lambda pairs: pairs.token_BxPxD)
    note(one_shot, "one_shot", lambda full: full)
    _, rows = _run(probe_position.EXPERIMENT, test)
    assert sum(row["tokens"] for row in rows) == 4 * 400  # MANY_IMAGES
    _run(probe_reconstruction.EXPERIMENT, test)
    for name in ("fit_position_probe", "fit_mean"):
        np.testing.assert_array_equal(given[name][0], train.store.read("patches_PxD"))
    _run(one_shot.EXPERIMENT, test)
    terms = train.store.read("terms_ExD")[:, :2].astype(np.float64).sum(1)
    for full in given["one_shot"]:
        assert all((np.abs(terms - one).max(1) < 1e-6).sum() == 1 for one in full)


def test_outliers_to_train_on_are_above_the_threshold_of_the_test_images():
    train, test = _subject(30, 1), _subject(40, 2)
    test.train, quantile = train, Options(rule="quantile:0.5")
    threshold = test.outliers(quantile.rule).threshold
    _, rows = _run(probe_global.EXPERIMENT, test)
    assert rows
    result = probe_global.EXPERIMENT.result([test], quantile)
    row = next(row for row in result.tables[0].rows if row[1] == "outlier")
    assert row[4] == (train.patch_norms() > threshold).any(1).sum()


def test_classes_are_matched_by_name_and_images_without_one_are_left_out():
    train = _subject(30, 1)
    test = _subject(8, 2, label=[0, 1, -1, 0, 1, -1, 0, 1], names=("cow", "ant"), train=train)
    parts = labelled_parts(test, "patches_PxD", what="it")
    assert isinstance(parts, ProbeSets)
    assert parts.test.label_N.tolist() == [2, 0, 2, 0, 2, 0] and len(parts.train.label_N) == 30
    assert parts.test.row_N.tolist() == [0, 1, 3, 4, 6, 7]


GAPS = {
    "other classes": (_subject(9, 1), {"names": ("ant", "bee", "dog")}, "give two parts of one data set"),
    "no classes to test on": (
        _subject(9, 1),
        {"label": [-1] * 9, "names": ()},
        "m: the images have no classes",
    ),
    "no classes to train on": (
        _subject(9, 1, label=[-1] * 9),
        {},
        "the images of --train_data have no classes",
    ),
    "several classes": (
        _subject(9, 1),
        {"label": np.zeros((9, 2), int)},
        "m: the images have several labels each",
    ),
    "one class": (_subject(9, 1, label=[0] * 9), {}, "two classes or more"),
}


@pytest.mark.parametrize("experiment", [probe_global, one_shot])
@pytest.mark.parametrize("case", GAPS)
def test_what_cannot_be_trained_is_a_gap_of_one_line(case, experiment):
    train, settings, line = GAPS[case]
    if case == "several classes":
        test = _subject(9, 2, train=train)
        read, label = test.store.read, settings["label"]
        test.store.read = lambda name: label if name == "label" else read(name)
    else:
        test = _subject(9, 2, train=train, **settings)
    result, rows = _run(experiment.EXPERIMENT, test)
    assert not rows and len(result.gaps) == 1 and "\n" not in result.gaps[0]
    assert line in result.gaps[0] or case == "one class"


def test_equal_images_are_counted():
    train, test = _subject(30, 1), _subject(10, 2)
    test.train = train
    train.store.read("norms_LxT")[3] = test.store.read("norms_LxT")[7]
    assert num_shared(test) == 1


def test_images_to_train_on_have_the_threshold_of_those_to_test_on_or_of_their_own_batches():
    """Norms to train on are ten times larger: above one threshold are all, and of each image two patches."""
    large, small = _subject(6, 1), _subject(8, 2)
    norm_BxP = 10 * large.patch_norms()
    large.patch_norms = lambda: norm_BxP
    none = np.zeros(0, int)
    train, test = (ProbeImages(one, np.arange(4), none) for one in (large, small))
    parts = ProbeSets(train, test)
    assert outliers_alike(train, parts, "quantile:0.5").all()
    for part in (train, test):
        np.testing.assert_array_equal(outliers_alike(part, parts, "batch:0.5/1").sum(1), 2)
