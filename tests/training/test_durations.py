"""Lengths in epochs become the numbers of steps that the published recipes have."""

import pytest

from vit_registers.config import Config, Data, Optimizer, Run
from vit_registers.errors import ConfigError
from vit_registers.training.durations import durations as make_durations

TRAIN, MINUS_MINIVAL = 1_281_167, 1_268_355  # images of ImageNet-1k's train split, and of train[:99%]


def durations(config, examples):
    return make_durations(config.run, config.optimizer, config.data, examples)


def _config(epochs, batch_size, drop_last, **optimizer):
    return Config(
        data=Data(batch_size=batch_size, drop_last=drop_last),
        optimizer=Optimizer(**optimizer),
        run=Run(total_epochs=float(epochs), eval_every_epochs=1.0),
    )


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size", "drop_last", "total", "steps_per_epoch"),
    [
        (MINUS_MINIVAL, 90, 1024, False, 111_477, MINUS_MINIVAL / 1024),
        (TRAIN, 90, 1024, False, 112_603, TRAIN / 1024),
        (TRAIN, 150, 1024, False, 187_671, TRAIN / 1024),
        (TRAIN, 300, 1024, False, 375_342, TRAIN / 1024),
        (TRAIN, 800, 1024, True, 1_000_800, 1251),
        (TRAIN, 800, 2048, True, 500_000, 625),
    ],
)
def test_published_lengths(examples, epochs, batch_size, drop_last, total, steps_per_epoch):
    lengths = durations(_config(epochs, batch_size, drop_last), examples)
    assert (lengths.total_steps, lengths.steps_per_epoch) == (total, steps_per_epoch)
    assert lengths.eval_every_steps == round(steps_per_epoch)


def test_warmup_in_epochs_is_whole_epochs_where_batches_are_dropped():
    assert durations(_config(800, 1024, True, warmup_epochs=5.0), TRAIN).warmup_steps == 5 * 1251
    assert durations(_config(800, 1024, False, warmup_epochs=5.0), TRAIN).warmup_steps == 6256


def test_warmup_as_a_share_follows_the_length_of_the_run():
    for epochs in (300, 800):
        lengths = durations(_config(epochs, 1024, True, warmup_share=0.1), TRAIN)
        assert lengths.warmup_steps == round(0.1 * lengths.total_steps)
    with pytest.raises(ConfigError, match=r"warmup_epochs=5.0 and optimizer.warmup_share=0.1 are both set"):
        durations(_config(300, 1024, True, warmup_share=0.1, warmup_epochs=5.0), TRAIN)


def test_dropping_the_only_batch_is_refused():
    with pytest.raises(ConfigError, match=r"data.batch_size=64 is more than the 63 training examples"):
        durations(_config(1, 64, True), 63)
    assert durations(_config(2, 64, False), 63).total_steps == 2
