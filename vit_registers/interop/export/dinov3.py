"""Models with the rotation of DINOv3 in its formats: its own, transformers' and timm's class Eva."""

from collections.abc import Mapping
from typing import Any

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.dinov3 import PUBLISHED, TRAINED
from vit_registers.interop.eva import positions_text
from vit_registers.interop.export import rewrites
from vit_registers.interop.export.rewrites import Draft
from vit_registers.interop.names.dinov2_timm_clip import TorchNames
from vit_registers.interop.names.dinov3 import dinov3_names, hf_dinov3_names
from vit_registers.interop.names.eva import eva_names
from vit_registers.models.blocks import dims
from vit_registers.models.positions import position_rule, rotation_arguments
from vit_registers.models.rotary import IN_TRAINING

TIMM_EVA = "timm/eva"
_ARGUMENTS = {"base", "periods", *IN_TRAINING}  # of rope2d, that models of DINOv3 have


def require_dinov3_rotation(d: Draft) -> None:
    """Raises CheckpointError unless positions are a rotation alone, of a kind that the target has.

    Notes what the target does not store: periods that are rounded, and random coordinates in training.
    """
    if d.model.mask != "none":
        d.refuse(f"mask='{d.model.mask}'")
    if d.model.summary_factor:
        d.refuse("summary tokens")
    rule, given = position_rule(d.model.positions), rotation_arguments(d.model.positions)
    known = _ARGUMENTS | ({"min_period", "max_period"} if d.target == "dinov3" else set())
    if given is None or rule.has_table or rule.bias is not None or set(given) - known - {"summaries"}:
        d.refuse(f"positions='{d.model.positions}'")
    stored = {name: value for name, value in (given or {}).items() if name in known}
    if d.target == "dinov3":  # its files hold the periods, and nothing about training
        drawn = {name: stored.pop(name) for name in IN_TRAINING if name in stored}
        if drawn != {"rescale": TRAINED["rescale"]}:
            d.notes.append("the coordinates of training are in no tensor: rescale=2 is assumed there")
        stored["rescale"] = TRAINED["rescale"]
    elif stored.pop("periods", "float32") != "float32":
        d.notes.append("periods are not rounded to bfloat16 there: angles differ by up to 0.4 %")
    text = positions_text(PUBLISHED | stored, has_table=False)
    d.set(positions=text, has_cls_position=False, position_resampling=Model.position_resampling)


def pool_cls(d: Draft) -> None:
    """Raises CheckpointError for a classifier; without one, cls is what the target pools."""
    if d.model.num_classes or d.model.pooling not in ("cls", "gap"):
        d.refuse(f"a head and pooling='{d.model.pooling}'" if d.model.num_classes else d.model.pooling)
    if d.model.pooling == "gap":
        d.notes.append("cls is pooled there, and the mean of the patches here")
    d.set(pooling="cls", use_norm_after_pool=False)


def fit_timm_eva(d: Draft) -> None:
    """Raises CheckpointError for a pooling, a GELU or a bias that timm's class Eva does not have."""
    if d.model.pooling not in ("cls", "gap"):
        d.refuse(f"pooling='{d.model.pooling}'")
    if dims(d.model).mlp == "mlp" and d.model.activation != "gelu":
        d.refuse(f"activation='{d.model.activation}'")
    if has_key_bias(d.params):
        d.refuse("a bias of keys")
    if d.model.norm_eps != 1e-5:
        eps = d.model.norm_eps
        d.notes.append(f"timm also needs norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g})")


def has_key_bias(params: Mapping[str, Any]) -> bool:
    """Whether keys have a bias that is not 0. Training here moves it, as it is a part of the joint bias."""
    biases = [block["attn"]["qkv"].get("bias") for block in params["blocks"].values()]
    return any(bias is not None and bias[1].any() for bias in biases)


_COMMON = (
    require_dinov3_rotation,
    rewrites.store_registers,
    rewrites.require_cls,
    rewrites.fold_register_positions,
    rewrites.add_patch_bias,
    rewrites.add_layer_scale,
)
REWRITES = {
    "dinov3": (*_COMMON, pool_cls, rewrites.add_mask_token),
    "transformers/dinov3": (*_COMMON, pool_cls, rewrites.add_mask_token),
    TIMM_EVA: (
        *_COMMON,
        fit_timm_eva,
        rewrites.drop_mask_token,
        rewrites.move_norm_before_pooling,
        rewrites.add_head_bias,
    ),
}


def dinov3_export_names(target: str, model: Model, params: Mapping[str, Any]) -> TorchNames:
    """The names of the tensors of a rewritten model in `target`, a key of REWRITES."""
    is_gated, is_biased = dims(model).mlp == "swiglu", has_key_bias(params)
    if target == "dinov3":
        return dinov3_names(() if is_biased else ("blocks.0.attn.qkv.bias_mask",))
    if target == TIMM_EVA:
        return eva_names(("blocks.0.mlp.fc1_g.weight",) if is_gated else ())
    names = ["layer.0.mlp.gate_proj.weight"] * is_gated + ["layer.0.attention.k_proj.bias"] * is_biased
    return hf_dinov3_names(names)


def transformers_values(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of a DINOv3ViTModel has beside sizes."""
    given, is_gated = rotation_arguments(model.positions) or {}, dims(model).mlp == "swiglu"
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "intermediate_size": dims(model).mlp_dim,
        "use_gated_mlp": is_gated,
        "num_register_tokens": model.num_registers,
        "query_bias": model.use_qkv_bias,
        "key_bias": has_key_bias(params),
        "value_bias": model.use_qkv_bias,
        "layerscale_value": 1.0,
        "rope_theta": given.get("base", PUBLISHED["base"]),
        **{f"pos_embed_{name}": given.get(name) for name in IN_TRAINING},
    } | ({"hidden_act": "silu"} if is_gated else {})


def timm_dinov3_arguments(model: Model) -> dict[str, Any]:
    """The arguments of timm.models.eva.Eva for the exported tensors, where they can be text."""
    sizes, given = dims(model), rotation_arguments(model.positions) or {}
    ratio = sizes.mlp_dim / sizes.width
    if int(sizes.width * ratio) != sizes.mlp_dim:  # as timm computes it
        ratio = (sizes.mlp_dim + 0.5) / sizes.width
    is_gated = sizes.mlp == "swiglu"
    if is_gated and sizes.mlp_dim % 8:
        raise CheckpointError(f"timm has no SwiGLU of DINOv3 that is {sizes.mlp_dim} wide: no multiple of 8")
    return {
        "img_size": list(model.image_size),
        "patch_size": model.patch_size,
        "in_chans": model.channels,
        "num_classes": model.num_classes,
        "global_pool": {"cls": "token", "gap": "avg"}[model.pooling],
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_ratio": ratio,
        "swiglu_mlp": is_gated,
        "swiglu_align_to": 8 if is_gated else 0,
        "qkv_bias": model.use_qkv_bias,
        "init_values": model.layer_scale_init,
        "num_reg_tokens": model.num_registers,
        "use_fc_norm": model.use_norm_after_pool,
        "rope_temperature": given.get("base", PUBLISHED["base"]),
        **{f"rope_{name}_coords": given[name] for name in IN_TRAINING if name in given},
    }
