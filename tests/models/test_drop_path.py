"""Drop path by a fixed subset of each group, against DINOv2's formula in torch, and its properties."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_registers.config import Mesh
from vit_registers.errors import ConfigError
from vit_registers.models.drop_path import add_branch, num_kept
from vit_registers.runtime.mesh import make_mesh

BATCH, GROUP, RATE = 32, 8, 0.3
KEPT = 5  # int(8 * .7)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def added(key, rate=RATE, group=GROUP, batch=BATCH):
    """What is added to zeros by a branch that returns ones."""
    branch = lambda x: (jnp.ones_like(x), x.shape[0])  # noqa: E731
    zeros = jnp.zeros((batch, 2, 3))
    out, _ = add_branch(zeros, branch, rate=rate, key=jax.random.key(key), group=group)
    return np.asarray(out)


@pytest.mark.parametrize(
    ("rate", "group", "kept"), [(0.3, 8, 5), (0.5, 16, 8), (0.4, 128, 76), (0.99, 8, 1), (0.1, 4, 3)]
)
def test_each_group_keeps_the_same_number(rate, group, kept):
    assert num_kept(rate, group) == kept
    out = added(0, rate, group, batch=4 * group)
    assert (out == out[:, :1, :1]).all()
    groups = out[:, 0, 0].reshape(4, group)
    assert ((groups > 0).sum(axis=1) == kept).all()
    np.testing.assert_allclose(np.unique(groups), [0, group / kept], rtol=1e-6)
    np.testing.assert_allclose(groups.mean(axis=1), 1, rtol=1e-6)  # of each group, not only expected


def test_every_example_has_the_same_chance_and_groups_differ():
    draws = np.stack([added(key)[:, 0, 0] for key in range(60)])
    assert abs(draws.mean(axis=0) - 1).max() < 0.45  # five standard errors
    assert len({tuple(row) for row in draws.reshape(-1, GROUP) > 0}) > 40  # of 56 subsets


def test_the_branch_computes_kept_examples_only():
    branch = lambda x: (x, x.shape[0])  # noqa: E731
    drop = functools.partial(add_branch, jnp.ones((BATCH, 2, 3)), branch, group=GROUP)
    assert drop(rate=RATE, key=jax.random.key(0))[1] == BATCH // GROUP * KEPT
    assert drop(rate=0.0, key=jax.random.key(0))[1] == BATCH
    assert drop(rate=RATE, key=None)[1] == BATCH


def test_values_and_gradients_are_those_of_dinov2s_code():
    """drop_add_residual_stochastic_depth of DINOv2, group by group, with our permutations."""
    torch = pytest.importorskip("torch")
    x, kernel, weight = noise(BATCH, 2, 3), noise(3, 3), noise(BATCH, 2, 3)

    def ours(x, kernel):
        branch = lambda part: (jnp.tanh(part @ kernel), None)  # noqa: E731
        out, _ = add_branch(x, branch, rate=RATE, key=jax.random.key(1), group=GROUP)
        return (out * weight).sum(), out

    (_, out), grads = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(jnp.asarray(x), kernel)
    is_kept = added(1)[:, 0, 0].reshape(-1, GROUP) > 0
    tx, tk = (torch.tensor(value, requires_grad=True) for value in (x, kernel))
    parts = []
    for part, kept in zip(tx.split(GROUP), is_kept, strict=True):
        brange = torch.tensor(np.flatnonzero(kept))
        residual = torch.tanh(part[brange] @ tk).flatten(1)
        added_to = torch.index_add(part.flatten(1), 0, brange, residual, alpha=GROUP / len(brange))
        parts.append(added_to.view_as(part))
    want = torch.cat(parts)
    (want * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(out, want.detach().numpy(), atol=1e-6)
    for found, theirs in zip(grads, (tx.grad, tk.grad), strict=True):
        np.testing.assert_allclose(found, theirs.numpy(), atol=2e-5)
    is_left_out = ~is_kept.reshape(-1)
    np.testing.assert_array_equal(np.asarray(grads[0])[is_left_out], weight[is_left_out])  # x alone


@pytest.mark.parametrize("shards", [4, 8])
def test_devices_change_nothing(shards):
    """Four groups: over four devices each has one whole and nothing is communicated; over eight, half."""
    x = jnp.asarray(noise(BATCH, 2, 3))

    def step(x):
        branch = lambda part: (jnp.tanh(part), None)  # noqa: E731
        return add_branch(x, branch, rate=RATE, key=jax.random.key(2), group=GROUP)[0]

    want = jax.jit(step)(x)
    mesh = make_mesh(Mesh(data=2, fsdp=shards // 2), devices=jax.devices()[:shards])
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, in_shardings=sharding, out_shardings=sharding)
        np.testing.assert_array_equal(compiled(jax.device_put(x, sharding)), want)
        text = compiled.lower(x).compile().as_text()
    moves = [
        name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text
    ]
    assert not moves or shards > BATCH // GROUP, moves


SETTINGS = {"drop_path": RATE, "drop_path_schedule": "constant", "drop_path_group": 4, "depth": 2}


def test_branches_and_blocks_of_a_model_draw_separately(build, images, forward):
    taps = forward(build(**SETTINGS), images(16), jax.random.key(0)).taps
    draws = []
    for i in range(2):
        stages = (taps["resid"][i], taps["middle"][i], taps["resid"][i + 1])
        for before, after in itertools.pairwise(stages):
            kept = np.asarray(jnp.abs(after - before).max(axis=(1, 2)) > 0).reshape(4, 4)
            assert (kept.sum(axis=1) == num_kept(RATE, 4)).all()
            draws.append(tuple(kept.reshape(-1)))
    assert len(set(draws)) == 4


def test_a_group_has_all_crops_of_its_images(build, images):
    model = build(**SETTINGS)
    call = jax.jit(lambda x: model(x, drop_key=jax.random.key(0), crops_per_image=3).taps)
    taps = call(images(24))
    kept = np.asarray(jnp.abs(taps["middle"][0] - taps["resid"][0]).max(axis=(1, 2)) > 0).reshape(2, 12)
    assert (kept.sum(axis=1) == num_kept(RATE, 12)).all()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
def test_a_loop_of_blocks_draws_the_same(build, images, forward, remat):
    x, key = images(8), jax.random.key(3)
    loop, scan = (
        forward(build(**SETTINGS, remat=remat, use_scan=use_scan), x, key) for use_scan in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scan, loop)
    with pytest.raises(ConfigError, match="the same rate in all blocks: set model"):
        build(**SETTINGS | {"drop_path_schedule": "linear"}, use_scan=True)
