"""Accuracy of the head: against scikit-learn, cases worked by hand, and subjects that cannot be judged."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from vit_registers.analysis import subject
from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.accuracy import EXPERIMENT, score_head
from vit_registers.analysis.options import Options
from vit_registers.analysis.subject import Subject

RNG = np.random.default_rng(0)


def test_it_is_scikit_learns_whatever_the_parts(monkeypatch):
    logits_BxY, label_B = RNG.normal(size=(50, 9)).astype(np.float32) * 3, RNG.integers(0, 9, 50)
    chance = np.exp(logits_BxY.astype(np.float64))
    chance /= chance.sum(1, keepdims=True)
    for parts in (7, 50, 4096):
        monkeypatch.setattr(subject, "_PART", parts)
        found = score_head(logits_BxY, label_B)
        assert found.num_images == 50
        for k, value in ((1, found.top1), (5, found.top5)):
            assert value == pytest.approx(top_k_accuracy_score(label_B, logits_BxY, k=k, labels=range(9)))
        assert found.cross_entropy == pytest.approx(log_loss(label_B, chance, labels=range(9)), rel=1e-12)
        assert found.top1_error == pytest.approx(np.sqrt(found.top1 * (1 - found.top1) / 50))


def test_of_equal_logits_the_first_class_wins():
    equal_8xY = np.zeros((8, 8))
    found = score_head(equal_8xY, np.arange(8))
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)
    assert found.cross_entropy == pytest.approx(np.log(8))


def test_large_logits_do_not_overflow():
    found = score_head(np.array([[1e4, -1e4], [1e4, -1e4]]), np.array([0, 1]))
    assert found.cross_entropy == pytest.approx(1e4)


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_of_few_classes_is_left_out(num_classes, has_top5):
    found = score_head(RNG.normal(size=(4, num_classes)), np.zeros(4, int))
    assert (found.top5 is not None) == has_top5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_logit_that_is_not_finite_is_wrong(value):
    logits_BxY = np.eye(8)[[0, 1, 2, 3]]
    logits_BxY[1, 1] = logits_BxY[2, 7] = value
    found = score_head(logits_BxY, np.arange(4))
    assert (found.top1, found.top5, found.num_non_finite) == (0.5, 0.5, 2)
    assert not np.isfinite(found.cross_entropy)
    assert edited_models.choices(logits_BxY).tolist() == [
        0,
        edited_models.NO_CHOICE,
        edited_models.NO_CHOICE,
        3,
    ]


def test_images_without_a_label_do_not_count():
    logits_BxY = np.eye(3)
    assert score_head(logits_BxY, np.array([0, -1, 0])) == score_head(logits_BxY[[0, 2]], np.array([0, 0]))
    assert score_head(logits_BxY, np.full(3, -1)) is None


def _subject(name, num_registers, logits_BxY, label, *, class_names=("a", "b", "c"), head_names=None):
    arrays = {"logits_Y": logits_BxY, "label": label}
    subject = SimpleNamespace(
        name=name,
        layout=SimpleNamespace(num_registers=num_registers, num_summaries=0),
        model=SimpleNamespace(num_classes=logits_BxY.shape[1]),
        class_names=class_names,
        head_names=head_names,
        store=SimpleNamespace(read=arrays.__getitem__),
    )
    subject.head_labels = lambda: Subject.head_labels(subject)
    subject.other_classes = lambda: Subject.other_classes(subject)
    return subject


def test_models_by_their_registers_and_the_line_through_their_means():
    label = np.array([0, 1, 2, 0])
    right, half = np.eye(3)[label], np.eye(3)[[0, 1, 0, 1]]
    given = [("four", 4, right), ("none", 0, half), ("one", 1, right), ("other", 4, half)]
    result = EXPERIMENT.result([_subject(*one, label) for one in given], Options())
    (table,), (picture,) = result.tables, result.pictures
    assert not result.gaps
    assert [row[:4] for row in table.rows] == [
        ("none", 0, 4, 50.0),
        ("one", 1, 4, 100.0),
        ("four", 4, 4, 100.0),
        ("other", 4, 4, 50.0),
    ]
    assert [row[5] for row in table.rows] == [None] * 4
    (axes,) = picture.figure.axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert line.get_ydata().tolist() == [50.0, 100.0, 75.0]
    places = {bars.get_label().partition(":")[0]: bars.lines[0].get_xdata()[0] for bars in axes.containers}
    assert places["none"] == 0 and places["one"] == 1
    assert 1.5 < places["four"] < 2 < places["other"] < 2.5  # side by side
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4"]


def test_what_cannot_be_measured_is_a_gap():
    label, logits = np.array([0, 1]), np.zeros((2, 3))
    subjects = [
        _subject("folder", 0, logits, label, class_names=("a", "b")),
        _subject("many", 0, logits, np.zeros((2, 4), int)),
        _subject("blind", 0, logits, np.array([-1, -1])),
        _subject("broken", 0, np.array([[np.nan, 0, 0], [0, np.inf, 0]]), label),
    ]
    result = EXPERIMENT.result(subjects, Options())
    assert not result.tables and not result.pictures
    folder, many, blind, broken = result.gaps
    assert folder.startswith("folder: its head has 3 classes and the images have 2,")
    assert many.startswith("many: an image has several labels")
    assert blind == "blind: no image has a label"
    assert broken.startswith("broken: the head gives numbers that are not finite for 2 of 2 images")
