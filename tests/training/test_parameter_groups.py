"""Rates and weight decay by parameter: against timm's groups, DINOv2's values, and properties."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import Model, Optimizer
from vit_registers.errors import ConfigError
from vit_registers.models.params import init_params
from vit_registers.models.paths import leaf_of, path_text
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import _clip, make_optimizer
from vit_registers.training.parameter_groups import decay_mask, rate_multipliers

DEPTH = 3
MODEL = Model(
    width=16,
    depth=DEPTH,
    num_heads=2,
    patch_size=8,
    image_size=(16, 16),
    num_classes=5,
    num_registers=2,
    summary_factor=2,
    use_mask_token=True,
    layer_scale_init=1e-5,
    positions="learned",
)
LENGTHS = Durations(total_steps=10, warmup_steps=0, eval_every_steps=10, steps_per_epoch=10.0)


@pytest.fixture(scope="module")
def params():
    head = {"mlp": {0: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}
    head["last_layer"] = {"g": jnp.ones(2), "v": jnp.ones((2, 2))}
    return {"vit": init_params(MODEL, key=jax.random.key(0)), "dino_head": head}


def by_path(tree):
    return {path_text(leaf_of(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_rates_of_dinov2(params):
    """With layer decay .9 and two blocks, its code has .1458, .729, .81, .9 and 1."""
    vit = {**params["vit"], "blocks": {i: params["vit"]["blocks"][i] for i in range(2)}}
    rates = by_path(
        rate_multipliers({**params, "vit": vit}, Optimizer(layer_decay=0.9, patch_embed_rate=0.2))
    )
    for pattern, want in {
        "vit/patch_embed/": 0.1458,
        "vit/(cls_token|registers|summaries|mask_token|pos_embed|cls_pos)$": 0.729,
        "vit/blocks/0/": 0.81,
        "vit/blocks/1/": 0.9,
        "vit/norm/": 1.0,
        "vit/head/": 1.0,
        "dino_head/": 1.0,
    }.items():
        found = [value for path, value in rates.items() if re.match(pattern, path)]
        assert found, pattern
        np.testing.assert_allclose(found, want, rtol=1e-12)


def test_decayed_parameters(params):
    """All but biases, norms and LayerScale, as in DINOv2: its table of groups, spec of the released code."""
    decayed = {path for path, value in by_path(decay_mask(params, "all_but_norms")).items() if value}
    kernels = {path for path, value in by_path(decay_mask(params, "kernels")).items() if value}
    tokens = {"cls_token", "cls_pos", "mask_token", "pos_embed", "registers", "summaries"}
    tokens = {f"vit/{name}" for name in tokens} & set(by_path(params))
    assert decayed == kernels | tokens | {"dino_head/last_layer/g", "dino_head/last_layer/v"}
    assert {path for path in by_path(params) if path.endswith("kernel")} == kernels


def _step(settings, params, grads=None, steps=1):
    optimizer = make_optimizer(settings, LENGTHS)
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    for _ in range(steps):
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, updates


@pytest.mark.parametrize("name", ["adamw", "lamb", "schedule_free_adamw"])
def test_frozen_parameters_stay_and_others_move_by_their_rate(params, name):
    if name == "lamb":  # a rate is a multiple of the whole update
        params = jax.tree.map(lambda x: x + 1.0, params)
    common = {"name": name, "schedule": "constant", "weight_decay": 0.05, "learning_rate": 1e-2}
    plain = by_path(_step(Optimizer(**common), params)[1])
    settings = Optimizer(**common, frozen=("vit/blocks/0/*", "vit/registers"), head_rate=3.0, layer_decay=0.5)
    moved, updates = _step(settings, params)
    multiples = by_path(rate_multipliers(params, settings))
    assert multiples["vit/head/kernel"] == 3.0
    for path, update in by_path(updates).items():
        if name != "schedule_free_adamw":
            np.testing.assert_allclose(update, multiples[path] * plain[path], rtol=1e-5, atol=1e-8)
    start, moved = by_path(params), by_path(moved)
    for path in start:
        if path.startswith("vit/blocks/0/") or path == "vit/registers":
            np.testing.assert_array_equal(moved[path], start[path], err_msg=path)


def test_clipping_per_module_is_torchs_of_each_module(params):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), params)
    grads["dino_head"] = jax.tree.map(lambda x: np.float32(x * 1e-3), grads["dino_head"])
    settings = Optimizer(grad_clip_norm=3.0, grad_clip_per="module")
    found, _ = _clip(settings).update(grads, _clip(settings).init(params), params)
    for name, module in grads.items():
        tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(module)]
        for tensor in tensors:
            tensor.grad = tensor.data.clone()
        torch.nn.utils.clip_grad_norm_(tensors, 3.0)
        for ours, theirs in zip(jax.tree.leaves(found[name]), tensors, strict=True):
            np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=2e-6, atol=1e-9)


def test_weight_decay_follows_half_a_cosine(params):
    """With gradients of 0, an update is minus the rate times the decay times the parameter."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    settings = Optimizer(schedule="constant", learning_rate=0.1, weight_decay=0.04, weight_decay_end=0.4)
    optimizer = make_optimizer(settings, LENGTHS)
    state, found = optimizer.init(params), []
    for _ in range(12):
        updates, state = optimizer.update(zeros, state, params)
        patch = by_path(updates)["vit/patch_embed/kernel"]
        found.append(float(-(patch / by_path(params)["vit/patch_embed/kernel"]).mean() / 0.1))
    want = [0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * i / 10)) / 2 for i in range(10)]
    np.testing.assert_allclose(found[:10], want, rtol=1e-4)
    np.testing.assert_allclose(found[10:], want[-1], rtol=1e-4)  # the last value of the table stays


def test_a_pattern_that_matches_nothing_is_refused(params):
    with pytest.raises(ConfigError, match=r"optimizer.frozen='vit/block/\*' matches no parameter"):
        rate_multipliers(params, Optimizer(frozen=("vit/block/*",)))
