"""Exports a model to another format: tensor names, settings and files."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_registers.config import Data, Model, lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop import containers
from vit_registers.interop.containers import Weights
from vit_registers.interop.export.family_rewrites import is_distilled
from vit_registers.interop.export.files import write_npz, write_safetensors
from vit_registers.interop.export.to_family import rewrite_for
from vit_registers.interop.names import dinov2_timm_clip as nt
from vit_registers.interop.reading import tensor_map_of
from vit_registers.interop.tensor_map import TensorRule, contiguous
from vit_registers.interop.unwrap import HEADS
from vit_registers.interop.values import check_finite
from vit_registers.models.blocks import dims
from vit_registers.models.paths import leaves_of
from vit_registers.strict_json import dumps

_PREFIXES = {
    "big_vision": "params/",
    "clip": "visual.",
    "open_clip": "visual.",
    "transformers/clip": "vision_model.",
    "transformers/vit": "vit.",
    "transformers/deit": "deit.",
    "transformers/dinov2": "dinov2.",
}
TARGETS = ("transformers", "timm", "big_vision", "dinov2", "deit", "dino", "clip", "open_clip", "mup_vit")

_PROCESSORS = {"deit": "DeiTImageProcessor", "clip": "CLIPImageProcessor"}  # others: BitImageProcessor
_HIDDEN_ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """A model that has been rewritten for a target format. Its tensors are made when they are written."""

    target: str
    model: Model  # as the file represents it
    tensor_map: tuple[TensorRule, ...]
    params: Mapping[str, Any]
    prefix: str  # of the names in the file, except those of heads
    notes: tuple[str, ...]

    def in_file(self, name: str) -> str:
        """The name in the file of a tensor of the family."""
        return name if HEADS.fullmatch(name) else self.prefix + name

    def weights(self, dtype: np.dtype) -> Weights:
        """The tensors by their names in the file, each made when it is read.

        Tensors that are not floating point keep their dtype. Raises CheckpointError, when a tensor is read,
        if it is not finite in `dtype`.
        """
        facts: dict[str, containers.Facts] = {}
        makers: dict[str, tuple[TensorRule, int]] = {}
        params = leaves_of(self.params)
        for rule in self.tensor_map:
            leaves = [params[leaf] for leaf in rule.leaves]
            kind = np.dtype(dtype) if leaves else rule.dump([])[0].dtype
            for i, shape in enumerate(rule.shapes([leaf.shape for leaf in leaves])):
                name = self.in_file(rule.names[i])
                facts[name] = shape, np.dtype(dtype) if kind.kind == "f" else kind
                makers[name] = rule, i

        def make(name: str) -> np.ndarray:
            rule, i = makers[name]
            tensor = rule.dump([params[leaf] for leaf in rule.leaves])[i]
            with np.errstate(over="ignore"):
                written = contiguous(tensor, facts[name][1])
            if rule.leaves:  # fixed tensors may hold -inf
                check_finite(tensor, written, name, self.target)
            return written

        return Weights(self.target, "memory", facts, make)


def transformers_kind(model: Model) -> str:
    """The model of transformers that can represent it: clip, deit, vit, or the most general one, dinov2."""
    if model.use_norm_pre:
        return "clip"
    is_plain = model.layer_scale_init is None and dims(model).mlp == "mlp" and not model.use_norm_after_pool
    if is_plain and is_distilled(model) and model.pooling in ("cls", "cls_registers"):
        return "deit"
    return "vit" if is_plain and not model.num_registers and model.pooling == "cls" else "dinov2"


def export(model: Model, params: Mapping[str, Any], target: str) -> Export:
    """The model rewritten for `target` (TARGETS). Raises CheckpointError if that is impossible."""
    lookup(dict.fromkeys(TARGETS), target, "to")
    key = f"transformers/{transformers_kind(model)}" if target == "transformers" else target
    draft = rewrite_for(key, model, jax.tree.map(np.asarray, dict(params)))
    names, has_two_heads = nt.WRITTEN_NAMES[key], draft.model.pooling == "cls_registers"
    if key == "transformers/deit" and has_two_heads:
        names = dataclasses.replace(names, head=nt.HF_DEIT_HEADS)
    if key == "deit" and is_distilled(draft.model):
        names = nt.DEIT_1 if has_two_heads else nt.DEIT_1_ONE_HEAD
    tensor_map = tensor_map_of(names, draft.model, target)
    return Export(
        target=key,
        model=draft.model,
        tensor_map=tuple(tensor_map),
        params=draft.params,
        prefix=_prefix(key, draft.model),
        notes=tuple(draft.notes),
    )


def _prefix(key: str, model: Model) -> str:
    """The text before names in files of the family; transformers has it in models with a head only."""
    if key.startswith("transformers/") and not model.num_classes:
        return ""
    if key == "transformers/dinov2" and model.num_registers:
        return "dinov2_with_registers."
    return _PREFIXES.get(key, "")


def transformers_config(e: Export) -> dict[str, Any]:
    """The config.json of an export to transformers. Raises CheckpointError if it has no such sizes."""
    model, sizes, kind = e.model, dims(e.model), e.target.split("/")[1]
    height, width = model.image_size
    if height != width:
        raise CheckpointError(f"transformers makes models for square images only, not {height} x {width} px")
    values: dict[str, Any] = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "hidden_act": _HIDDEN_ACTS[model.activation],
        "layer_norm_eps": model.norm_eps,
        "image_size": height,
        "patch_size": model.patch_size,
        "num_channels": model.channels,
    }
    has_head = bool(model.num_classes)
    if kind == "clip":
        name = "CLIPVisionModelWithProjection" if has_head else "CLIPVisionModel"
        values |= {"model_type": "clip_vision_model", "intermediate_size": sizes.mlp_dim}
        return values | {"architectures": [name], "projection_dim": model.num_classes or 512}
    values |= {"qkv_bias": model.use_qkv_bias}
    if has_head:
        labels = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
        values |= {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    suffix = "ForImageClassification" if has_head else "Model"
    if kind in ("vit", "deit"):
        name = {"vit": "ViT", "deit": "DeiT"}[kind] + suffix
        name += "WithTeacher" if model.pooling == "cls_registers" and has_head else ""
        return values | {"model_type": kind, "architectures": [name], "intermediate_size": sizes.mlp_dim}
    has_registers = model.num_registers > 0
    name = ("Dinov2WithRegisters" if has_registers else "Dinov2") + suffix
    values |= {
        "model_type": "dinov2_with_registers" if has_registers else "dinov2",
        "architectures": [name],
        "use_swiglu_ffn": sizes.mlp == "swiglu",
        "mlp_ratio": _mlp_ratio(sizes.width, sizes.mlp_dim, sizes.mlp == "swiglu"),
        "layerscale_value": 1.0,
    }
    return values | ({"num_register_tokens": model.num_registers} if has_registers else {})


def _mlp_ratio(width: int, mlp_dim: int, is_swiglu: bool) -> int:
    """The ratio from which transformers computes mlp_dim. Raises CheckpointError if there is none."""
    computed = {r: (int(width * r * 2 / 3) + 7) // 8 * 8 if is_swiglu else width * r for r in range(1, 65)}
    for ratio, value in computed.items():
        if value == mlp_dim:
            return ratio
    known = sorted(computed.values(), key=lambda value: abs(value - mlp_dim))[:3]
    raise CheckpointError(
        f"transformers' DINOv2 of width {width} has no MLPs {mlp_dim} wide, since its mlp_ratio is an "
        f"integer: nearest are {', '.join(map(str, sorted(known)))}"
    )


def timm_arguments(model: Model) -> dict[str, Any]:
    """The arguments of timm.models.vision_transformer.VisionTransformer for the exported tensors.

    Export.notes has the arguments that are not text.
    """
    sizes = dims(model)
    activation = "silu" if sizes.mlp == "swiglu" else model.activation
    hidden = sizes.mlp_dim * (2 if sizes.mlp == "swiglu" else 1)
    ratio = hidden / sizes.width
    if int(sizes.width * ratio) != hidden:  # as timm computes it
        ratio = (hidden + 0.5) / sizes.width
    values = {
        "img_size": list(model.image_size),
        "patch_size": model.patch_size,
        "in_chans": model.channels,
        "num_classes": model.num_classes,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[model.pooling],
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_ratio": ratio,
        "qkv_bias": model.use_qkv_bias,
        "init_values": model.layer_scale_init,
        "class_token": model.use_cls,
        "no_embed_class": not (model.use_cls and model.has_cls_position) and model.extra_positions == "none",
        "reg_tokens": model.num_registers,
        "pre_norm": model.use_norm_pre,
        "fc_norm": model.use_norm_after_pool if model.pooling == "gap" else None,
        "pool_include_prefix": False,
        "act_layer": None if activation == "gelu" else activation,
    }
    return {key: value for key, value in values.items() if value is not None}


def transformers_preprocessor(e: Export, data: Data) -> dict[str, Any]:
    """The preprocessor_config.json that belongs to it: shorter side to 8/7 of the size, crop, normalise."""
    size = e.model.image_size[0]
    return {
        "image_processor_type": _PROCESSORS.get(e.target.split("/")[1], "BitImageProcessor"),
        "do_resize": True,
        "size": {"shortest_edge": round(size * 8 / 7)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }


def write(e: Export, path: str | Path, dtype: np.dtype, data: Data) -> list[Path]:
    """Writes the files of an export and returns their paths; for transformers `path` is a folder.

    `data` has the mean and deviation that images are normalised with.
    """
    path = Path(path).expanduser()
    weights = e.weights(dtype)
    if e.target == "big_vision":
        write_npz(path, weights)
        return [path]
    if e.target.startswith("transformers/"):
        config = transformers_config(e) | {"dtype": np.dtype(dtype).name}
        path.mkdir(parents=True, exist_ok=True)
        write_safetensors(path / "model.safetensors", weights, {"format": "pt"})
        (path / "config.json").write_text(dumps(config) + "\n")
        processor = dumps(transformers_preprocessor(e, data))
        (path / "preprocessor_config.json").write_text(processor + "\n")
        return [path / n for n in ("model.safetensors", "config.json", "preprocessor_config.json")]
    write_safetensors(path, weights, {"format": "pt"})
    return [path]
