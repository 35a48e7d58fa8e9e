"""The train step: learning, accumulation, averaging, masking, and the same result on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.batch import labelled_batch, synthetic_batches, to_device
from vit_registers.errors import ConfigError
from vit_registers.models.params import abstract_model
from vit_registers.objectives.catalog import make_objective
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up


def _assert_close(a, b, atol):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=atol), jax.device_get(a), jax.device_get(b)
    )


def test_loss_falls_on_batches_that_repeat(tiny, change, run_steps):
    config = change(tiny, classification={"mixup_alpha": 0.0})
    state, history = None, []
    for _ in range(30):
        state, metrics = run_steps(config, 1, state=state)
        history += metrics
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.slow
def test_parameters_and_moments_are_really_sharded(tiny, change, run_steps):
    state, _ = run_steps(change(tiny, mesh={"fsdp": 2, "tensor": 2}), 1, num_devices=8)
    kernel = state.params["vit"]["blocks"][0]["attn"]["qkv"]["kernel"]
    assert kernel.shape == (16, 3, 4, 4)
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 3, 2, 4)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert len(moments) >= 2
    assert all(x.sharding == kernel.sharding for x in moments)


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch(tiny, change, run_steps):
    whole, whole_history = run_steps(tiny, 5)
    parts, parts_history = run_steps(change(tiny, optimizer={"accumulation_steps": 4}), 5)
    _assert_close(whole.params, parts.params, 1e-5)
    _assert_close(whole_history, parts_history, 1e-5)


@pytest.mark.slow
def test_average_follows_its_recurrence(tiny, change, run_steps):
    config = change(tiny, optimizer={"ema_decay": 0.5})
    state, _ = run_steps(config, 0)
    want = jax.device_get(state.params)
    for step in range(3):
        state, _ = run_steps(config, 1, state=state, start_step=step)
        params = jax.device_get(state.params)
        want = jax.tree.map(lambda e, p: 0.5 * e + 0.5 * p, want, params)
    _assert_close(state.ema, want, 1e-6)


def test_examples_left_out_have_no_influence(tiny, change):
    config = change(tiny, classification={"mixup_alpha": 0.0})
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    lengths = Durations(total_steps=9, warmup_steps=0, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    batch = next(synthetic_batches(config.data, config.model))
    mask = np.arange(16) < 12
    other = labelled_batch(
        np.where(mask[:, None, None, None], batch.views["image"], 7), batch.targets["label"] * mask, mask
    )
    results = []
    with jax.set_mesh(mesh):
        for b in (batch._replace(mask_B=mask), other):
            results.append(setup.train_step(setup.make_state(), to_device(b, sharding.batch_sharding(mesh))))
    _assert_close(results[0], results[1], 1e-6)


OVERFLOW = {"ema_decay": 0.5, "learning_rate": 1e30, "grad_clip_norm": None}


# Of finite losses and gradients: products that overflow.
@parametrize_quick(
    "optimizer",
    [{}, {"name": "lamb"}, {"name": "schedule_free_adamw", "schedule": "constant", "ema_decay": None}],
)
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(tiny, change, optimizer):
    config = change(tiny, classification={"mixup_alpha": 0.0}, optimizer=OVERFLOW | optimizer)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    lengths = Durations(total_steps=9, warmup_steps=0, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    batch = next(synthetic_batches(config.data, config.model))
    with jax.set_mesh(mesh):
        state = setup.make_state()
        before = jax.device_get(state)
        state, metrics = setup.train_step(state, to_device(batch, sharding.batch_sharding(mesh)))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(metrics["update_norm"])
    assert (before.step, state.step) == (0, 1)
    _assert_close(
        (state.params, state.opt_state, state.ema), (before.params, before.opt_state, before.ema), 0.0
    )


@pytest.mark.slow
def test_update_norm_is_that_of_what_is_added(tiny, change, run_steps):
    config = change(tiny, optimizer={"name": "lamb"})  # whose updates settings do not bound
    before, _ = run_steps(config, 2)
    before = jax.device_get(before.params)
    state, history = run_steps(config, 3)
    added = jax.tree.map(np.subtract, jax.device_get(state.params), before)
    want = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(added)))
    assert history[-1]["update_norm"] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_example_whose_logits_are_not_finite_is_not_right(tiny, change, value):
    """Of a label that argmax would hit, as it takes NaN for the highest."""
    config = change(tiny, classification={"mixup_alpha": 0.0}, model={"num_classes": 6})
    _, params = abstract_model(config.model)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    params["head"]["bias"] = jnp.full(6, value).at[1:].set(0.0 if np.isnan(value) else value)
    image, label = jnp.zeros((2, 8, 8, 3)), jax.nn.one_hot(jnp.zeros(2, int), 6)
    batch = labelled_batch(image, label, jnp.ones(2, bool))
    loss = jax.jit(make_objective(config).loss)
    sums, _ = loss({"vit": params}, {}, batch, jnp.int32(0), jax.random.key(0))
    assert sums["top1"] == (0, 2)


@pytest.mark.slow
def test_drop_path_differs_from_step_to_step_and_repeats_with_the_seed(tiny, change, run_steps):
    config = change(tiny, model={"drop_path": 0.5, "depth": 2})
    first, _ = run_steps(config, 3)
    again, _ = run_steps(config, 3)
    without, _ = run_steps(change(tiny, model={"depth": 2}), 3)
    _assert_close(first.params, again.params, 0.0)
    gap = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first.params, without.params)
    assert max(jax.tree.leaves(gap)) > 1e-4


@pytest.mark.slow
def test_parameters_stay_float32_when_computing_in_bfloat16(tiny, change, run_steps):
    state, history = run_steps(change(tiny, model={"dtype": "bfloat16"}), 2)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert np.isfinite(history[-1]["loss"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"batch_size": 12}}, "data.batch_size=12 is not divisible by 8 devices"),
        ({"data": {"eval_batch_size": 9}}, "data.eval_batch_size=9"),
        ({"optimizer": {"accumulation_steps": 3}}, "x 3 accumulation steps: must be a multiple of 24"),
        ({"mesh": {"tensor": 8}}, "does not divide the model's heads"),
        ({"mesh": {"fsdp": 3}}, "does not use the 8 devices"),
        ({"mesh": {"fsdp": -1}}, "at most one may be -1"),
    ],
)
def test_what_does_not_divide_is_refused(tiny, change, run_steps, sections, message):
    with pytest.raises(ConfigError, match=message):
        run_steps(change(tiny, **sections), 1, num_devices=8)
