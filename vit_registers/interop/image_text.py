"""Loads whole models of images and texts of other code bases: both towers, projections, scale and bias."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers.config import Model, Text
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import containers, reading
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints, make_hints
from vit_registers.interop.names.dinov2_timm_clip import TorchNames
from vit_registers.interop.names.text import (
    Joint,
    TextNames,
    openai_numbers,
    recognize_text,
    text_map,
)
from vit_registers.interop.opened import OpenedWeights, describe_weights
from vit_registers.interop.settings import check_objects, plain_settings, read_whole_settings
from vit_registers.interop.tensor_map import TensorRule, contiguous
from vit_registers.interop.text_settings import infer_text, text_line, told_text
from vit_registers.interop.values import as_float32, refuse_quantised
from vit_registers.models.paths import Leaf, leaves_of
from vit_registers.models.pooling import pooled_width
from vit_registers.models.text.image_text import ImageTextModel, build_image_text
from vit_registers.models.text.tower import TextTower
from vit_registers.models.vit import ViT

# Buffers of text towers that follow from the settings.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|attn_mask)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedImageText:
    """A whole model that has been recognized; its tensors are not read yet."""

    image: OpenedWeights  # its head, if any, is the projection
    text: Text
    text_weights: Weights  # by plain names
    text_map: tuple[TensorRule, ...]  # of the leaves of "text", and of what joins the towers
    joint: Joint

    @property
    def model(self) -> Model:
        """The settings of the image tower, which has no head."""
        return dataclasses.replace(self.image.model, num_classes=0, use_head_bias=True)


def understand_image_text(
    weights: Weights,
    *,
    source: str,
    hints: Hints,
    whole: Mapping[str, Any] | None = None,
    text_num_heads: int | None = None,
) -> OpenedImageText:
    """The settings and the tensor maps of a whole model. Only small fixed tensors are read.

    `whole` is the content of its config.json or open_clip_config.json. Raises CheckpointError if there is no
    text tower, if nothing determines a setting, and for tensors that do not fit.
    """
    whole, where = whole or {}, weights.where
    if text_num_heads is not None and (type(text_num_heads) is not int or text_num_heads < 1):
        raise ConfigError(f"text_num_heads={text_num_heads!r}: must be an integer, 1 or more")
    settings = plain_settings(dict(whole))
    image = reading.understand(weights, source=source, hints=hints, settings=settings)
    found = image.found
    plain = {name: file for name, file in found.text.items() if not _BUFFERS.fullmatch(name)}
    names = recognize_text(found.family, plain, where)
    said = told_text(whole, where)
    if not said and found.source not in ("transformers", "big_vision") and _is_undetermined(names):
        raise CheckpointError(
            f"{where}: the tensors do not determine the mask and the pooling of the text tower: give config, "
            "the content of its open_clip_config.json, or put this file beside the weights"
        )
    text_weights = weights.select(plain)
    text = infer_text(
        names,
        text_weights.shapes,
        said,
        usual={"activation": image.native.activation, "norm_eps": image.native.norm_eps},
        given={"num_heads": text_num_heads, "activation": hints.hidden_act},
        where=where,
    )
    joint = _joint(names, image.native, plain, where)
    names = _with_axes(names, text_weights)
    rules = text_map(names, text, joint, source=found.source)
    refuse_quantised({plain[name]: dtype for name, dtype in text_weights.dtypes.items()}, where)
    numbers = [rule for rule in openai_numbers(text, image.native.image_size) if rule.names[0] in plain]
    reading.check_tensor_names(
        text_weights,
        text_leaves(text, joint),
        [*rules, *numbers],
        in_file=lambda name: plain.get(name, name),
        source=found.source,
    )
    _check_widths(image.native, text, joint, where)
    left_out = {name: what for name, what in found.left_out.items() if name not in found.text.values()}
    image = dataclasses.replace(image, found=dataclasses.replace(found, left_out=left_out))
    return OpenedImageText(
        image=image, text=text, joint=joint, text_weights=text_weights, text_map=tuple(rules)
    )


def _is_undetermined(names: TextNames) -> bool:
    """Whether models of OpenCLIP with these names have different masks and pooling."""
    is_module = isinstance(names.layers, TorchNames) and names.layers.block.startswith("text.")
    return is_module and not names.is_siglip


def _with_axes(names: TextNames, weights: Weights) -> TextNames:
    """The names with the axes of the scale in the file: newer models of OpenCLIP have one of size 1."""
    shape = weights.shapes.get(names.logit_scale, ())
    return dataclasses.replace(names, scalar_axes=len(shape)) if shape in ((), (1,)) else names


def _joint(names: TextNames, image: Model, plain: Collection[str], where: str) -> Joint:
    """What joins the towers; names.image_proj is no head of the image tower."""
    kernel, bias = (names.image_proj.format(part) for part in ("weight", "bias"))
    if kernel in plain and image.num_classes:
        raise CheckpointError(f"{where} has '{kernel}' and a head of the image tower: two projections")
    return Joint(
        has_logit_bias=names.logit_bias in plain,
        image_width=pooled_width(image) if kernel in plain else None,
        has_image_proj_bias=bias in plain,
    )


def _check_widths(image: Model, text: Text, joint: Joint, where: str) -> None:
    if image.use_pre_logits:
        raise CheckpointError(f"{where} has a layer before the projection of the image tower")
    if joint.image_width is not None:  # check_tensor_names compared its shape
        return
    width = image.num_classes or pooled_width(image)
    if width != text.embed_dim:
        raise CheckpointError(
            f"{where}: embeddings of images have width {width}, and those of texts {text.embed_dim}: they "
            "cannot be compared"
        )


def text_leaves(text: Text, joint: Joint) -> dict[Leaf, jax.ShapeDtypeStruct]:
    """The shapes of a text tower under "text", of "logit_scale" and of what `joint` has, by leaf."""
    tower = nnx.eval_shape(lambda: TextTower(text, rngs=nnx.Rngs(0)))
    leaves = leaves_of(nnx.to_pure_dict(nnx.state(tower, nnx.Param)))
    shapes = {
        ("text", *leaf): jax.ShapeDtypeStruct(value.shape, value.dtype) for leaf, value in leaves.items()
    }
    others: dict[Leaf, tuple[int, ...]] = {("logit_scale",): ()}
    if joint.has_logit_bias:
        others[("logit_bias",)] = ()
    if joint.image_width is not None:
        others[("image_proj", "kernel")] = (joint.image_width, text.embed_dim)
        if joint.has_image_proj_bias:
            others[("image_proj", "bias")] = (text.embed_dim,)
    return shapes | {leaf: jax.ShapeDtypeStruct(shape, jnp.float32) for leaf, shape in others.items()}


def read_image_text(opened: OpenedImageText) -> dict[str, Any]:
    """The parameters of both towers and of what joins them, as nested dicts of float32 jax arrays."""
    params = {"vit": reading.read_leaves(opened.image)}
    if "head" in params["vit"]:
        params["image_proj"] = params["vit"].pop("head")
    weights = opened.text_weights
    shapes = text_leaves(opened.text, opened.joint)
    for rule in opened.text_map:
        arrays = [as_float32(weights[name], name, weights.where) for name in rule.names]
        parts = rule.load(arrays, [shapes[leaf].shape for leaf in rule.leaves])
        for leaf, part in zip(rule.leaves, parts, strict=True):
            _put(params, leaf, jnp.asarray(contiguous(part, np.dtype(np.float32))))
    return params


def _put(params: dict, leaf: Leaf, value: jax.Array) -> None:
    for key in leaf[:-1]:
        params = params.setdefault(key, {})
    params[leaf[-1]] = value


def load_opened_image_text(opened: OpenedImageText) -> ImageTextModel:
    """The model of an opened checkpoint, with its parameters."""
    model = opened.model
    params = read_image_text(opened)
    return build_image_text(lambda rngs: ViT(model, rngs=rngs), opened.text, params, ImageTextModel)


def open_image_text(
    path: str | Path, *, source: str, hints: Hints, text_num_heads: int | None = None
) -> OpenedImageText:
    """The whole model of a file or folder, with the config.json beside it. Raises CheckpointError."""
    path = Path(path).expanduser()
    weights, whole = containers.open_weights(path), read_whole_settings(path)
    return understand_image_text(
        weights, source=source, hints=hints, whole=whole, text_num_heads=text_num_heads
    )


def image_text_from_state_dict(
    state: Mapping[str, Any],
    *,
    source: str,
    config: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    text_num_heads: int | None = None,
    hidden_act: str | None = None,
    interpolation: str | None = None,
    architecture: str | None = None,
    params: str | None = None,
    leave_out: str | Sequence[str] = (),
) -> ImageTextModel:
    """The whole model of a mapping of tensor names to arrays.

    `config` is what the library says about the model: `model.config.to_dict()` of transformers, or the
    content of OpenCLIP's open_clip_config.json, or its "model_cfg" alone. Without it, the heads of both
    towers (`num_heads`, `text_num_heads`) and `hidden_act` may have to be given. `source` and the other
    arguments are those of `vit_registers.load`. Raises CheckpointError with all tensors that do not fit.
    """
    hints = make_hints(
        image_size, num_heads, hidden_act, interpolation, None, None, architecture, leave_out, None
    )
    opened = understand_image_text(
        containers.from_arrays(state),
        source=source,
        hints=dataclasses.replace(hints, params=params),
        whole=_as_whole(config),
        text_num_heads=text_num_heads,
    )
    return load_opened_image_text(opened)


def _as_whole(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"config is of type {type(config).__name__}: must be the content of a config.json")
    known = {name: value for name, value in config.items() if value is not None}
    if "vision_cfg" in known:
        known = {"model_cfg": known}
    if not {"model_type", "model_cfg"} & set(known):
        raise ConfigError(
            f"config has neither model_type (transformers) nor vision_cfg (OpenCLIP), but {', '.join(known)}"
        )
    check_objects("config", known)
    return known


def describe_image_text(opened: OpenedImageText) -> str:
    """What was recognized and inferred, in one line."""
    return f"{describe_weights(opened.image)}; {text_line(opened.text)}"
