"""One-shot and cosines of what cls is made of: cases whose answer is known, and plain restatements."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.fixtures.tiles import IMAGES, MAPS, cell_of, labels_of
from vit_registers.analysis.experiments import cls_patches_only, one_shot
from vit_registers.analysis.measures import one_shot as classifiers
from vit_registers.analysis.options import Options
from vit_registers.models.tokens import TokenLayout

LAYOUT = TokenLayout(has_cls=True, num_registers=2, summary_grids=(), patch_grid=(2, 3))
CLS, REGISTERS, PATCHES, BIAS, SKIP = range(5)


class Watched(np.ndarray):
    """An array that notes which rows are asked for."""

    def __getitem__(self, key):
        if getattr(self, "asked", None) is not None:
            self.asked.append(key)
        return np.asarray(super().__getitem__(key))


def make_subject(terms, label, name="model", **more):
    features = {"terms_ExD": terms, "label": label, **more}
    store = SimpleNamespace(read=features.__getitem__, num_read=lambda: len(terms))
    return SimpleNamespace(name=name, layout=LAYOUT, store=store, train=None)


def make_terms(num_classes=7, num_each=6, width=9, seed=0):
    """Patches say the class, registers softly the next one, cls nothing; skip and bias are noise."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(num_classes), num_each))
    terms = np.zeros((len(label), 5, width), np.float32)
    rows = np.arange(len(label))
    terms[rows, PATCHES, label] = 5
    terms[rows, REGISTERS, (label + 1) % num_classes] = 2
    terms[:, PATCHES] += rng.normal(0, 0.1, (len(label), width))
    terms[:, [BIAS, SKIP]] = rng.normal(0, 100, (len(label), 2, width))
    return terms, label


def test_one_shot_tells_parts_that_know_the_class_from_parts_that_mislead():
    result = one_shot.EXPERIMENT.result([make_subject(*make_terms())], Options())
    (table,) = result.tables
    assert [row[:3] for row in table.rows] == [
        ("model", classifier, part)
        for classifier in ("logistic", "nearest")
        for part in ("full", "cls", "registers", "patches")
    ]
    for _, classifier, part, top1, std, top5, _, classes in table.rows:
        expected = {"full": 100, "patches": 100, "registers": 0, "cls": 100 / 7}[part]
        assert (top1, std) == (pytest.approx(expected), pytest.approx(0)), (classifier, part)
        assert classes == 7
        if part == "cls":  # zeros: the same five of seven for every image
            assert top5 == pytest.approx(500 / 7)
    assert [picture.name for picture in result.pictures] == ["one-shot-logistic", "one-shot-nearest"]


def test_one_shot_is_mean_and_sample_deviation_over_three_draws():
    terms, label = make_terms(width=7)
    terms[:, PATCHES] += np.random.default_rng(1).normal(0, 4, terms[:, PATCHES].shape)
    (table,) = one_shot.EXPERIMENT.result([make_subject(terms, label)], Options()).tables
    full = terms[:, :3].astype(np.float64).sum(1)
    for classifier in ("logistic", "nearest"):
        scores = []
        for seed in (0, 1, 2):
            train, test = classifiers.draw_pairs(label, seed=seed)
            parts = {"full": full[test], "patches": terms[test, PATCHES]}
            scores.append(
                classifiers.one_shot(
                    full[train], label[train], parts, label[test], seed=0, classifier=classifier
                )
            )
        for part in ("full", "patches"):
            (row,) = (row for row in table.rows if row[1:3] == (classifier, part))
            top1, top5 = np.array([(100 * one.top1[part], 100 * one.top5[part]) for one in scores]).T
            expected = [np.mean(top1), np.std(top1, ddof=1), np.mean(top5), np.std(top5, ddof=1)]
            assert row[3:7] == pytest.approx(expected)
    assert any(row[4] > 0 for row in table.rows)


def test_one_shot_reads_only_the_images_that_are_drawn():
    terms, label = make_terms(num_each=50)
    watched = terms.view(Watched)
    watched.asked = []
    one_shot.EXPERIMENT.result([make_subject(watched, label)], Options())
    drawn = [rows for seed in (0, 1, 2) for rows in classifiers.draw_pairs(label, seed=seed)]
    assert len(watched.asked) == 6
    for asked, rows in zip(watched.asked, drawn, strict=True):
        np.testing.assert_array_equal(asked, rows)


def test_five_classes_or_fewer_have_no_top5():
    result = one_shot.EXPERIMENT.result([make_subject(*make_terms(num_classes=3))], Options())
    assert all(row[5:] == (None, None, 3) for row in result.tables[0].rows)
    assert result.pictures[0].figure.axes[0].get_ylabel() == "top-1, %"


def test_one_shot_names_what_it_cannot_do():
    terms, label = make_terms()
    several = np.stack([label, label], axis=1)
    single = np.where(np.arange(len(label)) == 3, 9, 4)  # two classes, one of a single image
    subjects = [make_subject(terms, several, "several"), make_subject(terms, single, "single")]
    result = one_shot.EXPERIMENT.result(subjects, Options())
    assert not result.tables and not result.pictures
    assert result.gaps == [
        "several: the images have several labels each, one-shot requires one",
        "single: fewer than two classes have two images or more",
    ]
    result = one_shot.EXPERIMENT.result([*subjects, make_subject(terms, label)], Options())
    assert len(result.gaps) == 2 and {row[0] for row in result.tables[0].rows} == {"model"}


def make_images(number, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "attention_NxExT": rng.dirichlet(np.ones(9), (number, 2, 3)).astype(np.float32),
        "image_HxWxC": rng.integers(0, 256, (number, 4, 6, 1), dtype=np.uint8),
    }


def test_cosines_are_of_parts_with_what_attention_brings():
    terms = np.zeros((3, 5, 2))
    terms[:, PATCHES] = [[3, 0], [1, 0], [-1, 0]]
    terms[:, REGISTERS] = [[0, 4], [0, 0], [3, 0]]
    terms[:, CLS] = [[0, 0], [0, 1], [0, 0]]
    terms[:, [BIAS, SKIP]] = 1000  # no part of it
    result = cls_patches_only.EXPERIMENT.result([make_subject(terms, None, **make_images(3))], Options())
    half = np.sqrt(0.5)
    expected = {"patches": [0.6, half, -1], "registers": [0.8, 1]}
    assert [row[1] for row in result.tables[0].rows] == list(expected)
    for _, part, mean, std, low, median, high in result.tables[0].rows:
        values = expected[part]
        assert (mean, std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
        assert (low, median, high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.5, 0.95])))
    assert result.gaps == ["model: nothing comes from registers in 1 images"]


def test_images_of_lowest_cosine_are_shown_with_the_attention_of_cls():
    number = 600  # more than are read at a time
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(number, 5, 4))
    features = make_images(number)
    result = cls_patches_only.EXPERIMENT.result(
        [make_subject(terms, None, **features)], Options(num_examples=4)
    )
    full = terms[:, :3].sum(1)
    patches = terms[:, PATCHES]
    cosines = (full * patches).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(patches, axis=1)
    assert result.tables[0].rows[0][2] == pytest.approx(cosines.mean())
    assert [picture.name for picture in result.pictures] == ["cosines", "lowest-model"]
    figure = result.pictures[1].figure
    for column, image in enumerate(np.argsort(cosines)[:4]):
        assert labels_of(figure)[1][column] == f"{cosines[image]:.2f}"
        drawn = cell_of(figure, IMAGES, 0, column, (4, 6))[..., 0]
        np.testing.assert_array_equal(drawn, features["image_HxWxC"][image, ..., 0])
        weights = features["attention_NxExT"][image, :, 0, 3:].mean(0).reshape(2, 3)
        np.testing.assert_allclose(cell_of(figure, MAPS, 1, column, (2, 3)), 100 * weights, rtol=1e-6)
