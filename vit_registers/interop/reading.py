"""Loads checkpoints of other code bases: recognizes the family, infers the Model, checks all names."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers.config import Model
from vit_registers.errors import CheckpointError, UserError
from vit_registers.interop import containers
from vit_registers.interop.agreement import check_agreement, check_types
from vit_registers.interop.architectures import check_architecture, check_told
from vit_registers.interop.channels import adapt_kernel, check_channels
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints, make_hints
from vit_registers.interop.infer import infer_model
from vit_registers.interop.names.big_vision import big_vision_map, infer_big_vision
from vit_registers.interop.names.dinov2_timm_clip import BigVisionNames, MupVitNames, TensorNames
from vit_registers.interop.names.mup_vit import assumed, infer_mup_vit, mup_vit_map
from vit_registers.interop.names.radio import RadioNames
from vit_registers.interop.names.torch_map import torch_map
from vit_registers.interop.opened import OpenedWeights, describe_weights
from vit_registers.interop.radio import describe_radio, infer_radio, radio_map
from vit_registers.interop.recognize import RecognizedWeights, recognize
from vit_registers.interop.settings import read_settings, with_architecture
from vit_registers.interop.tensor_map import TensorRule, contiguous
from vit_registers.interop.unwrap import NEEDED, is_matched
from vit_registers.interop.values import as_float32, is_floating, refuse_quantised
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import Leaf, leaf_of, leaves_of
from vit_registers.models.resampling import resample
from vit_registers.models.tokens import patch_grid
from vit_registers.models.vit import ViT

HEAD = ("head", "pre_logits", "map_pool")
OPTIONAL = (*HEAD, "mask_token")  # a model can be loaded without these
PATCH_KERNEL = ("patch_embed", "kernel")


def tensor_map_of(names: TensorNames, model: Model, source: str) -> list[TensorRule]:
    """The tensor map of a model in the names of a family. Raises CheckpointError; see names/torch_map.py."""
    if isinstance(names, BigVisionNames):
        return big_vision_map(names, model)
    if isinstance(names, MupVitNames):
        return mup_vit_map(names, model)
    if isinstance(names, RadioNames):
        return radio_map(names, model)
    return torch_map(names, model, source)


def _infer(found: RecognizedWeights) -> Model:
    names = found.names
    try:
        if isinstance(names, BigVisionNames):
            return infer_big_vision(names, found)
        if isinstance(names, MupVitNames):
            return infer_mup_vit(names, found)
        if isinstance(names, RadioNames):
            return infer_radio(names, found)
        return infer_model(names, found)
    except (IndexError, ZeroDivisionError) as error:
        shapes = found.weights.shapes
        odd = [f": '{found.in_file(n)}' is {shape}" for n, shape in shapes.items() if math.prod(shape) < 2]
        raise CheckpointError(
            f"{found.weights.where} was read as '{found.source}', and a tensor has an impossible shape"
            + "".join(odd[:1])
        ) from error


def understand(
    weights: Weights, *, source: str, hints: Hints, settings: Mapping[str, Any] | None = None
) -> OpenedWeights:
    """The family, the Model and the tensor map of a checkpoint. Only small fixed tensors are read.

    Raises CheckpointError if the family is unknown, if neither tensors, `settings` nor `hints` determine the
    model, or with a list of all tensors that are missing, superfluous or of another shape.
    """
    settings = with_architecture(settings or {}, hints.architecture, weights.where)
    check_architecture(weights.where, settings)
    check_types(weights.where, settings)
    found = recognize(weights, source=source, settings=settings, hints=hints)
    dtypes = found.weights.dtypes
    values = {found.in_file(name): dtypes[name] for name in dtypes if name != found.names.mask}
    refuse_quantised(values, weights.where)  # except a stored mask, which may be boolean
    if hints.leave_out:
        _check_left_out(found, weights, source)
    if not settings:
        check_told(weights.where, found.source, found.weights.shapes, hints)
    native = _infer(found)
    if isinstance(found.names, MupVitNames):
        found = dataclasses.replace(found, note=assumed(found.names, found, native))
    if isinstance(found.names, RadioNames):
        note = "; ".join(filter(None, (found.note, describe_radio(found))))
        found = dataclasses.replace(found, note=note)
    check_agreement(weights.where, settings, native, hints)
    tensor_map = tensor_map_of(found.names, native, found.source)
    leaves = leaves_of(abstract_model(native)[1])
    check_tensor_names(found.weights, leaves, tensor_map, in_file=found.in_file, source=found.source)
    model = native
    if hints.channels is not None:
        check_channels(native.channels, hints.channels, weights.where)
        model = dataclasses.replace(model, channels=hints.channels)
    image_size = hints.image_size or settings.get("preferred_size")  # the latter of RADIO's config.json
    if image_size is not None and image_size != native.image_size:
        if native.summary_factor:
            raise CheckpointError(
                f"{weights.where} has summaries for images of {native.image_size} px: load it at that size, "
                "and call the model with images of another"
            )
        patch_grid(image_size, native.patch_size)
        model = dataclasses.replace(model, image_size=image_size)
    return OpenedWeights(found=found, native=native, model=model, tensor_map=tuple(tensor_map))


def _check_left_out(found: RecognizedWeights, weights: Weights, source: str) -> None:
    """Raises CheckpointError if leave_out matches tensors other than heads and the mask token."""
    try:
        hints = dataclasses.replace(found.hints, leave_out=())
        whole = recognize(weights, source=source, settings=found.settings, hints=hints)
        tensor_map = tensor_map_of(whole.names, _infer(whole), whole.source)
    except UserError:  # such as several networks, of which leave_out selects one
        return
    needed = [
        name
        for rule in tensor_map
        if not rule.leaves or any(leaf[0] not in OPTIONAL for leaf in rule.leaves)
        for name in rule.names
    ]
    if taken := [name for name in needed if name in whole.file_names and name not in found.weights]:
        name, others = whole.file_names[taken[0]], len(taken) - 1
        raise CheckpointError(
            f"{weights.where}: {found.left_out[name]} takes '{name}'"
            + (f" and {others} more" if others else "")
            + f", {NEEDED}"
        )


def check_tensor_names(
    weights: Weights,
    leaves: Mapping[Leaf, Any],
    tensor_map: Sequence[TensorRule],
    *,
    in_file: Callable[[str], str],
    source: str,
) -> None:
    """Raises CheckpointError with every tensor that is missing, has no place, or has another shape.

    `weights` are by the names of `tensor_map`, which has a rule for each of `leaves`, arrays or shapes.
    Tensors without a number, such as the registers of transformers' models without any, require no place.
    """
    covered = [leaf for rule in tensor_map for leaf in rule.leaves]
    assert sorted(map(str, covered)) == sorted(map(str, leaves)), "a leaf without a rule, or with two"
    there, dtypes, problems, known = weights.shapes, weights.dtypes, [], set()
    for rule in tensor_map:
        shapes = rule.shapes([leaves[leaf].shape for leaf in rule.leaves])
        for name, shape in zip(rule.names, shapes, strict=True):
            known.add(name)
            if name not in there:
                problems.append(f"'{in_file(name)}' {tuple(shape)} is missing")
            elif rule.leaves and not is_floating(dtypes[name]):
                problems.append(f"'{in_file(name)}' is {dtypes[name].name}, not floating point")
            elif tuple(there[name]) != tuple(shape):
                problems.append(f"'{in_file(name)}' is {tuple(there[name])}, not {tuple(shape)}")
    extra = [name for name, shape in there.items() if name not in known and math.prod(shape)]
    problems += [f"'{in_file(name)}' {tuple(there[name])} has no place" for name in extra]
    if problems:
        advice = ""
        if extra:
            pattern = re.sub(r"[^./]+$", "*", in_file(extra[0]))
            advice = f". Leave out tensors that have no place, with leave_out=['{pattern}']"
        raise CheckpointError(
            f"{weights.where} was read as '{source}', and {len(problems)} tensors do not fit: "
            + "; ".join(problems)
            + advice
        )


def iter_leaves(opened: OpenedWeights) -> Iterator[tuple[Leaf, np.ndarray]]:
    """The parameters of `opened.model` by path, float32, read tensor by tensor."""
    _, abstract = abstract_model(opened.native)
    shapes = {leaf: value.shape for leaf, value in leaves_of(abstract).items()}
    source, target = (patch_grid(m.image_size, m.patch_size) for m in (opened.native, opened.model))
    for rule in opened.tensor_map:
        arrays = [_read(opened.found, name, is_fixed=not rule.leaves) for name in rule.names]
        parts = rule.load(arrays, [shapes[leaf] for leaf in rule.leaves])
        for leaf, part in zip(rule.leaves, parts, strict=True):
            if leaf == ("pos_embed",):
                part = np.asarray(resample(part[0], source, target, opened.model.position_resampling))[None]
            if leaf == PATCH_KERNEL:
                part = adapt_kernel(part, opened.model.channels)
            # A copy, so that no leaf keeps a tensor of several leaves in memory.
            yield leaf, contiguous(part, np.dtype(np.float32))


def _read(found: RecognizedWeights, name: str, *, is_fixed: bool) -> np.ndarray:
    """The tensor in float32. A fixed one keeps its dtype, and may hold infinities."""
    array = found.weights[name]
    return np.asarray(array) if is_fixed else as_float32(array, found.in_file(name), found.weights.where)


def read_leaves(opened: OpenedWeights) -> dict:
    """The parameters of `opened.model` as nested dicts of float32 jax arrays."""
    # One by one: a second copy of the model would need twice the memory.
    leaves = {leaf: jnp.asarray(value) for leaf, value in iter_leaves(opened)}
    _, abstract = abstract_model(opened.model)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[leaf_of(path)], abstract)


def load_opened(opened: OpenedWeights) -> ViT:
    """The model of an opened checkpoint, with its parameters."""
    return nnx.merge(abstract_model(opened.model)[0], read_leaves(opened))


def from_state_dict(
    state: Mapping[str, Any],
    *,
    source: str,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    hidden_act: str | None = None,
    interpolation: str | None = None,
    pooling: str | None = None,
    mask: str | None = None,
    architecture: str | None = None,
    params: str | None = None,
    leave_out: str | Sequence[str] = (),
    channels: int | None = None,
) -> ViT:
    """The model of a mapping of tensor names to numpy arrays.

    `source` is the family of the names (interop.SOURCES, or "auto"). The other arguments are those of
    `vit_registers.load`; the effect of `params`, `leave_out` and `channels` is printed. Values of names that
    `leave_out` matches need not be arrays. Raises CheckpointError with all tensors that do not fit the model.
    """
    hints = make_hints(
        image_size, num_heads, hidden_act, interpolation, pooling, mask, architecture, leave_out, channels
    )
    hints = dataclasses.replace(hints, params=params)
    state = dict(state)
    for name, value in state.items():
        if not hasattr(value, "__array__") and any(is_matched(name, text) for text in hints.leave_out):
            state[name] = np.zeros(0, np.float32)
    opened = understand(containers.from_arrays(state), source=source, hints=hints)
    if params is not None or hints.leave_out or channels is not None:
        print(describe_weights(opened), flush=True)
    return load_opened(opened)


def open_path(path: str | Path, *, source: str, hints: Hints) -> OpenedWeights:
    """The checkpoint of a file or folder, with the config.json beside it. Raises CheckpointError."""
    path = Path(path).expanduser()
    weights = containers.open_weights(path)
    return understand(weights, source=source, hints=hints, settings=read_settings(path))
