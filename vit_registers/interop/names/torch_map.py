"""The tensor map of a model in the names of a torch family."""

import functools
from typing import TypeVar

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.names.dinov2_timm_clip import AttnPoolNames, TorchNames
from vit_registers.interop.tensor_map import (
    TensorRule,
    conv,
    dense,
    fixed,
    joined,
    joint_bias,
    joint_dense,
    masked_bias,
    mean_heads,
    of_all_blocks,
    query_value_bias,
    same,
    split_bias,
)
from vit_registers.models.blocks import dims, rotary
from vit_registers.models.paths import Leaf
from vit_registers.models.pooling import pool_dims, pooled_width
from vit_registers.models.positions import position_rule
from vit_registers.models.vit import token_layout

T = TypeVar("T")


def torch_linear(
    leaf: Leaf, names: tuple[str, ...], *, inputs: int, has_bias: bool = True
) -> list[TensorRule]:
    """The rules of a dense layer. Names contain {} instead of "weight" or "bias"."""
    kernel = dense((*leaf, "kernel"), tuple(n.format("weight") for n in names), inputs=inputs)
    bias = split_bias((*leaf, "bias"), tuple(n.format("bias") for n in names))
    return [kernel, bias] if has_bias else [kernel]


def torch_norm(leaf: Leaf, name: str) -> list[TensorRule]:
    """The rules of a LayerNorm."""
    return [same((*leaf, "scale"), name.format("weight")), same((*leaf, "bias"), name.format("bias"))]


def _require(name: T | None, what: str, source: str) -> T:
    if name is None:
        raise CheckpointError(f"'{source}' checkpoints have no place for {what}")
    return name


def _tokens(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    rules: list[TensorRule] = []
    if model.use_cls:
        rules.append(same(("cls_token",), names.cls, lead=names.cls_axes))
    if model.num_registers and model.registers == "learned":
        name = _require(names.registers, "registers", source)
        rules.append(same(("registers",), name, lead=3))
    if model.use_mask_token:
        name = _require(names.mask_token, "a mask token", source)
        rules.append(same(("mask_token",), name, lead=names.mask_token_axes))
    if position_rule(model.positions).is_learned:
        rows: list[Leaf] = []
        if model.use_cls and model.has_cls_position:
            rows.append(("cls_pos",))
        if model.extra_positions == "learned":
            rows.append(("extra_pos",))
        rules.append(joined((*rows, ("pos_embed",)), names.positions, lead=names.position_axes))
    return rules


def torch_block(names: TorchNames, model: Model, i: int, source: str) -> list[TensorRule]:
    """The rules of block `i` of a model. Raises CheckpointError if the family `source` lacks a part of it."""
    sizes, leaf = dims(model), ("blocks", i)
    width, prefix = sizes.width, names.block.format(i)
    at = lambda name: prefix + name  # noqa: E731
    rules = [
        *torch_norm((*leaf, "norm1"), at(names.norm1)),
        *torch_linear(
            (*leaf, "attn", "qkv"),
            tuple(map(at, names.qkv)),
            inputs=width,
            has_bias=model.use_qkv_bias and not (names.qv_bias or names.bias_mask),
        ),
        *torch_linear((*leaf, "attn", "out"), (at(names.out),), inputs=width),
        *torch_norm((*leaf, "norm2"), at(names.norm2)),
    ]
    if model.use_qkv_bias and names.qv_bias is not None:
        query, value = map(at, names.qv_bias)
        rules.append(query_value_bias((*leaf, "attn", "qkv", "bias"), (query, value)))
    if model.use_qkv_bias and names.bias_mask is not None:
        bias = at(names.qkv[0].format("bias"))
        rules.append(masked_bias((*leaf, "attn", "qkv", "bias"), (bias, at(names.bias_mask))))
    inner = {"attn": names.attention_norm if model.use_attention_norm else ""}
    inner |= {"mlp": names.mlp_norm if model.use_mlp_norm else ""}
    for branch, name in inner.items():
        if name != "":
            name = _require(name, "norms inside a branch", source)
            rules += torch_norm((*leaf, branch, "norm"), at(name))
    if model.layer_scale_init is not None:
        gammas = _require(names.layer_scale, "LayerScale", source)
        rules += [same((*leaf, f"ls{j}", "gamma"), at(gammas[j - 1])) for j in (1, 2)]
    if sizes.mlp == "swiglu":
        rules += torch_linear((*leaf, "mlp", "w12"), tuple(map(at, names.w12)), inputs=width)
        rules += torch_linear((*leaf, "mlp", "w3"), (at(names.w3),), inputs=sizes.mlp_dim)
    else:
        rules += torch_linear((*leaf, "mlp", "fc1"), (at(names.fc1),), inputs=width)
        rules += torch_linear((*leaf, "mlp", "fc2"), (at(names.fc2),), inputs=sizes.mlp_dim)
    return rules


def _map_pool(names: AttnPoolNames, model: Model) -> list[TensorRule]:
    sizes = pool_dims(model, dims(model))
    linear = functools.partial(torch_linear, inputs=sizes.width)
    leaves: tuple[Leaf, ...] = (("map_pool", "q"), ("map_pool", "kv"))
    if len(names.qkv) == 1:
        (name,) = names.qkv
        kernels, biases = (tuple((*leaf, part) for leaf in leaves) for part in ("kernel", "bias"))
        qkv = [
            joint_dense(kernels, name.format("weight"), inputs=sizes.width),
            joint_bias(biases, name.format("bias")),
        ]
    else:
        qkv = [rule for leaf, name in zip(leaves, names.qkv, strict=True) for rule in linear(leaf, (name,))]
    return [
        same(("map_pool", "probe"), names.probe),
        *qkv,
        *linear(("map_pool", "out"), (names.out,)),
        *torch_norm(("map_pool", "norm"), names.norm),
        *linear(("map_pool", "mlp", "fc1"), (names.fc1,)),
        *torch_linear(("map_pool", "mlp", "fc2"), (names.fc2,), inputs=sizes.mlp_dim),
    ]


def _head(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    rules: list[TensorRule] = []
    inputs = pooled_width(model)
    if model.use_pre_logits:
        name = _require(names.pre_logits, "a layer before the head (pre-logits)", source)
        rules += torch_linear(("pre_logits",), (name,), inputs=inputs)
        inputs = dims(model).width
    if not model.use_head_bias:
        projection = _require(names.projection, "a head without bias", source)
        leaf = ("head", "kernel")
        is_ours = "{}" not in projection
        name = projection.format("weight")
        return [*rules, same(leaf, name) if is_ours else dense(leaf, (name,), inputs=inputs)]
    heads = _require(names.head, "a classifier", source)
    if len(heads) == 1:
        return rules + torch_linear(("head",), heads, inputs=inputs)
    for part, suffix in (("kernel", "weight"), ("bias", "bias")):
        rules.append(mean_heads(("head", part), tuple(name.format(suffix) for name in heads)))
    return rules


def _rotation(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    rule = rotary(model)
    if rule is not None and rule.is_learned:
        name = _require(names.frequencies, "learned frequencies of rotary positions", source)
        leaves: list[Leaf] = [("blocks", i, "attn", "frequencies") for i in range(dims(model).depth)]
        return [of_all_blocks(tuple(leaves), name, axis=1)]
    if rule is not None and names.periods is not None:
        return [fixed(names.periods, rule.periods)]
    if rule is None or names.rotary_tables is None:
        return []
    layout = token_layout(model)
    rotation = rule.at(layout)
    tables = (np.asarray(part)[layout.patches] for part in (rotation.cos_TxA, rotation.sin_TxA))
    return [
        fixed(name, table.repeat(2, axis=1)) for name, table in zip(names.rotary_tables, tables, strict=True)
    ]


def torch_map(names: TorchNames, model: Model, source: str) -> list[TensorRule]:
    """The rules for all parameters of a model. Raises CheckpointError if the family lacks a part of it."""
    patch = [conv(("patch_embed", "kernel"), names.patch.format("weight"))]
    if model.use_patch_bias:
        patch.append(same(("patch_embed", "bias"), names.patch.format("bias")))
    rules = patch + _tokens(names, model, source)
    if model.use_norm_pre:
        name = _require(names.norm_pre, "a norm before the first block", source)
        rules += torch_norm(("norm_pre",), name)
    depth = dims(model).depth
    for i in range(depth):
        rules += torch_block(names, model, i, source)
    rules += _rotation(names, model, source)
    if model.use_final_norm:
        norm = names.norm_after_pool if model.use_norm_after_pool else names.norm
        rules += torch_norm(("norm",), _require(norm, "a norm after pooling", source))
    if model.pooling == "map":
        rules += _map_pool(_require(names.attn_pool, "attention pooling", source), model)
    if model.num_classes:
        rules += _head(names, model, source)
    return rules
