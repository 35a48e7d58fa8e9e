"""Models whose layers ours do not have, and a config.json that is not of the tensors: refused by name."""

import functools
import json

import numpy as np
import pytest
import safetensors.numpy

import vit_registers
from vit_registers.errors import CheckpointError, UserError
from vit_registers.interop import reading
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints

torch = pytest.importorskip("torch")


# --- timm ------------------------------------------------------------------------------------------------

LACKING = {  # timm's architectures by what our models lack
    "relative positions": ["vit_relpos_small_patch16_224", "beit_base_patch16_224", "samvit_base_patch16"],
    "norms after the branches": ["vit_base_patch16_rpn_224", "eva02_enormous_patch14_clip_224"],
    "parallel branches": ["vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"],
    "blocks for the cls token alone": ["cait_xxs24_224"],
    "RMSNorm": ["aimv2_large_patch14_224"],
    "is no plain Vision Transformer, and is not supported": ["my_own_vit", "dla34"],
}
NAMES = [(name, reason) for reason, names in LACKING.items() for name in names]
# What only config.json tells: their tensors are those of models that ours are.
SILENT = {
    "vit_small_patch16_rope_ape_224": "source='deit', source='dino', or architecture",
    "eva_giant_patch14_224": "give architecture",
    "vit_base_patch16_rpn_224": "give architecture, timm's name of the model, or num_heads",
    "vit_base_patch16_gap_224": r"vit_base_patch16_gap_224 \(16 heads\)",
    "vit_base_patch32_siglip_256": "give architecture, .* or hidden_act",
    "vit_so400m_patch16_siglip_gap_256": "give architecture, .* or hidden_act",
}


@pytest.fixture(scope="module")
def weights_of(timm):
    """weights_of(name): the names and shapes of a model of timm's, one block deep."""

    @functools.cache
    def weights_of(name):
        state = timm.create_model(name, depth=1, device="meta").state_dict()
        facts = {n: (tuple(v.shape), np.dtype(np.float32)) for n, v in state.items()}
        return Weights(name, "safetensors", facts, {}.__getitem__)

    return weights_of


def opened(weights, settings=None, source="auto", **hints):
    return reading.understand(weights, source=source, hints=Hints(**hints), settings=settings)


@pytest.mark.parametrize(("name", "reason"), NAMES)
def test_an_architecture_with_other_layers_is_refused_by_name(name, reason, noise):
    weights = reading.containers.from_arrays(noise({"patch_embed.proj.weight": (8, 3, 4, 4)}))
    for settings, hints in (({"architecture": name}, {}), (None, {"architecture": name})):
        with pytest.raises(CheckpointError, match=f"'{name}' of timm .*{reason}"):
            opened(weights, settings, **hints)


@pytest.mark.parametrize("name", SILENT)
def test_a_bare_file_of_an_ambiguous_model_asks(name, weights_of):
    for source in ("auto", "timm")[: 1 if "rope" in name else 2]:
        with pytest.raises(CheckpointError, match=SILENT[name]):
            opened(weights_of(name), source=source)


@pytest.mark.parametrize("name", ["vit_base_patch16_gap_224", "vit_base_patch32_siglip_256"])
def test_the_architecture_that_is_asked_for_tells_heads_and_activation(name, weights_of, timm):
    block = timm.create_model(name, depth=1, device="meta").blocks[0]
    model = opened(weights_of(name), architecture=name).model
    act = "gelu_tanh" if "tanh" in str(block.mlp.act).lower() else "gelu"
    assert (model.num_heads, model.activation) == (block.attn.num_heads, act)


def test_an_architecture_that_is_not_that_of_config_json_is_refused(weights_of):
    with pytest.raises(CheckpointError, match=r"architecture='flexivit_small', but config.json says 'vit_"):
        opened(
            weights_of("vit_base_patch16_gap_224"),
            {"architecture": "vit_base_patch16_gap_224"},
            architecture="flexivit_small",
        )


EVIDENCE = {
    "rotary_emb.freqs": "rotary positions",
    "blocks.0.attn.rope.periods": "rotary positions",
    "rotary_emb.inv_freq": "rotary positions",
    "freqs_cis": "rotary positions",
    "blocks.0.attn.rel_pos_h": "relative positions",
    "blocks.0.attn.relative_position_bias_table": "relative positions",
    "blocks.0.attn.q_norm.weight": "norms of queries and keys",
}


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("source", ["auto", "timm"])
def test_a_tensor_of_other_layers_is_refused_by_its_feature(name, source, weights_of):
    plain = weights_of("vit_tiny_patch16_224")
    facts = {n: (plain.shapes[n], plain.dtypes[n]) for n in plain.shapes}
    weights = Weights("w", "safetensors", facts | {name: ((4,), np.dtype(np.float32))}, {}.__getitem__)
    with pytest.raises(CheckpointError, match=f"'{name}' cannot be loaded: {EVIDENCE[name]}"):
        opened(weights, source=source)


TIMM_EDITS = {
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 5,
    "img_size": 48,
    "patch_size": 4,
    "in_chans": 1,
    "reg_tokens": 2,
    "class_token": False,
    "global_pool": "map",
    "qkv_bias": False,
    "init_values": 1e-5,
    "num_classes": 7,
    "mlp_ratio": 3,
    "pre_norm": True,
    "no_embed_class": True,
    "qk_norm": True,
    "final_norm": False,
    "pos_embed": "none",
}
TIMM_TYPES = {
    "depth": "2",
    "num_heads": 4.5,
    "class_token": "yes",
    "img_size": [32, "32"],
    "num_classes": True,
}
TIMM_TYPES |= {"global_pool": 3, "patch_size": 0, "depths": [2], "rope_type": "cat"}


@pytest.fixture(scope="module")
def timm_folder(timm, timm_model, tmp_path_factory):
    """(a folder as timm writes it, the content of its config.json)."""
    folder = tmp_path_factory.mktemp("timm")
    arguments = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 4.0,
    }
    theirs = timm_model("vit_small_patch16_224")
    timm.models.save_for_hf(theirs, folder, model_args=arguments, safe_serialization=True)
    return folder, json.loads((folder / "config.json").read_text())


def edited(folder, config, **changes):
    """The path of the folder, with a config.json in which settings are changed."""
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


@pytest.mark.parametrize("name", TIMM_EDITS)
def test_model_args_that_are_not_those_of_the_tensors(name, timm_folder):
    folder, config = timm_folder
    path = edited(folder, config, model_args=config["model_args"] | {name: TIMM_EDITS[name]})
    with pytest.raises(
        CheckpointError, match=f"model_args.{name} is .* in config.json, and .* in the tensors"
    ):
        vit_registers.load(path)


@pytest.mark.parametrize("name", TIMM_TYPES)
def test_model_args_of_another_type_or_of_no_meaning(name, timm_folder):
    folder, config = timm_folder
    path = edited(folder, config, model_args=config["model_args"] | {name: TIMM_TYPES[name]})
    with pytest.raises(CheckpointError, match=rf"model_args.{name}=.*: (must be|not supported)"):
        vit_registers.load(path)


def test_every_disagreement_is_named_at_once(timm_folder):
    folder, config = timm_folder
    args = config["model_args"] | {"depth": 3, "reg_tokens": 1}
    with pytest.raises(CheckpointError) as error:
        vit_registers.load(edited(folder, config, model_args=args, num_classes=9))
    assert all(f"{name} is " in str(error.value) for name in ("args.depth", "args.reg_tokens", "num_classes"))


# --- transformers ----------------------------------------------------------------------------------------

KINDS = {
    "ViTForImageClassification": {},
    "DeiTForImageClassification": {},
    "Dinov2ForImageClassification": {},
    "Dinov2WithRegistersModel": {},
    "CLIPVisionModelWithProjection": {},
    "CLIPModel": {},
}
ALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 5, "image_size": 48, "patch_size": 4}
ALL |= {"num_channels": 1}
OWN = {
    "ViT": {"intermediate_size": 96, "qkv_bias": False, "id2label": {"0": "a"}},
    "DeiT": {"intermediate_size": 96, "qkv_bias": False, "id2label": {"0": "a"}},
    "Dinov2For": {"mlp_ratio": 4, "use_swiglu_ffn": True, "qkv_bias": False, "id2label": {"0": "a"}},
    "Dinov2With": {"num_register_tokens": 3, "mlp_ratio": 4, "use_swiglu_ffn": True, "model_type": "dinov2"},
    "CLIP": {"intermediate_size": 96, "projection_dim": 8},
}
HF_EDITS = [
    (k, n, v) for k in KINDS for n, v in (ALL | next(v for p, v in OWN.items() if k[: len(p)] == p)).items()
]
WRONG = {
    "num_attention_heads": "4",
    "hidden_size": 32.0,
    "image_size": "32",
    "layer_norm_eps": 0,
    "patch_size": -8,
}
WRONG |= {"num_hidden_layers": True, "hidden_act": 3}


@pytest.fixture(scope="module")
def hf_folder(hf_model, tmp_path_factory):
    """hf_folder(kind): (a folder as transformers writes it, the content of its config.json)."""

    @functools.cache
    def hf_folder(kind):
        folder = tmp_path_factory.mktemp(kind)
        hf_model(kind).save_pretrained(folder)
        return folder, json.loads((folder / "config.json").read_text())

    return hf_folder


def changed(kind, config, name, value):
    is_nested = kind == "CLIPModel" and name in config["vision_config"] and name != "projection_dim"
    return {"vision_config": config["vision_config"] | {name: value}} if is_nested else {name: value}


@pytest.mark.parametrize(("kind", "name", "value"), HF_EDITS)
def test_a_config_json_of_transformers_that_is_not_of_the_tensors(kind, name, value, hf_folder):
    folder, config = hf_folder(kind)
    assert reading.open_path(edited(folder, config), source="auto", hints=Hints()).model.width == 32
    path = edited(folder, config, **changed(kind, config, name, value))
    with pytest.raises(CheckpointError, match=f"{name} (is|has) .* in config.json, and .* in the tensors"):
        vit_registers.load(path)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "CLIPModel"])
def test_a_setting_of_another_type(kind, name, hf_folder):
    folder, config = hf_folder(kind)
    path = edited(folder, config, **changed(kind, config, name, WRONG[name]))
    with pytest.raises(CheckpointError, match=f"{name}={WRONG[name]!r}: must be"):
        vit_registers.load(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "dinov3_vit"},
            "model_type='dinov3_vit', but the tensors have the names of another",
        ),
        ({"model_type": "beit"}, "relative positions"),
        ({"model_type": "siglip2_vision_model"}, "any aspect .NaFlex. are not supported yet; SigLIP 2 for"),
        ({"model_type": "deit"}, "'deit' in config.json, and no distillation token is in the tensors"),
        ({"hidden_act": "relu"}, "model.safetensors: hidden_act='relu' is unknown"),
        ({"model_type": 5}, "model_type=5: must be"),
        ({"model_type": None, "architecture": "vit_small_patch16_224"}, "of timm, but the tensors have"),
        ({"model_cfg": {}}, "model_cfg.vision_cfg=None"),
        ({"model_args": [1]}, r"model_args=\[1\]: must be"),
        ({"pretrained_cfg": {"input_size": 224}}, "input_size=224: must be"),
    ],
)
def test_a_config_json_of_another_model(changes, match, hf_folder):
    folder, config = hf_folder("ViTForImageClassification")
    config = {k: v for k, v in (config | changes).items() if v is not None}
    with pytest.raises(UserError, match=match):
        vit_registers.load(edited(folder, config))


OPEN_CLIP = {"width": 48, "layers": 3, "head_width": 7, "image_size": 48, "patch_size": 2, "mlp_ratio": 3}
OPEN_CLIP |= {
    "ls_init_value": 0.1,
    "no_ln_pre": True,
    "attentional_pool": True,
    "pos_embed_type": "sin_cos_2d",
}
OPEN_CLIP |= {"embed_dim": 3}
OPEN_CLIP_TYPES = {"width": "32", "head_width": 0, "norm_kwargs": {"eps": "x"}, "act_kwargs": 3}


def open_clip_folder(folder, noise, **changes):
    """An image tower as open_clip writes it, with a config in which settings are changed."""
    width, at = 32, "visual.transformer.resblocks.0."
    shapes = {
        "conv1.weight": (width, 3, 4, 4),
        "class_embedding": (width,),
        "positional_embedding": (17, width),
    }
    shapes |= {f"{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    state = noise({f"visual.{name}": shape for name, shape in shapes.items()} | {"visual.proj": (width, 8)})
    block = {f"ln_{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    block |= {"attn.in_proj_weight": (96, width), "attn.in_proj_bias": (96,), "attn.out_proj.bias": (width,)}
    block |= {"attn.out_proj.weight": (width, width), "mlp.c_fc.weight": (64, width), "mlp.c_fc.bias": (64,)}
    block |= {"mlp.c_proj.weight": (width, 64), "mlp.c_proj.bias": (width,)}
    safetensors.numpy.save_file(
        state | noise({at + n: s for n, s in block.items()}), folder / "model.safetensors"
    )
    vision = {
        "width": width,
        "layers": 1,
        "head_width": 8,
        "image_size": 16,
        "patch_size": 4,
        "mlp_ratio": 2.0,
    }
    vision |= {name: value for name, value in changes.items() if name != "embed_dim"}
    config = {"model_cfg": {"embed_dim": changes.get("embed_dim", 8), "vision_cfg": vision}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_a_config_of_open_clip_that_is_not_of_the_tensors(name, noise, tmp_path):
    vit_registers.load(open_clip_folder(tmp_path, noise))
    path = open_clip_folder(tmp_path, noise, **{name: OPEN_CLIP[name]})
    with pytest.raises(CheckpointError, match=f"{name} is .* in config.json, and .* in the tensors"):
        vit_registers.load(path)


@pytest.mark.parametrize("name", OPEN_CLIP_TYPES)
def test_a_setting_of_open_clip_of_another_type(name, noise, tmp_path):
    path = open_clip_folder(tmp_path, noise, **{name: OPEN_CLIP_TYPES[name]})
    with pytest.raises(CheckpointError, match=f"{name}.*=.*: must be"):
        vit_registers.load(path)


def test_a_tower_of_timm_in_open_clip_is_refused_by_its_name(noise, tmp_path):
    path = open_clip_folder(tmp_path, noise, timm_model_name="eva02_enormous_patch14_clip_224")
    with pytest.raises(CheckpointError, match=r"'eva02_enormous_patch14_clip_224' of timm .*norms after"):
        vit_registers.load(path)
