"""Order of examples: exact resumption, whole epochs, any number of processes."""

import collections
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.data import order
from vit_registers.errors import ConfigError, DataError

KINDS = ("tfrecord", "array_record", "folder", "memory_folder", "memory_array_record")
RANDOM_ACCESS = ("array_record", "folder")
# The loaders in memory are quick.
MEMORY_FIRST = ("memory_folder", "memory_array_record", "array_record", "folder", "tfrecord")


@parametrize_quick("kind", MEMORY_FIRST, number=2)
def test_resuming_in_any_epoch_is_exact(kind, make_loader, device, small):
    ops = "random_crop(2) | flip"
    straight = small.take(make_loader(kind, train_ops=ops).train_batches(0, device), 20)  # 3.5 epochs
    for start in (1, 6, 13, 17):
        resumed = small.take(make_loader(kind, train_ops=ops).train_batches(start, device), 20 - start)
        want = jax.tree.map(lambda x, first=start * 10: x[first:], straight)
        small.assert_equal(resumed, want)


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_is_a_permutation_of_its_own(kind, make_loader, device, small):
    batch = small.take(make_loader(kind).train_batches(0, device), 18)
    epochs = small.numbers(batch)[: 3 * small.NUM_TRAIN].reshape(3, small.NUM_TRAIN)
    if kind.endswith("folder"):  # listed by class
        assert sorted(epochs[0]) == list(range(small.NUM_TRAIN))
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(small.NUM_TRAIN), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(batch.targets["label"], small.numbers(batch) % 3)
    for image_HxWxC, number in zip(batch.views["image"], small.numbers(batch), strict=True):
        np.testing.assert_array_equal(image_HxWxC[..., 0], small.make_image(number))
    assert batch.mask_B.all()
    assert batch.targets["label"].dtype == np.int32
    assert batch.views["image"].dtype == np.uint8


@parametrize_quick("kind", MEMORY_FIRST, number=2)
def test_seeds_change_the_order_and_the_augmentation(kind, make_loader, device, small):
    first = small.take(make_loader(kind, seed=1).train_batches(0, device), 5)
    other = small.take(make_loader(kind, seed=2).train_batches(0, device), 5)
    assert not np.array_equal(small.numbers(first), small.numbers(other))
    ops = {"train_ops": "random_crop(3)"}
    augmented = small.take(make_loader(kind, seed=1, **ops).train_batches(0, device), 5)
    np.testing.assert_array_equal(augmented.targets["label"], first.targets["label"])
    assert not np.array_equal(augmented.views["image"], first.views["image"])


def test_all_random_access_loaders_have_the_same_order(make_loader, device, small):
    of = {kind: small.take(make_loader(kind).train_batches(3, device), 9) for kind in KINDS[1:]}
    small.assert_equal(of["array_record"], of["memory_array_record"])
    small.assert_equal(of["folder"], of["memory_folder"])


@parametrize_quick("kind", RANDOM_ACCESS)
def test_two_processes_train_on_the_batches_of_one(kind, make_loader, small):
    loader = make_loader(kind, train_ops="random_crop(2)")
    one = small.take(loader.host_train_batches(4, process_index=0, process_count=1), 8)
    two = [small.take(loader.host_train_batches(4, process_index=p, process_count=2), 8) for p in range(2)]
    for whole, first, second in zip(*map(jax.tree.leaves, (one, *two)), strict=True):
        halves = [x.reshape(8, 5, *x.shape[1:]) for x in (first, second)]
        np.testing.assert_array_equal(whole, np.concatenate(halves, 1).reshape(whole.shape))


def test_two_processes_share_tfrecords_without_overlap(make_loader, small):
    loader = make_loader("tfrecord")
    seen = []
    for p, number in enumerate((28, 29)):
        batch = small.take(loader.host_train_batches(0, process_index=p, process_count=2), 12)
        epochs = small.numbers(batch)[: 2 * number].reshape(2, number)
        np.testing.assert_array_equal(np.sort(epochs[0]), np.sort(epochs[1]))
        seen += list(epochs[0])
    assert sorted(seen) == list(range(small.NUM_TRAIN))


@parametrize_quick("size", [4, 12])
@parametrize_quick("count", [1, 2, 4], number=2)
@pytest.mark.parametrize("kind", ["tfrecord", *RANDOM_ACCESS])
def test_evaluation_sees_each_image_once(kind, count, size, make_loader, small):
    loader = make_loader(kind, eval_batch_size=size)
    seen, lengths = [], set()
    for p in range(count):
        batches = list(loader.host_eval_batches("test", process_index=p, process_count=count))
        lengths.add(len(batches))
        for batch in batches:
            assert len(batch.targets["label"]) == size // count
            seen += list(small.numbers(batch)[batch.mask_B])
            assert not batch.views["image"][~batch.mask_B].any()
    assert len(lengths) == 1
    assert sorted(seen) == list(range(small.NUM_TEST))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_on_the_device(kind, make_loader, device, small):
    batch = small.take(make_loader(kind).eval_batches("test", device), None)
    assert len(batch.targets["label"]) == 12
    np.testing.assert_array_equal(batch.mask_B, [True] * small.NUM_TEST + [False])
    assert sorted(small.numbers(batch)[: small.NUM_TEST]) == list(range(small.NUM_TEST))


@pytest.mark.parametrize("kind", ["tfrecord", "array_record", "memory_array_record"])
def test_parts_of_splits(kind, make_loader, device, small):
    loader = make_loader(kind, train_split="train[10:27]")
    assert loader.num_examples("train[10:27]") == 17
    assert loader.num_examples("train[:50%]") == 28
    seen = small.numbers(small.take(loader.train_batches(0, device), 6))[:51]
    assert collections.Counter(seen) == dict.fromkeys(range(10, 27), 3)
    evaluated = small.take(loader.eval_batches("train[50:]", device), None)
    assert sorted(small.numbers(evaluated)[evaluated.mask_B]) == list(range(50, 57))


@pytest.mark.slow
def test_a_batch_larger_than_the_data_set(make_loader, device, small):
    for kind in KINDS:
        batches = make_loader(kind, batch_size=130).train_batches(1, device)
        counts = collections.Counter(small.numbers(small.take(batches, 2)))
        assert len(counts) == small.NUM_TRAIN
        assert max(counts.values()) - min(counts.values()) <= 2


def test_permutations_are_uniform_enough():
    shuffled = order.Order(seed=3, num_examples=5, batch_size=5)
    first = [shuffled.records(np.arange(e * 5, e * 5 + 5))[0] for e in range(2000)]
    counts = np.bincount(first, minlength=5)
    assert abs(counts - 400).max() < 80  # 4.5 standard deviations


@pytest.mark.parametrize("kind", RANDOM_ACCESS)
def test_batches_that_do_not_divide(kind, make_loader):
    loader = make_loader(kind, eval_batch_size=5)
    with pytest.raises(ConfigError, match=r"data.batch_size=10: must be a positive multiple of the 3"):
        loader.host_train_batches(0, process_index=0, process_count=3)
    with pytest.raises(ConfigError, match=r"data.eval_batch_size=5: must be"):
        loader.host_eval_batches("test", process_index=0, process_count=2)


@pytest.mark.slow
def test_fewer_records_than_processes(make_loader):
    loader = make_loader("tfrecord", train_split="train[:1]")
    with pytest.raises(DataError, match="fewer records than there are processes"):
        loader.host_train_batches(0, process_index=0, process_count=2)
    assert [
        sum(b.mask_B.sum() for b in loader.host_eval_batches("train[:1]", process_index=p, process_count=2))
        for p in range(2)
    ] == [0, 1]


@pytest.mark.slow
def test_a_program_ends_with_batches_still_open(make_config):
    program = f"""
import jax
from vit_registers.config import *
from vit_registers.data.loaders import open_data
batches = open_data({make_config("array_record")!r}).train_batches(
    0, jax.sharding.SingleDeviceSharding(jax.devices()[0])
)
next(batches)
print("done")
"""
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (out.returncode, out.stdout) == (0, "done\n"), out.stderr
    assert "Traceback" not in out.stderr
