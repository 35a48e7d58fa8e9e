"""Random crops resized with PIL's filters, in JAX: for the memory loader (on_device.py)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ATTEMPTS = 10  # A in names
KERNELS = ("bilinear", "bicubic")


def random_box(
    key: jax.Array, height: int, width: int, areas: tuple[float, float], aspects: tuple[float, float]
) -> jax.Array:
    """y, x, height, width (int32) of a random part of an image, by torchvision's RandomResizedCrop.

    The share of the area is uniform in `areas`, and width / height log-uniform in `aspects`. The first of 10
    attempts that fits is placed uniformly; if none fits, the part is the largest central one whose
    width / height is in `aspects`.
    """
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    area_A = height * width * jax.random.uniform(area_key, (_ATTEMPTS,), minval=areas[0], maxval=areas[1])
    log_A = jax.random.uniform(
        aspect_key, (_ATTEMPTS,), minval=math.log(aspects[0]), maxval=math.log(aspects[1])
    )
    aspect_A = jnp.exp(log_A)
    size_Ax2 = jnp.round(jnp.sqrt(jnp.stack([area_A / aspect_A, area_A * aspect_A], axis=1)))
    room_Ax2 = jnp.array([[height, width]], jnp.float32) - size_Ax2
    fits_A = ((size_Ax2 > 0) & (room_Ax2 >= 0)).all(axis=1)
    start_Ax2 = jnp.floor(jax.random.uniform(place_key, (1, 2)) * (room_Ax2 + 1.0))
    start_Ax2 = jnp.minimum(start_Ax2, room_Ax2)  # a draw next to 1 may round up
    chosen = fits_A.argmax()
    middle = min(height, round(width / aspects[0])), min(width, round(height * aspects[1]))
    corner = (height - middle[0]) // 2, (width - middle[1]) // 2
    drawn_4 = jnp.concatenate([start_Ax2[chosen], size_Ax2[chosen]])
    fallback_4 = np.array([*corner, *middle], np.float32)
    return jnp.where(fits_A.any(), drawn_4, fallback_4).astype(jnp.int32)


def resized_part(image_HxWxC: jax.Array, box_4: jax.Array, target: Any, kernel: str) -> jax.Array:
    """The part `box_4` (y, x, height, width) of the image, resized to target.height x target.width, uint8.

    Within a level of PIL's Image.resize: one axis after the other, columns first, each rounded to 8 bits,
    with the antialiasing of PIL, and no pixel from outside of the part.
    """
    y, x, height, width = box_4
    rows, columns, _ = image_HxWxC.shape
    across = _weights(x, width, columns, target.width, kernel)
    down = _weights(y, height, rows, target.height, kernel)
    image = _rounded(jnp.einsum("ow,hwc->hoc", across, image_HxWxC.astype(jnp.float32), precision="highest"))
    return _rounded(jnp.einsum("oh,hwc->owc", down, image, precision="highest")).astype(jnp.uint8)


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0.0, 255.0)


def _weights(start: jax.Array, length: jax.Array, size: int, out: int, kernel: str) -> jax.Array:
    """weight_OxS: how much each of `size` levels counts in each of `out` results, for a part of them."""
    ratio = length / out
    stretch = jnp.maximum(ratio, 1.0)
    radius = 2.0 if kernel == "bicubic" else 1.0
    center_Ox1 = ((jnp.arange(out) + 0.5) * ratio)[:, None]
    first_Ox1 = jnp.maximum(jnp.floor(center_Ox1 - radius * stretch + 0.5), 0)
    end_Ox1 = jnp.minimum(jnp.floor(center_Ox1 + radius * stretch + 0.5), length)
    place_1xS = (jnp.arange(size) - start)[None]
    distance_OxS = jnp.abs(place_1xS - center_Ox1 + 0.5) / stretch
    weight_OxS = _bicubic(distance_OxS) if kernel == "bicubic" else jnp.maximum(1.0 - distance_OxS, 0.0)
    weight_OxS = jnp.where((place_1xS >= first_Ox1) & (place_1xS < end_Ox1), weight_OxS, 0.0)
    return weight_OxS / weight_OxS.sum(axis=1, keepdims=True)


def _bicubic(distance: jax.Array) -> jax.Array:
    """Keys' kernel with a = -0.5, as PIL has it."""
    a, d = -0.5, distance
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = (((d - 5.0) * d + 8.0) * d - 4.0) * a
    return jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))
