"""Checks of the settings of a model that its construction does not make."""

import jax

from vit_registers.config import Model, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.activations import ACTIVATIONS
from vit_registers.models.attention.api import BACKENDS, KEEP_WEIGHTS
from vit_registers.models.blocks import DTYPES, REMAT, dims
from vit_registers.models.cls_role import check_cls_role
from vit_registers.models.pixels import PIXELS, check_pixels
from vit_registers.models.pooling import POOL_TOKENS, POOLINGS
from vit_registers.models.positions import position_rule
from vit_registers.models.resampling import RESAMPLINGS


def check_model(model: Model) -> None:
    """Raises ConfigError for an unknown name, a value out of range, and settings that exclude each other."""
    choices = {
        "pixels": PIXELS,
        "registers": ("learned", "zeros"),
        "summaries": ("learned", "zeros"),
        "extra_positions": ("none", "learned", "sincos2d"),
        "pooling": POOLINGS,
        "pool_tokens": POOL_TOKENS,
        "drop_path_schedule": ("linear", "constant"),
        "dtype": tuple(DTYPES),
        "position_resampling": (*RESAMPLINGS, "none"),
        "activation": tuple(ACTIVATIONS),
        "attention": tuple(BACKENDS),
        "remat": tuple(REMAT),
    }
    for name, known in choices.items():
        lookup(dict.fromkeys(known), getattr(model, name), f"model.{name}")
    if model.remat == "attention" and model.attention not in KEEP_WEIGHTS:
        raise ConfigError(
            f"model.remat='attention' with model.attention='{model.attention}', which stores no weights: "
            "set model.remat to none or block"
        )
    check_section("model", model)
    if (
        model.drop_path_group
        and model.drop_path
        and model.use_scan
        and model.drop_path_schedule != "constant"
    ):
        raise ConfigError(
            f"model.drop_path_group={model.drop_path_group} with model.use_scan=True requires the same rate "
            "in all blocks: set model.drop_path_schedule='constant'"
        )
    check_cls_role(model)
    check_pixels(model)
    pooling = f"model.pooling='{model.pooling}'"
    if model.pooling in ("cls", "cls_gap") and not model.use_cls:
        raise ConfigError(f"{pooling} requires model.use_cls=True: set it, or pooling to gap or map")
    if model.pooling == "cls_registers" and not model.use_cls + model.num_registers:
        raise ConfigError(f"{pooling} requires cls or registers: set pooling to gap")
    if model.pooling == "summary" and model.summary_factor is None:
        raise ConfigError(f"{pooling} requires summaries: set model.summary_factor, or pooling to gap")
    if model.use_norm_after_pool and model.pooling not in ("cls", "gap"):
        raise ConfigError(f"model.use_norm_after_pool requires pooling cls or gap, not '{model.pooling}'")
    if model.use_norm_after_pool and not model.use_final_norm:
        raise ConfigError("model.use_norm_after_pool=True requires the final norm: set use_final_norm=True")
    pool_defaults = {"pool_tokens": "patches", "pool_num_heads": None, "pool_mlp_dim": None}
    for name, default in pool_defaults.items():
        if model.pooling != "map" and getattr(model, name) != default:
            raise ConfigError(
                f"model.{name}={getattr(model, name)!r} has no effect with {pooling}, not 'map'"
            )
    if model.position_resampling == "none" and position_rule(model.positions).is_learned:
        raise ConfigError(
            "model.position_resampling='none' computes a fixed table at every image size; learned positions "
            f"require one of {', '.join(RESAMPLINGS)}"
        )


def attention_obstacle(model: Model) -> str | None:
    """Why the back end of `model.attention` cannot run on the available devices; None if it can.

    The back end is traced with one head of the model; nothing is computed. Back ends of earlier versions,
    such as "structured", run on no device.
    """
    if model.attention not in BACKENDS:
        return f"model.attention='{model.attention}' is not in this version, which has {', '.join(BACKENDS)}"
    sizes = dims(model)
    one_BxTxNxK = jax.ShapeDtypeStruct((1, 2, 1, sizes.width // sizes.num_heads), DTYPES[model.dtype])
    try:
        jax.eval_shape(BACKENDS[model.attention], *[one_BxTxNxK] * 3)
    except ConfigError as error:
        return str(error).partition(": ")[0]
    return None
