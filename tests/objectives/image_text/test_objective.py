"""The objective of images and texts: accumulation, devices, bounds, decay, frozen parts, masks, settings."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from tests.objectives.image_text.test_losses import reference
from tools import hlo
from tools.aot_step import lower_step
from vit_registers.config import Config, Data, ImageTextSettings, Mesh, Model, Optimizer, Run, Text
from vit_registers.config import ObjectiveSettings as Settings
from vit_registers.data.batch import IMAGE, TOKENS, Batch, join_batch, split_batch, to_device
from vit_registers.errors import ConfigError
from vit_registers.objectives.catalog import make_objective
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.parameter_groups import DECAYED, decay_mask
from vit_registers.training.setup import set_up

BATCH = 32
CONFIG = Config(
    model=Model(
        width=16,
        depth=1,
        num_heads=4,
        patch_size=4,
        image_size=(8, 8),
        channels=1,
        num_classes=0,
        num_registers=2,
        use_norm_pre=True,
        use_norm_after_pool=True,
    ),
    text=Text(width=16, depth=1, num_heads=4, mlp_dim=32, vocab_size=32, context=6, embed_dim=8),
    data=Data(batch_size=BATCH, eval_batch_size=BATCH, mean=(0.5,), std=(0.5,)),
    objective=Settings(name="image_text", image_text=ImageTextSettings(chunk=5)),
    # A large epsilon: the gradient of the key bias is zero but for rounding, which Adam would blow up.
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0, eps=1e-3, grad_clip_norm=None),
    run=Run(total_steps=40),
)


def change(config=CONFIG, image_text=None, **sections):
    if image_text:
        own = dataclasses.replace(config.objective.image_text, **image_text)
        sections["objective"] = {"image_text": own}
    parts = {name: dataclasses.replace(getattr(config, name), **s) for name, s in sections.items()}
    return dataclasses.replace(config, **parts)


SIGLIP = change(
    image_text={"loss": "siglip", "initial_scale": 10.0, "has_image_projection": False},
    model={"pooling": "map", "use_cls": False, "use_norm_pre": False, "use_norm_after_pool": False},
    text={"is_causal": False, "pool": "last", "embed_dim": 16, "has_projection_bias": True},
)


def make_batch(seed=0, mask=None):
    rng = np.random.default_rng(seed)
    return Batch(
        views={IMAGE: rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)},
        targets={TOKENS: rng.integers(0, 32, (BATCH, 6)).astype(np.int32)},
        mask_B=np.ones(BATCH, bool) if mask is None else mask,
    )


def run_steps(config, number, num_devices=1, mask=None):
    mesh = make_mesh(config.mesh, devices=jax.devices()[:num_devices])
    lengths = Durations(total_steps=40, warmup_steps=0, eval_every_steps=40, steps_per_epoch=10.0)
    setup, history = set_up(config, lengths, mesh), []
    with jax.set_mesh(mesh):
        state = setup.make_state()
        for i in range(number):
            batch = to_device(make_batch(i, mask), sharding.batch_sharding(mesh))
            state, metrics = setup.train_step(state, batch)
            history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_same(one, other, atol=2e-5):
    (state, history), (want, metrics) = one, other
    for a, b in zip(history, metrics, strict=True):
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6, err_msg=name)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), state.params, want.params)


CONFIGS = {"clip": CONFIG, "siglip": SIGLIP}
SOME = np.arange(BATCH) % 7 != 3


@pytest.fixture(scope="module")
def whole():
    """(state, metrics) of three steps on one device, of each loss."""
    return {name: run_steps(config, 3, mask=SOME) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_the_formula(name, whole):
    """The vectors by the towers alone, the loss in float64."""
    config = CONFIGS[name]
    objective = make_objective(config)
    params, extra = objective.init(jax.random.key(config.run.seed))
    batch = objective.prepare(make_batch(mask=SOME), jax.random.key(0))
    f, g = (np.asarray(x, np.float64) for x in objective._embed(params, batch, jax.random.key(0)))
    np.testing.assert_allclose(np.linalg.norm(f, axis=-1), 1, rtol=1e-6)
    scale, bias = float(params["logit_scale"]), float(params.get("logit_bias", 0.0))
    want, _ = reference(name, f, g, scale, bias, SOME)
    metrics = whole[name][1][0]
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    np.testing.assert_allclose(metrics["scale"], 10 if name == "siglip" else 1 / 0.07, rtol=1e-6)
    assert extra == {}


@parametrize_quick(("name", "num_parts"), [("clip", 2), ("siglip", 8), ("clip", 8), ("siglip", 2)], number=2)
def test_accumulation_is_exact(name, num_parts, whole):
    config = change(CONFIGS[name], optimizer={"accumulation_steps": num_parts})
    assert_same(run_steps(config, 3, mask=SOME), whole[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "num_parts"),
    [(Mesh(data=8), 1), (Mesh(data=2, fsdp=2, tensor=2), 1), (Mesh(data=2, fsdp=4), 4)],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_8_devices_equal_one(name, mesh, num_parts, whole):
    config = dataclasses.replace(CONFIGS[name], mesh=mesh)
    config = change(config, optimizer={"accumulation_steps": num_parts})
    assert_same(run_steps(config, 3, 8, mask=SOME), whole[name])


def test_parts_of_a_batch_are_every_nth_example():
    x = {"x": jnp.arange(12).reshape(6, 2)}
    parts = split_batch(x, 3)
    np.testing.assert_array_equal(parts["x"][1], [[2, 3], [8, 9]])
    np.testing.assert_array_equal(join_batch(parts)["x"], x["x"])


def test_accumulation_holds_the_activations_of_one_part():
    """Temporary memory of a step in 8 parts is less than a third of that of the whole batch."""

    def temporary_bytes(num_parts):
        model = {"depth": 4, "image_size": (32, 32)}
        config = change(model=model, optimizer={"accumulation_steps": num_parts})
        mesh = make_mesh(Mesh(), devices=jax.devices()[:1])
        lengths = Durations(total_steps=40, warmup_steps=0, eval_every_steps=40, steps_per_epoch=10.0)
        setup = set_up(config, lengths, mesh)
        batch = make_batch()
        images = np.zeros((BATCH, 32, 32, 1), np.uint8)
        with jax.set_mesh(mesh):
            batch = to_device(batch._replace(views={IMAGE: images}), sharding.batch_sharding(mesh))
            lowered = setup.train_step.lower(setup.abstract, batch)
            return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < temporary_bytes(1) / 3


def test_drop_path_of_parts_is_drawn_anew():
    """The backward pass of a part repeats its draws: its gradient is that of the same draws without parts."""
    config = change(model={"drop_path": 0.5, "drop_path_schedule": "constant"})
    objective = make_objective(config)
    params, extra = objective.init(jax.random.key(0))
    batch, key = objective.prepare(make_batch(), jax.random.key(0)), jax.random.key(1)

    def in_parts(params):
        sums, _ = objective.loss_in_parts(params, extra, batch, jnp.int32(0), key, num_parts=2)
        return sums["loss"][0]

    def plain(params):
        halves = split_batch(batch, 2)
        parts = [
            objective._embed(params, jax.tree.map(operator.itemgetter(i), halves), jax.random.fold_in(key, i))
            for i in range(2)
        ]
        f, g = (jnp.stack(both, axis=1).reshape(BATCH, -1) for both in zip(*parts, strict=True))
        return objective._sums(params, f, g, batch.mask_B)["loss"][0]

    (a, by_a), (b, by_b) = jax.jit(lambda p: (jax.value_and_grad(in_parts)(p), jax.value_and_grad(plain)(p)))(
        params
    )
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), by_a, by_b)


def test_the_scale_of_clip_stays_from_1_to_100():
    """Also with a rate that would carry it beyond, and so does its average."""
    config = change(
        image_text={"initial_scale": 1.001},
        optimizer={"learning_rate": 1.0, "ema_decay": 0.5, "eps": 1e-8},
    )
    state, history = run_steps(config, 3)
    np.testing.assert_array_equal([metrics["scale"] for metrics in history[1:]], 1.0)
    assert state.params["logit_scale"] == 0
    assert 0 <= state.ema["logit_scale"] < 1e-3
    params = {"logit_scale": jnp.float32(5.0), "other": jnp.float32(7)}
    bounded = make_objective(config).bound(params)
    np.testing.assert_allclose(bounded["logit_scale"], math.log(100), rtol=1e-7)
    assert bounded["other"] == 7


def test_the_scale_of_siglip_has_no_bounds():
    params = {"logit_scale": jnp.float32(9.0)}
    assert make_objective(SIGLIP).bound(params) is params


@pytest.mark.parametrize("decayed", DECAYED)
def test_scale_and_bias_are_not_decayed(decayed):
    params = make_objective(SIGLIP).init(jax.random.key(0))[0]
    mask = decay_mask(params, decayed)
    assert not mask["logit_scale"]
    assert not mask["logit_bias"]
    assert mask["vit"]["blocks"][0]["mlp"]["fc1"]["kernel"]
    assert mask["text"]["blocks"][0]["mlp"]["fc1"]["kernel"]
    assert not mask["text"]["norm"]["scale"]


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_locked_image_tower(num_parts):
    """LiT (arXiv:2111.07991): the image tower stays as it is, bit for bit, and has no gradient."""
    patterns = {"frozen": ("vit/*", "image_proj/*"), "accumulation_steps": num_parts, "weight_decay": 0.1}
    config = change(optimizer=patterns)
    (before, _), (after, _) = run_steps(config, 0), run_steps(config, 2)
    for name in ("vit", "image_proj"):
        jax.tree.map(np.testing.assert_array_equal, before.params[name], after.params[name])
    assert before.params["logit_scale"] != after.params["logit_scale"]
    kernels = [state.params["text"]["proj"]["kernel"] for state in (before, after)]
    assert (kernels[0] != kernels[1]).all()


def test_a_locked_image_tower_is_not_differentiated():
    """A step costs less than two thirds of one that trains both towers."""

    def flops(frozen):
        config = change(model={"depth": 4, "image_size": (32, 32)}, optimizer={"frozen": frozen})
        mesh = make_mesh(Mesh(), devices=jax.devices()[:1])
        lengths = Durations(total_steps=40, warmup_steps=0, eval_every_steps=40, steps_per_epoch=10.0)
        setup = set_up(config, lengths, mesh)
        images = np.zeros((BATCH, 32, 32, 1), np.uint8)
        with jax.set_mesh(mesh):
            batch = make_batch()._replace(views={IMAGE: images})
            batch = to_device(batch, sharding.batch_sharding(mesh))
            return setup.train_step.lower(setup.abstract, batch).cost_analysis()["flops"]

    assert flops(("vit/*",)) < flops(()) * 2 / 3


@pytest.mark.parametrize("group", [None, 8])
def test_examples_that_are_left_out_change_nothing(group):
    config = change(image_text={"group": group})
    objective = make_objective(config)
    params, extra = objective.init(jax.random.key(0))
    batch, other = make_batch(0, SOME), make_batch(1, SOME)
    mixed = jax.tree.map(lambda a, b: np.where(SOME.reshape(-1, *[1] * (a.ndim - 1)), a, b), batch, other)

    @jax.jit
    def gradient(batch):
        batch = objective.prepare(batch, jax.random.key(0))
        loss = lambda params: objective.loss(  # noqa: E731
            params, extra, batch, jnp.int32(0), jax.random.key(0)
        )[0]["loss"]
        (total, count), grads = loss(params), jax.grad(lambda p: loss(p)[0])(params)
        return total, count, grads

    (total, count, grads), (again, _, others) = gradient(batch), gradient(mixed)
    assert count == SOME.sum()
    np.testing.assert_allclose(total, again, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grads, others)


def test_groups_are_batches_of_their_own():
    """Examples of other groups do not change the loss of a group."""
    config = change(image_text={"group": 8})
    objective = make_objective(config)
    params, extra = objective.init(jax.random.key(0))

    def total(mask):
        batch = objective.prepare(make_batch(0, mask), jax.random.key(0))
        return objective.loss(params, extra, batch, jnp.int32(0), jax.random.key(0))[0]["loss"][0]

    first = np.arange(BATCH) < 8
    parts = [total(np.roll(first, 8 * i)) for i in range(4)]
    np.testing.assert_allclose(sum(parts), total(np.ones(BATCH, bool)), rtol=1e-6)


def test_registers_precede_the_norm_before_the_blocks():
    """They go through norm_pre with the other tokens, as in arXiv:2506.08010: our choice."""
    from vit_registers.models.params import abstract_model, build_model

    params = make_objective(CONFIG).init(jax.random.key(0))[0]
    model = build_model(abstract_model(CONFIG.model)[0], params["vit"])
    first = model(jnp.zeros((1, 8, 8, 1))).taps["resid"][0][0]
    np.testing.assert_allclose(first[1:3].mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(first[1:3].std(axis=-1), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (change(image_text={"loss": "infonce"}), "image_text.loss='infonce' is unknown"),
        (change(model={"num_classes": 10}), "model.num_classes=10.*set it to 0"),
        (change(image_text={"has_image_projection": False}), "have 16 dimensions and text.embed_dim is 8"),
        (change(image_text={"group": 5}), "group=5 does not divide data.batch_size=32"),
        (change(data={"batch_size": 1}), "data.batch_size=1: .* at least 2"),
        (change(text={"pool": "mean"}), "text.pool='mean' is unknown"),
    ],
)
def test_settings_that_are_refused(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_objective(config).check()
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, SIGLIP], ids=["clip", "siglip"])
def test_no_array_of_a_train_step_has_all_pairs(config):
    """8 devices with 23 examples each: of the arrays with the batch twice, the largest is rows x chunk."""
    rows, chunk = 23, 46
    config = change(config, image_text={"chunk": chunk}, data={"batch_size": 8 * rows}, mesh={"data": 8})
    program = lower_step(config, jax.devices()).compile().as_text()
    pairs = hlo.array_shapes(program, axis=rows)
    assert pairs
    assert max(hlo.num_elements(shape) for shape in pairs) == rows * chunk
