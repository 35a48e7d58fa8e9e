"""Rates at every step against closed forms in float64, and against torch's schedulers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.config import Optimizer
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations
from vit_registers.training.schedules import SCHEDULES, schedule

# What float32 can hold at best is 6e-8.
REL = 1e-7

# Recipe A: big_vision's ViT-S/16, 90 epochs of 1,268,355 images in batches of 1024.
PLAIN = Optimizer(learning_rate=1e-3)
PLAIN_LENGTHS = Durations(
    total_steps=111_477, warmup_steps=10_000, eval_every_steps=1, steps_per_epoch=1_268_355 / 1024
)
# Recipe B: DeiT-III Small, 800 epochs of 1251 steps.
DEIT = Optimizer(
    schedule="cosine_per_epoch", learning_rate=4e-3, warmup_learning_rate=1e-6, min_learning_rate=1e-5
)


def _deit_lengths(**changes):
    lengths = {"total_steps": 800 * 1251, "warmup_steps": 5 * 1251, "steps_per_epoch": 1251.0}
    return Durations(eval_every_steps=1, **(lengths | changes))


def _rates(optimizer, lengths, steps):
    """As a train step sees them: float32, under jit."""
    rate = jax.jit(schedule(optimizer, lengths))
    found = [rate(jnp.int32(step)) for step in steps]
    assert {value.dtype for value in found} == {jnp.dtype("float32")}
    return np.asarray(found, np.float64)


def _plain(step):
    if step < 10_000:
        return 1e-3 * step / 10_000
    # (1 + cos(a)) / 2 == sin²((pi - a) / 2), which does not cancel where a is near pi.
    return 1e-3 * math.sin(0.5 * math.pi * (111_477 - step) / (111_477 - 10_000)) ** 2


def test_every_rate_of_recipe_a():
    steps = np.arange(111_477)
    found = np.asarray(jax.jit(schedule(PLAIN, PLAIN_LENGTHS))(steps), np.float64)
    np.testing.assert_allclose(found, [_plain(step) for step in steps], rtol=REL, atol=0)


@pytest.mark.parametrize("step", [0, 1, 5_000, 9_999, 10_000, 10_001, 50_000, 111_476])
def test_recipe_a_at_single_steps_and_by_the_textbook_form(step):
    found = _rates(PLAIN, PLAIN_LENGTHS, [step])[0]
    assert found == pytest.approx(_plain(step), rel=REL, abs=0)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - 10_000) / 101_477))
    assert found == pytest.approx(1e-3 * (step / 10_000 if step < 10_000 else cosine), rel=2 * REL, abs=0)


def test_torch_agrees_on_recipe_a():
    torch = pytest.importorskip("torch")
    lengths = Durations(total_steps=1_114, warmup_steps=100, eval_every_steps=1, steps_per_epoch=10.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    parts = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1_114 - 100, eta_min=1e-6),
    ]
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[100])
    want = []
    for _ in range(1_114):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    found = _rates(Optimizer(learning_rate=1e-3, min_learning_rate=1e-6), lengths, range(1_114))
    np.testing.assert_allclose(found, want, rtol=REL, atol=0)


def _deit(epoch):
    t = max(epoch - 1, 0)
    if t < 5:
        return 1e-6 + t * (4e-3 - 1e-6) / 5
    return 1e-5 + 0.5 * (4e-3 - 1e-5) * (1 + math.cos(math.pi * t / 800))


def test_every_rate_of_recipe_b_which_is_held_through_an_epoch():
    want = [_deit(epoch) for epoch in range(800)]
    for place in (0, 600, 1250):
        steps = np.arange(800) * 1251 + place
        found = np.asarray(jax.jit(schedule(DEIT, _deit_lengths()))(steps), np.float64)
        np.testing.assert_allclose(found, want, rtol=REL, atol=0)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, "1e-06"),
        (1, "1e-06"),
        (2, "0.0008008"),
        (3, "0.0016006"),
        (4, "0.0024004"),
        (5, "0.0032002"),
        (6, "0.003999615"),
        (400, "0.0020128"),
        (799, "1.0062e-05"),
    ],
)
def test_recipe_b_as_it_is_known_to_be(epoch, rate):
    """To the digits that are known."""
    found = _rates(DEIT, _deit_lengths(), [epoch * 1251])[0]
    digits = len(rate.split("e")[0].replace(".", "").lstrip("0"))
    half_of_the_last = 0.5 * 10.0 ** (math.floor(math.log10(found)) - digits + 1)
    assert found == pytest.approx(float(rate), abs=half_of_the_last + REL * found)


@pytest.mark.parametrize("warmup_rate", [0.0, 2e-5])
def test_constant_after_the_warmup(warmup_rate):
    lengths = Durations(total_steps=50, warmup_steps=10, eval_every_steps=1, steps_per_epoch=7.5)
    settings = Optimizer(schedule="constant", learning_rate=3e-4, warmup_learning_rate=warmup_rate)
    want = [warmup_rate + (3e-4 - warmup_rate) * min(step, 10) / 10 for step in range(60)]
    np.testing.assert_allclose(_rates(settings, lengths, range(60)), want, rtol=REL, atol=0)


def test_cosine_between_other_rates_than_0():
    lengths = Durations(total_steps=50, warmup_steps=10, eval_every_steps=1, steps_per_epoch=7.5)
    settings = Optimizer(learning_rate=1e-3, warmup_learning_rate=1e-5, min_learning_rate=1e-4)
    want = [1e-5 + step * 9.9e-5 for step in range(10)]
    want += [1e-4 + 4.5e-4 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    want += [1e-4] * 5  # beyond the end
    np.testing.assert_allclose(_rates(settings, lengths, range(55)), want, rtol=REL, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak_rate(name):
    lengths = Durations(total_steps=10, warmup_steps=0, eval_every_steps=10, steps_per_epoch=2.0)
    assert _rates(Optimizer(schedule=name, learning_rate=0.5), lengths, [0])[0] == 0.5


@pytest.mark.parametrize(
    ("settings", "lengths", "message"),
    [
        ({"schedule": "cosin"}, {}, "optimizer.schedule='cosin' is unknown: did you mean 'cosine'"),
        ({"learning_rate": 0.0}, {}, "optimizer.learning_rate=0.0: must be > 0"),
        ({"learning_rate": math.nan}, {}, "optimizer.learning_rate=nan"),
        ({"warmup_learning_rate": -1e-6}, {}, "optimizer.warmup_learning_rate=-1e-06: must be >= 0"),
        ({"warmup_learning_rate": 5e-3}, {}, "warmup_learning_rate=0.005: .*optimizer.learning_rate=0.004"),
        ({"min_learning_rate": -1e-6}, {}, "optimizer.min_learning_rate=-1e-06: must be >= 0"),
        ({"min_learning_rate": 1.0}, {}, "optimizer.min_learning_rate=1.0: .*optimizer.learning_rate=0.004"),
        ({"schedule": "constant"}, {}, "min_learning_rate=1e-05: .*optimizer.schedule='cosine'"),
        ({}, {"steps_per_epoch": 1251.1396484375}, "an epoch is 1251.13.* steps: .* set data.drop_last=True"),
        ({}, {"total_steps": 1_000_801}, "run.total is 1000801 steps, or .* epochs: .*set run.total_epochs"),
        ({}, {"warmup_steps": 100}, "optimizer.warmup is 100 steps, or 0.079.* set optimizer.warmup_epochs"),
    ],
)
def test_what_makes_no_schedule_is_refused_with_a_remedy(settings, lengths, message):
    with pytest.raises(ConfigError, match=message) as error:
        schedule(Optimizer(**(vars(DEIT) | settings)), _deit_lengths(**lengths))
    assert "\n" not in str(error.value)
