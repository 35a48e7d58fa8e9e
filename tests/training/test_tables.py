"""Tables of DINOv2's schedules against values of the released code: the short recipe, batch 2,048."""

import numpy as np
import pytest

from vit_registers.training.tables import cosine_table, line_table

EPOCH, EPOCHS = 1250, 100
PEAK = 4e-3 * np.sqrt(2048 / 1024)
RATES = {"start": PEAK, "end": 1e-6, "num_steps": EPOCH * EPOCHS, "warmup_steps": 10 * EPOCH}


def test_learning_rates():
    rates = cosine_table(**RATES)
    want = {
        0: 0.0,
        1: 4.52584547e-7,
        1249: 5.65278099e-4,
        1250: 5.65730683e-4,
        12_499: 5.65685425e-3,
        12_500: 5.65685425e-3,
        62_500: 3.31999152e-3,
        124_999: 1.0000011e-6,
    }
    np.testing.assert_allclose(rates[list(want)], list(want.values()), rtol=1e-6)
    assert len(rates) == 125_000


def test_the_last_layer_is_frozen_for_an_epoch():
    rates, frozen = cosine_table(**RATES), cosine_table(**RATES, frozen_steps=EPOCH)
    assert not frozen[:EPOCH].any()
    np.testing.assert_array_equal(frozen[EPOCH:], rates[EPOCH:])


@pytest.mark.parametrize(("start", "end", "want"), [(0.04, 0.4, 0.22), (0.992, 1.0, 0.996)])
def test_weight_decay_and_momentum_at_half_time(start, end, want):
    table = cosine_table(start=start, end=end, num_steps=EPOCH * EPOCHS)
    np.testing.assert_allclose(table[62_500], want, rtol=1e-6)
    np.testing.assert_allclose(table[0], start, rtol=1e-12)


def test_temperature():
    table = line_table(start=0.04, end=0.07, num_steps=30 * EPOCH)
    assert len(table) == 37_500
    np.testing.assert_allclose([table[0], table[37_499]], [0.04, 0.07], rtol=1e-12)
    assert line_table(start=0.04, end=0.07, num_steps=0)[0] == 0.07


def test_a_shorter_run_is_the_same_curve():
    short = cosine_table(start=1.0, end=0.0, num_steps=110, warmup_steps=10)
    long = cosine_table(start=1.0, end=0.0, num_steps=1100, warmup_steps=100)
    np.testing.assert_allclose(short[10:], long[100::10], atol=1e-12)
