"""Exports whole models of images and texts to other formats: tensor names, settings and files."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_registers.config import Model, Text, lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop.export.targets import Export, export, transformers_kind
from vit_registers.interop.export.text_configs import is_by_timm
from vit_registers.interop.infer import FAMILIES
from vit_registers.interop.names import text as names_text
from vit_registers.interop.names.text import Joint, TextNames, openai_numbers, text_map
from vit_registers.interop.tensor_map import TensorRule
from vit_registers.interop.unwrap import HEADS
from vit_registers.models.blocks import dims
from vit_registers.models.pooling import pooled_width
from vit_registers.models.text.image_text import ImageTextModel
from vit_registers.models.text.tower import block_settings

IMAGE_TEXT_TARGETS = ("transformers", "open_clip", "clip", "big_vision")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Format:
    """How a format has whole models. The defaults are OpenCLIP's with its own image towers."""

    image: str = "open_clip"  # the target of the image tower (targets.TARGETS)
    prefix: str = "visual."  # of the names of the image tower
    before_text: str = ""  # of the names of the text tower
    names: TextNames = names_text.OPEN_CLIP
    is_siglip: bool = False  # the text tower has no causal mask, and pools the last token
    needs_projection: bool = True  # of the image tower
    has_own_projection: bool = False  # of the image tower, which is no head of it
    has_projection_bias: bool = False  # of the text tower
    has_logit_bias: bool | None = None  # None: with or without
    activation: str | None = None  # the only one that readers of the format assume
    norm_eps: float | None = None


_SIGLIP = _Format(is_siglip=True, needs_projection=False, has_projection_bias=True, has_logit_bias=True)
_FORMATS: dict[str, _Format] = {
    "transformers/clip": _Format(
        image="transformers",
        prefix="vision_model.",
        names=names_text.HF_CLIP_TEXT,
        has_logit_bias=False,
    ),
    "transformers/siglip": dataclasses.replace(
        _SIGLIP, image="transformers", prefix="vision_model.", names=names_text.HF_SIGLIP_TEXT
    ),
    "open_clip": _Format(),
    "open_clip/siglip": dataclasses.replace(
        _SIGLIP,
        image="timm",
        prefix="visual.trunk.",
        names=names_text.OPEN_CLIP.within("text").with_linear_projection(),
    ),
    "open_clip/timm": _Format(image="timm", prefix="visual.trunk.", has_own_projection=True),
    "clip": _Format(image="clip", has_logit_bias=False, activation="quick_gelu", norm_eps=1e-5),
    "big_vision": dataclasses.replace(
        _SIGLIP,
        image="big_vision",
        prefix="params/img/",
        before_text="params/",
        names=names_text.BIG_VISION_TEXT,
        has_logit_bias=None,
        activation="gelu_tanh",
        norm_eps=1e-6,
    ),
}


def export_image_text(model: Model, text: Text, params: Mapping[str, Any], target: str) -> Export:
    """The whole model rewritten for `target` (IMAGE_TEXT_TARGETS). Raises CheckpointError if impossible.

    `params` have the names of those of an ImageTextModel.
    """
    lookup(dict.fromkeys(IMAGE_TEXT_TARGETS), target, "to")
    params = jax.tree.map(np.asarray, dict(params))
    key = _format_of(model, target)
    form = _FORMATS[key]
    params, notes = _fit(form, key, model, text, params)
    text = dataclasses.replace(text, has_projection_bias="bias" in params["text"]["proj"])
    image = _export_image(key, form, *_with_head(form, model, text, params))
    in_file = lambda name: name if HEADS.fullmatch(name) else form.prefix + name  # noqa: E731
    rules = [_renamed(rule, in_file, "vit") for rule in image.tensor_map]
    joint = Joint(
        has_logit_bias="logit_bias" in params,
        image_width=pooled_width(model) if form.has_own_projection else None,
        has_image_proj_bias="bias" in params.get("image_proj", {}),
    )
    texts = text_map(form.names, text, joint, source=target)
    if key == "clip":
        texts += openai_numbers(text, image.model.image_size)
    rules += [_renamed(rule, lambda name: form.before_text + name) for rule in texts]
    names = ["text", "logit_scale", "logit_bias"] + ["image_proj"] * form.has_own_projection
    others = {name: params[name] for name in names if name in params}
    notes += _layer_notes(form, text)
    heads = [(dims(one), name) for one, name in ((model, "image"), (block_settings(text), "text"))]
    if key == "clip" and (odd := [name for sizes, name in heads if sizes.width != 64 * sizes.num_heads]):
        towers = f"the {' and the '.join(odd)} tower"
        notes.append(f"heads of width 64 are assumed there; those of {towers} have another width")
    return Export(
        target="open_clip" if target == "open_clip" else key,
        model=image.model,
        tensor_map=tuple(rules),
        params={"vit": image.params, **others},
        prefix="",
        notes=(*image.notes, *notes),
        text=text,
    )


def _export_image(key: str, form: _Format, model: Model, params: Mapping[str, Any]) -> Export:
    if key != "open_clip":
        return export(model, params, form.image)
    # open_clip_config.json says what the tensors of an image tower alone leave to the reader.
    usual = FAMILIES[key] | {"activation": Model.activation}
    layers = {name: usual[name] for name in ("activation", "norm_eps")}
    image = export(dataclasses.replace(model, **layers), params, form.image)
    ours = {name: getattr(model, name) for name in layers}
    return dataclasses.replace(image, model=dataclasses.replace(image.model, **ours))


def image_text_state_dict(model: ImageTextModel, target: str) -> dict[str, np.ndarray]:
    """The tensors of a whole model, float32, by their names in `target` (IMAGE_TEXT_TARGETS).

    Raises CheckpointError if the format cannot represent the model.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    e = export_image_text(model.vit.model, model.text.text, params, target)
    return dict(e.weights(np.dtype(np.float32)))


def _format_of(model: Model, target: str) -> str:
    if target == "transformers":
        kind = transformers_kind(model)
        if kind not in ("clip", "siglip"):
            raise CheckpointError(
                "transformers has whole models with the image towers of CLIP (use_norm_pre=True) and of "
                f"SigLIP (pooling='map') only, and this one has use_norm_pre=False, pooling='{model.pooling}'"
            )
        return f"transformers/{kind}"
    if target != "open_clip" or not is_by_timm(model):
        return target
    return "open_clip/siglip" if model.pooling == "map" else "open_clip/timm"


def _fit(
    form: _Format, key: str, model: Model, text: Text, params: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(the parameters with the parts that the format has, notes). Raises CheckpointError."""
    convention = ("no causal mask", "last") if form.is_siglip else ("a causal mask", "end")
    if text.is_causal == form.is_siglip or text.pool != convention[1]:
        raise CheckpointError(
            f"'{key}' has text towers with {convention[0]} and pool='{convention[1]}', and this one has "
            f"text.is_causal={text.is_causal} and text.pool='{text.pool}'"
        )
    if text.end_token not in (None, text.vocab_size - 1) and key == "clip":
        raise CheckpointError(
            f"'clip' pools the largest id of a text, and text.end_token={text.end_token} is not the largest"
        )
    params, notes = dict(params), []
    if form.has_projection_bias and not text.has_projection_bias:
        proj = {**params["text"]["proj"], "bias": np.zeros(text.embed_dim, np.float32)}
        params["text"] = {**params["text"], "proj": proj}
    if text.has_projection_bias and not form.has_projection_bias:
        raise CheckpointError(f"'{key}' has no place for a bias of the projection of texts")
    if form.has_logit_bias is False and "logit_bias" in params:
        raise CheckpointError(f"'{key}' has no place for a bias of the logits")
    if form.has_logit_bias and "logit_bias" not in params:
        params["logit_bias"] = np.zeros((), np.float32)
        notes.append("a bias of the logits of 0 is added")
    if form.needs_projection and "image_proj" not in params:
        params["image_proj"] = {"kernel": np.eye(pooled_width(model), dtype=np.float32)}
        notes.append("the unit matrix is added as the projection of images")
    return params, notes


def _layer_notes(form: _Format, text: Text) -> list[str]:
    notes = []
    if form.activation not in (None, text.activation):
        notes.append(f"'{form.activation}' is assumed there in the text tower, which has '{text.activation}'")
    if form.norm_eps not in (None, text.norm_eps):
        notes.append(f"norms of the text tower have eps={form.norm_eps:g} there, and {text.norm_eps:g} here")
    return notes


def _with_head(
    form: _Format, model: Model, text: Text, params: Mapping[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """The image tower and its parameters; its projection is a head unless the format has another place."""
    if "image_proj" not in params or form.has_own_projection:
        return model, params["vit"]
    has_bias = "bias" in params["image_proj"]
    model = dataclasses.replace(model, num_classes=text.embed_dim, use_head_bias=has_bias)
    return model, {**params["vit"], "head": params["image_proj"]}


def _renamed(rule: TensorRule, name: Callable[[str], str], module: str | None = None) -> TensorRule:
    """The rule with other names of tensors, and with its leaves within a module."""
    leaves = rule.leaves if module is None else tuple((module, *leaf) for leaf in rule.leaves)
    return dataclasses.replace(rule, names=tuple(map(name, rule.names)), leaves=leaves)
