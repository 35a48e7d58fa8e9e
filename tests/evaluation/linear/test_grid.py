"""The grid of linear classifiers, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.config import LinearSettings
from vit_registers.evaluation.linear.grid import (
    Heads,
    grid_logits,
    grid_step,
    init_heads,
    linear_inputs,
    rates_at,
)

RATES = LinearSettings().learning_rates
EVERY = jnp.ones(6, bool)


def _features(rng):
    """cls of five blocks, and the mean patch of the last."""
    cls = jnp.asarray(rng.standard_normal((6, 5, 3)), jnp.float32)
    return cls, jnp.asarray(rng.standard_normal((6, 7, 3)), jnp.float32).mean(axis=1)


def test_inputs():
    cls, mean = _features(np.random.default_rng(0))
    inputs = linear_inputs(cls, mean, (1, 4))
    assert {name: x.shape[1] for name, x in inputs.items()} == {
        "last1": 3,
        "last1_mean": 6,
        "last4": 12,
        "last4_mean": 15,
    }
    np.testing.assert_array_equal(inputs["last4"], np.concatenate([cls[:, i] for i in range(1, 5)], axis=1))
    np.testing.assert_array_equal(inputs["last4_mean"][:, 12:], mean)
    assert [*linear_inputs(cls[:, :2], mean, (1, 4))] == ["last1", "last1_mean"]  # a model of two blocks
    assert [*linear_inputs(cls, None, (1, 2))] == ["last1", "last2"]  # a model without cls


def test_rates():
    found = [float(rates_at(step, 5, jnp.asarray(0.4))) for step in range(5)]
    np.testing.assert_allclose(found, [0.4, 0.36180, 0.26180, 0.13820, 0.03820], atol=1e-5)
    assert len(RATES) == 13


def test_five_steps_are_torchs():
    """52 classifiers, each against one of torch's own with an optimiser of its own."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    rates = np.asarray(RATES) * 100
    inputs = [linear_inputs(*_features(rng), (1, 4)) for _ in range(5)]
    labels = rng.integers(0, 4, (5, 6))
    heads = init_heads(
        jax.random.key(0), {n: x.shape[1] for n, x in inputs[0].items()}, num_rates=13, num_classes=4
    )
    start, velocity = heads, jax.tree.map(jnp.zeros_like, heads)
    step_heads = jax.jit(grid_step)
    for step in range(5):
        rate = rates_at(step, 5, jnp.asarray(rates, jnp.float32))
        heads, velocity, _ = step_heads(heads, velocity, inputs[step], jnp.asarray(labels[step]), EVERY, rate)
    for name, head in start.items():
        for r, rate in enumerate(rates):
            linear = torch.nn.Linear(head.kernel_RxDxY.shape[1], 4)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(np.asarray(head.kernel_RxDxY[r].T)))
                linear.bias.zero_()
            optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9, weight_decay=0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
            for step in range(5):
                optimizer.zero_grad()
                logits = linear(torch.tensor(np.asarray(inputs[step][name])))
                torch.nn.functional.cross_entropy(logits, torch.tensor(labels[step])).backward()
                optimizer.step()
                schedule.step()
            np.testing.assert_allclose(
                heads[name].kernel_RxDxY[r], linear.weight.detach().numpy().T, rtol=2e-4, atol=2e-5
            )
            np.testing.assert_allclose(
                heads[name].bias_RxY[r], linear.bias.detach().numpy(), rtol=2e-4, atol=2e-5
            )


def test_heads_do_not_influence_each_other():
    """A head whose rate explodes leaves the others unchanged."""
    rng = np.random.default_rng(2)
    inputs, label = linear_inputs(*_features(rng), (1, 4)), jnp.asarray(rng.integers(0, 4, 6))
    heads = {"last1": Heads(jnp.ones((2, 3, 4)), jnp.zeros((2, 4)))}
    velocity = jax.tree.map(jnp.zeros_like, heads)
    wild, *_ = grid_step(heads, velocity, inputs, label, EVERY, jnp.asarray([0.1, jnp.inf]))
    calm, *_ = grid_step(heads, velocity, inputs, label, EVERY, jnp.asarray([0.1, 0.1]))
    np.testing.assert_array_equal(wild["last1"].kernel_RxDxY[0], calm["last1"].kernel_RxDxY[0])
    assert grid_logits(calm, inputs)["last1"].shape == (6, 2, 4)


def test_examples_out_of_the_mask_have_no_effect():
    rng = np.random.default_rng(3)
    inputs, label = linear_inputs(*_features(rng), (1, 4)), jnp.asarray(rng.integers(0, 4, 6))
    heads = init_heads(
        jax.random.key(0), {n: x.shape[1] for n, x in inputs.items()}, num_rates=2, num_classes=4
    )
    velocity, rate = jax.tree.map(jnp.zeros_like, heads), jnp.asarray([0.1, 0.2])
    some, *_ = grid_step(heads, velocity, inputs, label, jnp.arange(6) < 4, rate)
    first = {name: x[:4] for name, x in inputs.items()}
    few, *_ = grid_step(heads, velocity, first, label[:4], EVERY[:4], rate)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), some, few)
