"""The losses of images and texts: check values, a float64 restatement, gradients, devices, memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.fixtures.sines import sines
from vit_registers.config import Mesh
from vit_registers.objectives.image_text.losses import clip_losses, siglip_losses
from vit_registers.runtime.mesh import make_mesh

BATCH, WIDTH, GROUP = 48, 12, 8


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def one_group(name, f, g, log_scale, bias):
    """(mean loss, gradients by f, g, log_scale, bias) of a whole batch in float64, by the formulas."""
    n, scale = len(f), math.exp(log_scale)
    dots = f @ g.T
    if name == "clip":
        logits = scale * dots

        def softmax(x):
            e = np.exp(x - x.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

        rows, columns = softmax(logits), softmax(logits.T).T
        loss = -(np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean()) / 2
        by_logits = (rows + columns - 2 * np.eye(n)) / (2 * n)
    else:
        logits, y = scale * dots + bias, 2 * np.eye(n) - 1
        loss = np.logaddexp(0, -y * logits).sum() / n
        by_logits = -y / (1 + np.exp(y * logits)) / n
    by_f, by_g = scale * by_logits @ g, scale * by_logits.T @ f
    return loss, (by_f, by_g, scale * (by_logits * dots).sum(), by_logits.sum())


def reference(name, f, g, log_scale, bias, mask, group=None):
    """The same over the groups of a batch, of which the examples in `mask` count."""
    loss, by_f, by_g, by_scale, by_bias = 0.0, np.zeros_like(f), np.zeros_like(g), 0.0, 0.0
    for start in range(0, len(f), group or len(f)):
        rows = start + np.flatnonzero(mask[start : start + (group or len(f))])
        if not len(rows):
            continue
        share = len(rows) / mask.sum()
        one, (f_, g_, s_, b_) = one_group(name, f[rows], g[rows], log_scale, bias)
        loss, by_scale, by_bias = loss + share * one, by_scale + share * s_, by_bias + share * b_
        by_f[rows], by_g[rows] = share * f_, share * g_
    return loss, (by_f, by_g, by_scale, by_bias if name == "siglip" else 0.0)


def mean_loss(name, chunk, group, f, g, log_scale, bias, mask):
    if name == "clip":
        loss_B = clip_losses(f, g, log_scale, mask, chunk=chunk, group=group)
    else:
        loss_B = siglip_losses(f, g, log_scale, bias, mask, chunk=chunk, group=group)
    assert loss_B.dtype == jnp.float32
    return loss_B.sum() / jnp.maximum(mask.sum(), 1)


def ours(name, chunk, group=None):
    function = functools.partial(mean_loss, name, chunk, group)
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2, 3)))


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    f = unit(rng.standard_normal((BATCH, WIDTH)))
    return f, unit(f + 0.7 * rng.standard_normal((BATCH, WIDTH)))


MASKS = {
    "all": np.ones(BATCH, bool),
    "some": np.arange(BATCH) % 5 != 2,
    "the first": np.arange(BATCH) < 21,
}


@pytest.mark.parametrize(
    ("name", "log_scale", "bias", "want"),
    [("clip", -math.log(0.07), 0.0, 1.844895), ("siglip", math.log(10), -10.0, 3.306870)],
)
@pytest.mark.parametrize("chunk", [4, 3, 1])
def test_check_values_of_the_released_code(name, log_scale, bias, want, chunk):
    f, g = (unit(sines((4, 6), phase, 1.7)).astype(np.float32) for phase in (0.1, 0.9))
    scalars = jnp.float32(log_scale), jnp.float32(bias)
    value = mean_loss(name, chunk, None, f, g, *scalars, jnp.ones(4, bool))
    np.testing.assert_allclose(value, want, rtol=1e-5 / want)


@pytest.mark.parametrize(("number", "want"), [(8, 10.00036), (512, 10.02324), (16_384, 10.74382)])
def test_siglip_at_the_start(number, want):
    f, g = jnp.tile(jnp.array([[1.0, 0.0]]), (number, 1)), jnp.tile(jnp.array([[0.0, 1.0]]), (number, 1))
    scalars = jnp.log(10.0), jnp.float32(-10.0)
    value = jax.jit(functools.partial(mean_loss, "siglip", 512, None))(f, g, *scalars, jnp.ones(number, bool))
    np.testing.assert_allclose(value, want, atol=6e-6)


def test_clip_by_chance():
    x = jnp.zeros((64, 3)).at[:, 0].set(1.0)
    value = mean_loss("clip", 10, None, x, x, jnp.float32(2.0), jnp.float32(0.0), jnp.ones(64, bool))
    np.testing.assert_allclose(value, math.log(64), rtol=1e-6)


@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chunk", [BATCH, 17, 5])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_formulas_in_float64(pairs, name, chunk, mask, group):
    check(pairs, ours(name, chunk, group), name, MASKS[mask], group)


def check(pairs, function, name, mask, group, place=jnp.asarray):
    f, g = pairs
    log_scale, bias = 3.1, -2.3
    inputs = [place(x) for x in (f.astype(np.float32), g.astype(np.float32))]
    scalars = jnp.float32(log_scale), jnp.float32(bias)
    value, grads = function(*inputs, *scalars, place(mask))
    want, want_grads = reference(name, f, g, float(scalars[0]), float(scalars[1]), mask, group)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for ours_, theirs in zip(grads, want_grads, strict=True):
        scale = max(np.abs(theirs).max(), 1e-30)
        np.testing.assert_allclose(np.asarray(ours_) / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("sizes", [Mesh(data=8), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, fsdp=8)])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_8_devices_give_the_loss_of_the_whole_batch(pairs, name, sizes, group):
    mesh = make_mesh(sizes)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        place = functools.partial(jax.device_put, device=split)
        check(pairs, ours(name, 7, group), name, MASKS["some"], group, place)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_what_is_left_out_may_be_anything(pairs, name):
    f, g = (x.astype(np.float32) for x in pairs)
    mask, scalars = MASKS["the first"], (jnp.float32(3.1), jnp.float32(-2.3))
    value, grads = ours(name, 5)(f, g, *scalars, mask)
    f, g = (np.where(mask[:, None], x, np.nan) for x in (f, g))
    again, others = ours(name, 5)(f, g, *scalars, mask)
    assert value == again
    jax.tree.map(np.testing.assert_array_equal, grads, others)
    empty, grads = ours(name, 5)(f, g, *scalars, np.zeros_like(mask))
    assert empty == 0
    assert not any(np.asarray(x).any() for x in grads)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_large_scales_are_finite(pairs, name):
    f, _ = (x.astype(np.float32) for x in pairs)
    scalars = jnp.log(100.0), jnp.float32(-10.0)
    for g in (f, -f):
        value, grads = ours(name, 5)(f, g, *scalars, MASKS["all"])
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_no_device_holds_all_pairs(name):
    """In the program of 8 devices, no array of floats has more elements than rows of a device x a chunk."""
    number, chunk = 2048, 64
    mesh = make_mesh(Mesh(data=8))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((number, 4), jnp.float32, sharding=split)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    mask = jax.ShapeDtypeStruct((number,), bool, sharding=split)
    with jax.set_mesh(mesh):
        compiled = ours(name, chunk).lower(x, x, scalar, scalar, mask).compile()
    shapes = re.findall(r"(?:f32|pred|s32|bf16)\[([\d,]+)\]", compiled.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) <= number // 8 * chunk
