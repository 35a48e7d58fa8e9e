"""cls in the last blocks only, and cls without a skip connection: what reads what, and what stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop.export import targets
from vit_registers.models import stack
from vit_registers.models.cls_role import cls_rows
from vit_registers.models.edits import Edits
from vit_registers.models.vit import static_attention, token_layout

LATE = {"depth": 3, "num_registers": 2, "cls_blocks": 1}
MASKS = ({}, {"summary_factor": 2, "mask": "fractal"}, {"positions": "alibi2d"}, {"layer_scale_init": 0.1})


def with_cls_token(model, value):
    """A copy of the model with another cls token."""
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    params["cls_token"] = jnp.full_like(params["cls_token"], value)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def without_cls(build, model, settings):
    """The model of the same parameters that has no cls."""
    other = build(**settings | {"cls_blocks": None, "use_cls": False, "pooling": "gap"})
    graphdef, state = nnx.split(other)
    own, theirs = nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(state)
    nnx.replace_by_pure_dict(state, {name: own[name] for name in theirs})
    return nnx.merge(graphdef, state)


@pytest.mark.parametrize("more", MASKS, ids=str)
def test_other_tokens_are_those_of_the_model_without_cls(build, images, forward, more):
    settings = LATE | more
    model, x = build(**settings), images()
    out, plain = forward(model, x), forward(without_cls(build, model, settings), x)
    for ours, theirs in zip(out.taps["resid"], plain.taps["resid"], strict=True):
        np.testing.assert_allclose(ours[:, 1:], theirs, atol=2e-6)
    np.testing.assert_allclose(out.registers, plain.registers, atol=2e-6)
    standard = forward(build(**settings | {"cls_blocks": None}), x)
    assert np.abs(standard.patches - plain.patches).max() > 0.01


@pytest.mark.parametrize("blocks", [1, 2])
def test_cls_is_a_constant_until_it_enters_and_then_reads(build, images, forward, blocks):
    model, x = build(**LATE | {"cls_blocks": blocks}), images()
    out, other = forward(model, x), forward(with_cls_token(model, 3.0), x)
    for taps in ("resid", "middle"):
        for i, value in enumerate(out.taps[taps][: 3 - blocks]):
            np.testing.assert_array_equal(value[:, 0], out.taps["resid"][0][:, 0], err_msg=f"{taps} {i}")
    entered = 3 - blocks + 1
    assert np.abs(out.taps["resid"][entered][0, 0] - out.taps["resid"][entered][1, 0]).max() > 0.01
    for ours, theirs in zip(out.taps["resid"], other.taps["resid"], strict=True):
        np.testing.assert_array_equal(ours[:, 1:], theirs[:, 1:])
    assert np.abs(out.cls - other.cls).max() > 0.01


def test_edits_before_the_last_block_do_not_reach_cls_through_itself(build, images):
    """cls is held, so that it leaves the first blocks as it enters them, changed or not."""
    model, x = build(**LATE), images()
    edits = Edits(resid=lambda i, resid: resid.at[:, 0].add(5.0) if i == 1 else resid)
    resid = model(x, edits=edits).taps["resid"]
    np.testing.assert_array_equal(resid[2][:, 0], resid[0][:, 0] + 5.0)


@pytest.mark.parametrize("more", MASKS, ids=str)
def test_without_a_skip_cls_is_what_attention_reads(build, images, forward, more):
    settings = {"depth": 1, "num_registers": 2} | more
    model, x = build(**settings, has_cls_skip=False), images()
    out, plain = forward(model, x).taps, forward(build(**settings), x).taps
    middle, skip = out["middle"][0], out["resid"][0]
    np.testing.assert_allclose(middle[:, 0] + skip[:, 0], plain["middle"][0][:, 0], atol=2e-6)
    np.testing.assert_array_equal(middle[:, 1:], plain["middle"][0][:, 1:])


def test_without_a_skip_cls_depends_on_its_input_through_attention_only(build, images):
    """With attention that returns nothing, cls is what the MLP makes of zeros, whatever it was."""
    model = build(depth=2, has_cls_skip=False)
    for leaf in (model.blocks[0].attn.out.kernel, model.blocks[0].attn.out.bias):
        leaf[...] = jnp.zeros_like(leaf[...])
    first, second = (with_cls_token(model, value)(images()).taps["resid"] for value in (0.1, 7.0))
    assert np.abs(first[0][:, 0] - second[0][:, 0]).max() > 1
    np.testing.assert_array_equal(first[1][:, 0], second[1][:, 0])


@pytest.mark.parametrize("more", [{"use_scan": True}, {"remat": "block"}, {"even": True}], ids=str)
def test_loops_rematerialisation_and_padding_change_nothing(build, images, monkeypatch, more):
    settings = {"cls_blocks": 2, "has_cls_skip": False, "depth": 3}
    settings["num_registers"] = 2 if "even" in more else 1

    def results(model):
        graphdef, params = nnx.split(model, nnx.Param)

        def loss(params):
            out = nnx.merge(graphdef, params)(images())
            return jnp.square(out.logits).sum() + jnp.square(out.patches).mean(), out.taps

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected = results(build(**settings))
    if "even" in more:
        monkeypatch.setattr(stack, "_EVEN", ("xla",))
        assert expected[0][1]["resid"][0].shape[1] % 2
        found = results(build(**settings))
    else:
        found = results(build(**settings | more))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4),
        [found[0], nnx.to_pure_dict(found[1])],
        [expected[0], nnx.to_pure_dict(expected[1])],
    )
    assert np.abs(nnx.to_pure_dict(expected[1])["cls_token"]).max() > 0


def test_attention_of_cls_is_that_which_has_an_effect(build, images):
    model = build(**LATE)
    weights, maps = model.attention(images(), block=[0, 1, 2])
    np.testing.assert_array_equal(weights[:2, :, :, 0], 1.0)
    np.testing.assert_array_equal(maps[:2], 0.0)
    assert weights[2, :, :, 0].max() < 0.9
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.attention(images(), queries="patches").weights[..., 0], 0.0)


def test_the_defaults_add_no_mask_and_no_rows(tiny):
    model = tiny(depth=2)
    assert cls_rows(model, token_layout(model)) is None
    assert static_attention(model, token_layout(model)) == (None, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cls_blocks": 2}, "model.cls_blocks=2: must be 1 to 1"),
        ({"cls_blocks": 0}, "model.cls_blocks=0: must be >= 1, or None"),
        ({"cls_blocks": 1, "use_cls": False, "pooling": "gap"}, "requires model.use_cls=True"),
        ({"has_cls_skip": False, "use_cls": False, "pooling": "gap"}, "model.has_cls_skip=False requires"),
        ({"has_cls_skip": False, "drop_path": 0.1}, "set model.drop_path=0"),
    ],
)
def test_settings_that_exclude_each_other(build, settings, words):
    with pytest.raises(ConfigError, match=words):
        build(**settings)


def test_a_mask_that_leaves_a_token_nothing_but_cls_is_refused(build, tmp_path):
    model = build(depth=2)
    mask = np.ones((model.layout.num_tokens,) * 2, bool)
    mask[5, 1:] = False
    np.save(tmp_path / "m.npy", mask)
    with pytest.raises(ConfigError, match="token 5 may attend to cls only"):
        build(depth=2, cls_blocks=1, mask=f"file(path='{tmp_path}/m.npy')")


def test_masks_of_the_settings_are_kept_but_for_the_column_of_cls(build):
    settings = {"summary_factor": 2, "mask": "fractal", "depth": 2}
    late, plain = build(**settings, cls_blocks=1), build(**settings)
    ours, theirs = (static_attention(model.model, model.layout)[0] for model in (late, plain))
    np.testing.assert_array_equal(ours[:, 1:], theirs[:, 1:])
    np.testing.assert_array_equal(ours[:, 0], np.arange(len(ours)) == 0)


@pytest.mark.parametrize("to", ["timm", "dinov2", "big_vision", "mup_vit", "transformers"])
@pytest.mark.parametrize("settings", [{"cls_blocks": 1}, {"has_cls_skip": False}], ids=str)
def test_no_other_format_can_represent_them(build, to, settings):
    model = build(**settings)
    params = nnx.to_pure_dict(nnx.state(model))
    name = next(iter(settings))
    with pytest.raises(CheckpointError, match=f"{name}=.* cannot be written"):
        targets.export(model.model, params, to)
    targets.export(dataclasses.replace(model.model, cls_blocks=None, has_cls_skip=True), params, "timm")
