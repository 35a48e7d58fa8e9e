"""Models of ours as `transformers` reads them, and its own files through us and back."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.export import targets
from vit_registers.models.paths import leaves_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def write(params, tmp_path):
    """write(model, dtype) -> (the Export of our model, the folder that was written)."""

    def write(model, dtype=np.float32):
        exported = targets.export(model.model, params(model), "transformers")
        targets.write(exported, tmp_path / "exported", dtype, Data())
        return exported, tmp_path / "exported"

    return write


def read_theirs(folder):
    """The model that transformers makes of a folder, in float32: every tensor found its place."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    no_pooler = {"add_pooling_layer": False} if name in ("ViTModel", "DeiTModel") else {}
    theirs, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **no_pooler
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return theirs.eval()


# --- ours to them -----------------------------------------------------------------------------------

WITH_PROJECTION = {"use_norm_pre": True, "use_norm_after_pool": True, "use_head_bias": False}
WITH_PROJECTION |= {"position_resampling": "bicubic"}
DISTILLED = {"num_registers": 1, "extra_positions": "learned", "position_resampling": "bicubic"}
SWIGLU = {"mlp": "swiglu", "mlp_dim": 88}
OURS = {
    "registers": ("Dinov2WithRegistersForImageClassification", {"num_registers": 4}),
    "registers and LayerScale": (
        "Dinov2WithRegistersForImageClassification",
        {"num_registers": 4, "layer_scale_init": 1.0, "use_mask_token": True},
    ),
    "registers, sincos2d, gap": (
        "Dinov2WithRegistersForImageClassification",
        {"num_registers": 2, "positions": "sincos2d", "pooling": "gap"},
    ),
    "registers of zeros, no positions": (
        "Dinov2WithRegistersForImageClassification",
        {"num_registers": 1, "registers": "zeros", "positions": "none", "activation": "gelu_tanh"},
    ),
    "registers with positions": (
        "Dinov2WithRegistersForImageClassification",
        {"num_registers": 2, "extra_positions": "learned", "has_cls_position": False},
    ),
    "registers and SwiGLU": (
        "Dinov2WithRegistersForImageClassification",
        SWIGLU | {"num_registers": 3, "use_qkv_bias": False, "use_patch_bias": False},
    ),
    "one register with a position, gap": (
        "Dinov2WithRegistersForImageClassification",
        DISTILLED | {"pooling": "gap", "position_resampling": "bicubic_aa"},
    ),
    "headless": ("Dinov2WithRegistersModel", {"num_registers": 3, "num_classes": 0}),
    "no registers, gap, sincos2d": (
        "Dinov2ForImageClassification",
        {"positions": "sincos2d", "pooling": "gap", "use_cls": True},
    ),
    "no registers, norm after pooling": (
        "Dinov2ForImageClassification",
        {"use_norm_after_pool": True, "position_resampling": "bicubic"},
    ),
    "no registers, SwiGLU, headless": (
        "Dinov2Model",
        SWIGLU | {"num_classes": 0, "position_resampling": "bicubic"},
    ),
    "plain": ("ViTForImageClassification", {"position_resampling": "bicubic", "norm_eps": 1e-3}),
    "plain, fewer biases": (
        "ViTForImageClassification",
        {"use_head_bias": False, "use_qkv_bias": False, "use_patch_bias": False, "positions": "sincos2d"},
    ),
    "plain, headless": ("ViTModel", {"num_classes": 0, "extra_positions": "learned", "mlp_dim": 40}),
    "distilled": ("DeiTForImageClassificationWithTeacher", DISTILLED | {"pooling": "cls_registers"}),
    "one register with a position": ("DeiTForImageClassification", DISTILLED | {"use_head_bias": False}),
    "one register with a position, headless": ("DeiTModel", DISTILLED | {"num_classes": 0}),
    "projection": (
        "CLIPVisionModelWithProjection",
        WITH_PROJECTION | {"use_patch_bias": False, "activation": "quick_gelu", "norm_eps": 1e-5},
    ),
    "projection, unlike CLIP": (
        "CLIPVisionModelWithProjection",
        WITH_PROJECTION | {"use_qkv_bias": False, "layer_scale_init": 1.0, "has_cls_position": False},
    ),
    "attention pooling": (
        "SiglipVisionModel",
        {"pooling": "map", "use_cls": False, "num_classes": 0, "position_resampling": "bicubic"},
    ),
    "attention pooling, fewer biases, LayerScale": (
        "SiglipVisionModel",
        {
            "pooling": "map",
            "use_cls": False,
            "num_classes": 0,
            "use_patch_bias": False,
            "use_qkv_bias": False,
            "layer_scale_init": 1.0,
            "positions": "sincos2d",
            "activation": "quick_gelu",
        },
    ),
    "norm before the blocks, headless": ("CLIPVisionModel", WITH_PROJECTION | {"num_classes": 0}),
}


@parametrize_quick("name", OURS)
def test_ours_as_they_read_it(name, make, write, images, forward, tokens, run_hf, from_folder, assert_close):
    """At the size that the model is made for, and at another where both resample positions alike."""
    kind, settings = OURS[name]
    ours = make(**settings)
    exported, folder = write(ours)
    theirs = read_theirs(folder)
    assert type(theirs).__name__ == kind
    is_alike = not any("resampled" in note for note in exported.notes)
    assert is_alike == (exported.model.position_resampling == ours.model.position_resampling)
    for size in [(32, 32), (24, 56)] if is_alike else [(32, 32)]:
        answer, encoded = run_hf(theirs, images(size))
        outputs = forward(ours, images(size))
        if answer is None:
            assert outputs.logits is None
        else:
            assert_close(outputs.logits, answer)
        if settings.get("use_norm_after_pool") and not settings.get("use_norm_pre"):
            assert_close(
                outputs.pooled, encoded.last_hidden_state[:, 0]
            )  # the same answer from normalised tokens
        else:
            assert_close(tokens(outputs), encoded.last_hidden_state)
        if settings.get("use_norm_after_pool") or settings.get("pooling") == "map":
            assert_close(outputs.pooled, encoded.pooler_output)
    again = from_folder(folder, pooling=exported.model.pooling)
    want = {leaf: value for leaf, value in leaves_of(exported.params).items() if value is not None}
    there = leaves_of(nested(again))
    assert set(there) == set(want)
    for leaf, value in want.items():
        np.testing.assert_array_equal(there[leaf], value)


def nested(model):
    return reading.nnx.to_pure_dict(reading.nnx.state(model, reading.nnx.Param))


def test_masked_patches_of_ours(make, write, run_hf, images, forward, tokens, assert_close):
    ours = make(num_registers=2, use_mask_token=True, num_classes=0)
    masked_BxP = np.random.default_rng(2).random((2, 16)) < 0.5
    theirs = read_theirs(write(ours)[1])
    _, encoded = run_hf(theirs, images(), bool_masked_pos=torch.from_numpy(masked_BxP))
    assert_close(tokens(forward(ours, images(), masked_BxP)), encoded.last_hidden_state)


def test_auto_model_finds_the_class(make, write):
    _, folder = write(make(num_registers=2))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert type(theirs).__name__ == "Dinov2WithRegistersForImageClassification"
    assert (theirs.config.num_labels, theirs.config.num_register_tokens) == (5, 2)
    assert theirs.dtype == torch.float32


def test_other_sizes_are_resampled_their_way_and_that_is_said(make, params):
    ours = make(position_resampling="linear")
    exported = targets.export(ours.model, params(ours), "transformers")
    assert "positions are resampled as 'bicubic' there, not as 'linear'" in str(exported.notes)
    assert exported.model.position_resampling == "bicubic"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "fractal", "summary_factor": 2, "num_classes": 0}, "mask='fractal'"),
        ({"summary_factor": 2}, "summary tokens"),
        ({"positions": "alibi2d"}, "alibi2d"),
        ({"use_cls": False, "pooling": "gap"}, "no cls token"),
        ({"pooling": "map"}, "pooling='map'"),
        ({"num_registers": 2, "pooling": "cls_registers"}, "pooling='cls_registers'"),
        ({"use_pre_logits": True}, "pre-logits"),
        ({"use_norm_pre": True, "pooling": "gap"}, "a head and pooling='gap'"),
        ({"use_norm_pre": True, "num_registers": 2, "use_head_bias": False}, "registers"),
        ({"use_norm_pre": True, "mlp": "swiglu"}, "SwiGLU"),
        ({"use_norm_pre": True}, "a classifier"),
        ({"num_registers": 1, "mlp_dim": 48}, "nearest are 32, 64, 96"),
        ({"num_registers": 1, "mlp": "swiglu", "mlp_dim": 100}, "nearest are 88, 112, 128"),
        ({"image_size": (32, 48)}, "square images only"),
    ],
)
def test_what_they_cannot_say_is_refused_before_anything_is_written(settings, message, make, write, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        write(make(**settings))
    assert not list(tmp_path.iterdir())


# --- theirs through us and back ---------------------------------------------------------------------

THEIRS = [
    ("Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    ("Dinov2WithRegistersForImageClassification", {"num_labels": 5, "use_swiglu_ffn": True}),
    ("Dinov2Model", {"use_swiglu_ffn": True, "qkv_bias": False}),
    ("Dinov2ForImageClassification", {"num_labels": 5}),
    ("ViTModel", {}),
    ("ViTForImageClassification", {"num_labels": 5, "hidden_act": "gelu_pytorch_tanh"}),
    ("DeiTModel", {}),
    ("DeiTForImageClassification", {"num_labels": 5}),
    ("DeiTForImageClassificationWithTeacher", {"num_labels": 5}),
    ("CLIPVisionModel", {"hidden_act": "gelu"}),
    ("CLIPVisionModelWithProjection", {}),
    ("CLIPModel", {}),
]
# What comes back otherwise. Poolers and the text tower are left out; of two heads, see the test.
LEFT_OUT = ("pooler.", "text_", "logit_scale")
TWO_BIASES = ("cls_classifier.bias", "distillation_classifier.bias")


@parametrize_quick(("kind", "settings"), THEIRS, number=2)
@parametrize_quick("dtype", ["float32", "float16"])
def test_there_and_back_every_bit_and_setting(kind, settings, dtype, hf_model, write, from_folder, tmp_path):
    """The same names, shapes, dtype and bits, and a config.json that says the same.

    Not so: the poolers of ViTModel and DeiTModel, which no classifier reads, and CLIP's text tower are left
    out; the biases of DeiT's two heads come back as their mean in both, which is the same answer.
    """
    hf_model(kind, **settings).to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    exported, folder = write(from_folder(tmp_path / "theirs"), np.dtype(dtype))
    assert all("add_pooling_layer" in note for note in exported.notes)
    there, here = (load_file(f / "model.safetensors") for f in (tmp_path / "theirs", folder))
    there = {name: value for name, value in there.items() if not name.startswith(LEFT_OUT)}
    assert set(there) == set(here)
    for name in set(there) - set(TWO_BIASES):
        np.testing.assert_array_equal(there[name], here[name], err_msg=name, strict=True)
    if kind == "DeiTForImageClassificationWithTeacher":
        mean = sum(there[name].astype(np.float32) for name in TWO_BIASES) / 2
        for name in TWO_BIASES:
            np.testing.assert_array_equal(mean.astype(dtype), here[name], strict=True)
    before, after = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "theirs", folder))
    before |= before.get("vision_config", {}) | {"dtype": before["dtype"]}
    before.setdefault("label2id", after.get("label2id"))
    if kind == "CLIPModel":
        before |= {"architectures": ["CLIPVisionModelWithProjection"], "projection_dim": 16}
    if kind == "CLIPVisionModel":
        before["projection_dim"] = after["projection_dim"]  # it has none
    assert after == {key: before[key] for key in after}


@pytest.mark.parametrize("kind", ["DeiTForImageClassificationWithTeacher", "CLIPModel"])
def test_there_and_back_is_the_same_function(
    kind, hf_model, run_hf, write, from_folder, images, tmp_path, assert_close
):
    """Where not every bit comes back: two heads are averaged, and a text tower is left out."""
    theirs = hf_model(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    back = read_theirs(write(from_folder(tmp_path / "theirs"))[1])
    answer, encoded = run_hf(back, images((24, 56)))
    want, want_encoded = run_hf(theirs, images((24, 56)))
    assert_close(answer, want)
    np.testing.assert_array_equal(encoded.last_hidden_state, want_encoded.last_hidden_state)


@pytest.mark.parametrize(
    ("kind", "settings", "arguments", "difference"),
    [
        ("Dinov2Model", {"use_mask_token": False}, {}, "comes back with a mask token of zeros"),
        ("ViTModel", {}, {"use_mask_token": True}, "the mask token is left out"),
    ],
)
def test_mask_tokens_there_and_back(
    kind, settings, arguments, difference, hf_model, write, from_folder, tmp_path
):
    hf_model(kind, arguments=arguments, **settings).save_pretrained(tmp_path / "theirs")
    exported, folder = write(from_folder(tmp_path / "theirs"))
    there, here = (load_file(f / "model.safetensors") for f in (tmp_path / "theirs", folder))
    there = {name: value for name, value in there.items() if not name.startswith(LEFT_OUT)}
    assert set(there) ^ set(here) == {"embeddings.mask_token"}
    if "left out" in difference:
        assert difference in exported.notes
    else:
        assert not here["embeddings.mask_token"].any()
    jax.tree.map(
        np.testing.assert_array_equal, *({n: x[n] for n in here if n in there} for x in (there, here))
    )
