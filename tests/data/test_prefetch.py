"""Batches taken ahead of their step: the same ones in the same order, and nothing beyond the last."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.digits import make_config
from vit_registers.data.batch import synthetic_batches, to_device
from vit_registers.data.loaders import open_data
from vit_registers.data.prefetch import ahead, in_turn


class Source:
    """0, 1, 2, ...; `taken` says how many were asked for. Raises `error` instead of item `broken`."""

    def __init__(self, length=None, broken=None, error=RuntimeError):
        self.taken, self.length, self.broken, self.error = 0, length, broken, error

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.length:
            raise StopIteration
        self.taken += 1
        if self.taken - 1 == self.broken:
            raise self.error(f"item {self.broken}")
        return self.taken - 1


@pytest.mark.parametrize("number", [0, 1, 2, 5, 50])
def test_order_and_length(number):
    source = Source()
    assert list(ahead(source, 20, number=number)) == list(range(20))
    assert source.taken == 20  # of endless items, none beyond the last
    assert list(ahead(Source(length=7), 20, number=number)) == list(range(7))
    assert list(ahead(Source(), 0, number=number)) == []


@pytest.mark.parametrize("number", [0, 2, 3])
def test_how_many_are_taken_ahead(number):
    source = Source()
    batches = ahead(source, 10, number=number)
    assert source.taken == 0  # none before they are asked for
    taken = []
    for _ in range(10):
        next(batches)
        taken.append(source.taken)
    # The first comes at once, the others with up to `number` behind them.
    assert taken == [min(i + 1 + min(i, number), 10) for i in range(10)]


@pytest.mark.parametrize("broken", [0, 1, 2, 6])
def test_an_exception_comes_where_its_item_would_have(broken):
    seen = []
    with pytest.raises(RuntimeError, match=f"item {broken}"):
        for item in ahead(Source(broken=broken), 10, number=2):
            seen.append(item)
    assert seen == list(range(broken))


def test_one_that_lies_beyond_the_last_step_is_not_met():
    assert list(ahead(Source(broken=4), 4, number=2)) == [0, 1, 2, 3]


def test_ctrl_c_does_not_wait():
    batches = ahead(Source(broken=2, error=KeyboardInterrupt), 10, number=2)
    assert next(batches) == 0
    with pytest.raises(KeyboardInterrupt):  # while item 1 is asked for
        next(batches)


def test_stopping_early_leaves_the_rest():
    source = Source()
    batches = ahead(source, 100, number=2)
    assert list(itertools.islice(batches, 5)) == [0, 1, 2, 3, 4]
    batches.close()
    assert source.taken == 5 + 2
    assert list(batches) == []


def test_negative_number():
    with pytest.raises(ValueError, match="number=-1"):
        next(ahead(Source(), 3, number=-1))


def test_batches_on_the_device_are_those_of_their_steps_after_a_restart_too():
    config = make_config(data={"batch_size": 8, "train_ops": "random_crop(padding=1)"})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def from_memory(start):
        return open_data(config).train_batches(start, sharding)

    def synthetic(start):
        return (
            to_device(batch, sharding)
            for batch in synthetic_batches(config.data, config.model, start_step=start)
        )

    for batches in (from_memory, synthetic):
        plain = list(itertools.islice(batches(0), 9))
        whole = list(ahead(batches(0), 9))
        stopped = list(itertools.islice(ahead(batches(0), 9), 4))
        resumed = list(ahead(batches(4), 5))
        for other in (whole, stopped + resumed):
            assert len(other) == 9
            for a, b in zip(plain, other, strict=True):
                assert a.views["image"].committed == b.views["image"].committed
                for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_in_turn_yields_every_result_and_starts_few_ahead(number):
    started = []

    def programs():
        for i in range(7):
            started.append(i)
            yield {"sum": jnp.full(3, i).sum()}

    for i, result in enumerate(in_turn(programs(), number=number)):
        assert result["sum"].is_ready() and int(result["sum"]) == 3 * i
        assert len(started) == min(i + number + 1, 7)
    assert i == 6
