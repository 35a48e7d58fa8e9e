"""Checks of the settings of self-distillation that depend on each other."""

import math

import jax

from vit_registers.config import Mesh, Model, SelfDistillationSettings, lookup
from vit_registers.errors import ConfigError

MASKS = ("exact", "released")
TARGETS = ("centring", "sinkhorn")
_SECTION = "objective.self_distillation"


def check_distillation(
    settings: SelfDistillationSettings, model: Model, mesh: Mesh, *, batch: int, size: tuple[int, int]
) -> None:
    """Raises ConfigError, one line, for settings with which training is not possible.

    `batch` is the number of images of a step, and `size` the height and width of the global crops.
    """
    lookup(dict.fromkeys(MASKS), settings.masks, f"{_SECTION}.masks")
    lookup(dict.fromkeys(TARGETS), settings.targets, f"{_SECTION}.targets")
    if not model.use_cls:
        raise ConfigError(f"{_SECTION} compares cls tokens: set model.use_cls=True")
    if model.use_norm_after_pool:
        raise ConfigError(f"{_SECTION} uses tokens after the final norm: set model.use_norm_after_pool=False")
    if not model.use_mask_token and settings.mask_share and settings.ibot_weight:
        raise ConfigError(
            f"{_SECTION}.mask_share={settings.mask_share} requires a mask token: set "
            "model.use_mask_token=True, or mask_share=0"
        )
    if settings.local_size % model.patch_size and settings.num_locals:
        near = max(round(settings.local_size / model.patch_size), 1) * model.patch_size
        raise ConfigError(
            f"{_SECTION}.local_size={settings.local_size} is not a multiple of model.patch_size="
            f"{model.patch_size}: such as {near}"
        )
    names = ("num_prototypes", *(["ibot_prototypes"] if settings.has_ibot_head else []))
    tensor = _tensor_devices(mesh)
    for name in names:
        if (number := getattr(settings, name)) % tensor:
            raise ConfigError(
                f"{_SECTION}.{name}={number} does not divide over mesh.tensor={tensor}: set it to a multiple "
                f"of {tensor}, such as {math.ceil(number / tensor) * tensor}"
            )
    for name in ("mask_group", *(["koleo_group"] if settings.koleo_weight else [])):
        group = getattr(settings, name)
        if batch % group:
            raise ConfigError(
                f"{_SECTION}.{name}={group} does not divide data.batch_size={batch}: set it to "
                f"{_largest_divisor(batch, group)}, or change the batch"
            )
    if settings.koleo_group < 2 and settings.koleo_weight:
        raise ConfigError(f"{_SECTION}.koleo_group={settings.koleo_group}: must be >= 2, or koleo_weight=0")
    for name in ("mask_ratios", "temperatures"):
        low, high = getattr(settings, name)
        if low > high:
            raise ConfigError(f"{_SECTION}.{name}=({low}, {high}): the first must not be above the second")
    rows, columns = (side // model.patch_size for side in size)
    if min(rows, columns) < 2 and settings.mask_share:
        raise ConfigError(f"{_SECTION}: a grid of {rows} x {columns} patches is too small for masks")


def _tensor_devices(mesh: Mesh) -> int:
    """The size of the mesh's tensor axis, which may be -1: the remaining devices."""
    if mesh.tensor != -1:
        return mesh.tensor
    return max(jax.device_count() // max(mesh.data * mesh.fsdp, 1), 1)


def _largest_divisor(number: int, most: int) -> int:
    return next(i for i in range(min(number, most), 0, -1) if number % i == 0)
