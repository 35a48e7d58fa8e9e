"""The formats of checkpoints, and the conversion of a state from an earlier format.

1  params are those of the ViT: {"blocks": ..., "head": ...}
2  params are those of the objective, with the ViT under "vit"; the state may have "extra"
"""

from typing import Any

import jax

from vit_registers.objectives.base import BACKBONE

FORMAT_VERSION = 2
READABLE = (1, 2)


def _is_of_objective(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {BACKBONE}


def in_format(tree: Any, version: int) -> Any:
    """The state `tree`, or a part of it, in the structure of a checkpoint of that format.

    Format 1 has the parameters of the ViT in place of {"vit": ...}, also in moments and averages.
    """
    if version >= 2:
        return tree
    return jax.tree.map(
        lambda node: node[BACKBONE] if _is_of_objective(node) else node, tree, is_leaf=_is_of_objective
    )


def from_format(read: Any, version: int, like: Any) -> Any:
    """The tree `read`, which has the structure of in_format(like, version), in the structure of `like`."""
    if version >= 2:
        return read
    return jax.tree.map(
        lambda node, value: {BACKBONE: value} if _is_of_objective(node) else value,
        like,
        read,
        is_leaf=_is_of_objective,
    )
