"""The order in which groups of a batch have no class twice."""

import numpy as np
import pytest

from vit_registers.data.class_unique import ClassUnique
from vit_registers.errors import ConfigError

LABELS = np.repeat(np.arange(7), [3, 5, 8, 1, 4, 9, 6])  # classes of different sizes


def order(group=3, batch_size=6, seed=0, labels=LABELS):
    return ClassUnique(
        seed=seed, num_examples=len(labels), batch_size=batch_size, label_N=labels, group=group
    )


@pytest.mark.parametrize("group", [1, 2, 3, 7])
def test_no_group_has_a_class_twice(group):
    records = order(group, batch_size=2 * group).records(np.arange(420 * group))
    labels = LABELS[records].reshape(-1, group)
    assert all(len(set(row)) == group for row in labels.tolist())


def test_with_groups_of_all_classes_each_class_has_its_images_in_turn():
    records = order(7, batch_size=7).records(np.arange(7 * 360))  # 360 is a multiple of each size
    for label in range(7):
        own, number = records[LABELS[records] == label], int((label == LABELS).sum())
        assert len(own) == 360
        epochs = own.reshape(-1, number)
        assert all(sorted(epoch) == np.flatnonzero(label == LABELS).tolist() for epoch in epochs.tolist())
        if number > 3:
            assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_all_classes_are_equally_frequent():
    counts = np.bincount(LABELS[order(3).records(np.arange(6 * 7000))])
    assert abs(counts / counts.mean() - 1).max() < 0.03


def test_a_position_does_not_depend_on_what_is_asked_beside_it():
    one = order()
    whole = one.records(np.arange(60))
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(order().records(np.arange(37, 60)), whole[37:])
    np.testing.assert_array_equal(one.records(np.array([59, 3, 3])), whole[[59, 3, 3]])
    assert (whole != order(seed=1).records(np.arange(60))).any()


def test_examples_without_a_class_do_not_occur():
    labels = np.where(np.arange(40) % 4 == 0, -1, np.arange(40) % 4 + 5)
    records = order(3, labels=labels).records(np.arange(600))
    assert (labels[records] >= 0).all() and len(set(records.tolist())) == 30


@pytest.mark.parametrize(
    ("group", "batch_size", "message"),
    [
        (8, 8, "group=8: the 7 classes of the training split give no 8 images .*: set at most 7"),
        (3, 8, "data.batch_size=8 does not consist of groups of objective.image_text.group=3"),
    ],
)
def test_groups_that_are_not_possible(group, batch_size, message):
    with pytest.raises(ConfigError, match=message):
        order(group, batch_size)
