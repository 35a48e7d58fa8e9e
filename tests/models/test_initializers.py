"""How parameters start: the recipes of big_vision and DeiT-III, measured on a model of one block."""

import functools
import math
import operator

import jax
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import keystr, tree_leaves_with_path

from vit_registers.config import Model
from vit_registers.models.vit import ViT

WIDTH, MLP_DIM, FAN_IN = 192, 768, 16 * 16 * 3


@functools.partial(jax.jit, static_argnames="model")
def fresh(model: Model, key: jax.Array) -> dict:
    return nnx.to_pure_dict(nnx.state(ViT(model, rngs=nnx.Rngs(key)), nnx.Param))


def quick_key(seed: int = 0) -> jax.Array:
    """A key whose numbers compile much faster than those of the default kind."""
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(scope="module")
def start():
    """start(init): the parameters of a fresh model, {path: values}, each group of tokens present."""
    made = {}

    def make(init: str) -> dict[str, np.ndarray]:
        if init not in made:
            model = Model(
                variant="Ti",
                depth=1,
                num_registers=16,
                summary_factor=2,
                extra_positions="learned",
                pooling="map",
                use_pre_logits=True,
                layer_scale_init=1e-4,
                init=init,
            )
            params = fresh(model, quick_key())
            made[init] = {
                keystr(path, simple=True, separator="/"): np.asarray(leaf)
                for path, leaf in tree_leaves_with_path(params)
            }
        return made[init]

    return make


def assert_normal(values, std, *, tolerance=0.05):
    assert abs(values.std() / std - 1) < tolerance, values.std()
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert np.abs(values).max() > 2.2 * std  # not cut at two standard deviations


def assert_uniform(values, bound):
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.9 * bound
    if values.size > 1000:
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.05


BLOCK = "blocks/0"
KERNELS = [
    f"{BLOCK}/attn/qkv/kernel",
    f"{BLOCK}/attn/out/kernel",
    f"{BLOCK}/mlp/fc1/kernel",
    f"{BLOCK}/mlp/fc2/kernel",
    "pre_logits/kernel",
    "head/kernel",
]


@pytest.mark.parametrize("path", [*KERNELS, "pos_embed", "registers", "summaries", "extra_pos"])
def test_deit3_draws_normals_of_std_0_02(start, path):
    assert_normal(start("deit3")[path], 0.02)


def test_deit3_draws_the_cls_token_and_its_position_from_std_0_02(start):
    both = np.concatenate([start("deit3")["cls_token"].ravel(), start("deit3")["cls_pos"].ravel()])
    assert_normal(both, 0.02, tolerance=0.15)


def test_deit3_patch_embedding_is_the_default_of_torch_bias_included(start):
    assert_uniform(start("deit3")["patch_embed/kernel"], 1 / math.sqrt(FAN_IN))
    assert_uniform(start("deit3")["patch_embed/bias"], 1 / math.sqrt(FAN_IN))


def test_deit3_biases_start_at_zero(start):
    biases = [path for path in start("deit3") if path.endswith("bias") and path != "patch_embed/bias"]
    assert len(biases) >= 10
    assert not any(start("deit3")[path].any() for path in biases)


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        (f"{BLOCK}/attn/qkv/kernel", math.sqrt(6 / (WIDTH + WIDTH))),
        (f"{BLOCK}/attn/out/kernel", math.sqrt(6 / (WIDTH + WIDTH))),
        (f"{BLOCK}/mlp/fc1/kernel", math.sqrt(6 / (WIDTH + MLP_DIM))),
        (f"{BLOCK}/mlp/fc2/kernel", math.sqrt(6 / (WIDTH + MLP_DIM))),
        ("map_pool/q/kernel", math.sqrt(6 / (WIDTH + WIDTH))),
        ("map_pool/probe", math.sqrt(6 / (1 + WIDTH))),
    ],
)
def test_big_vision_draws_xavier_uniform(start, path, bound):
    assert_uniform(start("big_vision")[path], bound)


@pytest.mark.parametrize(("path", "fan_in"), [("patch_embed/kernel", FAN_IN), ("pre_logits/kernel", WIDTH)])
def test_big_vision_draws_lecun_normal_cut_at_two_sigma(start, path, fan_in):
    values = start("big_vision")[path]
    assert abs(values.std() * math.sqrt(fan_in) - 1) < 0.05
    assert np.abs(values).max() <= 2 / math.sqrt(fan_in) / 0.87962566 * 1.0001


@pytest.mark.parametrize("path", ["pos_embed", "registers", "summaries", "extra_pos"])
def test_big_vision_draws_tables_of_std_1_over_sqrt_width(start, path):
    assert_normal(start("big_vision")[path], 1 / math.sqrt(WIDTH))


def test_big_vision_starts_head_cls_and_most_biases_at_zero_and_mlp_biases_near_it(start):
    params = start("big_vision")
    for path in ("head/kernel", "head/bias", "cls_token", "patch_embed/bias", "pre_logits/bias"):
        assert not params[path].any(), path
    assert not params[f"{BLOCK}/attn/qkv/bias"].any()
    for path in (f"{BLOCK}/mlp/fc1/bias", f"{BLOCK}/mlp/fc2/bias", "map_pool/mlp/fc1/bias"):
        assert_normal(params[path], 1e-6, tolerance=0.2)


@pytest.mark.parametrize("init", ["big_vision", "deit3"])
def test_norms_start_as_the_identity_and_layer_scale_at_its_setting(start, init):
    params = start(init)
    for path in ("norm", "map_pool/norm", f"{BLOCK}/norm1", f"{BLOCK}/norm2"):
        assert (params[f"{path}/scale"] == 1).all()
        assert not params[f"{path}/bias"].any()
    for path in ("ls1", "ls2"):
        np.testing.assert_array_equal(params[f"{BLOCK}/{path}/gamma"], np.float32(1e-4))


def test_big_vision_gives_zero_logits_at_first(tiny, images):
    model = tiny(init="big_vision")
    logits = jax.jit(lambda key, x: ViT(model, rngs=nnx.Rngs(key))(x).logits)(quick_key(), images(2))
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))


@pytest.mark.slow
def test_another_seed_gives_other_parameters_and_the_same_seed_the_same(tiny):
    model = tiny(num_registers=2, init="deit3")
    one, again, other = (fresh(model, quick_key(seed)) for seed in (0, 0, 1))
    for path in (("registers",), ("pos_embed",), ("blocks", 0, "attn", "qkv", "kernel")):
        leaves = [functools.reduce(operator.getitem, path, params) for params in (one, again, other)]
        np.testing.assert_array_equal(leaves[0], leaves[1])
        assert (leaves[0] != leaves[2]).all()
