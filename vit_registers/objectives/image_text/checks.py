"""Checks of the settings of images and texts that depend on each other."""

from vit_registers.config import ImageTextSettings, Model, Text, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.pooling import pooled_width
from vit_registers.models.text.tower import check_text

LOSSES = ("clip", "siglip")
_SECTION = "objective.image_text"


def check_image_text(settings: ImageTextSettings, model: Model, text: Text, *, batch_size: int) -> None:
    """Raises ConfigError, one line, for settings with which training is not possible."""
    lookup(dict.fromkeys(LOSSES), settings.loss, f"{_SECTION}.loss")
    check_text(text)
    if model.num_classes:
        raise ConfigError(
            f"model.num_classes={model.num_classes}: {_SECTION} compares what the model pools, without a "
            "classifier: set it to 0"
        )
    width = pooled_width(model)
    if not settings.has_image_projection and width != text.embed_dim:
        raise ConfigError(
            f"{_SECTION}.has_image_projection=False: the image tower's vectors have {width} dimensions and "
            f"text.embed_dim is {text.embed_dim}: must be equal, or set has_image_projection=True"
        )
    group, size = settings.group, batch_size
    if group is not None and size % group:
        raise ConfigError(
            f"{_SECTION}.group={group} does not divide data.batch_size={size}: set it to a divisor of the "
            "batch, or change the batch"
        )
    if size == 1:
        raise ConfigError(f"data.batch_size=1: {_SECTION} compares the pairs of a batch: must be at least 2")
