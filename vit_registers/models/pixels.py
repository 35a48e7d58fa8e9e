"""What a pixel is: a brightness, or a byte, which has a vector for each of its values."""

import math

import jax
import jax.numpy as jnp

from vit_registers.config import Model
from vit_registers.errors import ConfigError

PIXELS = ("brightness", "byte")
NUM_BYTES = 256  # values of a byte


def reads_bytes(model: Model) -> bool:
    """Whether the pixels of the model's images are bytes, as those of texts are."""
    return model.pixels == "byte"


def patch_channels(model: Model) -> int:
    """The number of input channels of the patch embedding."""
    return NUM_BYTES if reads_bytes(model) else model.channels


def pixels(model: Model, image_BxHxWxC: jax.Array) -> jax.Array:
    """What the patch embedding takes, BxHxWxC: brightness as it is, and bytes (0 to 255) as 256 channels.

    A byte is one-hot, times 16 = sqrt(256): its channels then have a mean square of 1, as those of normalised
    images, for which the embedding is initialised. The kernel of the embedding is a table of 256 vectors.
    """
    if not reads_bytes(model):
        return image_BxHxWxC
    return math.sqrt(NUM_BYTES) * jax.nn.one_hot(image_BxHxWxC[..., 0].astype(jnp.int32), NUM_BYTES)


def check_pixels(model: Model) -> None:
    """Raises ConfigError for bytes in patches of several pixels, or in several channels."""
    if reads_bytes(model) and (model.patch_size, model.channels) != (1, 1):
        raise ConfigError(
            f"model.pixels='byte' with model.patch_size={model.patch_size} and model.channels="
            f"{model.channels}: a token is one byte, so set both to 1"
        )


def require_images(model: Model, *, name: str, command: str) -> None:
    """Raises ConfigError if `name` is a model of bytes, which the `command` cannot take."""
    if reads_bytes(model):
        raise ConfigError(
            f"{name} is a model of bytes (model.pixels='byte'), and {command} takes models of images: use "
            "vit-registers evaluate, without --task, and vit-registers tabulate"
        )
