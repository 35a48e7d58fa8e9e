"""From the parameters of one model to those that another, to be trained, can start from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_registers.config import TRANSFER, InitFrom, Model, may_change
from vit_registers.errors import ConfigError
from vit_registers.interop.convert import abstract_params, leaves_of
from vit_registers.interop.entries import Leaf, path_text
from vit_registers.models.blocks import dims
from vit_registers.models.positions import POSITIONS
from vit_registers.models.resampling import resample
from vit_registers.models.vit import patch_grid

_HEAD = ("head", "pre_logits", "map_pool")
_MAY_START_FRESH = (*_HEAD, "registers", "summaries", "extra_pos", "mask_token")
_MAY_BE_LEFT = (*_HEAD, "mask_token")


def taken_leaves(
    source: Model, params: Mapping[str, Any], target: Model, settings: InitFrom
) -> dict[Leaf, np.ndarray]:
    """The leaves of `target` that start from `params`; all others start from their initializers.

    Fresh are registers, summaries and their positions where `source` has none, and the head unless
    `settings.keep_head`. Learned positions are resampled to the image size of `target`. Raises ConfigError
    where the models are not the same network otherwise, with all differences listed.
    """
    _check_same_network(source, target)
    there, here = leaves_of(params), leaves_of(abstract_params(target)[1])
    table = ("pos_embed",)
    if table in there and table in here:
        grids = [patch_grid(model.image_size, model.patch_size) for model in (source, target)]
        there[table] = np.asarray(resample(there[table][0], *grids, target.position_resampling))[None]
    problems, taken = [], {}
    for leaf, shape in ((leaf, value.shape) for leaf, value in here.items()):
        if leaf[0] in _HEAD and not settings.keep_head:
            continue
        if leaf in there and there[leaf].shape == shape:
            taken[leaf] = there[leaf]
        elif leaf in there:
            problems.append(f"{path_text(leaf)} is {there[leaf].shape} there and {shape} here")
        elif leaf[0] not in _MAY_START_FRESH or (settings.keep_head and leaf[0] in _HEAD):
            problems.append(f"{path_text(leaf)} {shape} is not there")
    problems += [
        f"{path_text(leaf)} {there[leaf].shape} has no place here"
        for leaf in there
        if leaf not in here and (leaf[0] not in _MAY_BE_LEFT or (settings.keep_head and leaf[0] in _HEAD))
    ]
    if problems:
        raise ConfigError(f"init_from.path={settings.path} does not fit the model: {'; '.join(problems)}")
    return taken


def _check_same_network(source: Model, target: Model) -> None:
    there, here = (dataclasses.asdict(model) | dataclasses.asdict(dims(model)) for model in (source, target))
    free = may_change(TRANSFER)
    differing = [
        f"model.{name} is {there[name]!r} there and {here[name]!r} here"
        for name in here
        if f"model.{name}" not in free and there[name] != here[name]
    ]
    if (source.layer_scale_init is None) != (target.layer_scale_init is None):
        differing.append(
            f"model.layer_scale_init is {source.layer_scale_init} there and {target.layer_scale_init} here"
        )
    if not POSITIONS[source.positions].is_learned and source.image_size != target.image_size:
        grids = [patch_grid(model.image_size, model.patch_size) for model in (source, target)]
        if target.position_resampling != "none" and grids[0] != grids[1]:
            differing.append(
                f"model.image_size is {source.image_size} there and {target.image_size} here, and fixed "
                "positions are those of the size of training: set model.position_resampling='none'"
            )
    if differing:
        raise ConfigError(
            f"the weights to start from are those of another network: {'; '.join(differing)}. "
            "configs/transfer.py takes these settings from the weights"
        )
