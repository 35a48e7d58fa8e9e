"""The lines of a name table: which parameters of ours are which tensors of theirs, in both directions.

Leaves are those of models/paths.py. All kinds below are
exact in both directions unless they say otherwise.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vit_registers.errors import CheckpointError
from vit_registers.models.paths import Leaf

Shape = tuple[int, ...]
Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """Leaves of ours that are together the same as named tensors of theirs."""

    leaves: tuple[Leaf, ...]
    names: tuple[str, ...]
    load: Callable[[Arrays, Sequence[Shape]], Arrays]  # (their tensors, shapes of our leaves) -> our leaves
    dump: Callable[[Arrays], Arrays]  # our leaves -> their tensors

    def shapes(self, leaf_shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of their tensors. Nothing of that size is made."""
        return [a.shape for a in self.dump([np.broadcast_to(np.float32(0), s) for s in leaf_shapes])]


def contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in C order. Transposed matrices are copied block by block, which is six times as fast."""
    if array.ndim > 1 and not array.flags.c_contiguous:
        for shape in ((array.shape[0], -1), (-1, array.shape[-1])):
            with contextlib.suppress(ValueError):  # these axes cannot be joined without a copy
                source = array.reshape(shape, copy=False)
                copy = np.empty(source.shape, dtype)
                for i in range(0, source.shape[1], 64):
                    copy[:, i : i + 64] = source[:, i : i + 64]
                return copy.reshape(array.shape)
    return np.array(array, dtype, order="C")


def same(leaf: Leaf, name: str, *, lead: int | None = None) -> TensorRule:
    """The same numbers; with `lead`, theirs has only the last `lead` axes, the others being of size 1."""

    def dump(leaves: Arrays) -> Arrays:
        array = leaves[0]
        return [array if lead is None else array.reshape(array.shape[array.ndim - lead :])]

    return TensorRule((leaf,), (name,), lambda arrays, shapes: [arrays[0].reshape(shapes[0])], dump)


def conv(leaf: Leaf, name: str) -> TensorRule:
    """A convolution kernel: ours HWIO, theirs OIHW."""
    return TensorRule(
        (leaf,),
        (name,),
        lambda arrays, shapes: [arrays[0].transpose(2, 3, 1, 0)],
        lambda leaves: [leaves[0].transpose(3, 2, 0, 1)],
    )


def dense(leaf: Leaf, names: tuple[str, ...], *, inputs: int) -> TensorRule:
    """A dense kernel: ours [inputs..., outputs...], theirs [outputs, inputs], cut into one or more tensors.

    The fused kernel of q, k and v is the case of one name, q, k and v apart that of three.
    """
    count = len(names)

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        return [(arrays[0] if count == 1 else np.concatenate(arrays)).T.reshape(shapes[0])]

    def dump(leaves: Arrays) -> Arrays:
        parts = leaves[0].reshape(inputs, count, -1)
        return [parts[:, i].T for i in range(count)]

    return TensorRule((leaf,), names, load, dump)


def split_bias(leaf: Leaf, names: tuple[str, ...]) -> TensorRule:
    """A bias that theirs has in one or more equal parts, each of one axis."""

    def dump(leaves: Arrays) -> Arrays:
        return list(leaves[0].reshape(len(names), -1))

    return TensorRule(
        (leaf,), names, lambda arrays, shapes: [np.concatenate(arrays).reshape(shapes[0])], dump
    )


def sliced(leaf: Leaf, names: tuple[str, ...], *, axis: int) -> TensorRule:
    """A tensor whose slices along `axis` theirs has one by one."""
    return TensorRule(
        (leaf,),
        names,
        lambda arrays, shapes: [np.stack(arrays, axis=axis)],
        lambda leaves: [leaves[0].take(i, axis=axis) for i in range(len(names))],
    )


def joined(leaves: tuple[Leaf, ...], name: str, *, lead: int = 3) -> TensorRule:
    """Tables of ours [1, rows, width] that theirs has as one, rows after rows, in `lead` axes."""

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        rows = arrays[0].reshape(1, -1, arrays[0].shape[-1])
        return np.split(rows, np.cumsum([shape[1] for shape in shapes])[:-1], axis=1)

    def dump(tables: Arrays) -> Arrays:
        table = np.concatenate(tables, axis=1)
        return [table.reshape(table.shape[3 - lead :])]

    return TensorRule(leaves, (name,), load, dump)


def mean_heads(leaf: Leaf, names: tuple[str, ...]) -> TensorRule:
    """Two heads whose answers are averaged, as one head on both vectors joined.

    Kernels are halved, which loses nothing. Biases are averaged: back out, both heads get the mean, and
    the answer is the same.
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
    """Whether the array is that fixed one: to 1e-5, or to what its dtype can tell."""
    if array.shape != value.shape:
        return False
    coarseness = 1e-5 if array.dtype in (np.bool_, np.float32, np.float64) else 1e-2
    array, value = array.astype(np.float32), value.astype(np.float32)
    return np.allclose(array, value, rtol=coarseness, atol=coarseness)


def fixed(name: str, value: np.ndarray) -> TensorRule:
    """A tensor of theirs that follows from the settings: compared on the way in, written on the way out.

    Raises CheckpointError where the tensor is another.
    """

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        if not is_fixed(arrays[0], value):
            raise CheckpointError(f"tensor '{name}' is not the fixed one that belongs to this model")
        return []

    return TensorRule((), (name,), load, lambda leaves: [value])


def scanned(rules: Sequence[TensorRule]) -> TensorRule:
    """The same rule of every block, where theirs has all blocks in one tensor with a leading axis."""
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
