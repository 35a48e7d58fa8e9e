"""The projection heads in training checkpoints of DINOv2, DINO and iBOT: their tensors, and their parameters.

A head lies beside the backbone of its copy: teacher.backbone.*, teacher.dino_head.*, teacher.ibot_head.*. It
is three linear layers mlp.0, mlp.2 and mlp.4, and the weight-normed last_layer with weight_g and weight_v.
Leaves are those of objectives/self_distillation/heads.py, below the name of the module.
"""

import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from vit_registers.errors import CheckpointError
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.values import as_float32
from vit_registers.models.paths import Leaf, path_text

# The settings that errors name.
_MODULES_OF_RUN = "objective.self_distillation.has_ibot_head"
_SIZES = "objective.self_distillation (head_hidden, head_bottleneck, num_prototypes, ...)"
_TEXT_MODULES = "objective.image_text.loss or has_image_projection"
_LAYERS = {"mlp.0": 0, "mlp.2": 1, "mlp.4": 2}
_MODULES = {"dino_head": "dino_head", "ibot_head": "ibot_head", "head": "dino_head"}  # head: DINO and iBOT
# torch's weight_norm, and its parametrisation of 2.0 on.
_G = ("last_layer.weight_g", "last_layer.parametrizations.weight.original0")
_V = ("last_layer.weight_v", "last_layer.parametrizations.weight.original1")


def head_names(names: Collection[str], backbone: str) -> dict[Leaf, str]:
    """{leaf: name in the file} of the heads beside a backbone with that prefix, such as teacher.backbone.

    Raises CheckpointError for a tensor of a head that has no place, such as those of a fourth layer.
    """
    within = _names_below(names, backbone)
    return within or _names_below(names, re.sub(r"[^.]+\.$", "", backbone))


def _names_below(names: Iterable[str], root: str) -> dict[Leaf, str]:
    found: dict[Leaf, str] = {}
    for name in names:
        module, _, inner = name.removeprefix(root).partition(".")
        if not name.startswith(root) or module not in _MODULES or not inner.startswith(("mlp", "last_")):
            continue
        if inner.startswith(("last_layer2.", "mlp2.")):  # of iBOT, for patches, where they are not shared
            continue
        if (leaf := _leaf(inner)) is None:
            raise CheckpointError(
                f"'{name}' has no place in a projection head, which has mlp.0, mlp.2, mlp.4 and "
                "last_layer.weight_g and weight_v: set init_from.keep_head=False, and heads are initialised"
            )
        found[(_MODULES[module], *leaf)] = name
    return found


def _leaf(name: str) -> Leaf | None:
    layer, _, part = name.rpartition(".")
    if layer in _LAYERS and part in ("weight", "bias"):
        return ("mlp", _LAYERS[layer], "kernel" if part == "weight" else "bias")
    return ("last_layer", "g") if name in _G else ("last_layer", "v") if name in _V else None


def head_leaves(opened: OpenedWeights) -> dict[Leaf, np.ndarray]:
    """The heads beside the backbone that is read, float32, by leaf: ("dino_head", "mlp", 0, "kernel").

    Kernels and v are transposed, as torch has outputs first; g loses its axis of size 1. Empty without heads.
    """
    found = opened.found
    names = head_names(found.file.shapes, found.prefix)
    tensors = {leaf: as_float32(found.file[name], name, found.file.where) for leaf, name in names.items()}
    return {leaf: _oriented(leaf, value) for leaf, value in tensors.items()}


def _oriented(leaf: Leaf, value: np.ndarray) -> np.ndarray:
    return value.reshape(-1) if leaf[-1] == "g" else np.ascontiguousarray(value.T)


def check_heads(
    there: Mapping[Leaf, np.ndarray], here: Mapping[Leaf, tuple[int, ...]], where: str
) -> dict[Leaf, np.ndarray]:
    """The heads `there`. Raises CheckpointError unless they have the leaves and shapes of `here`."""
    advice = "or set init_from.keep_head=False, and heads are initialised"
    has_texts = any(leaf[0] == "text" for leaf in here)
    modules, expected = (sorted({str(leaf[0]) for leaf in leaves}) for leaves in (there, here))
    if modules != expected:
        found, wanted = (", ".join(names) or "no projection head" for names in (modules, expected))
        raise CheckpointError(
            f"{where} has {found}, and the run has {wanted}: "
            f"change {_TEXT_MODULES if has_texts else _MODULES_OF_RUN}, {advice}"
        )
    if missing := [leaf for leaf in here if leaf not in there]:
        raise CheckpointError(f"{where} lacks a part of {missing[0][0]}: {path_text(missing[0])}; {advice}")
    differing = [
        f"{path_text(leaf)} is {there[leaf].shape} there and {shape} here"
        for leaf, shape in here.items()
        if there[leaf].shape != shape
    ]
    if differing:
        raise CheckpointError(
            f"the heads of {where} have other sizes: {'; '.join(differing)}: change "
            f"{'the settings of text' if has_texts else _SIZES}, {advice}"
        )
    return dict(there)
