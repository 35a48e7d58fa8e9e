"""Settings of a model that building it would let pass."""

import jax

from vit_registers.config import Model, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import BACKENDS, KEEP_WEIGHTS
from vit_registers.models.blocks import ACTIVATIONS, DTYPES, REMAT, dims
from vit_registers.models.pooling import POOLINGS
from vit_registers.models.positions import POSITIONS
from vit_registers.models.resampling import RESAMPLINGS


def check_model(model: Model) -> None:
    """Raises ConfigError for a setting that building the model would let pass."""
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
            f"model.remat='attention' with model.attention='{model.attention}', which keeps no weights: "
            "set model.remat to none or block"
        )
    check_section("model", model)
    if model.pooling in ("cls", "cls_gap") and not model.use_cls:
        raise ConfigError(
            f"model.pooling='{model.pooling}' with model.use_cls=False: set pooling to gap or map"
        )
    if model.pooling == "cls_registers" and not model.use_cls + model.num_registers:
        raise ConfigError("model.pooling='cls_registers' with neither cls nor registers: set pooling to gap")
    if model.pooling == "summary" and model.summary_factor is None:
        raise ConfigError(
            "model.pooling='summary' without summaries: set model.summary_factor, or pooling to gap"
        )
    if model.use_norm_after_pool and model.pooling not in ("cls", "gap"):
        raise ConfigError(
            f"model.use_norm_after_pool with pooling='{model.pooling}': want pooling cls or gap"
        )
    if model.position_resampling == "none" and POSITIONS[model.positions].is_learned:
        raise ConfigError(
            "model.position_resampling='none' makes a fixed table anew; learned positions need one of "
            f"{', '.join(RESAMPLINGS)}"
        )


def attention_obstacle(model: Model) -> str | None:
    """Why the back end of `model.attention` cannot compute on the devices that there are; None where it can.

    Nothing is computed: the back end is traced with one head of the model.
    """
    sizes = dims(model)
    one_BxTxNxK = jax.ShapeDtypeStruct((1, 2, 1, sizes.width // sizes.num_heads), DTYPES[model.dtype])
    try:
        jax.eval_shape(BACKENDS[model.attention], *[one_BxTxNxK] * 3)
    except ConfigError as error:
        return str(error).partition(": ")[0]
    return None
