"""AdamW, LAMB and schedule-free AdamW against their definitions in float64 numpy, and against torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import Mesh, Optimizer
from vit_registers.errors import ConfigError
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import bounds_update, make_optimizer
from vit_registers.training.parameter_groups import decay_mask

DURATIONS = Durations(total_steps=1000, warmup_steps=100, eval_every_steps=100, steps_per_epoch=62.5)
STEPS = 20
# Weights of the toy tree, by path; what is called kernel is decayed. "head" starts from zeros.
SHAPES = {
    "attn/qkv/kernel": (8, 3, 2, 4),
    "attn/qkv/bias": (3, 2, 4),
    "norm/scale": (8,),
    "head/kernel": (8, 5),
    "head/bias": (5,),
}
IS_DECAYED = {name: name.endswith("kernel") for name in SHAPES}


def _nested(flat):
    tree = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value, jnp.float32)
    return tree


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf, np.float64) for path, leaf in leaves}


@pytest.fixture
def toy():
    """First weights, and gradients of each step: of norms from 0.4 to 40, so that a limit of 3 takes some.

    All are float32 numbers, so that both sides start from the same.
    """
    rng = np.random.default_rng(0)
    start = {name: np.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    start["head/kernel"] *= 0
    grads = [
        {name: np.float32(10.0 ** rng.uniform(-1.5, 0.5) * rng.normal(size=s)) for name, s in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return start, grads


def _float64(flat):
    return {name: np.float64(value) for name, value in flat.items()}


def _norm(flat):
    return math.sqrt(sum((value**2).sum() for value in flat.values()))


def _trained(settings, toy, place=_nested):
    """Ours: the parameters and the optimiser's state after all steps."""
    start, grads = toy
    optimizer = make_optimizer(settings, DURATIONS)
    params = place(start)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for gradient in grads:
        params, opt_state = step(params, opt_state, place(gradient))
    return params, opt_state


def _rate(settings, step):
    """Warm-up over 100 steps; none of the tests goes further."""
    first = settings.warmup_learning_rate
    return first + (settings.learning_rate - first) * step / 100


def _clipped(gradient, limit):
    gradient = _float64(gradient)
    norm = _norm(gradient)
    return {name: g / max(1.0, norm / limit) if limit else g for name, g in gradient.items()}, norm


def _adam(settings, toy):
    """Yields step, clipped gradient, and Adam's direction of each step, by name."""
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    norms = []
    for step, gradient in enumerate(toy[1]):
        gradient, norm = _clipped(gradient, settings.grad_clip_norm)
        norms.append(norm)
        direction = {}
        for name, g in gradient.items():
            first[name] = settings.b1 * first[name] + (1 - settings.b1) * g
            second[name] = settings.b2 * second[name] + (1 - settings.b2) * g**2
            first_hat = first[name] / (1 - settings.b1 ** (step + 1))
            second_hat = second[name] / (1 - settings.b2 ** (step + 1))
            direction[name] = first_hat / (np.sqrt(second_hat) + settings.eps)
        yield step, direction
    if settings.grad_clip_norm:
        assert min(norms) < settings.grad_clip_norm < max(norms)  # it fires, and not always


def _restated(settings, toy):
    """AdamW or LAMB: the parameters after all steps, and the trust ratios of the first step."""
    params, first_ratios = _float64(toy[0]), {}
    for step, direction in _adam(settings, toy):
        for name, p in params.items():
            update, ratio = direction[name], 1.0
            if IS_DECAYED[name]:
                update = update + settings.weight_decay * p
                if settings.name == "lamb":
                    norms = np.linalg.norm(p.ravel()), np.linalg.norm(update.ravel())
                    ratio = norms[0] / norms[1] if all(norms) else 1.0
            if step == 0:
                first_ratios[name] = ratio
            params[name] = p - _rate(settings, step) * ratio * update
    return params, first_ratios


def _assert_close(found, want):
    """To 1e-6 of the largest parameter."""
    largest = max(np.abs(value).max() for value in want.values())
    errors = {name: np.abs(found[name] - value).max() / largest for name, value in want.items()}
    print("largest error", max(errors.values()))
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_20_steps_equal_the_definition(toy, name, clip):
    settings = Optimizer(
        name=name, learning_rate=5e-2, warmup_learning_rate=1e-3, weight_decay=0.05, grad_clip_norm=clip
    )
    want, first_ratios = _restated(settings, toy)
    _assert_close(_flat(_trained(settings, toy)[0]), want)
    if name == "lamb":
        assert first_ratios.pop("head/kernel") == 1.0  # starts from zeros
        assert first_ratios.pop("attn/qkv/kernel") != 1.0
        assert set(first_ratios.values()) == {1.0}


def test_lamb_takes_one_norm_over_q_k_and_v(toy):
    """Three ratios, one for each of them, would be off by far more than the tolerance."""
    start, grads = toy
    settings = Optimizer(name="lamb", learning_rate=5e-2, warmup_learning_rate=1e-3, grad_clip_norm=None)
    start["attn/qkv/kernel"][:, 0] *= 10
    params = _flat(_trained(settings, (start, grads[:1]))[0])
    moved = (start["attn/qkv/kernel"] - params["attn/qkv/kernel"]) / 1e-3
    p, g = (np.float64(flat["attn/qkv/kernel"]) for flat in (start, grads[0]))
    update = g / (np.abs(g) + settings.eps) + settings.weight_decay * p
    norms_of_q_k_v = (np.sqrt((value**2).sum(axis=(0, 2, 3))) for value in (moved, update))
    ratio_of_each = np.divide(*norms_of_q_k_v)
    np.testing.assert_allclose(
        ratio_of_each, np.linalg.norm(p.ravel()) / np.linalg.norm(update.ravel()), rtol=1e-3
    )


@pytest.mark.parametrize("clip", [None, 3.0])
def test_schedule_free_equals_its_recurrences(toy, clip):
    """y, z and x of arXiv:2405.15682, algorithm 1, with decay at y, on kernels only."""
    settings = Optimizer(
        name="schedule_free_adamw",
        schedule="constant",
        learning_rate=5e-2,
        weight_decay=0.05,
        grad_clip_norm=clip,
    )
    x, z, second = _float64(toy[0]), _float64(toy[0]), {name: np.zeros(s) for name, s in SHAPES.items()}
    total = 0.0
    for step, gradient in enumerate(toy[1]):
        gradient, _ = _clipped(gradient, clip)
        rate = _rate(settings, step)  # 0 at first: neither z nor the weights move
        total += rate**2
        share = rate**2 / total if total else 0.0
        for name, g in gradient.items():
            y = 0.9 * x[name] + 0.1 * z[name]
            second[name] = 0.999 * second[name] + 0.001 * g**2
            update = g / (np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8)
            z[name] = z[name] - rate * (update + 0.05 * y * IS_DECAYED[name])
            x[name] = (1 - share) * x[name] + share * z[name]
    params, opt_state = _trained(settings, toy)
    _assert_close(_flat(params), {name: 0.9 * x[name] + 0.1 * z[name] for name in x})
    _assert_close(_flat(opt_state[-1].z), z)
    _assert_close(_flat(optax.contrib.schedule_free_eval_params(opt_state[-1], params)), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "schedule_free_adamw"])
def test_sharded_weights_get_the_same_updates(toy, name):
    """The norms, over all and of each kernel, are of whole arrays, whatever device has which part."""
    mesh = make_mesh(Mesh(data=1, fsdp=4, tensor=2))

    def place(flat):
        tree = _nested(flat)
        return jax.device_put(tree, sharding.parameter_shardings(tree, mesh))

    settings = Optimizer(name=name, schedule="constant", learning_rate=5e-2, warmup_learning_rate=1e-3)
    whole, parts = (_trained(settings, toy, place=function)[0] for function in (_nested, place))
    kernel = parts["attn"]["qkv"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 3, 1, 4)
    _assert_close(_flat(parts), _flat(whole))


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


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_first_moment_is_kept_in_bfloat16_where_asked(name):
    optimizer = make_optimizer(Optimizer(name=name, mu_dtype="bfloat16"), DURATIONS)
    state = optimizer.init({"kernel": jnp.ones((2, 2))})
    assert state[1][0].mu["kernel"].dtype == jnp.bfloat16
    assert state[1][0].nu["kernel"].dtype == jnp.float32


def test_schedule_free_keeps_two_copies_of_the_parameters_beside_them(toy):
    settings = Optimizer(name="schedule_free_adamw", schedule="constant")
    state = make_optimizer(settings, DURATIONS).init(_nested(toy[0]))
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(sizes) == 2 * sum(value.size for value in toy[0].values())


SCHEDULE_FREE = {"name": "schedule_free_adamw", "schedule": "constant"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lambs"}, "optimizer.name='lambs' is unknown: did you mean 'lamb'"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm=-1.0: must be > 0, or None"),
        ({"mu_dtype": "f32"}, "mu_dtype='f32' is unknown"),
        ({"b2": 1.0}, "optimizer.b2=1.0: must be >= 0 and < 1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1: must be >= 0"),
        ({"name": "lamb", "weight_decay": 0.0}, "weight_decay=0.0: lamb .* optimizer.name='adamw'"),
        (SCHEDULE_FREE | {"schedule": "cosine"}, "optimizer.schedule='cosine': must be 'constant'"),
        (SCHEDULE_FREE | {"ema_decay": 0.99}, "optimizer.ema_decay=0.99: .* must be None"),
        (SCHEDULE_FREE | {"mu_dtype": "bfloat16"}, "optimizer.mu_dtype='bfloat16': .* 'float32'"),
        (SCHEDULE_FREE | {"b1": 0.0}, "optimizer.b1=0.0: .* must be > 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_optimizer(Optimizer(**settings), DURATIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mu_dtype", ["float32", "bfloat16"])
def test_an_update_that_the_settings_bound_is_finite_for_every_finite_gradient(mu_dtype):
    """With the largest rate, and gradients from the largest of a finite norm to the smallest."""
    settings = Optimizer(
        learning_rate=10.0,
        eps=1e-8,
        weight_decay=0.1,
        schedule="constant",
        warmup_steps=0,
        grad_clip_norm=None,
        mu_dtype=mu_dtype,
    )
    assert bounds_update(settings)
    optimizer = make_optimizer(settings, DURATIONS)
    largest = float(np.sqrt(np.finfo(np.float32).max / 4)) * 0.999  # of 4 entries
    params = {"kernel": jnp.full((4, 1), 2e36)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for scale in (1e-38, 1.0, -1.0, 1e-38, 1e-20, 1.0, -1e-30, 0.0):
        grads = {"kernel": jnp.full((4, 1), np.float32(scale * largest))}
        assert np.isfinite(optax.tree.norm(grads))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state, params)))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "lamb"},
        {"name": "schedule_free_adamw"},
        {"learning_rate": 1e30},
        {"eps": 1e-30},
        {"head_rate": 1e9},
        {"weight_decay_end": 1e6},
    ],
)
def test_settings_that_do_not_bound_the_update(settings):
    assert bounds_update(Optimizer())
    assert not bounds_update(Optimizer(**settings))
