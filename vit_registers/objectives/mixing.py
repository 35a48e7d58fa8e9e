"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), on the device.

The original code of the recipes mixes on each device or in each process. Here the global batch is split into
mix_groups equal, consecutive parts, and partners are from the same part. All parts share one draw
(mix_noise="global", as in the mixup of big_vision), or each has one (mix_noise="per_group", as in timm and
torchvision).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_registers.config import ClassificationSettings, check_section, lookup
from vit_registers.errors import ConfigError

Mixed = tuple[jax.Array, jax.Array, jax.Array]  # image_BxHxWxC, label_BxY, mask_B
Partner = Callable[[jax.Array], jax.Array]  # x -> the x of the partner of each example

PARTNERS: dict[str, Partner] = {
    "roll": lambda x: jnp.roll(x, 1, axis=0),  # the previous example
    "flip": lambda x: x[::-1],  # the example at the mirrored index
}
NOISES = ("global", "per_group")


def mixup(
    key: jax.Array, alpha: float, partner: Partner, image: jax.Array, label: jax.Array, *, is_folded: bool
) -> tuple[jax.Array, jax.Array]:
    """(image, label) times lam plus those of the partner times 1 - lam, with lam ~ Beta(alpha, alpha).

    With `is_folded` the larger of lam and 1 - lam weights the example, not its partner (big_vision).
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
    """Images with one box from their partner, and labels weighted by the areas of both.

    With lam ~ Beta(alpha, alpha) the box has sides int(H * sqrt(1 - lam)) and int(W * sqrt(1 - lam)), odd
    ones reduced by one, around a uniform centre. It is clipped to the image. As in timm, the weight of the
    label is then the area outside the clipped box.
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


def check_mixing(settings: ClassificationSettings, batch_size: int) -> None:
    """Raises ConfigError for unknown settings of mixing, and for those that do not fit the batch size."""
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
    """(image, label, mask) without mixing, with mixup, with CutMix, or with one of them at equal odds.

    Each group has one draw, or all share one. An example is masked if its partner is.
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
