"""What each setting of a model does, and what is refused."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from vit_registers.errors import ConfigError
from vit_registers.models.positions import sincos2d
from vit_registers.models.vit import ViT, token_layout


def test_cls_and_patches_carry_their_learned_positions(build, images, forward):
    model = build()
    taps = forward(model, images(2)).taps
    expected = model.cls_token[...][0] + model.cls_pos[...][0]
    np.testing.assert_allclose(taps["resid"][0][0, :1], expected, atol=1e-6)
    np.testing.assert_allclose(taps["resid"][0][:, 1:], taps["embed"] + model.pos_embed[...], atol=1e-6)


@pytest.mark.parametrize("settings", [{"has_cls_position": False}, {"positions": "sincos2d"}], ids=str)
def test_cls_goes_without_a_position(build, images, forward, settings):
    model = build(**settings)
    assert model.cls_pos is None
    first_BxTxD = forward(model, images(2)).taps["resid"][0]
    np.testing.assert_array_equal(first_BxTxD[0, :1], model.cls_token[...][0])


def test_sincos2d_is_added_to_patches(build, images, forward):
    taps = forward(build(positions="sincos2d"), images(2)).taps
    expected = taps["embed"] + sincos2d((4, 4), 32)[None]
    np.testing.assert_allclose(taps["resid"][0][:, 1:], expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["none", "alibi2d"])
def test_patches_carry_nothing_without_a_table(build, images, forward, positions):
    taps = forward(build(positions=positions), images(2)).taps
    np.testing.assert_array_equal(taps["resid"][0][:, 1:], taps["embed"])


@pytest.mark.parametrize("extra_positions", ["none", "learned", "sincos2d"])
@pytest.mark.parametrize("values", ["learned", "zeros"])
def test_registers_and_summaries_are_their_values_plus_their_positions(
    build, images, extra_positions, values
):
    model = build(
        num_registers=2, summary_factor=2, registers=values, summaries=values, extra_positions=extra_positions
    )
    is_learned = values == "learned"
    assert (model.registers is not None) == (model.summaries is not None) == is_learned
    expected = np.zeros((7, 32), np.float32)  # 2 registers, levels 1 x 1 and 2 x 2
    if is_learned:
        expected += np.concatenate([model.registers[...][0], model.summaries[...][0]])
    if extra_positions == "learned":
        expected += model.extra_pos[...][0]
    else:
        assert model.extra_pos is None
    if extra_positions == "sincos2d":
        expected[2:] += np.concatenate([sincos2d((1, 1), 32), sincos2d((2, 2), 32)])
    _, first_BxTxD = model.embed(images(2), model.layout)
    np.testing.assert_allclose(first_BxTxD[0, 1:8], expected, atol=1e-6)


def test_groups_that_a_model_lacks_are_none(build, images, forward):
    outputs = forward(build(use_cls=False, pooling="gap", num_classes=0), images(2))
    assert outputs.cls is outputs.registers is outputs.summaries is outputs.logits is None
    assert outputs.patches.shape == (2, 16, 32)
    assert outputs.pooled.shape == (2, 32)


def test_pre_logits_are_a_dense_layer_and_tanh_before_the_head(build, images, forward):
    model = build(use_pre_logits=True, num_registers=1)
    outputs = forward(model, images(2))
    dense, head = model.pre_logits, model.head
    hidden = np.tanh(outputs.pooled @ dense.kernel[...] + dense.bias[...][None])
    np.testing.assert_allclose(outputs.logits, hidden @ head.kernel[...] + head.bias[...][None], atol=1e-5)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_close_logits(build, images, forward):
    settings = {
        "depth": 2,
        "num_registers": 2,
        "summary_factor": 2,
        "mask": "fractal",
        "layer_scale_init": 1.0,
    }
    exact, half = build(**settings), build(**settings, dtype="bfloat16")
    params = jax.tree.leaves(nnx.state(half, nnx.Param))
    assert {leaf.dtype for leaf in params} == {jnp.dtype("float32")}
    x = images(4)
    ours, theirs = forward(half, x), forward(exact, x)
    taps = {leaf.dtype for leaf in jax.tree.leaves(ours.taps)}
    assert taps == {jnp.dtype("bfloat16")}
    assert ours.logits.dtype == ours.patches.dtype == ours.pooled.dtype == jnp.float32
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=0.06)
    np.testing.assert_allclose(ours.patches, theirs.patches, atol=0.15)
    assert np.abs(ours.logits - theirs.logits).max() > 0


@pytest.mark.parametrize("pooling", ["map", "gap"])
def test_pooling_is_float32_whatever_the_compute_dtype(build, images, forward, pooling):
    outputs = forward(build(pooling=pooling, dtype="bfloat16"), images(2))
    assert outputs.pooled.dtype == outputs.logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (18, 16)}, "18 x 16 px does not divide into patches of 4 px"),
        ({"image_size": (0, 16)}, "model.image_size=(0, 16): must be >= 1"),
        ({"width": 30}, "model.width=30 is not a multiple of the 4 heads"),
        ({"width": 36, "num_heads": 6, "positions": "sincos2d", "patch_size": 0}, "patch_size=0: must be"),
        ({"width": 18, "num_heads": 3, "positions": "sincos2d"}, "width must be a multiple of 4"),
        ({"width": 18, "num_heads": 3, "extra_positions": "sincos2d"}, "width must be a multiple of 4"),
        ({"num_registers": -1}, "num_registers=-1: must be >= 0"),
        ({"num_classes": -1}, "num_classes=-1: must be >= 0"),
        ({"depth": -1}, "depth=-1: must be >= 0"),
        ({"width": 0}, "width=0: must be >= 1"),
        ({"num_heads": 0}, "num_heads=0: must be >= 1"),
        ({"drop_path": 1.0}, "drop_path=1.0: must be >= 0 and < 1"),
        (
            {"pooling": "cls", "use_cls": False},
            "requires model.use_cls=True: set it, or pooling to gap or map",
        ),
        ({"mask": "fractal"}, "requires summary tokens"),
        ({"mask": "fractel", "summary_factor": 2}, "did you mean 'fractal'?"),
        ({"mask": "window"}, "model.mask: window requires 'radius', as in window(radius=...)"),
        ({"mask": "window(radius=-1)"}, "model.mask='window(radius=-1)': radius must be >= 0"),
        ({"mask": "window(size=1)"}, "model.mask: window has no argument 'size'"),
        ({"mask": "window(1.0)"}, "model.mask: window(radius=...): 1.0 is of type float: must be int"),
        ({"mask": "fractal(2)", "summary_factor": 2}, "model.mask: fractal takes 0 arguments at most"),
        ({"mask": "window(1) | one_way"}, "has 2 names: give one, as in 'window(radius=2)'"),
        ({"mask": "shifted(offset=1)"}, "model.mask='shifted(offset=1)' requires summary tokens"),
        ({"mask": "window(radius=1", "summary_factor": 2}, "cannot be parsed: write it as in"),
        ({"mask": ""}, "model.mask='' has 0 names"),
        ({"mask": "fractal_released", "summary_factor": 2, "image_size": (16, 32)}, "square grids only"),
        ({"summary_factor": 5}, "summary_factor=5 does not fit the patch grid of 4 x 4"),
        ({"positions": "sincos"}, "model.positions='sincos' is unknown: did you mean 'sincos2d'?"),
        ({"extra_positions": "lerned"}, "did you mean 'learned'?"),
        ({"registers": "zero"}, "did you mean 'zeros'?"),
        ({"summaries": "zero"}, "did you mean 'zeros'?"),
        ({"pooling": "mean"}, "model.pooling='mean' is unknown: known: cls, cls_gap"),
        ({"pooling": "map", "use_norm_after_pool": True}, "requires pooling cls or gap, not 'map'"),
        ({"pooling": "cls_registers", "use_cls": False}, "requires cls or registers"),
        ({"position_resampling": "none"}, "learned positions require one of bicubic_aa"),
        ({"drop_path_schedule": "const"}, "did you mean 'constant'?"),
        ({"dtype": "bf16"}, "model.dtype='bf16' is unknown"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'?"),
        ({"attention": "cuda"}, "model.attention='cuda' is unknown: did you mean 'cudnn'?"),
        ({"mlp": "swigl"}, "did you mean 'swiglu'?"),
        ({"init": "deit"}, "did you mean 'deit3'?"),
        ({"variant": "XXL"}, "model.variant='XXL' is unknown"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_when_the_model_is_made(tiny, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        nnx.eval_shape(lambda: ViT(tiny(**settings), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 18, 3), "16 x 18 px does not divide into patches of 4 px"),
        ((2, 16, 16, 1), "images of shape (2, 16, 16, 1): must be [batch, height, width, 3]"),
        ((16, 16, 3), "images of shape (16, 16, 3): must be [batch, height, width, 3]"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(build, shape, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(depth=1)(np.zeros(shape, np.float32))


def test_token_layout_of_a_configuration_is_that_of_the_model(build, tiny):
    settings = {"num_registers": 2, "summary_factor": 2, "image_size": (16, 24)}
    layout = token_layout(tiny(**settings))
    assert build(**settings).layout == layout
    assert (layout.patch_grid, layout.num_summaries, layout.num_tokens) == ((4, 6), 7, 1 + 2 + 7 + 24)


def test_a_mesh_of_devices_lays_out_the_batch_and_changes_no_number(build, images, forward):
    model, x = build(depth=2, num_registers=2), images(2 * jax.device_count())
    alone = forward(model, x)
    axis_types = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((jax.device_count(), 1), ("data", "fsdp"), axis_types=axis_types)
    with jax.set_mesh(mesh):
        spread = jax.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(spread.logits, alone.logits, atol=1e-5)
    shards = spread.taps["resid"][-1].addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {2}


@pytest.mark.slow
def test_building_a_model_imports_no_other_framework():
    program = """
import sys
from flax import nnx
from vit_registers.config import Model
from vit_registers.models.vit import ViT
nnx.eval_shape(lambda: ViT(Model(depth=1), rngs=nnx.Rngs(0)))
print(sorted({"tensorflow", "torch", "transformers", "matplotlib", "sklearn", "PIL"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
