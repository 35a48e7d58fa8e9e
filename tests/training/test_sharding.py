"""The same run on any mesh, blocks one by one or as a loop; weights come together for use, block by block."""

import jax
import numpy as np
import pytest

from tools.aot_tpu import collectives
from vit_registers.config import Mesh
from vit_registers.data.batch import synthetic_batches, to_device
from vit_registers.models import partition
from vit_registers.models.attention.mesh import on_own_share
from vit_registers.models.vit import token_layout
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

TOLERANCE = 1e-5  # 4e-7 was seen: of the losses, in any layout
MIXED = Mesh(data=2, fsdp=2, tensor=2)
# (devices, mesh, settings of the model), against blocks one by one, all kept, on one device.
RUNS = (
    (8, Mesh(data=8), {}),
    (8, Mesh(data=1, fsdp=8), {"remat": "block"}),
    (8, Mesh(data=4, tensor=2), {"use_scan": True}),
    (8, MIXED, {"use_scan": True, "remat": "block"}),
    (8, Mesh(data=1, fsdp=4, tensor=2), {}),
    (1, Mesh(), {"use_scan": True, "remat": "block"}),
)


def _assert_same_run(ours, reference, what):
    """All metrics of each step, and all leaves of the last state: parameters, optimiser state, average."""
    (state, history), (state_one, history_one) = ours, reference
    for step, (a, b) in enumerate(zip(history, history_one, strict=True)):
        for name in b:
            np.testing.assert_allclose(
                a[name], b[name], atol=TOLERANCE, err_msg=f"{what}: {name}, step {step}"
            )
    leaves, leaves_one = (jax.tree_util.tree_leaves_with_path(jax.device_get(s)) for s in (state, state_one))
    for (path, a), (_, b) in zip(leaves, leaves_one, strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, err_msg=f"{what}: {jax.tree_util.keystr(path)}")


@pytest.mark.slow
def test_20_steps_are_the_same_on_every_mesh_with_scan_and_with_remat(tiny, change, run_steps):
    """Devices add up in another order, so what is left is float32's rounding."""
    config = change(tiny, model={"drop_path": 0.3}, optimizer={"ema_decay": 0.9})
    reference = run_steps(config, 20)
    for num_devices, mesh, model in RUNS:
        ours = run_steps(change(config, model=model, mesh=vars(mesh)), 20, num_devices=num_devices)
        _assert_same_run(ours, reference, (mesh, model))


@pytest.mark.slow
def test_learned_rotations_of_drawn_coordinates_are_the_same_on_every_mesh(tiny, change, run_steps):
    config = change(tiny, model={"positions": "rope2d(learned=True, rescale=2)"})
    reference = run_steps(config, 5)
    frequencies = reference[0].params["vit"]["blocks"][0]["attn"]["frequencies"]
    assert np.abs(
        frequencies - run_steps(config, 0)[0].params["vit"]["blocks"][0]["attn"]["frequencies"]
    ).max()
    ours = run_steps(change(config, model={"use_scan": True}, mesh=vars(MIXED)), 5, num_devices=8)
    _assert_same_run(ours, reference, MIXED)


@pytest.mark.slow
@pytest.mark.parametrize("use_scan", [False, True])
def test_with_fsdp_weights_travel_and_activations_do_not(tiny, change, use_scan):
    """Forward and backward gathering, and gradients: thrice the parameters; an activation would be more."""
    config = change(
        tiny,
        mesh={"data": 1, "fsdp": 8},
        data={"batch_size": 512},
        model={"remat": "block", "use_scan": use_scan, "init": "big_vision"},
    )
    mesh = make_mesh(config.mesh)
    lengths = Durations(total_steps=9, warmup_steps=0, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    batch = to_device(next(synthetic_batches(config.data, config.model)), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = setup.train_step.lower(setup.abstract, batch).compile().as_text()
    found = {kind: num_bytes for kind, (_, num_bytes) in collectives(text).items()}
    params_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(setup.abstract.params))
    resid_bytes = 4 * 512 * token_layout(config.model).num_tokens * 16
    assert 0.5 * params_bytes < found["all-gather"] < 2 * params_bytes
    assert sum(found.values()) < 3.2 * params_bytes < resid_bytes


def test_what_the_partitioner_cannot_split_sees_its_own_share_only():
    """A layout constraint, which a TPU's attention has, would else bring the whole batch to every device."""
    mesh, seen = make_mesh(MIXED), []

    def function(x):
        seen.append(x.shape)
        return x

    with jax.set_mesh(mesh):
        x = np.arange(8 * 4 * 3 * 3.0).reshape(8, 4, 3, 3)
        np.testing.assert_array_equal(jax.jit(lambda x: on_own_share(function, x, 1))(x), x)
        assert seen == [(2, 2, 3, 3)]
        jax.jit(lambda x: on_own_share(function, x, 1)).lower(x[:3])
        assert len(seen) == 1
    on_own_share(function, x, 1)
    assert seen[-1] == x.shape


def test_without_a_mesh_or_fsdp_nothing_is_moved():
    params = {"attn": {"qkv": {"kernel": np.ones((8, 3, 2, 4), np.float32)}}}
    assert partition.gathered(params, np.float16) is params
    with jax.set_mesh(make_mesh(Mesh(data=4, tensor=2))):
        kept = jax.jit(lambda p: partition.gathered(p, np.float16))(params)
    assert kept["attn"]["qkv"]["kernel"].dtype == np.float32


def test_gathered_weights_are_whole_along_fsdp_in_the_dtype_asked_and_gradients_split():
    params = {"attn": {"qkv": {"kernel": np.ones((8, 3, 2, 4), np.float32)}}}

    def use(params):
        return partition.gathered(params, np.float16)["attn"]["qkv"]["kernel"]

    with jax.set_mesh(make_mesh(MIXED)):
        whole = jax.jit(use)(params)
        gradient = jax.jit(jax.grad(lambda p: (use(p) ** 2).sum().astype(np.float32)))(params)
    assert whole.dtype == np.float16
    assert whole.sharding.shard_shape(whole.shape) == (8, 3, 1, 4)
    gradient = gradient["attn"]["qkv"]["kernel"]
    assert gradient.sharding.shard_shape(whole.shape) == (4, 3, 1, 4)
    np.testing.assert_array_equal(gradient, 2.0)
