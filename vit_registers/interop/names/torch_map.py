"""From names and a model to the name table, for the families that come from torch."""

import functools

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.names.torch import TorchNames
from vit_registers.interop.tensor_map import TensorRule, conv, dense, joined, mean_heads, same, split_bias
from vit_registers.models.blocks import dims
from vit_registers.models.paths import Leaf
from vit_registers.models.pooling import pooled_width


def _linear(leaf: Leaf, names: tuple[str, ...], *, inputs: int, has_bias: bool = True) -> list[TensorRule]:
    kernel = dense((*leaf, "kernel"), tuple(n.format("weight") for n in names), inputs=inputs)
    bias = split_bias((*leaf, "bias"), tuple(n.format("bias") for n in names))
    return [kernel, bias] if has_bias else [kernel]


def _norm(leaf: Leaf, name: str) -> list[TensorRule]:
    return [same((*leaf, "scale"), name.format("weight")), same((*leaf, "bias"), name.format("bias"))]


def _need(name: object, what: str, source: str) -> None:
    if name is None:
        raise CheckpointError(f"'{source}' checkpoints have no place for {what}")


def _tokens(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    entries: list[TensorRule] = []
    if model.use_cls:
        entries.append(same(("cls_token",), names.cls, lead=names.cls_axes))
    if model.num_registers and model.registers == "learned":
        _need(names.registers, "registers", source)
        entries.append(same(("registers",), names.registers, lead=names.register_axes))
    if model.use_mask_token:
        _need(names.mask_token, "a mask token", source)
        entries.append(same(("mask_token",), names.mask_token, lead=names.mask_token_axes))
    if model.positions == "learned":
        rows: list[Leaf] = []
        if model.use_cls and model.has_cls_position:
            rows.append(("cls_pos",))
        if model.extra_positions == "learned":
            rows.append(("extra_pos",))
        entries.append(joined((*rows, ("pos_embed",)), names.positions, lead=names.position_axes))
    return entries


def _block(names: TorchNames, model: Model, i: int, source: str) -> list[TensorRule]:
    sizes, leaf = dims(model), ("blocks", i)
    width, prefix = sizes.width, names.block.format(i)
    at = lambda name: prefix + name  # noqa: E731 - short for what every line below needs
    entries = [
        *_norm((*leaf, "norm1"), at(names.norm1)),
        *_linear(
            (*leaf, "attn", "qkv"),
            tuple(map(at, names.qkv)),
            inputs=width,
            has_bias=model.use_qkv_bias,
        ),
        *_linear((*leaf, "attn", "out"), (at(names.out),), inputs=width),
        *_norm((*leaf, "norm2"), at(names.norm2)),
    ]
    if model.layer_scale_init is not None:
        _need(names.layer_scale, "LayerScale", source)
        entries += [same((*leaf, f"ls{j}", "gamma"), at(names.layer_scale[j - 1])) for j in (1, 2)]
    if sizes.mlp == "swiglu":
        entries += _linear((*leaf, "mlp", "w12"), tuple(map(at, names.w12)), inputs=width)
        entries += _linear((*leaf, "mlp", "w3"), (at(names.w3),), inputs=sizes.mlp_dim)
    else:
        entries += _linear((*leaf, "mlp", "fc1"), (at(names.fc1),), inputs=width)
        entries += _linear((*leaf, "mlp", "fc2"), (at(names.fc2),), inputs=sizes.mlp_dim)
    return entries


def _map_pool(prefix: str, model: Model) -> list[TensorRule]:
    sizes = dims(model)
    linear = functools.partial(_linear, inputs=sizes.width)
    return [
        same(("map_pool", "probe"), prefix + "latent"),
        *linear(("map_pool", "q"), (prefix + "q.{}",)),
        *linear(("map_pool", "kv"), (prefix + "kv.{}",)),
        *linear(("map_pool", "out"), (prefix + "proj.{}",)),
        *_norm(("map_pool", "norm"), prefix + "norm.{}"),
        *linear(("map_pool", "mlp", "fc1"), (prefix + "mlp.fc1.{}",)),
        *_linear(("map_pool", "mlp", "fc2"), (prefix + "mlp.fc2.{}",), inputs=sizes.mlp_dim),
    ]


def _head(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    entries: list[TensorRule] = []
    inputs = pooled_width(model)
    if model.use_pre_logits:
        _need(names.pre_logits, "a layer before the head (pre-logits)", source)
        entries += _linear(("pre_logits",), (names.pre_logits,), inputs=inputs)
        inputs = dims(model).width
    if not model.use_head_bias:
        _need(names.projection, "a head without bias", source)
        leaf = ("head", "kernel")
        is_ours = "{}" not in names.projection
        name = names.projection.format("weight")
        return [*entries, same(leaf, name) if is_ours else dense(leaf, (name,), inputs=inputs)]
    _need(names.head, "a classifier", source)
    if len(names.head) == 1:
        return entries + _linear(("head",), names.head, inputs=inputs)
    for part, theirs in (("kernel", "weight"), ("bias", "bias")):
        entries.append(mean_heads(("head", part), tuple(n.format(theirs) for n in names.head)))
    return entries


def torch_map(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    """The entries of a model. Raises CheckpointError where the family cannot hold what the model has."""
    patch = [conv(("patch_embed", "kernel"), names.patch.format("weight"))]
    if model.use_patch_bias:
        patch.append(same(("patch_embed", "bias"), names.patch.format("bias")))
    entries = patch + _tokens(names, model, source)
    if model.use_norm_pre:
        _need(names.norm_pre, "a norm before the first block", source)
        entries += _norm(("norm_pre",), names.norm_pre)
    for i in range(dims(model).depth):
        entries += _block(names, model, i, source)
    norm = names.norm_after_pool if model.use_norm_after_pool else names.norm
    _need(norm, "a norm after pooling", source)
    entries += _norm(("norm",), norm)
    if model.pooling == "map":
        _need(names.attn_pool, "attention pooling", source)
        entries += _map_pool(names.attn_pool, model)
    if model.num_classes:
        entries += _head(names, model, source)
    return entries
