"""Repeated augmentation and epochs of whole batches, against the sampler that the recipe comes from."""

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.order import Order
from vit_registers.errors import ConfigError


def sampled(permutation, *, world, batch, repeats):
    """What each process of DeiT's distributed sampler sees in one epoch, batch by batch, [rank, step, batch].

    The rule: every index `repeats` times in a row; process r takes each world-th from r on; of these the
    first floor(n // 256 * 256 / world), cut to whole batches.
    """
    n = len(permutation)
    repeated = [index for index in permutation for _ in range(repeats)]
    kept = n // 256 * 256 // world
    ranks = [repeated[rank::world][:kept] for rank in range(world)]
    return np.array([np.reshape(rank[: kept // batch * batch], (-1, batch)) for rank in ranks])


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("n", [3000, 1024, 4095])
def test_repeats_are_dealt_to_groups_as_the_reference_deals_them_to_processes(world, n):
    batch = 256
    order = Order(seed=1, num_examples=n, batch_size=batch * world, repeats=3, groups=world, drop_last=True)
    assert order.epoch_size == n // (batch * world) * batch * world
    for epoch in range(2):
        start = epoch * order.epoch_size
        record_B = order.records(np.arange(start, start + order.epoch_size))
        permutation = np.random.default_rng([1, epoch]).permutation(n)
        want = sampled(permutation, world=world, batch=batch, repeats=3)
        got = record_B.reshape(-1, world, batch).transpose(1, 0, 2)
        np.testing.assert_array_equal(got, want)


def test_an_epoch_of_imagenet_shows_427_008_images_three_times():
    order = Order(seed=0, num_examples=1_281_167, batch_size=1024, repeats=3, groups=4, drop_last=True)
    record_N = order.records(np.arange(order.epoch_size))
    assert order.epoch_size == 1251 * 1024
    assert len(np.unique(record_N)) == 427_008


def test_copies_are_never_partners_within_a_group():
    order = Order(seed=0, num_examples=1200, batch_size=96, repeats=3, groups=4)
    groups = order.records(np.arange(1200 // 96 * 96)).reshape(-1, 24)
    assert all(len(np.unique(group)) == 24 for group in groups)


def test_without_drop_last_epochs_follow_each_other_within_a_batch():
    order = Order(seed=0, num_examples=10, batch_size=4)
    record_N = order.records(np.arange(20))
    assert sorted(record_N[:10]) == sorted(record_N[10:]) == list(range(10))


@pytest.mark.parametrize("kind", ["array_record", "memory_array_record"])
def test_loaders_keep_to_the_order(kind, make_loader, device, small):
    order = Order(seed=0, num_examples=small.NUM_TRAIN, batch_size=12, repeats=3, groups=2, drop_last=True)
    loader = make_loader(kind, batch_size=12, repeats=3, mix_groups=2, drop_last=True)
    batch = small.take(loader.train_batches(2, device), 7)
    np.testing.assert_array_equal(small.numbers(batch), order.records(np.arange(2 * 12, 9 * 12)))


@parametrize_quick("num_processes", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"repeats": 2, "mix_groups": 2}, {"drop_last": True}])
def test_processes_share_the_batches_that_the_memory_has(settings, num_processes, make_loader, device, small):
    common = {"batch_size": 12, "train_split": "train[-20:]+test[:3]", **settings}
    whole = small.take(make_loader("memory_array_record", **common).train_batches(3, device), 5)
    loader = make_loader("array_record", **common)
    parts = [
        small.take(loader.host_train_batches(3, process_index=i, process_count=num_processes), 5)
        for i in range(num_processes)
    ]
    joined = np.stack([small.numbers(part).reshape(5, -1) for part in parts], axis=1).reshape(-1)
    np.testing.assert_array_equal(joined, small.numbers(whole))


def test_copies_are_augmented_apart(make_loader, device, small):
    loader = make_loader("array_record", batch_size=12, repeats=3, train_ops="random_crop(3)")
    batch = small.take(loader.train_batches(0, device), 4)
    images = batch.views["image"].reshape(-1, 3, 64)
    assert all(len(np.unique(copies, axis=0)) > 1 for copies in images)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("array_record", {"repeats": 0}, "data.repeats=0: must be >= 1"),
        ("memory_array_record", {"repeats": 11}, "data.repeats=11 is more than data.batch_size=10"),
        ("array_record", {"batch_size": 64, "drop_last": True}, "the 57 examples of 'train' are fewer"),
        ("tfrecord", {"repeats": 3}, "is of TFRecord files"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, settings, message, make_loader, device, small):
    with pytest.raises(ConfigError, match=message):
        small.take(make_loader(kind, **settings).train_batches(0, device), 1)
