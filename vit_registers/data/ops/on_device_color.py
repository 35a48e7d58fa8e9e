"""Colour operations on 8-bit images in JAX, with PIL's results: for the memory loader (on_device.py).

Functions take one image_HxWxC, uint8; on_device.py maps them over a batch. Every operation rounds to 8 bits,
as on PIL images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_ORDERS = np.array(
    [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
)
BLUR_TAPS = np.arange(-4, 5)  # a kernel of 9 x 9


def blended(first: jax.Array, second: jax.Array, factor: jax.Array) -> jax.Array:
    """first + factor * (second - first) in float32, clipped to [0, 255] and truncated: PIL's Image.blend."""
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    # The minimum keeps XLA from contracting a * b + c to one rounding, where PIL has two.
    change = jnp.minimum(factor * (second - first), 1e9)
    return jnp.clip(first + change, 0.0, 255.0).astype(jnp.uint8)


def gray_level(image_HxWx3: jax.Array) -> jax.Array:
    """gray_HxWx1, uint8: PIL's mode L, 0.299 r + 0.587 g + 0.114 b in 16-bit integers, rounded."""
    weight_3 = jnp.array([19595, 38470, 7471], jnp.int32)
    total_HxW = (image_HxWx3.astype(jnp.int32) * weight_3[None, None]).sum(axis=-1)
    return ((total_HxW + 2**15) >> 16).astype(jnp.uint8)[..., None]


def brightness(image_HxWxC: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with black."""
    return blended(jnp.zeros_like(image_HxWxC), image_HxWxC, factor)


def contrast(image_HxWxC: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the mean of the gray image, rounded."""
    gray_HxWx1 = gray_level(image_HxWxC) if image_HxWxC.shape[-1] == 3 else image_HxWxC
    mean = jnp.floor(gray_HxWx1.astype(jnp.float32).mean() + 0.5)
    return blended(jnp.full(image_HxWxC.shape, mean), image_HxWxC, factor)


def saturation(image_HxWxC: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the gray image; a gray image does not change."""
    if image_HxWxC.shape[-1] != 3:
        return image_HxWxC
    return blended(jnp.broadcast_to(gray_level(image_HxWxC), image_HxWxC.shape), image_HxWxC, factor)


def hue(image_HxWxC: jax.Array, shift: jax.Array) -> jax.Array:
    """The hue of PIL's 8-bit HSV image shifted by trunc(shift * 255) levels; a gray image does not change.

    As torchvision's adjust_hue of PIL images. `shift` is in [-0.5, 0.5]. PIL computes in float64, so that for
    less than a hundredth of the colours the hue differs by a level.
    """
    if image_HxWxC.shape[-1] != 3:
        return image_HxWxC
    h, s, v = _to_hsv(image_HxWxC)
    h = (h + jnp.trunc(shift * 255.0).astype(jnp.int32)) % 256
    return _to_rgb(h, s, v)


def _to_hsv(image_HxWx3: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """h, s, v as int32 levels, truncated as PIL does."""
    r, g, b = (image_HxWx3[..., i].astype(jnp.float32) for i in range(3))
    high, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    is_gray, span = high == low, jnp.where(high == low, 1.0, high - low)
    rc, gc, bc = (high - r) / span, (high - g) / span, (high - b) / span
    h = jnp.where(r == high, bc - gc, jnp.where(g == high, 2.0 + rc - bc, 4.0 + gc - rc))
    h = h / 6.0 + 1.0
    h = h - jnp.floor(h)
    s = span / jnp.where(is_gray, 1.0, high)
    h, s = (jnp.where(is_gray, 0, (x * 255.0).astype(jnp.int32)) for x in (h, s))
    return h, s, high.astype(jnp.int32)


def _to_rgb(h: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
    sector = h.astype(jnp.float32) * (6.0 / 255.0)
    place = jnp.floor(sector)
    part, share, value = sector - place, s.astype(jnp.float32) / 255.0, v.astype(jnp.float32)
    half_up = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)  # noqa: E731
    p, q, t = (half_up(value * (1.0 - share * x)) for x in (jnp.ones_like(part), part, 1.0 - part))
    choices = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    index = place.astype(jnp.int32) % 6
    rgb = [jnp.select([index == i for i in range(6)], [c[k] for c in choices]) for k in range(3)]
    return jnp.where((s == 0)[..., None], v[..., None], jnp.stack(rgb, axis=-1)).astype(jnp.uint8)


def jittered(image_HxWxC: jax.Array, key: jax.Array, strength: tuple[float, ...]) -> jax.Array:
    """Brightness, contrast, saturation and hue changed in random order: torchvision's ColorJitter.

    Factors are uniform in [max(0, 1 - x), 1 + x], the shift of the hue in [-x, x]; `strength` has the four x.
    """
    factor_key, order_key = jax.random.split(key)
    x_4 = np.array(strength, np.float32)
    low_4 = np.concatenate([np.maximum(1 - x_4[:3], 0), -x_4[3:]])
    high_4 = np.concatenate([1 + x_4[:3], x_4[3:]])
    factor_4 = jax.random.uniform(factor_key, (4,), minval=low_4, maxval=high_4)
    order_4 = jnp.asarray(_ORDERS)[jax.random.randint(order_key, (), 0, len(_ORDERS))]
    changes = [
        functools.partial(change, factor_4[i])
        for i, change in enumerate(
            (
                lambda factor, image: brightness(image, factor),
                lambda factor, image: contrast(image, factor),
                lambda factor, image: saturation(image, factor),
                lambda factor, image: hue(image, factor),
            )
        )
    ]
    return jax.lax.fori_loop(0, 4, lambda i, image: jax.lax.switch(order_4[i], changes, image), image_HxWxC)


def solarized(image_HxWxC: jax.Array, threshold: int = 128) -> jax.Array:
    """The image with the levels from `threshold` on inverted."""
    return jnp.where(image_HxWxC < threshold, image_HxWxC, 255 - image_HxWxC)


def to_grayscale(image_HxWxC: jax.Array) -> jax.Array:
    """Three equal channels of gray; a gray image does not change."""
    if image_HxWxC.shape[-1] != 3:
        return image_HxWxC
    return jnp.broadcast_to(gray_level(image_HxWxC), image_HxWxC.shape)


def gaussian_blurred(image_HxWxC: jax.Array, sigma: jax.Array) -> jax.Array:
    """The image convolved with a Gaussian of 9 x 9 taps, reflected at the edges, rounded.

    As torchvision's GaussianBlur of PIL images, which computes in float32.
    """
    weight_9 = jnp.exp(-0.5 * jnp.square(BLUR_TAPS / sigma))
    weight_9 = weight_9 / weight_9.sum()
    margin = len(BLUR_TAPS) // 2
    x = jnp.pad(image_HxWxC.astype(jnp.float32), [(margin, margin), (margin, margin), (0, 0)], mode="reflect")
    height, width, _ = image_HxWxC.shape
    places = range(len(BLUR_TAPS))
    x = functools.reduce(jnp.add, (weight_9[i] * x[i : i + height] for i in places))
    x = functools.reduce(jnp.add, (weight_9[i] * x[:, i : i + width] for i in places))
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
