"""Paths of parameters: where a leaf lies in the nested dict of a model's parameters, and how that is printed.

A leaf is a tuple of keys, such as ("blocks", 0, "attn", "qkv", "kernel").
"""

from collections.abc import Mapping
from typing import Any

import jax

Leaf = tuple[str | int, ...]


def leaf_of(path: tuple[Any, ...]) -> Leaf:
    """The leaf that a key path of `jax.tree_util` leads to."""
    return tuple(key.key for key in path)


def path_text(leaf: Leaf) -> str:
    """The leaf as text: blocks/0/attn/qkv/kernel."""
    return "/".join(map(str, leaf))


def leaves_of(params: Mapping) -> dict[Leaf, Any]:
    """The arrays of nested dicts by leaf, in the order of `jax.tree.leaves`."""
    return {leaf_of(path): value for path, value in jax.tree_util.tree_leaves_with_path(params)}
