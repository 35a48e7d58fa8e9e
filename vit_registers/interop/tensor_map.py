"""Rules that map parameters of this project to tensors of another code base, in both directions.

A tensor map is a list of rules that has every parameter of a model once. Leaves are those of models/paths.py.
All rules are exact in both directions unless their docstring says otherwise.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_registers.errors import CheckpointError
from vit_registers.models.paths import Leaf, path_text

Shape = tuple[int, ...]
Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """Leaves of this project that hold the same numbers as named tensors of another code base."""

    leaves: tuple[Leaf, ...]
    names: tuple[str, ...]
    load: Callable[[Arrays, Sequence[Shape]], Arrays]  # (tensors, shapes of the leaves) -> leaves
    dump: Callable[[Arrays], Arrays]  # leaves -> tensors

    def shapes(self, leaf_shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the named tensors. No memory of their size is allocated."""
        return [a.shape for a in self.dump([np.broadcast_to(np.float32(0), s) for s in leaf_shapes])]


def contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in C order. Transposed matrices are copied block by block, which is six times as fast."""
    if array.ndim > 1 and not array.flags.c_contiguous:
        for shape in ((array.shape[0], -1), (-1, array.shape[-1])):
            with contextlib.suppress(ValueError):  # joining these axes would need a copy
                source = array.reshape(shape, copy=False)
                copy = np.empty(source.shape, dtype)
                for i in range(0, source.shape[1], 64):
                    copy[:, i : i + 64] = source[:, i : i + 64]
                return copy.reshape(array.shape)
    return np.array(array, dtype, order="C")


def same(leaf: Leaf, name: str, *, lead: int | None = None) -> TensorRule:
    """The same numbers. With `lead`, the tensor has only the last `lead` axes; the others have size 1."""

    def dump(leaves: Arrays) -> Arrays:
        array = leaves[0]
        return [array if lead is None else array.reshape(array.shape[array.ndim - lead :])]

    return TensorRule((leaf,), (name,), lambda arrays, shapes: [arrays[0].reshape(shapes[0])], dump)


def conv(leaf: Leaf, name: str) -> TensorRule:
    """A convolution kernel: the leaf is HWIO, the tensor OIHW."""
    return TensorRule(
        (leaf,),
        (name,),
        lambda arrays, shapes: [arrays[0].transpose(2, 3, 1, 0)],
        lambda leaves: [leaves[0].transpose(3, 2, 0, 1)],
    )


def dense(leaf: Leaf, names: tuple[str, ...], *, inputs: int) -> TensorRule:
    """A dense kernel: the leaf is [inputs..., outputs...], the tensors [outputs / count, inputs] each.

    A fused kernel of q, k and v has one name, separate ones have three.
    """
    count = len(names)

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        return [(arrays[0] if count == 1 else np.concatenate(arrays)).T.reshape(shapes[0])]

    def dump(leaves: Arrays) -> Arrays:
        parts = leaves[0].reshape(inputs, count, -1)
        return [parts[:, i].T for i in range(count)]

    return TensorRule((leaf,), names, load, dump)


def split_bias(leaf: Leaf, names: tuple[str, ...]) -> TensorRule:
    """A bias in one or more tensors of equal size, each with one axis."""

    def dump(leaves: Arrays) -> Arrays:
        return list(leaves[0].reshape(len(names), -1))

    return TensorRule(
        (leaf,), names, lambda arrays, shapes: [np.concatenate(arrays).reshape(shapes[0])], dump
    )


def query_value_bias(leaf: Leaf, names: tuple[str, str]) -> TensorRule:
    """A bias [3, ...] of queries, keys and values, of which the file has those of queries and values.

    That of keys is 0. Export raises CheckpointError if it is not.
    """

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        query, value = (array.reshape(shapes[0][1:]) for array in arrays)
        return [np.stack([query, np.zeros_like(query), value])]

    def dump(leaves: Arrays) -> Arrays:
        query, key, value = (part.reshape(-1) for part in leaves[0])
        if key.any():
            raise CheckpointError(f"{path_text(leaf)} has a bias of keys, which the format lacks")
        return [query, value]

    return TensorRule((leaf,), names, load, dump)


def masked_bias(leaf: Leaf, names: tuple[str, str]) -> TensorRule:
    """A bias [3, ...] of queries, keys and values, and a tensor that it is multiplied by.

    The file has 0 in the latter for keys, and 1 for the others. Import multiplies both. Export raises
    CheckpointError if the bias of keys is not 0.
    """

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        bias, mask = arrays
        if not np.isin(mask, (0, 1)).all():
            raise CheckpointError(f"tensor '{names[1]}' is a mask: must have numbers 0 and 1 only")
        return [np.where(mask != 0, bias, np.zeros_like(bias)).reshape(shapes[0])]

    def dump(leaves: Arrays) -> Arrays:
        if leaves[0][1].any():
            raise CheckpointError(f"{path_text(leaf)} has a bias of keys, which the format lacks")
        mask = np.ones_like(leaves[0])
        mask[1] = 0
        return [leaves[0].reshape(-1), mask.reshape(-1)]

    return TensorRule((leaf,), names, load, dump)


def of_all_blocks(leaves: tuple[Leaf, ...], name: str, *, axis: int) -> TensorRule:
    """Leaves of all blocks that are slices along `axis` of one tensor."""
    return TensorRule(
        leaves,
        (name,),
        lambda arrays, shapes: [arrays[0].take(i, axis=axis) for i in range(len(leaves))],
        lambda parts: [np.stack(parts, axis=axis)],
    )


def joint_dense(leaves: tuple[Leaf, ...], name: str, *, inputs: int) -> TensorRule:
    """Dense kernels [inputs, outputs...] whose outputs are concatenated in one tensor [outputs, inputs]."""

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        ends = np.cumsum([math.prod(shape[1:]) for shape in shapes])[:-1]
        parts = np.split(arrays[0].T, ends, axis=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def dump(kernels: Arrays) -> Arrays:
        return [np.concatenate([kernel.reshape(inputs, -1) for kernel in kernels], axis=1).T]

    return TensorRule(leaves, (name,), load, dump)


def joint_bias(leaves: tuple[Leaf, ...], name: str) -> TensorRule:
    """Biases that are concatenated in one tensor with one axis."""

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        parts = np.split(arrays[0], np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return TensorRule(
        leaves, (name,), load, lambda biases: [np.concatenate([bias.reshape(-1) for bias in biases])]
    )


def sliced(leaf: Leaf, names: tuple[str, ...], *, axis: int) -> TensorRule:
    """A leaf whose slices along `axis` are separate tensors."""
    return TensorRule(
        (leaf,),
        names,
        lambda arrays, shapes: [np.stack(arrays, axis=axis)],
        lambda leaves: [leaves[0].take(i, axis=axis) for i in range(len(names))],
    )


def joined(leaves: tuple[Leaf, ...], name: str, *, lead: int = 3) -> TensorRule:
    """Leaves [1, rows, width] whose rows are concatenated in one tensor of `lead` axes."""

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        rows = arrays[0].reshape(1, -1, arrays[0].shape[-1])
        return np.split(rows, np.cumsum([shape[1] for shape in shapes])[:-1], axis=1)

    def dump(tables: Arrays) -> Arrays:
        table = np.concatenate(tables, axis=1)
        return [table.reshape(table.shape[3 - lead :])]

    return TensorRule(leaves, (name,), load, dump)


def mean_heads(leaf: Leaf, names: tuple[str, ...]) -> TensorRule:
    """Two heads whose logits are averaged, as one head on both vectors concatenated.

    Kernels are halved, which is exact. Biases are averaged; on export both heads get the mean, with equal
    logits.
    """
    if leaf[-1] == "bias":
        return TensorRule(
            (leaf,),
            names,
            lambda arrays, shapes: [(arrays[0] + arrays[1]) / 2],
            lambda leaves: [leaves[0]] * 2,
        )
    return TensorRule(
        (leaf,),
        names,
        lambda arrays, shapes: [np.concatenate([array.T for array in arrays]) / 2],
        lambda leaves: [half.T * 2 for half in np.split(leaves[0], 2)],
    )


def is_fixed(array: np.ndarray, value: np.ndarray) -> bool:
    """Whether the array equals `value` to 1e-5, or to 1e-2 in half precision."""
    if array.shape != value.shape:
        return False
    coarseness = 1e-5 if array.dtype in (np.bool_, np.float32, np.float64) else 1e-2
    array, value = array.astype(np.float32), value.astype(np.float32)
    return np.allclose(array, value, rtol=coarseness, atol=coarseness)


def fixed(name: str, value: np.ndarray) -> TensorRule:
    """A tensor that follows from the settings: compared on import and written on export.

    Import raises CheckpointError if the tensor differs.
    """

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        if not is_fixed(arrays[0], value):
            raise CheckpointError(f"tensor '{name}' is not the fixed one that belongs to this model")
        return []

    return TensorRule((), (name,), load, lambda leaves: [value])


def scanned(rules: Sequence[TensorRule]) -> TensorRule:
    """The same rule of all blocks, whose tensors are stacked along a leading axis."""
    width = len(rules[0].leaves)

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        blocks = range(len(rules))
        parts = [rules[i].load([a[i] for a in arrays], shapes[i * width : (i + 1) * width]) for i in blocks]
        return [leaf for part in parts for leaf in part]

    def dump(leaves: Arrays) -> Arrays:
        parts = [e.dump(leaves[i * width : (i + 1) * width]) for i, e in enumerate(rules)]
        return [np.stack(tensors) for tensors in zip(*parts, strict=True)]

    return _Scanned(tuple(leaf for rule in rules for leaf in rule.leaves), rules[0].names, load, dump, rules)


@dataclasses.dataclass(frozen=True)
class _Scanned(TensorRule):
    rules: Sequence[TensorRule] = ()

    def shapes(self, leaf_shapes: Sequence[Shape]) -> list[Shape]:
        one = self.rules[0].shapes(leaf_shapes[: len(self.rules[0].leaves)])
        return [(len(self.rules), *shape) for shape in one]


def table_text(
    tensor_map: Sequence[TensorRule], leaves: Mapping[Leaf, Any], in_file: Callable[[str], str]
) -> str:
    """A line for each rule: which tensors are which parameters, with shapes. `leaves` have a shape."""
    lines = []
    for rule in tensor_map:
        leaf_shapes = [leaves[leaf].shape for leaf in rule.leaves]
        theirs = zip(rule.names, rule.shapes(leaf_shapes), strict=True)
        ours = zip(map(path_text, rule.leaves), leaf_shapes, strict=True)
        left = " + ".join(f"{in_file(name)} {list(shape)}" for name, shape in theirs)
        right = " + ".join(f"{name} {list(shape)}" for name, shape in ours) or "fixed"
        lines.append(f"{left}  =  {right}")
    return "\n".join(lines)
