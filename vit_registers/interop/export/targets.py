"""Exports a model to another format: tensor names, settings and files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_registers.config import Data, Model, Text, lookup
from vit_registers.interop import containers
from vit_registers.interop.class_names import CLASS_NAMES_FILE
from vit_registers.interop.containers import Weights
from vit_registers.interop.export import dinov3, eva
from vit_registers.interop.export.family_rewrites import is_distilled
from vit_registers.interop.export.files import is_file, write_npz, write_safetensors
from vit_registers.interop.export.json_configs import timm_config, transformers_config
from vit_registers.interop.export.preprocessing_files import (
    Preprocessing,
    own_json,
    transformers_json,
)
from vit_registers.interop.export.rewrites import Draft
from vit_registers.interop.export.text_configs import open_clip_config, whole_transformers_config
from vit_registers.interop.export.to_family import rewrite_for
from vit_registers.interop.names import dinov2_timm_clip as nt
from vit_registers.interop.preprocessing import PREPROCESSING_FILE
from vit_registers.interop.reading import tensor_map_of
from vit_registers.interop.tensor_map import TensorRule, contiguous
from vit_registers.interop.unwrap import HEADS
from vit_registers.interop.values import check_finite
from vit_registers.models.blocks import dims, rotary
from vit_registers.models.paths import leaves_of
from vit_registers.strict_json import dumps

_PREFIXES = {
    "big_vision": "params/",
    "clip": "visual.",
    "open_clip": "visual.",
    "transformers/clip": "vision_model.",
    "transformers/siglip": "vision_model.",
    "transformers/vit": "vit.",
    "transformers/deit": "deit.",
    "transformers/dinov2": "dinov2.",
}
TARGETS = (
    "dinov3",
    "transformers",
    "timm",
    "big_vision",
    "dinov2",
    "deit",
    "dino",
    "clip",
    "open_clip",
    "mup_vit",
)

# The formats whose configs have no place for class names.
_WITHOUT_NAMES = ("big_vision", "dinov2", "deit", "dino", "clip", "open_clip", "mup_vit", "transformers/clip")
_WITHOUT_NAMES += ("transformers/siglip", "transformers/dinov3", "dinov3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """A model that has been rewritten for a target format. Its tensors are made when they are written."""

    target: str
    model: Model  # as the file represents it
    tensor_map: tuple[TensorRule, ...]
    params: Mapping[str, Any]
    prefix: str  # of the names in the file, except those of heads
    notes: tuple[str, ...]
    text: Text | None = None  # the text tower of a whole model; the head of `model` is its projection then

    def in_file(self, name: str) -> str:
        """The name in the file of a tensor of the family."""
        return name if HEADS.fullmatch(name) else self.prefix + name

    def whole_params(self) -> dict[str, Any]:
        """The parameters of a whole model by the names of an ImageTextModel, where `vit` has no head."""
        vit = {name: value for name, value in self.params["vit"].items() if name != "head"}
        whole = {**self.params, "vit": vit}
        head = self.params["vit"].get("head")
        return whole | ({"image_proj": head} if head is not None else {})

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
    """The model of transformers that can represent it.

    clip, siglip, deit, vit, dinov3 with a rotation, or the most general one, dinov2.
    """
    if rotary(model) is not None:
        return "dinov3"
    if model.use_norm_pre:
        return "clip"
    if model.pooling == "map":
        return "siglip"
    is_plain = model.layer_scale_init is None and dims(model).mlp == "mlp" and not model.use_norm_after_pool
    if is_plain and is_distilled(model) and model.pooling in ("cls", "cls_registers"):
        return "deit"
    return "vit" if is_plain and not model.num_registers and model.pooling == "cls" else "dinov2"


def export(model: Model, params: Mapping[str, Any], target: str) -> Export:
    """The model rewritten for `target` (TARGETS). Raises CheckpointError if that is impossible."""
    lookup(dict.fromkeys(TARGETS), target, "to")
    key = f"transformers/{transformers_kind(model)}" if target == "transformers" else target
    if target == "timm" and rotary(model) is not None:
        key = eva.TIMM_ROPE if eva.counts_patches(model) else dinov3.TIMM_EVA
    draft = rewrite_for(key, model, jax.tree.map(np.asarray, dict(params)))
    names, has_two_heads = _names(key, draft), draft.model.pooling == "cls_registers"
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


def _names(key: str, draft: Draft) -> nt.TensorNames:
    if key == eva.TIMM_ROPE:
        return eva.eva_export_names(draft.model)
    if key in dinov3.REWRITES:
        return dinov3.dinov3_export_names(key, draft.model, draft.params)
    return nt.WRITTEN_NAMES[key]


def _prefix(key: str, model: Model) -> str:
    """The text before names in files of the family; transformers has it in models with a head only."""
    if key.startswith("transformers/") and not model.num_classes:
        return ""
    if key == "transformers/dinov2" and model.num_registers:
        return "dinov2_with_registers."
    return _PREFIXES.get(key, "")


def is_config_complete(e: Export) -> bool:
    """Whether the config.json of a folder determines all settings, for its library and for us."""
    if e.target == eva.TIMM_ROPE:
        return eva.has_usual_eps(e.model)
    if e.target == dinov3.TIMM_EVA:
        return e.model.norm_eps == 1e-5
    if e.target == "timm":
        has_scale = e.model.layer_scale_init is not None  # as in the only architecture with SwiGLU
        is_known = dims(e.model).mlp == "mlp" or (has_scale and not e.model.use_norm_pre)
        return is_known and e.model.norm_eps == (1e-5 if e.model.use_norm_pre else 1e-6)
    return e.target.startswith("transformers/")


def write(
    e: Export, path: str | Path, dtype: np.dtype, data: Data, class_names: Sequence[str] | None = None
) -> list[Path]:
    """Writes the files of an export and returns their paths: one file of tensors if `is_file`, else a folder.

    A folder has the configs and the preprocessing that the target's library reads, our preprocessing.json,
    and the names of classes. `data` has the preprocessing of images.
    """
    path, weights = Path(path).expanduser(), e.weights(dtype)
    is_folder = e.target.startswith("transformers/") or not is_file(path)
    config = None
    if is_folder:
        size = data.image_size or e.model.image_size
        config = _jsons(e, Preprocessing(data, size), np.dtype(dtype).name, class_names)
        path.mkdir(parents=True, exist_ok=True)
    file = path / _file_name(e) if is_folder else path
    if file.suffix == ".npz":
        write_npz(file, weights)
    else:
        write_safetensors(file, weights, {"format": "pt"})
    for name, values in (config or {}).items():
        (path / name).write_text(dumps(values) + "\n")
    return [file, *(path / name for name in config or {})]


def _file_name(e: Export) -> str:
    """The name of the file of tensors in a folder."""
    if e.target == "big_vision":
        return "model.npz"
    return "open_clip_model.safetensors" if e.target == "open_clip" and e.text else "model.safetensors"


def _jsons(
    e: Export, p: Preprocessing, dtype: str, class_names: Sequence[str] | None
) -> dict[str, dict[str, Any] | list[str]]:
    """The JSON files of a folder, by name."""
    files: dict[str, dict[str, Any] | list[str]] = {}
    if e.target.startswith("transformers/"):
        kind = e.target.split("/")[1]
        own = dinov3.transformers_values(e.model, e.params) if kind == "dinov3" else None
        config = transformers_config(e.model, kind, class_names, own)
        config = config if e.text is None else whole_transformers_config(config, e.text, kind)
        files["config.json"] = config | {"dtype": dtype}
        files["preprocessor_config.json"] = transformers_json(p, kind)
    elif e.target.partition("/")[0] == "timm":
        files["config.json"] = timm_config(e.model, p, class_names)
    elif e.target == "open_clip" and e.text is not None:
        files["open_clip_config.json"] = open_clip_config(e.model, e.text, p)
    if class_names and e.model.num_classes and e.target in _WITHOUT_NAMES:
        files[CLASS_NAMES_FILE] = list(class_names)
    return files | {PREPROCESSING_FILE: own_json(p)}
