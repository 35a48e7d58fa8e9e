"""The optimiser of depth, against torch's schedule and AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import DepthSettings
from vit_registers.evaluation.depth.optimizer import depth_optimizer, first_betas, learning_rates

SETTINGS = DepthSettings(learning_rate=1e-2)


def test_rates_of_the_released_schedule():
    """Warm-up of 12,800 of 38,400 steps from 0.001 of the cosine beneath it, which ends near 1e-8."""
    found = learning_rates(DepthSettings(learning_rate=1e-4), 38_400)
    step = np.array([0, 1, 6400, 12_799, 12_800, 25_600, 38_399])
    cosine = 1e-12 + 0.5 * (1e-4 - 1e-12) * (1 + np.cos(np.pi * step / 38_400))
    warm = cosine * (1 - (1 - step / 12_800) * (1 - 1e-3))
    np.testing.assert_allclose(found[step], np.where(step < 12_800, warm, cosine), rtol=1e-12)
    assert found[0] == pytest.approx(1e-7) and found[12_800] == pytest.approx(0.75e-4)
    assert learning_rates(DepthSettings(learning_rate=1.0, warmup_share=0.0), 10)[0] == 1


def test_first_beta_is_one_cycle_of_torch():
    torch = pytest.importorskip("torch")
    for num_steps in (10, 37, 400):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=num_steps)
        want = []
        for step in range(num_steps):
            want.append(optimizer.param_groups[0]["betas"][0])
            optimizer.step()
            if step < num_steps - 1:
                schedule.step()
        np.testing.assert_allclose(first_betas(num_steps), want, rtol=1e-12)
    for num_steps in range(1, 10):  # too short for torch
        assert ((first_betas(num_steps) >= 0.85 - 1e-9) & (first_betas(num_steps) <= 0.95)).all()


def test_steps_are_those_of_torch():
    torch = pytest.importorskip("torch")
    num_steps = 12
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(5), 40 * rng.standard_normal((num_steps, 5))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([parameter], weight_decay=0.01)
    rates, betas = learning_rates(SETTINGS, num_steps), first_betas(num_steps)
    transform = depth_optimizer(SETTINGS, num_steps)
    value = jnp.asarray(start, jnp.float32)
    state = transform.init(value)
    update = jax.jit(transform.update)
    for grad, rate, beta in zip(grads, rates, betas, strict=True):
        optimizer.param_groups[0].update(lr=rate, betas=(beta, 0.999))
        parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([parameter], 35.0)
        optimizer.step()
        updates, state = update(jnp.asarray(grad, jnp.float32), state, value)
        value = optax.apply_updates(value, updates)
    np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-5, atol=1e-7)
