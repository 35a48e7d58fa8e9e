"""Training that starts from other weights: what is loaded, what is initialized, what fails."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Checkpoint, Config, InitFrom, Model
from vit_registers.errors import ConfigError
from vit_registers.interop.transfer import taken_leaves
from vit_registers.models.paths import leaves_of
from vit_registers.models.resampling import resample
from vit_registers.models.vit import ViT
from vit_registers.training.state import put_parameters

HEAD = {("head", "kernel"), ("head", "bias")}


@pytest.fixture
def source(make, params):
    model = make(positions="learned", layer_scale_init=1e-5)
    return model.model, params(model)


def _all_leaves(model):
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0))), nnx.Param)[1])
    return leaves_of(shapes)


@pytest.mark.parametrize(
    ("settings", "fresh"),
    [
        ({}, set()),
        ({"num_registers": 4}, {("registers",)}),
        ({"num_registers": 4, "extra_positions": "learned"}, {("registers",), ("extra_pos",)}),
        ({"summary_factor": 2, "mask": "fractal"}, {("summaries",)}),
        ({"use_mask_token": True}, {("mask_token",)}),
        ({"num_classes": 3}, set()),
        ({"pooling": "cls_gap"}, set()),
        ({"drop_path": 0.1, "image_size": (48, 40)}, set()),
        ({"use_scan": True, "remat": "block", "attention": "splash", "dtype": "bfloat16"}, set()),
    ],
)
def test_what_the_weights_have_is_taken_and_the_rest_and_the_head_are_initialised(source, settings, fresh):
    there, values = source
    here = dataclasses.replace(there, **settings)
    taken = taken_leaves(there, values, here, InitFrom(path="x"))
    assert set(_all_leaves(here)) - set(taken) == HEAD | fresh
    values = leaves_of(values)
    for leaf, value in taken.items():
        expected = values[leaf]
        if leaf == ("pos_embed",):
            grid = (here.image_size[0] // 8, here.image_size[1] // 8)
            expected = resample(expected[0], (4, 4), grid, here.position_resampling)[None]
        np.testing.assert_array_equal(value, expected)


def test_the_head_can_be_kept(source):
    taken = taken_leaves(*source, source[0], InitFrom(path="x", keep_head=True))
    assert set(taken) == set(_all_leaves(source[0]))
    with pytest.raises(ConfigError, match=r"head/kernel is \(32, 5\) there and \(32, 3\) here"):
        taken_leaves(
            *source, dataclasses.replace(source[0], num_classes=3), InitFrom(path="x", keep_head=True)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "gelu_tanh"}, "model.activation is 'gelu' there and 'gelu_tanh' here"),
        ({"num_heads": 2}, "model.num_heads is 4 there and 2 here"),
        ({"norm_eps": 1e-5, "depth": 3}, "model.depth is 2 there and 3 here; model.norm_eps"),
        ({"layer_scale_init": None}, "model.layer_scale_init is 1e-05 there and None here"),
        ({"positions": "sincos2d"}, "model.positions is 'learned' there"),
    ],
)
def test_another_network_is_refused_with_all_differences(source, settings, message):
    with pytest.raises(ConfigError, match=message):
        taken_leaves(*source, dataclasses.replace(source[0], **settings), InitFrom(path="x"))


@pytest.mark.parametrize(
    ("count", "how"), [(6, "keep"), (3, "keep"), (0, "keep"), (6, "fresh"), (4, "fresh")]
)
@pytest.mark.parametrize("extra", [{}, {"extra_positions": "learned", "summary_factor": 2}])
def test_of_registers_that_are_there_the_first_are_kept_or_none(make, params, count, how, extra):
    model = make(num_registers=4, **extra)
    here = dataclasses.replace(model.model, num_registers=count)
    values = leaves_of(params(model))
    taken = taken_leaves(model.model, params(model), here, InitFrom(path="x", registers=how))
    graph = nnx.split(nnx.eval_shape(lambda: ViT(here, rngs=nnx.Rngs(0))), nnx.Param)[1]
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), nnx.to_pure_dict(graph))
    started = leaves_of(put_parameters(zeros, taken))
    kept = 0 if how == "fresh" else min(count, 4)
    for name in ("registers", "extra_pos"):
        if (name,) in values and (name,) in started:
            now, before = np.asarray(started[name,])[0], np.asarray(values[name,])[0]
            np.testing.assert_array_equal(now[:kept], before[:kept])
            np.testing.assert_array_equal(now[kept:count], 0.0)
            np.testing.assert_array_equal(now[count:], before[4:])  # of summaries
    others = set(started) - {("registers",), ("extra_pos",)} - HEAD
    for leaf in others:
        np.testing.assert_array_equal(started[leaf], values[leaf])


@pytest.mark.parametrize(
    ("there", "here", "message", "fresh"),
    [
        (
            {"num_registers": 4},
            {"num_registers": 6},
            "num_registers is 4 there and 6 here .*init_from.regist",
            "registers",
        ),
        (
            {"num_registers": 4},
            {"num_registers": 0},
            "num_registers is 4 there and 0 here .*to keep",
            "registers",
        ),
        (
            {"summary_factor": 2},
            {"summary_factor": 3},
            "summary_factor=2 gives 5 .*init_from.summaries to fr",
            "summaries",
        ),
        (
            {"summary_factor": 2},
            {"summary_factor": None},
            "None gives 0 here .*init_from.summaries",
            "summaries",
        ),
        (
            {"summary_factor": 2},
            {"image_size": (48, 48)},
            "gives 5 summaries there and 2 gives 10 ",
            "summaries",
        ),
    ],
)
def test_other_numbers_of_extra_tokens_are_refused_with_the_setting_that_allows_them(
    make, params, there, here, message, fresh
):
    model = make(positions="learned", **there)
    target = dataclasses.replace(model.model, **here)
    with pytest.raises(ConfigError, match=message):
        taken_leaves(model.model, params(model), target, InitFrom(path="x"))
    taken = taken_leaves(model.model, params(model), target, InitFrom(path="x", **{fresh: "fresh"}))
    assert (fresh,) not in taken
    with pytest.raises(ConfigError, match=f"init_from.{fresh}='mostly' is unknown"):
        taken_leaves(model.model, params(model), target, InitFrom(path="x", **{fresh: "mostly"}))


def test_fixed_positions_at_another_size_are_asked_about(make, params):
    model = make(positions="sincos2d")
    here = dataclasses.replace(model.model, image_size=(48, 48))
    with pytest.raises(ConfigError, match="position_resampling='none'"):
        taken_leaves(model.model, params(model), here, InitFrom(path="x"))
    here = dataclasses.replace(here, position_resampling="none")
    assert ("blocks", 0, "norm1", "scale") in taken_leaves(
        model.model, params(model), here, InitFrom(path="x")
    )


def test_parameters_are_put_where_the_state_has_them(source):
    there, values = source
    config = Config(model=dataclasses.replace(there, num_registers=2), checkpoint=Checkpoint())
    graph = nnx.split(nnx.eval_shape(lambda: ViT(config.model, rngs=nnx.Rngs(0))), nnx.Param)[1]
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), nnx.to_pure_dict(graph))
    taken = taken_leaves(there, values, config.model, InitFrom(path="x"))
    for leaf, value in leaves_of(put_parameters(zeros, taken)).items():
        np.testing.assert_array_equal(value, taken.get(leaf, np.zeros(value.shape)))


def test_the_answers_of_a_model_stay_when_only_the_image_size_is_named_otherwise(
    make, params, images, forward
):
    """Started at another size, a model gives what the source gives when it is called at that size."""
    model = make(positions="learned")
    here = dataclasses.replace(model.model, image_size=(48, 40))
    taken = taken_leaves(model.model, params(model), here, InitFrom(path="x", keep_head=True))
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ViT(here, rngs=nnx.Rngs(0))), nnx.Param)
    values = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(taken[tuple(key.key for key in path)]), nnx.to_pure_dict(shapes)
    )
    started = nnx.merge(graph, values)
    assert isinstance(started.model, Model)
    x = images((48, 40))
    np.testing.assert_allclose(forward(started, x).logits, forward(model, x).logits, atol=1e-5)
