"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), on the device.

The original code of the recipes mixes on each device or in each process. Here the global batch is split into
mix_groups equal, consecutive parts, and partners are from the same part. All parts share one draw
(mix_noise="global", as in the mixup of big_vision), or each has one (mix_noise="per_group", as in timm and
torchvision).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

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


class Draw(NamedTuple):
    """How examples are mixed with their partners: inside a box as own * x + other * partner, outside as x.

    Arrays of one draw, or with an axis of draws in front.
    """

    own: jax.Array
    other: jax.Array
    rows_H: jax.Array  # bool: the rows of the box
    columns_W: jax.Array  # bool
    own_label: jax.Array  # the weight of the example's label; the partner's has 1 - own_label


def draw_mixup(key: jax.Array, alpha: float, height: int, width: int, *, is_folded: bool) -> Draw:
    """Weights lam of the example and 1 - lam of its partner, in all of the image, lam ~ Beta(alpha, alpha).

    With `is_folded` the larger of lam and 1 - lam weights the example, not its partner (big_vision).
    """
    lam = jax.random.beta(key, alpha, alpha)
    if is_folded:
        lam = jnp.maximum(lam, 1.0 - lam)
    return Draw(lam, 1.0 - lam, jnp.ones(height, bool), jnp.ones(width, bool), lam)


def draw_cutmix(key: jax.Array, alpha: float, height: int, width: int) -> Draw:
    """Weights that replace a box of the image by that of its partner.

    With lam ~ Beta(alpha, alpha) the box has sides int(H * sqrt(1 - lam)) and int(W * sqrt(1 - lam)), odd
    ones reduced by one, around a uniform centre. It is clipped to the image. As in timm, the weight of the
    example's label is then the area outside the clipped box.
    """
    key_lam, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - jax.random.beta(key_lam, alpha, alpha))

    def is_inside(key: jax.Array, length: int) -> jax.Array:
        half = jnp.floor(length * side).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, length)
        at = jnp.arange(length)
        return (at >= centre - half) & (at < centre + half)

    rows_H, columns_W = is_inside(key_y, height), is_inside(key_x, width)
    kept = 1.0 - (rows_H[:, None] & columns_W[None, :]).mean()
    return Draw(jnp.zeros(()), jnp.ones(()), rows_H, columns_W, kept)


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
    key: jax.Array,
    settings: ClassificationSettings,
    image: jax.Array,
    label: jax.Array,
    mask_B: jax.Array,
    *,
    normalize: Callable[[jax.Array], jax.Array],
) -> Mixed:
    """(normalised image, label, mask) without mixing, with mixup, CutMix, or one of them at equal odds.

    Each group has one draw, or all share one. An example is masked if its partner is. Partners are taken
    from the images before `normalize`, which makes 8-bit images float32: moving these costs a quarter.
    """
    if settings.mixup_alpha == 0.0 and settings.cutmix_alpha == 0.0:
        return normalize(image), label, mask_B
    keys = key[None] if settings.mix_noise == "global" else jax.random.split(key, settings.mix_groups)
    draws = jax.vmap(lambda key: _draw(key, settings, *image.shape[1:3]))(keys)
    draw = Draw(*(jnp.repeat(x, len(mask_B) // len(keys), axis=0) for x in draws))  # of each example

    def of_partners(x: jax.Array) -> jax.Array:
        groups = x.reshape(settings.mix_groups, -1, *x.shape[1:])
        return jax.vmap(PARTNERS[settings.mix_partner])(groups).reshape(x.shape)

    float_BxHxWxC = normalize(image)
    own, other = draw.own[:, None, None, None], draw.other[:, None, None, None]
    mixed_BxHxWxC = own * float_BxHxWxC + other * normalize(of_partners(image))
    if settings.cutmix_alpha:
        box_BxHxW = draw.rows_H[:, :, None] & draw.columns_W[:, None, :]
        mixed_BxHxWxC = jnp.where(box_BxHxW[..., None], mixed_BxHxWxC, float_BxHxWxC)
    own_Bx1 = draw.own_label[:, None]
    label = own_Bx1 * label + (1.0 - own_Bx1) * of_partners(label)
    return mixed_BxHxWxC, label, mask_B & of_partners(mask_B)


def _draw(key: jax.Array, settings: ClassificationSettings, height: int, width: int) -> Draw:
    key_choice, key = jax.random.split(key)
    folded, draws = settings.use_mixup_folding, []
    if settings.mixup_alpha:
        draws.append(draw_mixup(key, settings.mixup_alpha, height, width, is_folded=folded))
    if settings.cutmix_alpha:
        draws.append(draw_cutmix(key, settings.cutmix_alpha, height, width))
    if len(draws) == 1:
        return draws[0]
    return jax.tree.map(functools.partial(jnp.where, jax.random.bernoulli(key_choice)), *draws)
