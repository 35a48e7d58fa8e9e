"""The parameters of one model that the training of another one can start from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_registers.config import TRANSFER, InitFrom, Model, lookup, may_change
from vit_registers.errors import ConfigError
from vit_registers.interop.channels import adapt_kernel, can_adapt
from vit_registers.interop.reading import HEAD, OPTIONAL, PATCH_KERNEL
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import Leaf, leaves_of, path_text
from vit_registers.models.positions import position_rule, positions_in_evaluation
from vit_registers.models.resampling import resample
from vit_registers.models.tokens import patch_grid
from vit_registers.models.vit import token_layout

REGISTERS = ("same", "keep", "fresh")  # init_from.registers
SUMMARIES = ("same", "fresh")  # init_from.summaries

_MAY_START_FRESH = (*HEAD, "registers", "summaries", "extra_pos", "mask_token")


def taken_leaves(
    source: Model, params: Mapping[str, Any], target: Model, settings: InitFrom
) -> dict[Leaf, np.ndarray]:
    """The leaves of `target` that start from `params`; all others start from their initializers.

    Registers, summaries and their positions start from their initializers if `source` has none or `settings`
    say so; so does the head unless `settings.keep_head`. A leaf that starts from its initializer in part is a
    masked array, masked there. Learned positions are resampled to the image size of `target`, and the patch
    kernel is summed or repeated for its channels. Raises ConfigError with all other differences between the
    two networks.
    """
    lookup(dict.fromkeys(REGISTERS), settings.registers, "init_from.registers")
    lookup(dict.fromkeys(SUMMARIES), settings.summaries, "init_from.summaries")
    _check_same_network(source, target, settings)
    there, here = leaves_of(params), leaves_of(abstract_model(target)[1])
    table = ("pos_embed",)
    if table in there and table in here:
        old, new = (patch_grid(model.image_size, model.patch_size) for model in (source, target))
        there[table] = np.asarray(resample(there[table][0], old, new, target.position_resampling))[None]
    if PATCH_KERNEL in there:
        there[PATCH_KERNEL] = adapt_kernel(np.asarray(there[PATCH_KERNEL]), target.channels)
    _select_extra_tokens(there, source, target, settings)
    problems, taken = [], {}
    for leaf, shape in ((leaf, value.shape) for leaf, value in here.items()):
        if leaf[0] in HEAD and not settings.keep_head:
            continue
        if leaf in there and there[leaf].shape == shape:
            taken[leaf] = there[leaf]
        elif leaf in there:
            problems.append(f"{path_text(leaf)} is {there[leaf].shape} there and {shape} here")
        elif leaf[0] not in _MAY_START_FRESH or (settings.keep_head and leaf[0] in HEAD):
            problems.append(f"{path_text(leaf)} {shape} is not there")
    problems += [
        f"{path_text(leaf)} {there[leaf].shape} has no place here"
        for leaf in there
        if leaf not in here and (leaf[0] not in OPTIONAL or (settings.keep_head and leaf[0] in HEAD))
    ]
    if problems:
        raise ConfigError(f"init_from.path={settings.path} does not fit the model: {'; '.join(problems)}")
    return taken


def _select_extra_tokens(there: dict[Leaf, Any], source: Model, target: Model, settings: InitFrom) -> None:
    """Replaces registers, summaries and their positions in `there` by those that `target` keeps."""
    before, after = _num_extra(source), _num_extra(target)
    how = (settings.registers, settings.summaries)
    kept = tuple(0 if how[i] == "fresh" else min(before[i], after[i]) for i in range(2))
    if before == after == kept:
        return
    # For each leaf: its size, and for each kind the first token there and here and the number of kept ones.
    runs = {
        ("registers",): (after[0], [(0, 0, kept[0])]),
        ("summaries",): (after[1], [(0, 0, kept[1])]),
        ("extra_pos",): (sum(after), [(0, 0, kept[0]), (before[0], after[0], kept[1])]),
    }
    for leaf in runs.keys() & there.keys():
        size, pieces = runs[leaf]
        value_1xExD = np.asarray(there[leaf])
        zeros_1xExD = np.zeros((1, size, value_1xExD.shape[-1]), value_1xExD.dtype)
        part_1xExD = np.ma.MaskedArray(zeros_1xExD, mask=True)
        for old, new, number in pieces:
            part_1xExD[:, new : new + number] = value_1xExD[:, old : old + number]
        if part_1xExD.mask.all():
            del there[leaf]
        else:
            there[leaf] = part_1xExD if part_1xExD.mask.any() else part_1xExD.data


def _num_extra(model: Model) -> tuple[int, int]:
    layout = token_layout(model)
    return layout.num_registers, layout.num_summaries


def _check_same_network(source: Model, target: Model, settings: InitFrom) -> None:
    there, here = (dataclasses.asdict(model) | dataclasses.asdict(dims(model)) for model in (source, target))
    for settings_of, model in ((there, source), (here, target)):
        settings_of["positions"] = positions_in_evaluation(model.positions)
    free = may_change(TRANSFER)
    differing = [
        f"model.{name} is {there[name]!r} there and {here[name]!r} here"
        for name in here
        if f"model.{name}" not in free
        and there[name] != here[name]
        and not (name == "channels" and can_adapt(source.channels, target.channels))
    ]
    if (source.layer_scale_init is None) != (target.layer_scale_init is None):
        differing.append(
            f"model.layer_scale_init is {source.layer_scale_init} there and {target.layer_scale_init} here"
        )
    (registers, summaries), (new_registers, new_summaries) = (_num_extra(model) for model in (source, target))
    has_positions = source.extra_positions == "learned"
    has_registers = has_positions or source.registers == "learned"
    if settings.registers == "same" and has_registers and registers not in (0, new_registers):
        differing.append(
            f"model.num_registers is {registers} there and {new_registers} here (set init_from.registers to "
            "keep or fresh)"
        )
    has_summaries = summaries and (has_positions or source.summaries == "learned")
    is_other_grid = (source.summary_factor, summaries) != (target.summary_factor, new_summaries)
    if settings.summaries == "same" and has_summaries and is_other_grid:
        differing.append(
            f"model.summary_factor={source.summary_factor} gives {summaries} summaries there and "
            f"{target.summary_factor} gives {new_summaries} here (set init_from.summaries to fresh)"
        )
    rule = position_rule(source.positions)
    is_for_one_size = not rule.is_learned and (rule.rotation is None or rule.table is not None)
    if is_for_one_size and source.image_size != target.image_size:
        grids = [patch_grid(model.image_size, model.patch_size) for model in (source, target)]
        if target.position_resampling != "none" and grids[0] != grids[1]:
            differing.append(
                f"model.image_size is {source.image_size} there and {target.image_size} here, and fixed "
                "positions belong to the image size of training: set model.position_resampling='none'"
            )
    if differing:
        raise ConfigError(
            f"the weights to start from belong to another network: {'; '.join(differing)}. "
            "the run card transfer takes these settings from the weights"
        )
