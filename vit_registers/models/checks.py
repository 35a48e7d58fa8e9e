"""Checks of the settings of a model that its construction does not make."""

import jax

from vit_registers.config import Model, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.activations import ACTIVATIONS
from vit_registers.models.attention.api import BACKENDS, KEEP_WEIGHTS
from vit_registers.models.blocks import DTYPES, REMAT, dims
from vit_registers.models.pooling import POOLINGS
from vit_registers.models.positions import POSITIONS
from vit_registers.models.resampling import RESAMPLINGS


def check_model(model: Model) -> None:
    """Raises ConfigError for an unknown name, a value out of range, and settings that exclude each other."""
    choices = {
        "registers": ("learned", "zeros"),
        "summaries": ("learned", "zeros"),
        "extra_positions": ("none", "learned", "sincos2d"),
        "pooling": POOLINGS,
        "drop_path_schedule": ("linear", "constant"),
        "dtype": tuple(DTYPES),
        "positions": tuple(POSITIONS),
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
    pooling = f"model.pooling='{model.pooling}'"
    if model.pooling in ("cls", "cls_gap") and not model.use_cls:
        raise ConfigError(f"{pooling} requires model.use_cls=True: set it, or pooling to gap or map")
    if model.pooling == "cls_registers" and not model.use_cls + model.num_registers:
        raise ConfigError(f"{pooling} requires cls or registers: set pooling to gap")
    if model.pooling == "summary" and model.summary_factor is None:
        raise ConfigError(f"{pooling} requires summaries: set model.summary_factor, or pooling to gap")
    if model.use_norm_after_pool and model.pooling not in ("cls", "gap"):
        raise ConfigError(f"model.use_norm_after_pool requires pooling cls or gap, not '{model.pooling}'")
    if model.position_resampling == "none" and POSITIONS[model.positions].is_learned:
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
