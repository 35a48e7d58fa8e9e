"""The sizes, the learning rates and the optimiser of a segmentation head, from the settings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import Data, Model, SegmentationSettings, lookup
from vit_registers.config.tasks import for_data
from vit_registers.data.sources.dense import DenseSource
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims

DIVISORS = ("all", "valid")
_WARMUP_START = 1e-6  # of the learning rate
_SECTION = "tasks.segmentation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes in pixels."""

    short_side: int
    crop: int
    stride: int


def resolved(
    settings: SegmentationSettings, source: DenseSource, model: Model, data: Data
) -> tuple[SegmentationSettings, Sizes]:
    """The settings without None, and the sizes. Raises ConfigError for settings that exclude each other.

    Where the data set leaves a size open, the images are not made smaller than those of the model, a window
    has the size of the model's images, and windows lie side by side.
    """
    lookup(dict.fromkeys(DIVISORS), settings.divisor, f"{_SECTION}.divisor")
    depth = dims(model).depth
    if settings.num_blocks > depth:
        raise ConfigError(f"{_SECTION}.num_blocks={settings.num_blocks}: the model has {depth} blocks")
    settings = for_data(settings, source.protocol)
    own_side = min(data.image_size or model.image_size)
    short_side = settings.short_side
    if short_side is None:
        assert source.image_size is not None, source.name
        short_side = max(own_side, *source.image_size)
    crop = min(own_side, short_side) if settings.crop is None else settings.crop
    stride = crop if settings.stride is None else settings.stride
    if crop > short_side:
        raise ConfigError(
            f"{_SECTION}.crop={crop} is larger than {_SECTION}.short_side={short_side}: windows must fit "
            "into images"
        )
    if stride > crop:
        raise ConfigError(
            f"{_SECTION}.stride={stride} is larger than {_SECTION}.crop={crop}: pixels between windows would "
            "have no prediction"
        )
    settings = dataclasses.replace(settings, short_side=short_side, crop=crop, stride=stride)
    return settings, Sizes(short_side=short_side, crop=crop, stride=stride)


def learning_rate(settings: SegmentationSettings, num_steps: int, step: Any) -> jax.Array:
    """The learning rate of a step: linear decay to 0, times a linear warm-up that runs at the same time.

    peak (1 - i/N) (1 - (1 - i/w)(1 - 1e-6)) for i < w, as mmcv computes it; the peak itself is not reached.
    """
    step = jnp.asarray(step, jnp.float32)
    decay = (num_steps - step) / num_steps  # exact near the end, unlike 1 - step / num_steps
    num_warmup = round(settings.warmup_share * num_steps)
    if not num_warmup:
        return settings.learning_rate * decay
    done = jnp.minimum(step / num_warmup, 1.0)
    return settings.learning_rate * decay * (done + (1.0 - done) * _WARMUP_START)


def segmentation_optimizer(settings: SegmentationSettings, num_steps: int) -> optax.GradientTransformation:
    """AdamW with 0.9 and 0.999, whose weight decay falls on all parameters of the head."""
    return optax.adamw(
        lambda step: learning_rate(settings, num_steps, step), weight_decay=settings.weight_decay
    )
