"""Models that a family cannot hold: the export fails, or rewrites them into one with equal outputs."""

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import from_state_dict
from vit_registers.interop.export.targets import export

GAP = {"use_cls": False, "pooling": "gap"}
DISTILLED = {"num_registers": 1, "extra_positions": "learned"}

# (target, settings of ours, what is said to be the reason)
REFUSED = [
    *(
        (target, GAP, "a model with no cls token")
        for target in ("dinov2", "deit", "dino", "clip", "open_clip")
    ),
    *((target, {"mlp": "swiglu"}, "a model with SwiGLU") for target in ("deit", "dino", "clip", "mup_vit")),
    *((target, {"pooling": "gap"}, "a head and pooling='gap'") for target in ("deit", "clip", "open_clip")),
    *(
        (target, {"mask": "fractal", "summary_factor": 2}, "mask='fractal'")
        for target in ("deit", "big_vision")
    ),
    *((target, {"mask": "window(radius=1)"}, r"mask='window\(radius=1\)'") for target in ("timm", "mup_vit")),
    ("mup_vit", GAP | {"mask": "one_way", "summary_factor": 2}, "mask='one_way'"),
    *((target, {"positions": "alibi2d"}, "positions='alibi2d'") for target in ("dinov2", "clip", "mup_vit")),
    ("dinov2", {}, "no place for a classifier"),
    ("dino", {"num_classes": 0, "num_registers": 2}, "no place for registers"),
    ("deit", {"pooling": "cls_registers", "num_registers": 2}, "a head and pooling='cls_registers'"),
    ("deit", {"use_pre_logits": True}, "no place for a layer before the head"),
    ("clip", {"num_classes": 0, "use_mask_token": True}, "no place for a mask token"),
    ("clip", {}, "no place for a classifier"),
    ("open_clip", {"use_head_bias": False, "num_registers": 2}, "no place for registers"),
    ("big_vision", {"num_registers": 2}, "no place for registers"),
    ("big_vision", {"mlp": "swiglu"}, "no place for SwiGLU"),
    ("big_vision", {"use_norm_pre": True}, "no place for a norm before the first block"),
    ("big_vision", {"pooling": "gap"}, "pooling='gap' and a cls token"),
    ("big_vision", {"pooling": "map"}, "pooling='map' and a cls token"),
    ("big_vision", {"pooling": "cls_gap"}, "pooling='cls_gap'"),
    ("mup_vit", {"pooling": "map"}, "pooling='map'"),
    ("mup_vit", {"pooling": "cls_registers", "num_registers": 2}, "pooling='cls_registers'"),
    ("mup_vit", {"summary_factor": 2}, "summary tokens beside cls or registers"),
    ("mup_vit", {"use_norm_pre": True}, "no place for a norm before the first block"),
]


@pytest.mark.parametrize(("target", "settings", "reason"), REFUSED, ids=str)
def test_what_a_family_cannot_hold_is_refused(target, settings, reason, make, params):
    model = make(**settings)
    with pytest.raises(CheckpointError, match=reason) as error:
        export(model.model, params(model), target)
    assert f"'{target}'" in str(error.value)


HEADLESS = {"num_classes": 0}
SCALED = {"layer_scale_init": 1e-5}
# (target, settings of ours, what is to be said to read it, beginnings of the notes)
SAID_OTHERWISE = [
    ("dinov2", HEADLESS | DISTILLED, {}, ["the positions of registers are added to the registers"]),
    ("dinov2", HEADLESS | {"positions": "sincos2d"}, {}, ["positions 'sincos2d' are written as a table"]),
    (
        "dinov2",
        HEADLESS | {"activation": "gelu_tanh", "use_qkv_bias": False},
        {"hidden_act": "gelu_tanh"},
        ["'gelu' is assumed there: give 'gelu_tanh' when it is loaded"],
    ),
    ("deit", SCALED | {"num_registers": 2}, {}, ["the position of cls is added to cls"]),
    (
        "deit",
        {"num_registers": 2, "registers": "zeros"},
        {},
        ["fixed registers are written as learned registers"],
    ),
    ("deit", SCALED | DISTILLED, {}, ["the positions of registers are added to the registers"]),
    ("deit", DISTILLED | {"pooling": "cls_registers"}, {}, []),
    ("dino", HEADLESS | {"use_patch_bias": False}, {}, []),
    (
        "open_clip",
        {"use_head_bias": False, "norm_eps": 1e-5, "position_resampling": "bicubic"},
        {},
        ["at other image sizes, positions are resampled as 'bicubic_aa' there, not as 'bicubic'"],
    ),
    ("big_vision", SCALED, {"hidden_act": "gelu"}, ["LayerScale is multiplied into the layers before it"]),
    ("big_vision", SCALED | GAP | {"activation": "gelu_tanh"}, {}, ["LayerScale is multiplied"]),
    (
        "big_vision",
        GAP | {"pooling": "map", "use_mask_token": True, "activation": "gelu_tanh"},
        {},
        ["the mask token is left out"],
    ),
    (
        "big_vision",
        {"positions": "sincos2d", "activation": "gelu_tanh"},
        {"image_size": (32, 32)},
        ["at other image sizes, positions are resampled as 'none' there"],
    ),
    (
        "big_vision",
        {"positions": "none", "use_patch_bias": False, "activation": "gelu_tanh"},
        {},
        ["positions 'none' are written as a table of learned positions"],
    ),
    (
        "mup_vit",
        {"num_registers": 2, "extra_positions": "learned"},
        {"pooling": "cls", "num_heads": 4},
        ["the first token is pooled: give pooling='cls'", "the positions of registers are added"],
    ),
    (
        "mup_vit",
        SCALED | {"num_registers": 2, "registers": "zeros", "positions": "sincos2d"},
        {"pooling": "cls", "num_heads": 4},
        ["fixed registers are written as learned registers", "LayerScale is multiplied"],
    ),
    (
        "mup_vit",
        GAP | {"summary_factor": 2, "extra_positions": "sincos2d", "mask": "fractal"},
        {},
        ["the positions of summaries are added to the summaries"],
    ),
    ("mup_vit", GAP | {"positions": "alibi2d", "use_patch_bias": False, "use_head_bias": False}, {}, []),
]


@parametrize_quick(("target", "settings", "hints", "notes"), SAID_OTHERWISE, number=4, ids=str)
def test_what_is_said_otherwise_answers_as_before(
    target, settings, hints, notes, make, params, images, forward, assert_close
):
    ours = make(**settings)
    out = export(ours.model, params(ours), target)
    for note in notes:
        assert any(said.startswith(note) for said in out.notes), out.notes
    state = dict(out.weights(np.float32))
    back = from_state_dict(state, source=target, **({"num_heads": 4} | hints))
    here, there = (forward(model, images((32, 32))) for model in (ours, back))
    assert_close(there.pooled, here.pooled)
    if ours.model.num_classes:
        assert_close(there.logits, here.logits)


def test_other_norms_are_noted(make, params):
    for target, settings, eps in (("deit", {}, "1e-12"), ("open_clip", {"use_head_bias": False}, "1e-06")):
        model = make(norm_eps=float(eps), **settings)
        out = export(model.model, params(model), target)
        assert any(said.startswith("norms have eps=") and said.endswith(f"{eps} here") for said in out.notes)
        assert out.model.norm_eps == {"deit": 1e-6, "open_clip": 1e-5}[target]
