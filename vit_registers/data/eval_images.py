"""Images of users, prepared as evaluation prepares them: files, PIL images and arrays. No TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_registers.config import Data
from vit_registers.data import pil_decoding
from vit_registers.data.batch import normalize
from vit_registers.data.ops.pil_ops import ImageOp, compose_pil
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError, DataError

_KINDS = "a path, a PIL image, a uint8 array HxWxC or BxHxWxC, or a list of these"


def preprocess(images: Any, data: Data, target: Target) -> jax.Array:
    """image_BxHxWxC, float32: `images` as evaluate and analyze show them to a model, by data.eval_ops.

    `images` is a path, a PIL image, a uint8 array HxWxC or BxHxWxC, or a list of these, in the order of the
    batch. Files are decoded as by the loaders: without rotation by EXIF. Raises DataError for a file that is
    no image and for an image of another size than the target where data.eval_ops do not resize, ConfigError
    for other kinds of images and for operations that draw at random.
    """
    if target.channels not in (1, 3):
        raise ConfigError(f"preprocess: the model's images have {target.channels} channels: must be 1 or 3")
    apply = compose_pil(data.eval_ops, target, loader=data.loader, where="data.eval_ops")
    given = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    prepared = [
        _prepare(image_HxWxC, what, apply, target)
        for number, one in enumerate(given)
        for what, image_HxWxC in _decoded(one, number, target.channels)
    ]
    if not prepared:
        raise ConfigError(f"preprocess: there are no images: give {_KINDS}")
    return normalize(jnp.asarray(np.stack(prepared)), mean=data.mean, std=data.std)


def _prepare(image_HxWxC: np.ndarray, what: str, apply: ImageOp, target: Target) -> np.ndarray:
    result = apply(image_HxWxC)
    if result.shape != tuple(target):
        raise DataError(
            f"{what} is {result.shape[0]} x {result.shape[1]} after data.eval_ops, instead of the required "
            f"{target.height} x {target.width}: resize it before"
        )
    return result


def _decoded(image: Any, number: int, channels: int) -> list[tuple[str, np.ndarray]]:
    """(name for errors, image_HxWxC uint8) of each image in one element."""
    what = f"image {number}"
    if isinstance(image, str | os.PathLike):
        path = Path(os.path.expanduser(os.fsdecode(image)))
        try:
            return [(str(path), pil_decoding.decode_image(path.read_bytes(), channels=channels))]
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
        except pil_decoding.BrokenImageError as error:
            raise DataError(_undecoded(str(path), error)) from None
    if isinstance(image, Image.Image):
        try:
            return [(what, pil_decoding.pixels_of(image, channels=channels))]
        except pil_decoding.BrokenImageError as error:
            raise DataError(_undecoded(what, error)) from None
    array = _array_of(image, what)
    if array is None or array.dtype.kind not in "uifb":
        raise ConfigError(f"preprocess: {what} is of type {type(image).__name__}: give {_KINDS}")
    if array.dtype != np.uint8:
        raise ConfigError(
            f"preprocess: {what} is {array.dtype}: must be uint8, pixels of 0 to 255 that are not normalised"
        )
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ConfigError(
            f"preprocess: {what} is an array of shape {array.shape}: must be HxWxC or BxHxWxC with 1 or 3 "
            "channels"
        )
    several = array if array.ndim == 4 else array[None]
    return [(what, _with_channels(image_HxWxC, channels)) for image_HxWxC in several]


def _array_of(image: Any, what: str) -> np.ndarray | None:
    """The array of NumPy, JAX or PyTorch as one of NumPy; None for other types. Raises ConfigError."""
    if not hasattr(image, "__array__"):
        return None
    try:
        return np.asarray(image)
    except (TypeError, RuntimeError, ValueError) as error:  # traced, on another device, with gradients
        kind, reason = type(image).__name__, str(error).partition("\n")[0]
        raise ConfigError(
            f"preprocess: {what}, of type {kind}, cannot be made an array of NumPy: {reason}"
        ) from error


def _with_channels(image_HxWxC: np.ndarray, channels: int) -> np.ndarray:
    if image_HxWxC.shape[-1] == channels:
        return np.ascontiguousarray(image_HxWxC)
    pixels = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC
    return pil_decoding.pixels_of(Image.fromarray(np.ascontiguousarray(pixels)), channels=channels)


def _undecoded(what: str, error: Exception) -> str:
    reason = f": {error}" if str(error) else ""
    return f"{what} cannot be decoded as an image{reason}"
