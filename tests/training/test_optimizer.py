"""Schedule and AdamW against closed forms and torch."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.config import Optimizer
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import decay_mask, make_optimizer, schedule

DURATIONS = Durations(total_steps=1000, warmup_steps=100, eval_every_steps=100)


@pytest.mark.parametrize("step", [0, 1, 50, 99, 100, 101, 550, 999, 1000])
def test_rate_is_linear_warmup_then_half_a_cosine_to_zero(step):
    peak = 1e-3
    cosine = 0.5 * (1 + np.cos(np.pi * (step - 100) / 900))
    want = peak * (step / 100 if step < 100 else cosine)
    got = float(schedule(Optimizer(learning_rate=peak), DURATIONS)(step))
    assert got == pytest.approx(want, rel=1e-5, abs=1e-10)


def test_without_warmup_the_first_step_has_the_peak_rate():
    durations = Durations(total_steps=10, warmup_steps=0, eval_every_steps=10)
    assert float(schedule(Optimizer(learning_rate=0.5), durations)(0)) == 0.5


def test_only_kernels_are_decayed():
    params = {"blocks": {0: {"attn": {"kernel": 1, "bias": 1}, "norm1": {"scale": 1}}}, "registers": 1}
    want = {"blocks": {0: {"attn": {"kernel": True, "bias": False}, "norm1": {"scale": False}}}}
    assert decay_mask(params) == want | {"registers": False}


@pytest.mark.parametrize("clip", [None, 0.5])
def test_updates_equal_torch_adamw(clip):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    settings = Optimizer(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=clip, b2=0.95)
    optimizer = make_optimizer(settings, DURATIONS)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    opt_state = optimizer.init(params)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.1},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        grads = {name: rng.normal(size=value.shape) for name, value in start.items()}
        updates, opt_state = optimizer.update(
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}, opt_state, params
        )
        params = {name: params[name] + updates[name] for name in params}
        for name, value in theirs.items():
            value.grad = torch.tensor(grads[name])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * step / 100
        adamw.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(params[name], value.detach().numpy(), atol=2e-6)


def test_first_moment_is_kept_in_bfloat16_where_asked():
    optimizer = make_optimizer(Optimizer(mu_dtype="bfloat16"), DURATIONS)
    state = optimizer.init({"kernel": jnp.ones((2, 2))})
    assert state[1][0].mu["kernel"].dtype == jnp.bfloat16
    assert state[1][0].nu["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"grad_clip_norm": -1.0}, {"mu_dtype": "f32"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_optimizer(Optimizer(**settings), DURATIONS)
