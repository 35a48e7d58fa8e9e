"""Operations of the memory loader: those of catalog.py, with other draws, on batches on the accelerator."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_registers.data.ops.strings import Target, check_padding
from vit_registers.errors import ConfigError

BatchOp = Callable[[jax.Array, jax.Array], jax.Array]  # (image_BxHxWxC, key) -> image_BxHxWxC


def _resize(target: Target) -> BatchOp:
    """The images unchanged: memory.py resizes them once, when it loads them."""
    return lambda image_BxHxWxC, key: image_BxHxWxC


def _random_crop(target: Target, padding: int = 4) -> BatchOp:
    """A random part of target size of each image, padded with `padding` pixels of zeros on each side."""
    check_padding(padding)

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        padded_BxHxWxC = jnp.pad(image_BxHxWxC, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
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


MEMORY_OPS: dict[str, Callable[..., BatchOp]] = {
    "resize": _resize,
    "random_crop": _random_crop,
    "central_crop": _central_crop,
    "flip": _flip,
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
