"""The table of all parameters of a run, parameters.txt."""

from typing import Any

import jax
import numpy as np

_TITLES = ("Name", "Shape", "Dtype", "Size")


def parameter_table(params: Any) -> str:
    """Name, shape, dtype and size of each leaf, by name, with totals; as clu.parameter_overview writes it."""
    leaves = {
        "/".join(str(getattr(key, "key", key)) for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    rows = [
        (name, str(tuple(leaf.shape)), str(leaf.dtype), f"{leaf.size:,}")
        for name, leaf in sorted(leaves.items())
    ]
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    rule = "+".join(["", *("-" * (width + 2) for width in widths), ""])

    def line(row: tuple[str, ...]) -> str:
        return "".join(f"| {text:<{width}} " for text, width in zip(row, widths, strict=True)) + "|"

    count = sum(leaf.size for leaf in leaves.values())
    num_bytes = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves.values())
    total = f"Total: {count:,} -- {num_bytes:,} bytes"
    return "\n".join([rule, line(_TITLES), rule, *map(line, rows), rule, total])
