"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), on the device, over the global batch."""

import jax
import jax.numpy as jnp

from vit_registers.config import Data

Mixed = tuple[jax.Array, jax.Array, jax.Array]  # image_BxHxWxC, label_BxY, mask_B


def mixup(key: jax.Array, alpha: float, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """lam times each image and label plus 1 - lam times its neighbour's, with lam ~ Beta(alpha, alpha)."""
    lam = jax.random.beta(key, alpha, alpha)
    return (
        lam * image + (1.0 - lam) * jnp.roll(image, 1, axis=0),
        lam * label + (1.0 - lam) * jnp.roll(label, 1, axis=0),
    )


def cutmix(key: jax.Array, alpha: float, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images with one box of their neighbour's, labels weighted by the area that is each one's.

    The box has sides int(H * sqrt(1 - lam)) and int(W * sqrt(1 - lam)) round a uniform centre, and is
    clipped to the image; lam ~ Beta(alpha, alpha) is then what the clipped box leaves.
    """
    height, width = image.shape[1:3]
    key_lam, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - jax.random.beta(key_lam, alpha, alpha))

    def is_inside(key: jax.Array, length: int) -> jax.Array:
        half = jnp.floor(length * side).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, length)
        at = jnp.arange(length)
        return (at >= centre - half) & (at < centre + half)

    box_HxW = is_inside(key_y, height)[:, None] & is_inside(key_x, width)[None, :]
    lam = 1.0 - box_HxW.mean()
    image = jnp.where(box_HxW[None, :, :, None], jnp.roll(image, 1, axis=0), image)
    return image, lam * label + (1.0 - lam) * jnp.roll(label, 1, axis=0)


def mix(key: jax.Array, data: Data, image: jax.Array, label: jax.Array, mask_B: jax.Array) -> Mixed:
    """The batch mixed as `data` says: not at all, by one of the two, or by either with equal chance.

    One draw per batch; an example's partner is the one before it. An example mixed with one that the
    mask leaves out is left out too.
    """
    use_mixup, use_cutmix = data.mixup_alpha > 0.0, data.cutmix_alpha > 0.0
    if not use_mixup and not use_cutmix:
        return image, label, mask_B
    key_choice, key = jax.random.split(key)
    if use_mixup and use_cutmix:
        image, label = jax.lax.cond(
            jax.random.bernoulli(key_choice),
            lambda: mixup(key, data.mixup_alpha, image, label),
            lambda: cutmix(key, data.cutmix_alpha, image, label),
        )
    elif use_mixup:
        image, label = mixup(key, data.mixup_alpha, image, label)
    else:
        image, label = cutmix(key, data.cutmix_alpha, image, label)
    return image, label, mask_B & jnp.roll(mask_B, 1)
