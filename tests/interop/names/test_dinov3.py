"""DINOv3 of transformers, of timm and in its own names: live models as ours, and ours as they read them."""

import json

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from tools.parity.dinov3_names import original
from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.export import targets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GATED = {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 40}
KINDS = {
    "plain": {"num_register_tokens": 4},
    "plus": {"num_register_tokens": 2, "pos_embed_rescale": None} | GATED,
    "bias of keys": {"num_register_tokens": 1, "key_bias": True, "rope_theta": 30.0, "pos_embed_jitter": 1.5},
    "no bias": {"num_register_tokens": 4, "query_bias": False, "value_bias": False} | GATED,
}
OWN = ("plain", "plus", "no bias")  # that the code of DINOv3 can be
SIZES = ((32, 32), (24, 56))
POSITIONS = {"plain": "rope2d(rescale=2.0)", "plus": "rope2d", "no bias": "rope2d(rescale=2.0)"}
POSITIONS["bias of keys"] = "rope2d(base=30.0, jitter=1.5, rescale=2.0)"


@pytest.fixture(scope="module")
def theirs(hf_model):
    """theirs(name): a model of KINDS, of transformers."""
    return lambda name, kind="DINOv3ViTModel": hf_model(kind, num_attention_heads=2, **KINDS[name])


@pytest.fixture
def assert_agree(images, forward, tokens, assert_close):
    """assert_agree(ours, theirs): the same tokens and pooled vector, at two sizes."""

    def assert_agree(ours, theirs, tolerance=1e-5):
        for size in SIZES:
            outputs, x = forward(ours, images(size)), torch.from_numpy(images(size)).permute(0, 3, 1, 2)
            with torch.no_grad():
                encoded = theirs(x)
            assert_close(tokens(outputs), encoded.last_hidden_state, tolerance)
            assert_close(outputs.cls, encoded.pooler_output, tolerance)
            assert_close(outputs.pooled, encoded.pooler_output, tolerance)

    return assert_agree


@pytest.fixture
def assert_timm_agrees(images, forward, tokens, assert_close):
    """assert_timm_agrees(ours, theirs): the same tokens, pooled vector and answer, at two sizes."""

    def assert_timm_agrees(ours, theirs):
        for size in SIZES:
            outputs, x = forward(ours, images(size)), torch.from_numpy(images(size)).permute(0, 3, 1, 2)
            with torch.no_grad():
                features = theirs.forward_features(x)
                assert_close(tokens(outputs), features)
                assert_close(outputs.pooled, theirs.forward_head(features, pre_logits=True))
                if theirs.num_classes:
                    assert_close(outputs.logits, theirs.forward_head(features))

    return assert_timm_agrees


# --- theirs to ours -----------------------------------------------------------------------------------


@parametrize_quick("name", KINDS, number=2)
def test_transformers_from_memory_and_from_a_folder(
    name, theirs, numpy_state, from_folder, tmp_path, assert_agree
):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert ours.model.positions == POSITIONS[name] and ours.model.norm_eps == 1e-5
    assert_agree(ours, model)
    if "key" not in name:  # whose base is in config.json only
        again = reading.from_state_dict(numpy_state(model), source="auto", num_heads=2, image_size=32)
        assert again.model.positions == "rope2d(rescale=2.0)"
        assert_agree(again, model)


def test_a_backbone_of_transformers_has_the_same_patches(theirs, from_folder, tmp_path, images, forward):
    model = theirs("plain", "DINOv3ViTBackbone")
    model.save_pretrained(tmp_path)
    x = torch.from_numpy(images((24, 40))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(x).feature_maps[-1].flatten(2).mT
    np.testing.assert_allclose(forward(from_folder(tmp_path), images((24, 40))).patches, expected, atol=1e-5)


@parametrize_quick("name", OWN, number=1)
def test_own_names_and_the_same_bits_again(name, theirs, params, dump, assert_agree, assert_same, load):
    model = theirs(name)
    state = original(model)
    ours = reading.from_state_dict(state, source="auto", image_size=32)
    assert ours.model.positions == "rope2d(rescale=2.0)" and ours.model.num_heads == 2
    assert ours.model.use_mask_token and ours.model.use_qkv_bias == (name != "no bias")
    assert_agree(ours, model)
    again = dump(ours.model, params(ours), "dinov3")
    for i in range(2):
        if name != "no bias":
            assert not np.asarray(ours.blocks[i].attn.qkv.bias[...])[1].any()
            state[f"blocks.{i}.attn.qkv.bias"] = (
                state[f"blocks.{i}.attn.qkv.bias"] * state[f"blocks.{i}.attn.qkv.bias_mask"]
            )
    np.testing.assert_allclose(again.pop("rope_embed.periods"), state.pop("rope_embed.periods"), rtol=2e-7)
    assert_same(state, again)


def test_periods_that_the_file_has_in_bfloat16(theirs, assert_agree, params, dump):
    model = theirs("plain")
    state = original(model)
    rounded = state["rope_embed.periods"].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.abs(rounded / state["rope_embed.periods"] - 1).max() > 1e-4
    state["rope_embed.periods"] = rounded
    ours = reading.from_state_dict(state, source="dinov3", image_size=32)
    assert ours.model.positions == "rope2d(rescale=2.0, periods='bfloat16')"
    model.rope_embeddings.inv_freq.copy_(torch.from_numpy(1 / rounded))
    assert_agree(ours, model)
    np.testing.assert_array_equal(dump(ours.model, params(ours), "dinov3")["rope_embed.periods"], rounded)
    notes = targets.export(ours.model, params(ours), "transformers").notes
    assert any("bfloat16" in note for note in notes)


@pytest.mark.parametrize(
    ("periods", "positions"),
    [
        (20.0 ** (np.arange(4) / 4), "rope2d(base=20.0, rescale=2.0)"),
        (np.geomspace(0.5, 90, 4), "rope2d(min_period=0.5, max_period=90.0, rescale=2.0)"),
        (np.array([1.0, 2.0, 3.0, 4.0]), None),
        (np.array([1.0, np.nan, 3.0, 4.0]), None),
    ],
)
def test_other_periods(periods, positions, theirs):
    state = original(theirs("plain")) | {"rope_embed.periods": periods.astype(np.float32)}
    if positions is None:
        with pytest.raises(CheckpointError, match=r"'rope_embed.periods' is no sequence of periods"):
            reading.from_state_dict(state, source="auto")
    else:
        assert reading.from_state_dict(state, source="auto").model.positions == positions


def test_norms_of_training_are_left_out_and_a_norm_of_cls_is_refused(theirs, noise):
    state = original(theirs("plain"))
    local = noise({"local_cls_norm.weight": (32,), "local_cls_norm.bias": (32,)})
    assert reading.from_state_dict(state | local, source="auto").model.num_registers == 4
    with pytest.raises(CheckpointError, match=r"'cls_norm.weight' \(32,\) has no place"):
        reading.from_state_dict(state | {"cls_norm.weight": local["local_cls_norm.weight"]}, source="auto")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu' in config.json, and 'silu' in the tensors"),
        ({"num_register_tokens": 1}, "num_register_tokens is 1 in config.json, and 2 in the tensors"),
        ({"proj_bias": False}, "proj_bias is False"),
        ({"rope_theta": "x"}, "rope_theta='x': must be a positive number"),
    ],
)
def test_a_config_that_disagrees_is_refused(change, match, theirs, tmp_path, from_folder):
    theirs("plus").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=match):
        from_folder(tmp_path)


TIMM = {
    "bias": ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}),
    "plus": ("vit_small_plus_patch16_dinov3", {"mlp_ratio": 1.5}),
    "lingbot": ("vit_small_patch16_lingbot", {}),
    "without classifier": ("vit_base_patch16_dinov3", {"num_classes": 0, "rope_rescale_coords": 2.0}),
}


@parametrize_quick("name", TIMM, number=1)
def test_timm_from_memory_and_from_a_folder(
    name, timm, timm_model, numpy_state, from_folder, tmp_path, assert_timm_agrees
):
    kind, settings = TIMM[name]
    model, sizes = timm_model(kind, num_heads=2, **settings), {"num_heads": 2, "img_size": 32}
    timm.models.save_for_hf(model, tmp_path, model_args=sizes | settings, safe_serialization=True)
    ours = from_folder(tmp_path)
    drawn = "(rescale=2.0)" if "rope_rescale_coords" in settings else ""
    assert ours.model.positions == f"rope2d{drawn}" and ours.model.norm_eps == 1e-5
    assert_timm_agrees(ours, model)
    hints = {"num_heads": 2, "image_size": 32, "pooling": ours.model.pooling}
    again = reading.from_state_dict(numpy_state(model), source="auto", **hints)
    assert_timm_agrees(again, model)


# --- ours to theirs -----------------------------------------------------------------------------------

SETTINGS = {"positions": "rope2d(rescale=2.0)", "num_heads": 2, "norm_eps": 1e-5, "layer_scale_init": 1e-5}
SETTINGS |= {"num_registers": 4, "num_classes": 0, "use_mask_token": True}
OURS = {
    "plain": {},
    "plus": {"mlp": "swiglu", "mlp_dim": 40, "use_qkv_bias": False},
    "another base, no LayerScale": {"positions": "rope2d(base=40, shift=0.1)", "layer_scale_init": None},
}


def without_key_bias(model):
    """The model, with a bias of keys of 0."""
    for block in model.blocks if model.model.use_qkv_bias else ():
        block.attn.qkv.bias[...] = block.attn.qkv.bias[...].at[1].set(0.0)
    return model


@parametrize_quick("name", OURS, number=1)
def test_ours_in_transformers(name, make, params, tmp_path, assert_agree, from_folder):
    ours = make(**SETTINGS | OURS[name])
    targets.write(targets.export(ours.model, params(ours), "transformers"), tmp_path, np.float32, Data())
    theirs, info = transformers.DINOv3ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert theirs.config.key_bias == ours.model.use_qkv_bias  # make has one of all
    assert_agree(ours, theirs.eval())
    again = from_folder(tmp_path)
    assert again.model.positions == ours.model.positions
    assert_agree(again, theirs.eval())


@parametrize_quick("name", OURS, number=1)
def test_ours_in_timm(name, timm, make, params, tmp_path, assert_timm_agrees):
    settings = {"num_classes": 5, "pooling": "gap" if name == "plus" else "cls", "use_mask_token": False}
    ours = without_key_bias(make(**SETTINGS | OURS[name] | settings))
    exported = targets.export(ours.model, params(ours), "timm")
    targets.write(exported, tmp_path, np.float32, Data(mean=(0.5,) * 3, std=(0.5,) * 3))
    assert targets.is_config_complete(exported)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dynamic_img_size=True).eval()
    assert_timm_agrees(ours, theirs)
    again = reading.open_path(tmp_path, source="auto", hints=reading.Hints())
    assert again.model.positions == ours.model.positions and again.model.pooling == ours.model.pooling


@parametrize_quick("name", OURS, number=1)
def test_ours_in_own_names_and_back(name, make, params, dump, load, assert_same, images, forward, tokens):
    ours = without_key_bias(make(**SETTINGS | OURS[name]))
    state = dump(ours.model, params(ours), "dinov3")
    assert ("blocks.0.attn.qkv.bias_mask" in state) == ours.model.use_qkv_bias
    again = reading.from_state_dict(state, source="auto", image_size=32)
    x = images((24, 40))
    np.testing.assert_allclose(tokens(forward(again, x)), tokens(forward(ours, x)), atol=1e-6)
    assert_same(state, dump(again.model, params(again), "dinov3"))


def test_a_bias_of_keys_is_written_without_its_mask_and_not_for_timm(make, params, dump):
    ours = make(**SETTINGS)
    state = dump(ours.model, params(ours), "dinov3")
    assert "blocks.0.attn.qkv.bias_mask" not in state
    again = reading.from_state_dict(state, source="auto", image_size=32)
    np.testing.assert_array_equal(again.blocks[0].attn.qkv.bias[...], ours.blocks[0].attn.qkv.bias[...])
    with pytest.raises(CheckpointError, match="a bias of keys cannot be written as 'timm/eva'"):
        targets.export(ours.model, params(ours), "timm")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"positions": "learned + rope2d"}, r"positions='learned \+ rope2d' cannot be written"),
        ({"positions": "rope2d(order='xy')"}, "positions=.* cannot be written"),
        ({"positions": "rope2d(coordinates='centres_max')"}, "positions=.* cannot be written"),
        ({"positions": "none"}, "positions='none' cannot be written"),
        ({"num_classes": 5}, "a head and pooling='cls' cannot be written"),
        ({"use_cls": False, "pooling": "gap"}, "no cls token cannot be written"),
        ({"mask": "window(radius=1)"}, "mask="),
    ],
)
def test_what_dinov3_cannot_be_is_refused(settings, match, make, params):
    ours = make(**SETTINGS | settings)
    with pytest.raises(CheckpointError, match=match):
        targets.export(ours.model, params(ours), "dinov3")


@pytest.mark.parametrize("target", ["dinov2", "big_vision", "deit", "clip", "mup_vit"])
def test_other_formats_refuse_a_rotation(target, make, params):
    ours = make(**SETTINGS)
    with pytest.raises(CheckpointError, match=r"positions='rope2d\(rescale=2.0\)' cannot be written"):
        targets.export(ours.model, params(ours), target)
