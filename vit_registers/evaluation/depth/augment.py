"""The crops and random changes of training images of depth, as in the released code. No JAX."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from vit_registers.config import DepthSettings
from vit_registers.data.sources.dense import DensePair
from vit_registers.errors import DataError

_DEGREES = 2.5  # the most that an image is rotated, to either side
_GAMMA, _COLOR = (0.9, 1.1), (0.9, 1.1)
_PROBABILITY = 0.5  # of rotation, flip and color change, each


class _Own(NamedTuple):
    """What is done with the training images of one data set only."""

    box: tuple[slice, slice] | None  # rows and columns that are cut out first
    brightness: tuple[float, float]


_OWN = {"nyu": _Own((slice(45, 472), slice(43, 608)), (0.75, 1.25))}
_OTHERS = _Own(None, (0.9, 1.1))


def training_pair(
    pair: DensePair, settings: DepthSettings, *, protocol: str, rng: np.random.Generator
) -> DensePair:
    """The example as it is trained on: of the size of settings.crop, or whole; changed at random if augment.

    Of NYU the box with rows 45 to 471 and columns 43 to 607 is cut out first. Rotation, mirroring and change
    of color have probability 0.5 each. The rotation is about the centre, of up to 2.5 degrees, bilinear for
    the image and of the nearest pixel for the depth, with 0 outside. Colors are raised to a power of 0.9 to
    1.1 on the scale of 0 to 255, as released, which changes the brightness too, and multiplied by a
    brightness (0.75 to 1.25 for NYU, else 0.9 to 1.1) and by 0.9 to 1.1 for each channel. They are then
    rounded, which the released code does not do. Raises DataError for an image smaller than the crop.
    """
    (image_HxWxC, depth_HxW), own = pair, _OWN.get(protocol, _OTHERS)
    is_rotated, is_flipped, is_colored = (rng.random(3) < _PROBABILITY) & bool(settings.augment)
    degrees = rng.uniform(-_DEGREES, _DEGREES)
    place_2 = rng.random(2)
    gamma, brightness = rng.uniform(*_GAMMA), rng.uniform(*own.brightness)
    color_C = rng.uniform(*_COLOR, image_HxWxC.shape[-1])
    if own.box is not None:
        image_HxWxC, depth_HxW = image_HxWxC[own.box], depth_HxW[own.box]
    if is_rotated:
        image_HxWxC, depth_HxW = rotate(image_HxWxC, depth_HxW, degrees)
    if is_flipped:
        image_HxWxC, depth_HxW = image_HxWxC[:, ::-1], depth_HxW[:, ::-1]
    if settings.crop is not None:
        window = _window(depth_HxW.shape, settings.crop, place_2)
        image_HxWxC, depth_HxW = image_HxWxC[window], depth_HxW[window]
    if is_colored:
        changed_HxWxC = image_HxWxC.astype(np.float64) ** gamma * (brightness * color_C)[None, None]
        image_HxWxC = np.rint(np.clip(changed_HxWxC, 0, 255)).astype(np.uint8)
    return DensePair(np.ascontiguousarray(image_HxWxC), np.ascontiguousarray(depth_HxW))


def rotate(image_HxWxC: np.ndarray, depth_HxW: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """(image, depth) rotated counter-clockwise about their centre, with 0 outside."""
    channels = image_HxWxC.shape[-1]
    image = Image.fromarray(image_HxWxC[..., 0] if channels == 1 else np.ascontiguousarray(image_HxWxC))
    turned = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR))
    depth = Image.fromarray(np.ascontiguousarray(depth_HxW)).rotate(degrees, Image.Resampling.NEAREST)
    return turned.reshape(image_HxWxC.shape), np.asarray(depth)


def _window(shape: tuple[int, ...], size: tuple[int, int], place_2: np.ndarray) -> tuple[slice, slice]:
    """The window of `size` whose corner is at a share of the room that it has in the image."""
    room = np.array(shape) - size
    if (room < 0).any():
        raise DataError(
            f"an image has {shape[0]} x {shape[1]} pixels to train on, and tasks.depth.crop="
            f"{size[0]},{size[1]} is larger: set a smaller one"
        )
    top, left = (int(start) for start in np.floor(place_2 * (room + 1)))
    return slice(top, top + size[0]), slice(left, left + size[1])
