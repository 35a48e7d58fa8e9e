"""Models of ours as timm reads them, and its own tensors through us and back."""

import functools
import json

import numpy as np
import pytest
from safetensors import safe_open

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.export import json_configs, targets

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("timm")


@pytest.fixture
def as_theirs(timm, tmp_path):
    """as_theirs(export) -> timm's model with the tensors of the file that was written, each in its place.

    It is called with what export.timm_arguments says, and with the layers that the notes ask for.
    """

    def as_theirs(exported):
        file = tmp_path / "exported.safetensors"
        assert targets.write(exported, file, np.float32, Data()) == [file]
        layers, notes = {}, "; ".join(exported.notes)
        if exported.model.mlp == "swiglu":
            assert "mlp_layer=timm.layers.SwiGLUPacked" in notes
            layers["mlp_layer"] = timm.layers.SwiGLUPacked
        if exported.model.norm_eps != 1e-6:
            assert (
                f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={exported.model.norm_eps:g})" in notes
            )
            layers["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=exported.model.norm_eps)
        arguments = json.loads(json.dumps(json_configs.timm_arguments(exported.model)))
        theirs = timm.models.vision_transformer.VisionTransformer(
            **arguments, **layers, dynamic_img_size=True
        )
        timm.models.load_checkpoint(theirs, str(file), strict=True)
        return theirs.eval()

    return as_theirs


# --- ours to timm -----------------------------------------------------------------------------------

SWIGLU = {"mlp": "swiglu", "mlp_dim": 85}
OURS = {
    "plain": {},
    "without LayerScale, fewer biases": {
        "use_qkv_bias": False,
        "use_patch_bias": False,
        "use_head_bias": False,
    },
    "registers": {"num_registers": 4, "has_cls_position": False, "layer_scale_init": 1e-5},
    "registers, sincos2d": {"num_registers": 4, "positions": "sincos2d", "activation": "gelu_tanh"},
    "registers of zeros, no positions": {"num_registers": 1, "registers": "zeros", "positions": "none"},
    "registers with positions": {"num_registers": 3, "extra_positions": "learned"},
    "registers with positions, cls without": {
        "num_registers": 3,
        "extra_positions": "learned",
        "has_cls_position": False,
    },
    "no registers to give positions to": {"extra_positions": "learned", "has_cls_position": False},
    "mean": {"use_cls": False, "pooling": "gap", "num_registers": 2},
    "mean, norm after pooling": {"num_registers": 2, "pooling": "gap", "use_norm_after_pool": True},
    "cls, norm after pooling": {"use_norm_after_pool": True, "norm_eps": 1e-2},
    "attention pooling": {"use_cls": False, "pooling": "map", "num_registers": 2, "activation": "quick_gelu"},
    "SwiGLU": SWIGLU | {"num_registers": 3, "layer_scale_init": 1.0},
    "norm before the blocks": {"use_norm_pre": True, "norm_eps": 1e-5, "activation": "quick_gelu"},
    "norm before the blocks, no bias": {"use_norm_pre": True, "use_patch_bias": False},
    "headless": {"num_classes": 0, "num_registers": 2},
    "not square": {"image_size": (24, 40), "num_registers": 2, "positions": "sincos2d"},
}


@parametrize_quick("name", OURS)
def test_ours_as_timm_reads_it(name, make, params, as_theirs, images, forward, tokens, assert_close):
    ours = make(**OURS[name])
    theirs = as_theirs(targets.export(ours.model, params(ours), "timm"))
    for size in [(32, 32), (24, 56)]:
        outputs = forward(ours, images(size))
        with torch.no_grad():
            features = theirs.forward_features(torch.from_numpy(images(size)).permute(0, 3, 1, 2))
            pooled, answer = theirs.forward_head(features, pre_logits=True), theirs.forward_head(features)
        assert_close(outputs.pooled, pooled)
        if ours.model.num_classes:
            assert_close(outputs.logits, answer)
        if name != "cls, norm after pooling":  # which is said as norm before pooling
            assert_close(tokens(outputs), features, 3e-5 if ours.model.use_norm_after_pool else 1e-5)


def test_with_registers_the_position_of_cls_goes_into_cls(
    make, params, numpy_state, as_theirs, images, forward, assert_close
):
    """timm gives positions to all tokens before the patches or to none (no_embed_class).

    DINOv2 gives one to cls and none to the registers: as timm's own conversion does, that of cls is added to
    cls. The function is the same; what was added cannot be taken apart again.
    """
    ours = make(num_registers=4)
    exported = targets.export(ours.model, params(ours), "timm")
    assert "the position of cls is added to cls" in exported.notes
    theirs = as_theirs(exported)
    state = numpy_state(theirs)
    assert theirs.no_embed_class and state["pos_embed"].shape == (1, 16, 32)
    np.testing.assert_array_equal(state["cls_token"], ours.cls_token[...] + ours.cls_pos[...])
    again = reading.from_state_dict(state, source="timm", num_heads=4)
    assert again.cls_pos is None and not again.model.has_cls_position
    assert_close(forward(again, images((24, 56))).logits, forward(ours, images((24, 56))).logits, 1e-6)


def test_without_registers_cls_keeps_its_position(make, params, dump):
    ours = make()
    state = dump(ours.model, params(ours), "timm")
    np.testing.assert_array_equal(state["cls_token"], ours.cls_token[...])
    np.testing.assert_array_equal(state["pos_embed"][:, :1], ours.cls_pos[...])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "fractal", "summary_factor": 2}, "mask='fractal'"),
        ({"summary_factor": 2}, "summary tokens"),
        ({"positions": "alibi2d"}, "alibi2d"),
        ({"pooling": "cls_gap"}, "pooling='cls_gap'"),
        ({"num_registers": 2, "pooling": "cls_registers"}, "pooling='cls_registers'"),
        ({"use_pre_logits": True}, "pre-logits"),
        (SWIGLU | {"pooling": "map"}, "SwiGLU and pooling='map'"),
    ],
)
def test_what_timm_cannot_say_is_refused(settings, message, make, params):
    ours = make(**settings)
    with pytest.raises(CheckpointError, match=message):
        targets.export(ours.model, params(ours), "timm")


def test_other_sizes_are_resampled_as_timm_does_and_that_is_said(make, params):
    ours = make(position_resampling="bicubic_offset")
    exported = targets.export(ours.model, params(ours), "timm")
    assert any("'bicubic_aa' there, not as 'bicubic_offset'" in note for note in exported.notes)
    assert exported.model.position_resampling == "bicubic_aa"


@pytest.mark.parametrize(("width", "mlp_dim"), [(1408, 6144), (1408, 15), (896, 61), (1152, 4304), (32, 85)])
@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_their_mlps_get_our_width_by_their_ratio(width, mlp_dim, mlp, make):
    """timm truncates width x ratio: 1408 x (15 / 1408) is 14.999..."""
    model = make(depth=0, width=width, num_heads=1, mlp=mlp, mlp_dim=mlp_dim).model
    ratio = json_configs.timm_arguments(model)["mlp_ratio"]
    assert int(width * ratio) == mlp_dim * (2 if mlp == "swiglu" else 1)


# --- theirs through us and back ---------------------------------------------------------------------

THEIRS = {
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_reg4_dinov2": {},
    "vit_small_patch14_dinov2": {"num_classes": 0},
    "deit3_small_patch16_224": {},
    "vit_small_patch16_224": {},
    "vit_base_patch16_clip_224": {"hidden_act": "gelu"},
    "vit_base_patch16_clip_quickgelu_224": {"hidden_act": "quick_gelu", "num_classes": 0},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_so150m_patch16_reg4_gap_256": {},  # registers with positions
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_base_patch16_siglip_224": {"num_classes": 0},
}


@parametrize_quick("name", THEIRS, number=3)
@parametrize_quick("dtype", ["float32", "float16"])
def test_there_and_back_every_bit(
    name, dtype, timm_model, numpy_state, params, as_theirs, assert_same, tmp_path
):
    """The same names, shapes, dtype and bits, and a timm model made by our arguments takes them."""
    hints = dict(THEIRS[name])
    heads = {"num_classes": hints.pop("num_classes", 5)}
    there = numpy_state(timm_model(name, **heads).to(getattr(torch, dtype)))
    ours = reading.from_state_dict(there, source="timm", num_heads=4, **hints)
    exported = targets.export(ours.model, params(ours), "timm")
    assert all("layer=" in note for note in exported.notes)
    targets.write(exported, tmp_path / "back.safetensors", np.dtype(dtype), Data())
    with safe_open(tmp_path / "back.safetensors", "numpy") as file:
        assert_same(there, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    as_theirs(exported)


@pytest.mark.parametrize("num_classes", [5, 0])
def test_a_distilled_deit_goes_back_as_deit(num_classes, timm_model, numpy_state, dump, params, assert_same):
    """Every bit but the biases of the two heads, which come back as their mean in both: the same answer.

    To timm's plain VisionTransformer, which has one head, it is refused.
    """
    there = numpy_state(timm_model("deit_small_distilled_patch16_224", num_classes=num_classes))
    ours = reading.from_state_dict(there, source="deit", num_heads=4)
    here = dump(ours.model, params(ours), "deit")
    if num_classes:
        mean = (there["head.bias"] + there["head_dist.bias"]) / 2
        there |= {"head.bias": mean, "head_dist.bias": mean}
        with pytest.raises(CheckpointError, match="pooling='cls_registers'"):
            dump(ours.model, params(ours), "timm")
    assert_same(there, here)
