"""Drop path, LayerScale, the MLPs and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vit_registers.errors import ConfigError
from vit_registers.models.activations import ACTIVATIONS
from vit_registers.models.blocks import VARIANTS, LayerScale, dims
from vit_registers.models.drop_path import drop_path, drop_rates

X = np.linspace(-4, 4, 101).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2),
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
    ],
)
def test_activations_are_their_formulas(name, formula):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), formula(X.astype(np.float64)), atol=1e-6)


def test_drop_path_keeps_or_drops_each_example_whole_and_keeps_the_mean():
    x_BxTxD = jnp.ones((4000, 3, 2))
    out = np.asarray(drop_path(x_BxTxD, 0.2, jax.random.key(0)))
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1.25])
    assert abs(out[:, 0, 0].mean() - 1) < 0.03  # four standard errors
    assert drop_path(x_BxTxD.astype(jnp.bfloat16), 0.2, jax.random.key(0)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("rate", "key"), [(0.0, 0), (0.5, None)])
def test_drop_path_without_a_rate_or_a_key_is_the_identity(rate, key):
    x_BxTxD = jnp.ones((4, 3, 2))
    assert drop_path(x_BxTxD, rate, None if key is None else jax.random.key(key)) is x_BxTxD


@pytest.mark.parametrize(
    ("schedule", "depth", "rates"),
    [
        ("linear", 4, [0.0, 0.1, 0.2, 0.3]),
        ("constant", 4, [0.3] * 4),
        ("linear", 1, [0.0]),
        ("constant", 1, [0.3]),
    ],
)
def test_drop_path_rates_follow_their_schedule(tiny, schedule, depth, rates):
    model = tiny(depth=depth, drop_path=0.3, drop_path_schedule=schedule)
    np.testing.assert_allclose(drop_rates(model, depth), rates)


def test_a_model_drops_paths_only_with_a_key_and_by_that_key(build, images, forward):
    model = build(depth=2, drop_path=0.5, drop_path_schedule="constant")
    x = images(8)
    plain, dropped = forward(model, x).logits, forward(model, x, jax.random.key(0)).logits
    np.testing.assert_array_equal(dropped, forward(model, x, jax.random.key(0)).logits)
    assert np.abs(dropped - plain).max() > 0.01
    assert np.abs(dropped - forward(model, x, jax.random.key(1)).logits).max() > 0.01
    without = build(depth=2, drop_path=0.0)
    np.testing.assert_allclose(forward(without, x, jax.random.key(0)).logits, plain, atol=1e-5)


def test_attention_and_mlp_branches_and_blocks_are_dropped_independently(build, images, forward):
    """What each block adds to an example tells which of its branches were kept: all four cases occur."""
    model = build(depth=2, drop_path=0.5, drop_path_schedule="constant")
    resid = forward(model, images(64), jax.random.key(0)).taps["resid"]
    kept = []
    for i, block in enumerate(model.blocks):
        branch_BxTxD, _ = block.attn(block.norm1(resid[i]), None, None)
        after_attention = {keep: resid[i] + 2 * keep * branch_BxTxD for keep in (0, 1)}
        candidates = {
            (keep, keep_mlp): after + 2 * keep_mlp * block.mlp(block.norm2(after))[0]
            for keep, after in after_attention.items()
            for keep_mlp in (0, 1)
        }
        errors = np.stack([np.abs(resid[i + 1] - x).max(axis=(1, 2)) for x in candidates.values()])
        assert errors.min(axis=0).max() < 1e-4
        kept.append(errors.argmin(axis=0))
    assert set(kept[0]) == set(kept[1]) == {0, 1, 2, 3}
    assert (kept[0] != kept[1]).any()


def test_layer_scale_multiplies_channels_and_zero_switches_a_branch_off(build, images, forward):
    scale = LayerScale(4, 0.5, jnp.float32)
    scale.gamma[...] = jnp.arange(4.0)
    np.testing.assert_array_equal(scale(jnp.ones((1, 2, 4))), np.tile(np.arange(4.0), (1, 2, 1)))
    model = build(layer_scale_init=1.0)
    for name in ("ls1", "ls2"):
        gamma = getattr(model.blocks[0], name).gamma
        gamma[...] = jnp.zeros_like(gamma[...])
    resid = forward(model, images(2)).taps["resid"]
    np.testing.assert_array_equal(resid[1], resid[0])


def test_swiglu_gates_with_the_first_half(build):
    mlp = build(mlp="swiglu", mlp_dim=24).blocks[0].mlp
    x_BxTxD = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    hidden = x_BxTxD @ np.asarray(mlp.w12.kernel[...]) + np.asarray(mlp.w12.bias[...])
    gate, value = hidden[..., :24], hidden[..., 24:]
    expected = gate / (1 + np.exp(-gate)) * value @ np.asarray(mlp.w3.kernel[...]) + np.asarray(
        mlp.w3.bias[...]
    )
    np.testing.assert_allclose(mlp(x_BxTxD)[0], expected, atol=1e-5)


def test_mlp_is_two_layers_around_the_activation(build):
    mlp = build(activation="quick_gelu").blocks[0].mlp
    x_BxTxD = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    hidden = x_BxTxD @ np.asarray(mlp.fc1.kernel[...]) + np.asarray(mlp.fc1.bias[...])
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    expected = hidden @ np.asarray(mlp.fc2.kernel[...]) + np.asarray(mlp.fc2.bias[...])
    np.testing.assert_allclose(mlp(x_BxTxD)[0], expected, atol=1e-5)


def test_layer_norm_stays_exact_where_tokens_are_far_from_zero(build):
    """A one-pass variance would lose it: float32 holds 1000 ** 2 to 0.06 only."""
    norm = build().norm
    x_BxTxD = (1000 + np.random.default_rng(0).normal(size=(1, 4, 32))).astype(np.float32)
    exact = x_BxTxD.astype(np.float64)
    exact = (exact - exact.mean(axis=-1, keepdims=True)) / np.sqrt(exact.var(axis=-1, keepdims=True) + 1e-6)
    expected = exact * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(norm(x_BxTxD), expected, atol=1e-3)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_has_its_own_sizes(tiny, variant):
    sizes = dims(tiny(variant=variant, width=None, depth=None, num_heads=None, mlp_dim=None))
    assert sizes == VARIANTS[variant]
    assert sizes.width % sizes.num_heads == 0


def test_sizes_that_are_set_replace_those_of_the_variant(tiny):
    sizes = dims(tiny(variant="S", width=96, num_heads=3, depth=None, mlp_dim=None))
    assert (sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_dim) == (96, 12, 3, 384)
    with pytest.raises(
        ConfigError, match=r"width=100 is not a multiple of the 6 heads: set model\.num_heads"
    ):
        dims(tiny(variant="S", width=100, num_heads=None))


@pytest.mark.slow
def test_computing_blocks_again_changes_nothing(build, images):
    """Loss and gradients, with drop path, whose keys have to be the same both times."""
    settings = {"depth": 3, "drop_path": 0.5, "summary_factor": 2, "mask": "fractal"}
    x, key, found = images(4), jax.random.key(3), []

    def loss(model, x):
        return jnp.square(model(x, drop_key=key).logits).mean()

    for remat in ("none", "attention", "block"):
        found.append(jax.jit(jax.value_and_grad(loss))(build(**settings, remat=remat), x))
    for value, gradient in found[1:]:
        np.testing.assert_allclose(value, found[0][0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(found[0][1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match=r"'cudnn', which stores no weights: set model\.remat"):
        build(attention="cudnn", remat="attention")
