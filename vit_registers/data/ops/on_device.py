"""Operations of the memory loader: those of catalog.py, with other draws, on batches on the accelerator."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.config import lookup
from vit_registers.data.ops.on_device_color import gaussian_blurred, jittered, solarized, to_grayscale
from vit_registers.data.ops.on_device_crops import random_box, resized_part
from vit_registers.data.ops.strings import (
    Target,
    check_jitter,
    check_padding,
    check_probability,
    check_ranges,
    check_sigmas,
)
from vit_registers.errors import ConfigError

BatchOp = Callable[[jax.Array, jax.Array], jax.Array]  # (image_BxHxWxC, key) -> image_BxHxWxC


class Resize(NamedTuple):
    """A BatchOp that returns the images unchanged: memory.py resizes them once, when it loads them."""

    height: int
    width: int

    def __call__(self, image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        return image_BxHxWxC


def _resize(target: Target, size: int = 0) -> BatchOp:
    """Images resized to the target or, with a size, to size x size pixels, from which crops are taken."""
    if size < 0:
        raise ConfigError(f"resize: size={size}: must be > 0, or left out for the size of the images")
    return Resize(size or target.height, size or target.width)


def _random_crop(target: Target, padding: int = 4, mode: str = "zeros") -> BatchOp:
    """A random part of target size of each image with `padding` pixels on each side, as in crops.py."""
    check_padding(padding, mode, target)
    kind = "reflect" if mode == "reflect" else "constant"

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        widths = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        padded_BxHxWxC = jnp.pad(image_BxHxWxC, widths, mode=kind)
        room_y, room_x = _room(padded_BxHxWxC, target, f"random_crop({padding})")
        start_Bx2 = jax.random.randint(key, (len(image_BxHxWxC), 2), 0, jnp.array([[room_y + 1, room_x + 1]]))

        def part(image_HxWxC: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image_HxWxC, (start[0], start[1], 0), target)

        return jax.vmap(part)(padded_BxHxWxC, start_Bx2)

    return apply


def _central_crop(target: Target) -> BatchOp:
    """The central part of target size; if the margin is odd, its larger half is below and to the right."""

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        room_y, room_x = _room(image_BxHxWxC, target, "central_crop")
        y, x = room_y // 2, room_x // 2
        return image_BxHxWxC[:, y : y + target.height, x : x + target.width]

    return apply


def _flip(target: Target) -> BatchOp:
    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        is_flipped_Bx1x1x1 = jax.random.bernoulli(key, shape=(len(image_BxHxWxC), 1, 1, 1))
        return jnp.where(is_flipped_Bx1x1x1, image_BxHxWxC[:, :, ::-1], image_BxHxWxC)

    return apply


def _random_resized_crop(
    target: Target,
    area_min: float = 0.08,
    area_max: float = 1.0,
    aspect_min: float = 0.75,
    aspect_max: float = 1.3333333333333333,
    method: str = "pil_bicubic",
) -> BatchOp:
    """A random part of each image, resized to the target: see on_device_crops.py."""
    areas, aspects = (area_min, area_max), (aspect_min, aspect_max)
    check_ranges("random_resized_crop", areas, aspects)
    kernel = lookup(_KERNELS, method, "random_resized_crop: method")

    def one(image_HxWxC: jax.Array, key: jax.Array) -> jax.Array:
        height, width, _ = image_HxWxC.shape
        box_4 = random_box(key, height, width, areas, aspects)
        return resized_part(image_HxWxC, box_4, target, kernel)

    return _each(one)


def _jitter(
    target: Target, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1.0
) -> BatchOp:
    """Colour jitter with probability p: see on_device_color.py."""
    strength = (brightness, contrast, saturation, hue)
    check_jitter(strength)
    check_probability("jitter", p)
    return _each(lambda image_HxWxC, key: jittered(image_HxWxC, key, strength), p)


def _grayscale(target: Target, p: float = 1.0) -> BatchOp:
    check_probability("grayscale", p)
    return _each(lambda image_HxWxC, key: to_grayscale(image_HxWxC), p)


def _blur(target: Target, p: float = 1.0, sigma_min: float = 0.1, sigma_max: float = 2.0) -> BatchOp:
    """A Gaussian blur of 9 x 9 taps, whose sigma is uniform, with probability p."""
    check_probability("blur", p)
    check_sigmas(sigma_min, sigma_max, target)

    def one(image_HxWxC: jax.Array, key: jax.Array) -> jax.Array:
        return gaussian_blurred(image_HxWxC, jax.random.uniform(key, (), minval=sigma_min, maxval=sigma_max))

    return _each(one, p)


def _solarize(target: Target, p: float = 1.0, threshold: int = 128) -> BatchOp:
    check_probability("solarize", p)
    return _each(lambda image_HxWxC, key: solarized(image_HxWxC, threshold), p)


def _each(one: Callable[[jax.Array, jax.Array], jax.Array], p: float = 1.0) -> BatchOp:
    """The operation `one` (image_HxWxC, key) on each image of a batch with probability p."""

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        draw_key, choice_key = jax.random.split(key)
        changed = jax.vmap(one)(image_BxHxWxC, jax.random.split(draw_key, len(image_BxHxWxC)))
        if p == 1.0:
            return changed
        is_changed_Bx1x1x1 = jax.random.bernoulli(choice_key, p, (len(image_BxHxWxC), 1, 1, 1))
        return jnp.where(is_changed_Bx1x1x1, changed, image_BxHxWxC)

    return apply


_KERNELS = {"pil_bilinear": "bilinear", "pil_bicubic": "bicubic"}
MEMORY_OPS: dict[str, Callable[..., BatchOp]] = {
    "resize": _resize,
    "random_crop": _random_crop,
    "central_crop": _central_crop,
    "flip": _flip,
    "random_resized_crop": _random_resized_crop,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}


def _room(image_BxHxWxC: jax.Array, target: Target, name: str) -> tuple[int, int]:
    """By how much the images are higher and wider than the target. Raises ConfigError if they are smaller."""
    height, width = image_BxHxWxC.shape[1:3]
    if height < target.height or width < target.width:
        raise ConfigError(
            f"{name}: its input images are {height} x {width}, smaller than the target of "
            f"{target.height} x {target.width}: begin with 'resize'"
        )
    return height - target.height, width - target.width
