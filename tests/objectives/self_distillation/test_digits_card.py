"""The run card dino_digits: all schedules follow the length of the run, however it is given."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import dino_digits
from vit_registers.config import from_mapping, override, to_dict
from vit_registers.objectives.self_distillation.objective import SelfDistillation
from vit_registers.training.durations import durations
from vit_registers.training.optimizer import make_optimizer
from vit_registers.training.schedules import schedule

STEPS = 400
IMAGES = 1438


@pytest.fixture(scope="module")
def config():
    """The card with --config.run.total_steps=400."""
    return override(to_dict(from_mapping(dino_digits.get_config().to_dict())), {"run.total_steps": STEPS})


def test_the_length_of_the_run_rescales_all_schedules(config):
    as_argument = from_mapping(dino_digits.get_config(f"steps={STEPS}").to_dict())
    for name in ("optimizer", "objective", "model"):
        assert getattr(config, name) == getattr(as_argument, name)


def test_learning_rate_and_momentum_reach_their_ends(config):
    optimizer, settings = config.optimizer, config.objective.self_distillation
    lengths = durations(config.run, optimizer, config.data, IMAGES)
    assert lengths.warmup_steps == STEPS // 10
    rate = [float(schedule(optimizer, lengths)(i)) for i in range(STEPS)]
    assert rate[0] == 0 and np.argmax(rate) in (STEPS // 10 - 1, STEPS // 10)
    assert max(rate) == pytest.approx(optimizer.learning_rate)
    assert rate[-1] == pytest.approx(optimizer.min_learning_rate, rel=1e-3, abs=1e-7)
    objective = SelfDistillation(config)
    one, zero = {"x": jnp.ones(())}, {"teacher": {"x": jnp.zeros(())}}
    moved = [float(objective.after_update(one, zero, jnp.int32(i))["teacher"]["x"]) for i in (0, STEPS - 1)]
    np.testing.assert_allclose(moved, [1 - end for end in settings.momentum], atol=1e-5)
    make_optimizer(optimizer, lengths)  # also the weight decay, a table over the run


def test_the_run_is_evaluated_at_the_start_and_at_the_end(config):
    lengths = durations(config.run, config.optimizer, config.data, IMAGES)
    assert config.run.eval_at_start and lengths.evaluations_until(STEPS)[-1] == STEPS
