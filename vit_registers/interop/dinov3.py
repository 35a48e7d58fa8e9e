"""The rotation of queries and keys of DINOv3: from its periods, from config.json, or as published."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError

# The arguments of models.rotary.rope2d in all published models; others are its defaults.
PUBLISHED = {"base": 100.0}
TRAINED = PUBLISHED | {"rescale": 2.0}  # coordinates are drawn in training, which no tensor tells
_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


_Check = tuple[str, Callable[[Model, Any], Any] | None]  # as agreement._Rule
_FLAG, _INTEGER = "true or false", "an integer"

# Settings of transformers' config.json beside those of all models: as eva.EVA_ARGUMENTS.
DINOV3_SETTINGS: dict[str, _Check] = {
    "intermediate_size": ("a positive integer", lambda m, _: m.mlp_dim),
    "use_gated_mlp": (_FLAG, lambda m, _: m.mlp == "swiglu"),
    "hidden_act": ("a string", lambda m, said: "silu" if m.mlp == "swiglu" else said),
    "num_register_tokens": (_INTEGER, lambda m, _: m.num_registers),
    "query_bias": (_FLAG, lambda m, _: m.use_qkv_bias),
    "value_bias": (_FLAG, lambda m, _: m.use_qkv_bias),
    "key_bias": (_FLAG, None),
    "proj_bias": (_FLAG, lambda m, _: True),
    "mlp_bias": (_FLAG, lambda m, _: True),
    "rope_theta": ("a positive number", None),
    **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), ("a number", None)),
}


def rotation_of_periods(periods: np.ndarray, name: str, where: str) -> dict[str, Any]:
    """The arguments of the rotation whose file has `periods`, a tensor `name` of K/4 numbers for K channels.

    Files of DINOv3 have float32 numbers, which may have been rounded to bfloat16. Raises CheckpointError if
    they are no sequence that the code of DINOv3 makes.
    """
    found, number = periods.astype(np.float64), len(periods)
    first, last = found[0], found[-1]
    if number > 1 and np.isfinite(found).all() and 0 < first < last:
        options: list[dict[str, Any]] = [PUBLISHED]
        if abs(first - 1) < 1e-5:
            options.append({"base": _rounded(last ** (number / (number - 1)))})
        options.append({"min_period": _rounded(first), "max_period": _rounded(last)})
        for option in options:
            exact = _periods(option, number)
            if np.allclose(found, exact, rtol=4e-3 if periods.dtype in _HALF else 1e-5, atol=0):
                return option | {"rescale": 2.0}
            coarse = exact.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
            if np.array_equal(found, coarse):
                return option | {"rescale": 2.0, "periods": "bfloat16"}
    raise CheckpointError(
        f"{where}: '{name}' is no sequence of periods that DINOv3's code makes: {number} numbers from "
        f"{first:g} to {last:g}"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _periods(arguments: Mapping[str, float], number: int) -> np.ndarray:
    if "base" in arguments:
        return np.power(arguments["base"], np.arange(number) / number)
    return np.geomspace(arguments["min_period"], arguments["max_period"], number)


def transformers_rotation(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the rotation of a config.json of transformers with model_type='dinov3_vit'."""
    names = {"rope_theta": "base", "pos_embed_shift": "shift", "pos_embed_jitter": "jitter"}
    names |= {"pos_embed_rescale": "rescale"}
    said = {ours: values.get(theirs) for theirs, ours in names.items()}
    # Values of other types are refused by name later: agreement.check_types.
    return PUBLISHED | {name: float(n) for name, n in said.items() if isinstance(n, int | float) and n}


def published_num_heads(width: int) -> int:
    """The number of heads of published models of this width: 128 channels each in 7B, 64 in the others."""
    return max(1, width // (128 if width == 4096 else 64))
