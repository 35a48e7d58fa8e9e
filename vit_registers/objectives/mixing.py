"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), on the device.

The original codes of the recipes mix separately on each device or in each process. Here the global batch has
mix_groups equal, consecutive parts, and partners come from the same part. All parts share one draw
(mix_noise="global", as big_vision's mixup), or each has one (mix_noise="per_group", as timm and torch).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_registers.config import ClassificationSettings, check_section, lookup
from vit_registers.errors import ConfigError

Mixed = tuple[jax.Array, jax.Array, jax.Array]  # image_BxHxWxC, label_BxY, mask_B
Partner = Callable[[jax.Array], jax.Array]  # x -> the x of each one's partner

PARTNERS: dict[str, Partner] = {
    "roll": lambda x: jnp.roll(x, 1, axis=0),  # the example before
    "flip": lambda x: x[::-1],  # as far from the end as the example is from the start
}
NOISES = ("global", "per_group")


def mixup(
    key: jax.Array, alpha: float, partner: Partner, image: jax.Array, label: jax.Array, *, is_folded: bool
) -> tuple[jax.Array, jax.Array]:
    """lam times each image and label plus 1 - lam times its partner's, with lam ~ Beta(alpha, alpha).

    With `is_folded` the larger of lam and 1 - lam is the example's own (big_vision).
    """
    lam = jax.random.beta(key, alpha, alpha)
    if is_folded:
        lam = jnp.maximum(lam, 1.0 - lam)
    return (
        lam * image + (1.0 - lam) * partner(image),
        lam * label + (1.0 - lam) * partner(label),
    )


def cutmix(
    key: jax.Array, alpha: float, partner: Partner, image: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images with one box of their partner's, labels weighted by the area that is each one's.

    The box has sides int(H * sqrt(1 - lam)) and int(W * sqrt(1 - lam)), odd ones one less, round a
    uniform centre, and is clipped to the image; lam ~ Beta(alpha, alpha) is then what the clipped box
    leaves, as in timm.
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
    image = jnp.where(box_HxW[None, :, :, None], partner(image), image)
    return image, lam * label + (1.0 - lam) * partner(label)


def check(settings: ClassificationSettings, batch_size: int) -> None:
    """Raises ConfigError for settings of mixing that do not exist or do not fit the batch size."""
    section = "objective.classification"
    lookup(PARTNERS, settings.mix_partner, f"{section}.mix_partner")
    lookup(dict.fromkeys(NOISES), settings.mix_noise, f"{section}.mix_noise")
    check_section(section, settings)
    if batch_size % settings.mix_groups:
        raise ConfigError(
            f"{section}.mix_groups={settings.mix_groups} does not divide data.batch_size={batch_size}"
        )


def mix(
    key: jax.Array, settings: ClassificationSettings, image: jax.Array, label: jax.Array, mask_B: jax.Array
) -> Mixed:
    """The batch without mixing, with mixup, with CutMix, or with one of the two drawn with equal chance.

    One draw for each group, or for all. An example mixed with one that is left out is left out too.
    """
    if settings.mixup_alpha == 0.0 and settings.cutmix_alpha == 0.0:
        return image, label, mask_B
    groups, is_global = settings.mix_groups, settings.mix_noise == "global"
    keys = key if is_global else jax.random.split(key, groups)

    def mix_group(key: jax.Array, image: jax.Array, label: jax.Array, mask: jax.Array) -> Mixed:
        return _mix_group(key, settings, image, label, mask)

    parts = tuple(x.reshape(groups, x.shape[0] // groups, *x.shape[1:]) for x in (image, label, mask_B))
    mixed = jax.vmap(mix_group, in_axes=(None if is_global else 0, 0, 0, 0))(keys, *parts)
    image, label, mask_B = (x.reshape(-1, *x.shape[2:]) for x in mixed)
    return image, label, mask_B


def _mix_group(
    key: jax.Array, settings: ClassificationSettings, image: jax.Array, label: jax.Array, mask: jax.Array
) -> Mixed:
    partner = PARTNERS[settings.mix_partner]
    key_choice, key = jax.random.split(key)

    def by_mixup() -> tuple[jax.Array, jax.Array]:
        return mixup(key, settings.mixup_alpha, partner, image, label, is_folded=settings.use_mixup_folding)

    def by_cutmix() -> tuple[jax.Array, jax.Array]:
        return cutmix(key, settings.cutmix_alpha, partner, image, label)

    if settings.mixup_alpha and settings.cutmix_alpha:
        image, label = jax.lax.cond(jax.random.bernoulli(key_choice), by_mixup, by_cutmix)
    else:
        image, label = by_mixup() if settings.mixup_alpha else by_cutmix()
    return image, label, mask & partner(mask)
