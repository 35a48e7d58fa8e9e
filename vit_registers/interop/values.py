"""Checks that tensors are weights, floating point, not quantised, finite in float32, and those written."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_registers.errors import CheckpointError
from vit_registers.models.paths import Leaf, path_text

# Tensors that bitsandbytes, GPTQ, AWQ, compressed-tensors and others store beside or instead of a weight.
_QUANTISED = re.compile(
    r"(.*\.)?(SCB|weight_format|weight_(scale|scale_inv|scale_2|zero_point|packed|shape)|(in|out)put_scale"
    r"|qweight|qzeros|scales|g_idx|(nested_)?(absmax|quant_map)|quant_state\..*)"
)
_NARROW = re.compile(r"bool|u?int[248]|float[468]_.*")


def is_floating(dtype: np.dtype) -> bool:
    """Whether the dtype is one of weights: float16, bfloat16, float32 or wider."""
    return dtype.name == "bfloat16" or (dtype.kind == "f" and dtype.itemsize >= 2)


def refuse_quantised(dtypes: Mapping[str, np.dtype], where: str) -> None:
    """Raises CheckpointError if tensors have a dtype or a name of quantised weights."""
    odd = [n for n, d in dtypes.items() if _NARROW.fullmatch(d.name) or _QUANTISED.fullmatch(n)]
    if odd:
        others = f", and so are {len(odd) - 1} more" if len(odd) > 1 else ""
        raise CheckpointError(
            f"{where}: '{odd[0]}' is {dtypes[odd[0]].name}, perhaps quantised{others}: not weights. "
            "Save the weights in floating point, or name what the model does not need in leave_out"
        )


def as_float32(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """The array in float32, without a copy if it has that dtype. Raises CheckpointError; see check_finite."""
    with np.errstate(all="ignore"):
        values = np.asarray(array, np.float32)
    check_finite(array, values, name, where)
    return values


def check_finite(array: np.ndarray, rounded: np.ndarray, name: str, where: str) -> None:
    """Raises CheckpointError with how many values of `array` are not finite, or not when `rounded`."""
    with np.errstate(all="ignore"):  # the extremes show NaN and infinity, and take no memory
        if not rounded.size or (np.isfinite(rounded.min()) and np.isfinite(rounded.max())):
            return
    num_nan, num_inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    num_beyond = int((~np.isfinite(rounded)).sum()) - num_nan - num_inf
    counts = {"NaN": num_nan, "infinity": num_inf, f"beyond {rounded.dtype.name}": num_beyond}
    kinds = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    advice = "take weights from before they diverged, or copy the file again if it is damaged"
    if num_nan + num_inf == 0:
        advice = f"{rounded.dtype.name} cannot hold them"
    raise CheckpointError(f"{where}: '{name}' has {kinds} among its {array.size} values: {advice}")


def check_leaves(leaves: Mapping[Leaf, Any], where: str) -> None:
    """Raises CheckpointError for the first parameter with a value that is not finite."""
    for leaf, value in leaves.items():
        as_float32(np.asarray(value), path_text(leaf), where)


def compare_parameters(
    leaves: Iterable[tuple[Leaf, Any]], others: Mapping[Leaf, Any], dtype: Any, where: str
) -> int:
    """The number of parameters that were compared. Raises CheckpointError if one differs in a bit.

    `leaves` may be an iterator that reads them; `others` are rounded to `dtype` first.
    """
    left = dict(others)
    for leaf, value in leaves:
        other = left.pop(leaf, None)
        if other is None or not np.array_equal(np.asarray(other).astype(dtype).astype(np.float32), value):
            raise CheckpointError(f"{where}: {path_text(leaf)} differs from what was written")
    if left:
        raise CheckpointError(f"{where}: {path_text(next(iter(left)))} was not written")
    return len(others)
